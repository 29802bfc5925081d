"""fastopt's optimizers as `torch.optim.Optimizer`: ``fo.torch.AdamW(model.parameters(), lr=1e-3)``.

For each class of `fastopt.optim` that takes parameters there is one of the same name and arguments here. It updates
the memory of torch's tensors, on the CPU or on a CUDA device, in one native call, reads their ``.grad``, and does what
torch's tools expect: groups, schedules, hooks, closures, `torch.amp.GradScaler`, state dictionaries of torch's class of
the same name.

Needs torch; ``import fastopt`` does not load this module.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fastopt import optim
from fastopt.interop import as_tensors

try:
    import torch
except ImportError as error:
    raise ImportError(f"fastopt.torch needs torch, which cannot be imported ({error})") from error

#: Settings of torch's groups that change no result here, so that its classes can go on from our state.
_FLAGS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


class TorchOptimizer(torch.optim.Optimizer):
    """Base class of this module's optimizers: torch's bookkeeping around an optimizer of `fastopt.optim`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs or of groups
        As torch takes them: float32, float64, float16 or bfloat16, all on the CPU or all on one CUDA device.
    *args, **kwargs
        The settings of `optimizer_class`. ``foreach``, ``fused``, ``capturable=False`` and ``differentiable=False``
        are accepted for torch's sake and ignored.

    Attributes
    ----------
    inner : fastopt.optim.Optimizer
        The optimizer that does the work. Its groups are this one's; what torch has no words for is reached
        through it, as ``inner.max_norm``, ``inner.grad_norm`` or ``inner.swap_ema()``.

    Raises
    ------
    TypeError, ValueError
        A parameter cannot be updated in place, or a setting is out of range.
    """

    optimizer_class: ClassVar[type[optim.Optimizer]]
    inner: optim.Optimizer

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        for flag in ("capturable", "differentiable"):
            if kwargs.pop(flag, False):
                raise ValueError(f"{type(self).__name__}: {flag}=True is not supported")
        self._arguments = (args, kwargs)
        settings = self.optimizer_class([{"params": []}], *args, **kwargs).defaults
        super().__init__(params, {**_FLAGS, **settings})
        del self._arguments

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it lacks are the optimizer's defaults.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing is added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        if "inner" in self.__dict__:
            self.inner.add_param_group(group)
        else:
            args, kwargs = self._arguments
            self.inner = self.optimizer_class([group], *args, **kwargs)
        # One dict for both: a schedule that writes to torch's group changes the next step.
        self.param_groups.append(self.inner.param_groups[-1])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Clears the gradients, evaluates the model, runs backward and returns the loss.

        Returns
        -------
        The closure's loss, None without a closure.

        Raises
        ------
        TypeError, ValueError
            A gradient cannot be used, or a setting went out of range; nothing is changed then.
        """

        def evaluate() -> Any:
            with torch.enable_grad():
                return None if closure is None else closure()

        if issubclass(self.optimizer_class, optim.LBFGS):
            if closure is None:
                raise TypeError("LBFGS: step needs a closure, got None")
            # Detached, as L-BFGS reads the loss as a number.
            loss = self.inner.step(lambda: torch.as_tensor(evaluate()).detach())  # type: ignore[attr-defined]
        else:
            loss = evaluate()
            self.inner.step(self._gradients())  # type: ignore[attr-defined]
        # autograd is told that saved values are gone, as after any operation in place.
        torch.autograd.graph.increment_version([p for p in self._parameters() if p.grad is not None])
        return loss

    def _gradients(self) -> list[Any] | None:
        """Return sparse gradients as pairs of indices and rows; None where the parameters' are read as they are."""
        if not issubclass(self.optimizer_class, optim.SparseAdam):
            return None
        grads = [p.grad for p in self._parameters()]
        if dense := [
            i for i, g in enumerate(grads) if g is not None and (not g.is_sparse or g.sparse_dim() != 1)
        ]:
            raise TypeError(f"SparseAdam: gradient {dense[0]} is not sparse along its first axis alone")
        summed = [None if g is None else g.coalesce() for g in grads]
        return [None if g is None else (g.indices()[0], g.values()) for g in summed]

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    # State ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:
        """The state of each parameter that has any, as tensors that share memory with it where they are arrays.

        The dict is made anew each time; assigning another one replaces the state.
        """
        found = self.__dict__.get("inner")
        entries = {} if found is None else found.state
        params = self._parameters() if entries else []
        return defaultdict(dict, {params[i]: as_tensors(entry) for i, entry in entries.items()})

    @state.setter
    def state(self, state: Mapping[torch.Tensor, Any]) -> None:
        if "inner" not in self.__dict__:  # torch's constructor, which has none yet
            return
        entries = {i: state[p] for i, p in enumerate(self._parameters()) if p in state}
        groups = self.inner.state_dict()["param_groups"]
        self.inner.load_state_dict({"state": entries, "param_groups": groups})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned: of this class, of torch's class of the same name or of fastopt.optim's.

        Raises
        ------
        TypeError, ValueError
            It is of other groups, shapes or state; nothing is changed then.
        """
        # torch's own method would round a bfloat16 parameter's float32 state to bfloat16.
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self.inner.load_state_dict(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "inner": self.inner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "param_groups": list(state["inner"].param_groups)})


def _method(name: str, original: Any) -> Any:
    """Return a method that calls the inner optimizer's of that name."""

    def delegate(self: TorchOptimizer, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    delegate.__name__, delegate.__doc__ = name, original.__doc__
    return delegate


#: Methods of some optimizers that programs call on the optimizer itself.
_PASSED_ON = ("swap_ema", "train", "eval", "update_hessian")


def _adapted(optimizer_class: type[optim.Optimizer]) -> type[TorchOptimizer]:
    """Make this module's class for one of `fastopt.optim`."""
    name = optimizer_class.__name__
    methods = {m: _method(m, getattr(optimizer_class, m)) for m in _PASSED_ON if hasattr(optimizer_class, m)}
    documentation = (inspect.getdoc(optimizer_class) or "").partition("\n")
    members = {
        "__doc__": f"{documentation[0]}\n\n`fastopt.optim.{name}` as a torch.optim.Optimizer.\n{documentation[2]}",
        "__module__": __name__,
        "__signature__": inspect.signature(optimizer_class),
        "optimizer_class": optimizer_class,
    }
    return type(name, (TorchOptimizer,), members | methods)


def _takes_parameters(value: Any) -> bool:
    """Whether it is a class whose first argument is the parameters; wrappers take an optimizer."""
    if not isinstance(value, type) or not issubclass(value, optim.Optimizer) or value is optim.Optimizer:
        return False
    return next(iter(inspect.signature(value).parameters), None) == "params"


_CLASSES = {name: _adapted(c) for name in optim.__all__ if _takes_parameters(c := getattr(optim, name))}
globals().update(_CLASSES)

__all__ = ["TorchOptimizer", *_CLASSES]

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[TorchOptimizer]: ...
