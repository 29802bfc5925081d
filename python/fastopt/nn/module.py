"""Module: parameters, buffers and other modules under one name each, and a `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from fastopt._arrays import assign
from fastopt._device import moved, on_device, wanted_device
from fastopt._dtypes import dtype_of, float16, float32, float64, is_floating
from fastopt.tensor import Tensor, to_array, wrap


def is_data(x: Any) -> bool:
    """Whether `x` is an array that a module takes in place of a Tensor: of NumPy, or on a CUDA device."""
    return isinstance(x, np.ndarray) or (hasattr(x, "shape") and not isinstance(x, Tensor) and on_device(x))


class Parameter(Tensor):
    """A Tensor that a `Module` finds when it is set as an attribute.

    Parameters
    ----------
    data : array, Tensor, number or nested list
        An array is used as it is, without a copy: training changes it.
    requires_grad : bool
        Whether it is trained.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Keys(NamedTuple):
    """What `Module.load_state_dict` returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of every layer, loss and network.

    A subclass sets `Parameter` and `Module` attributes and defines `forward`. Calling the module calls that,
    with NumPy arrays among the arguments wrapped (not copied) as Tensors.
    """

    training = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = tuple([wrap(a) if is_data(a) else a for a in args])
        if kwargs:
            kwargs = {k: wrap(a) if is_data(a) else a for k, a in kwargs.items()}
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}: forward is not defined")

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if isinstance(own.get(name), Parameter) and not (value is None or isinstance(value, Parameter)):
            kind = type(value).__name__
            raise TypeError(
                f"{type(self).__name__}: {name} is a Parameter and cannot become {kind}: use .data"
            )
        if name in own.get("_buffers", ()) and not (value is None or isinstance(value, Tensor)):
            value = wrap(to_array(value, name))
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self.__dict__.get("_buffers", {}).pop(name, None)

    # ---------------------------------------------------------------------------------- what is in it

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Set a Parameter, or None for one that is left out, under `name`."""
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"register_parameter: {name} must be a Parameter or None, got {type(param).__name__}"
            )
        setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Set a Tensor that is state but not trained; `persistent` ones are part of `state_dict`."""
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        setattr(self, name, tensor)

    def register_module(self, name: str, module: Module | None) -> None:
        """Set a module under `name`; the same as setting the attribute."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"register_module: {name} must be a Module or None, got {type(module).__name__}")
        if not name or "." in name or hasattr(type(self), name):
            raise ValueError(f"register_module: {name!r} is no name for a module: empty, dotted or taken")
        setattr(self, name, module)

    add_module = register_module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly in this one, with their names."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules directly in this one."""
        for _, module in self.named_children():
            yield module

    def named_modules(
        self, prefix: str = "", *, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all modules below it, each once, with their paths."""
        seen: set[int] = set()
        stack = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if remove_duplicate and id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            stack.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all modules below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters of this module and, with `recurse`, of those below, each once, with their paths."""
        yield from self._named(Parameter, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters of this module and, with `recurse`, of those below, each once."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers of this module and, with `recurse`, of those below, each once, with their paths."""
        yield from self._named(None, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers of this module and, with `recurse`, of those below, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def _named(
        self, kind: type[Parameter] | None, prefix: str, recurse: bool, once: bool
    ) -> Iterator[tuple[str, Any]]:
        """The parameters, or with kind None the buffers, with their paths."""
        seen: set[int] = set()
        places = self.named_modules(prefix, remove_duplicate=once) if recurse else [(prefix, self)]
        for path, module in places:
            names = module.__dict__.get("_buffers", ()) if kind is None else module.__dict__
            for name in names:
                value = module.__dict__[name]
                if isinstance(value, kind or Tensor) and not (once and id(value) in seen):
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    # ------------------------------------------------------------------------------------------ state

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for path, module in self.named_modules(remove_duplicate=False):
            buffers = module.__dict__.get("_buffers", {})
            names = [n for n, v in module.__dict__.items() if isinstance(v, Parameter)]
            names += [n for n, persistent in buffers.items() if persistent and module.__dict__[n] is not None]
            for name in names:
                state[f"{path}.{name}" if path else name] = module.__dict__[name]
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters and persistent buffers by path, as Tensors that share their memory."""
        return {key: value.detach() for key, value in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Keys:
        """Write the values of `state_dict` into the parameters and buffers that are there.

        Parameters
        ----------
        state_dict : mapping of str to array or Tensor
        strict : bool
            Refuse missing and unexpected keys; without it they are left out and returned.

        Returns
        -------
        Keys
            The missing and the unexpected keys.

        Raises
        ------
        ValueError
            Keys or shapes do not fit; all of them are named, and nothing was changed.
        """
        own = self._state()
        keys = Keys([k for k in own if k not in state_dict], [k for k in state_dict if k not in own])
        values = {k: to_array(state_dict[k], f"state_dict[{k!r}]") for k in own if k in state_dict}
        problems = []
        if strict and keys.missing_keys:
            problems.append(f"missing keys {', '.join(keys.missing_keys)}")
        if strict and keys.unexpected_keys:
            problems.append(f"unexpected keys {', '.join(keys.unexpected_keys)}")
        for key, value in values.items():
            if value.shape != own[key].shape:
                problems.append(f"{key} has shape {value.shape}, the module's has {own[key].shape}")
            elif not np.can_cast(value.dtype, own[key].dtype, "same_kind"):
                problems.append(f"{key} is {value.dtype}, the module's is {own[key].dtype}")
        if problems:
            raise ValueError(f"load_state_dict: {type(self).__name__}: " + "; ".join(problems))
        for key, value in values.items():
            assign(own[key].data, value)
        return keys

    # ------------------------------------------------------------------------------------ all at once

    def train(self, mode: bool = True) -> Self:
        """Set `training` here and below: what `Dropout` and `BatchNorm1d` go by."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """The same as ``train(False)``."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for parameter in self.parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters, or none of them."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every module below and, last, on this one."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def to(self, dtype: Any) -> Self:
        """Convert all floating-point parameters and buffers, or move all to a device: ``"cpu"``, ``"cuda"``.

        Their arrays become new ones: make the optimizer afterwards.
        """
        place = wanted_device(dtype)
        if place is not None:
            for value in self._tensors():
                value._data = moved(value._data, place)
                value._grad = None if value._grad is None else value._grad.to(place)
            return self
        wanted = dtype_of(dtype)
        if not is_floating(wanted):
            raise TypeError(f"to: a module's dtype must be floating-point, got {wanted}")
        for value in self._tensors():
            if is_floating(value.dtype):
                value._data = value._data.astype(wanted, copy=False)
                value._grad = None if value._grad is None else value._grad.to(wanted)
        return self

    def _tensors(self) -> Iterator[Tensor]:
        """The Tensors of this module and those below, in whatever attribute."""
        for _, module in self.named_modules():
            yield from [value for value in module.__dict__.values() if isinstance(value, Tensor)]

    def cuda(self, device: int | None = None) -> Self:
        """The same as ``to("cuda")``, or ``to(f"cuda:{device}")``."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Self:
        """The same as ``to("cpu")``."""
        return self.to("cpu")

    def half(self) -> Self:
        """The same as ``to(float16)``."""
        return self.to(float16)

    def float(self) -> Self:
        """The same as ``to(float32)``."""
        return self.to(float32)

    def double(self) -> Self:
        """The same as ``to(float64)``."""
        return self.to(float64)

    def extra_repr(self) -> str:
        """What stands between the parentheses of `repr`."""
        return ""

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        lines = [f"({key}): " + repr(child).replace("\n", "\n  ") for key, child in self.named_children()]
        if not lines:
            return f"{name}({extra})"
        body = "\n  ".join(([extra] if extra else []) + lines)
        return f"{name}(\n  {body}\n)"
