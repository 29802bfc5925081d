"""Optimizers around another optimizer: Lookahead and sharpness-aware minimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt import _ops
from fastopt._arrays import Dense, DeviceDense, as_view, assign, zeros_for
from fastopt.optim.base import POSITIVE, UNIT, Optimizer, number
from fastopt.optim.vectors import add_scaled, unwrapped

_TINY = 1e-12  # beside the norm that a gradient is divided by


class Wrapper:
    """What wrappers share: parameters, groups, gradients and state are those of the optimizer inside.

    Schedules, `zero_grad`, `add_param_group` and whatever else is asked for work on that one.

    Parameters
    ----------
    optimizer : Optimizer or Wrapper

    Attributes
    ----------
    optimizer : Optimizer or Wrapper
        As given.
    """

    #: Under which key the state dictionary has what the wrapper itself keeps.
    key = ""

    def __init__(self, optimizer: Any) -> None:
        if not isinstance(optimizer, Optimizer | Wrapper):
            raise TypeError(
                f"{type(self).__name__}: optimizer is {type(optimizer).__name__}, expected a fastopt optimizer"
            )
        self.optimizer: Any = optimizer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "optimizer":  # asked for while a copy has no attributes yet
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    @property
    def base(self) -> Optimizer:
        """The innermost optimizer."""
        inner = self.optimizer
        base: Optimizer = inner.base if isinstance(inner, Wrapper) else inner
        return base

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer inside."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's dictionary with an entry for the wrapper itself; arrays are copies."""
        return {**self.optimizer.state_dict(), self.key: self._own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state, copying into the existing arrays.

        Raises
        ------
        TypeError, ValueError
            It is of other groups, shapes or state, or of no such wrapper; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get(self.key), Mapping):
            raise TypeError(
                f"load_state_dict: expected a dict with {self.key!r}, the state of {type(self).__name__}"
            )
        own = self._checked_state(state_dict[self.key])
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != self.key})
        self._load_own(own)

    def _own_state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _checked_state(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return an entry that `_own_state` made, or raise."""
        raise NotImplementedError

    def _load_own(self, own: dict[str, Any]) -> None:
        raise NotImplementedError

    def _require(self, key: str, value: Any, holds: bool, text: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__}: {key} must be {text}, got {value}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"


class Lookahead(Wrapper):
    r"""Lookahead: every k steps of an optimizer the weights go back part of the way.

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \quad \theta \leftarrow \phi

    where :math:`\theta` are the parameters and :math:`\phi` slow weights that start as a copy of them. The optimizer's
    own state goes on as it is.

    Parameters
    ----------
    optimizer : Optimizer or Wrapper
        Takes the steps.
    k : int
        Steps between two updates of the slow weights.
    alpha : float
        How far these go, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        `optimizer` is none of fastopt's, or a setting is out of range.

    Notes
    -----
    When to use: around any optimizer whose weights jitter, such as one with a large learning rate: one copy of the
    weights and nearly no time. The defaults rarely need a change.

    References
    ----------
    Zhang, Lucas, Hinton and Ba, Lookahead Optimizer: k steps forward, 1 step back, NeurIPS 2019.
    """

    key = "lookahead"

    def __init__(self, optimizer: Any, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(optimizer)
        self._require("k", k, isinstance(k, int) and k >= 1, "an integer of at least 1")
        self._require("alpha", alpha, UNIT.holds(number("Lookahead", "alpha", alpha)), f"in {UNIT.text}")
        self.k = k
        self.alpha = alpha
        self._count = 0
        self._slow: list[Any] = []
        self._follow()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer; its slow weights start as they are now."""
        self.optimizer.add_param_group(param_group)
        self._follow()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step as the optimizer inside does, with its arguments and result; each k-th time update the slow weights."""
        result = self.optimizer.step(*args, **kwargs)
        self._follow()
        self._count += 1
        if self._count % self.k == 0:
            for dense, slow in zip(self.base._dense, self._slow, strict=True):
                ahead = dense.source.astype(slow.dtype) - slow
                add_scaled(float(self.alpha), ahead, slow)
                assign(dense.source, slow)
        return result

    def _follow(self) -> None:
        """Start slow weights of parameters that have none."""
        for dense in self.base._dense[len(self._slow) :]:
            slow = _like(dense)
            assign(slow, dense.source)
            self._slow.append(slow)

    def _own_state(self) -> dict[str, Any]:
        slow = [unwrapped(s.copy()) for s in self._slow]
        return {"k": self.k, "alpha": self.alpha, "step": self._count, "slow": slow}

    def _checked_state(self, own: Mapping[str, Any]) -> dict[str, Any]:
        saved = [as_view(s, f"load_state_dict: slow[{i}]") for i, s in enumerate(own["slow"])]
        ours, theirs = ([tuple(s.shape) for s in arrays] for arrays in (self._slow, saved))
        if ours != theirs:
            raise ValueError(f"load_state_dict: slow has shapes {theirs}, the parameters have {ours}")
        return {**own, "slow": saved}

    def _load_own(self, own: dict[str, Any]) -> None:
        for slow, saved in zip(self._slow, own["slow"], strict=True):
            assign(slow, saved)
        self.k, self.alpha, self._count = int(own["k"]), float(own["alpha"]), int(own["step"])


class SAM(Wrapper):
    r"""Sharpness-aware minimisation: a step by the gradient where the loss near the parameters is highest.

    .. math:: \epsilon = \rho \frac{g}{\lVert g \rVert}, \qquad
              \epsilon = \rho \frac{p^2 g}{\lVert p g \rVert} \text{ when adaptive}

    With :math:`g` at :math:`p`, over all parameters together, the optimizer steps from :math:`p` by the gradient at
    :math:`p + \epsilon`. The parameters come back from there bit for bit.

    Parameters
    ----------
    optimizer : Optimizer or Wrapper
        Takes the steps.
    rho : float
        :math:`\rho`, how far to look.
    adaptive : bool
        Look further along large parameters.

    Raises
    ------
    TypeError, ValueError
        `optimizer` is none of fastopt's, or a setting is out of range.

    Notes
    -----
    When to use: when a network overfits and training may take twice as long: each step needs two gradients. Flat
    minima, which it looks for, tend to generalise better. `rho` of 0.05 to 0.2 is usual, ten times that when adaptive.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR
    2021; Kwon et al., ASAM, ICML 2021.
    """

    key = "sam"

    def __init__(self, optimizer: Any, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__(optimizer)
        self._require("rho", rho, POSITIVE.holds(number("SAM", "rho", rho)), f"in {POSITIVE.text}")
        self.rho = rho
        self.adaptive = adaptive
        self._before: list[tuple[Any, Any]] | None = None

    def first_step(self, grads: Any = None) -> None:
        """Move the parameters to where the loss nearby is highest.

        Parameters
        ----------
        grads : list, dict or tree, optional
            Gradients at the parameters, as the optimizer's `step` takes them; those of Tensors without.

        Raises
        ------
        RuntimeError
            They are there already.
        TypeError, ValueError
            As the optimizer's `step`; nothing is changed then.
        """
        if self._before is not None:
            raise RuntimeError("first_step: the parameters are moved already, second_step comes next")
        base = self.base
        flat = [None if g is None else base._checked(i, g) for i, g in enumerate(base._gather(grads))]
        pairs = [(d.source, g) for d, g in zip(base._dense, flat, strict=True) if g is not None]
        squares = sum(_ops.sum_squares(p * g if self.adaptive else g) for p, g in pairs)
        root = math.sqrt(squares) if isinstance(squares, float | int) else squares**0.5
        scale = self.rho / (root + _TINY)
        self._before = [(p, p.copy()) for p, _ in pairs]
        for p, g in pairs:
            add_scaled(scale, p * p * g if self.adaptive else g, p)

    def second_step(self, grads: Any = None) -> None:
        """Bring the parameters back and let the optimizer step.

        Parameters
        ----------
        grads : list, dict or tree, optional
            Gradients at where `first_step` went.

        Raises
        ------
        RuntimeError
            `first_step` has not been called.
        TypeError, ValueError
            As the optimizer's `step`; the parameters are back then.
        """
        if self._before is None:
            raise RuntimeError("second_step: first_step comes before")
        self._come_back()
        self.optimizer.step(grads)

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take both steps.

        Parameters
        ----------
        closure : callable
            Evaluates the model; it is called twice. For Tensors it clears the gradients, runs backward and returns
            the loss; for plain arrays it returns ``(loss, grads)``.

        Returns
        -------
        The loss at the parameters, before the step.
        """
        if not callable(closure):
            raise TypeError(f"SAM: step needs a closure, got {type(closure).__name__}")
        loss, grads = self.base._evaluate(closure)
        self.first_step(grads)
        try:
            _, grads = self.base._evaluate(closure)
        except BaseException:
            self._come_back()
            raise
        self.second_step(grads)
        return loss

    def _come_back(self) -> None:
        for p, before in self._before or ():
            assign(p, before)
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        if self._before is not None:
            raise RuntimeError("state_dict: the parameters are moved, second_step comes before")
        return super().state_dict()

    def _own_state(self) -> dict[str, Any]:
        return {"rho": self.rho, "adaptive": self.adaptive}

    def _checked_state(self, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"rho": float(own["rho"]), "adaptive": bool(own["adaptive"])}

    def _load_own(self, own: dict[str, Any]) -> None:
        self.rho, self.adaptive = own["rho"], own["adaptive"]


def _like(dense: Dense | DeviceDense) -> Any:
    """Return zeros for a parameter, in float32 at least."""
    return zeros_for(dense, np.dtype(np.float64 if dense.source.dtype == np.float64 else np.float32))
