"""Where an optimizer's arrays are: on the host, or on a CUDA device; and what its step does differently there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import _core
from fastopt._arrays import Array, Dense, DeviceDense
from fastopt._device import TorchArray, is_device_array, library, native


class Tail(NamedTuple):
    """What comes of limiting the norm of all gradients.

    Attributes
    ----------
    factor : float
        What the coefficients of this step are to scale gradients by.
    norm : float, array of one float64, or None
        Of all gradients.
    scale : array of one float64, or None
        What the kernel multiplies gradients by, besides.
    max_norm : float or None
        The kernel is to compute `norm` and `scale` first.
    """

    factor: float = 1.0
    norm: Any = None
    scale: Any = None
    max_norm: float | None = None


NO_TAIL = Tail()


class Host:
    """NumPy arrays and what shares their memory."""

    #: Types of gradients that native calls take as they are.
    types: frozenset[type] = frozenset({np.ndarray})

    def plan(self, *arguments: Any, **packed: Any) -> Any:
        """Return a native plan of a rule, parameters, states, averages, and what is stored in fewer bytes."""
        return _core.StepPlan(*arguments, **packed)

    def limit(self, plans: list[Any], grads: list[list[Any]], max_norm: float) -> Tail:
        """Return how gradients of several plans are scaled so that their norm is at most `max_norm`."""
        norm = _core.joint_norm([plan.norm(gs) for plan, gs in zip(plans, grads, strict=True)])
        return Tail(_core.clip_factor(norm, max_norm), norm)

    def norms(self, plan: Any, grads: list[Any]) -> Any:
        """Return the L2 norm of each gradient of a plan, float64; 0 for None."""
        out = np.empty(len(grads))
        plan.norms(grads, out)
        return out

    def param_norms(self, plan: Any, n: int) -> Any:
        """Return the L2 norms of a plan's n parameters, float64."""
        out = np.empty(n)
        plan.param_norms(out)
        return out

    def measure(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail
    ) -> tuple[Any, Tail]:
        """Run the first pass of a step in two; return norms and what is left to do for the second.

        Of the norms, float64, the first row is of directions and the second of parameters; 0 without a gradient.
        """
        out = np.empty((2, len(grads)))
        plan.measure(grads, coefs, sets, out)
        return out, tail

    def numbers(self, values: Array) -> Any:
        """Return numbers of tensors where the arrays are."""
        return values

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Return `a` where a condition on numbers holds and `b` elsewhere."""
        return np.where(condition, a, b)

    def table(self, columns: tuple[Any, ...], n: int) -> Any:
        """Return columns, each a number or n of them, side by side as float64."""
        out = np.empty((n, len(columns)))
        for i, column in enumerate(columns):
            out[:, i] = column
        return out

    def step(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail, factors: Any = None
    ) -> None:
        """Run one plan's step; `factors` are three for each tensor, as `Factors` in csrc/formulas/common.hpp."""
        if factors is None:
            plan.step(grads, coefs, sets)
        else:
            plan.step(grads, coefs, sets, factors)

    def capturing(self) -> bool:
        """Whether what is queued now is recorded into a CUDA graph."""
        return False


class Device:
    """Arrays of one library on one CUDA device. A step is queued on the library's current stream."""

    def __init__(self, first: DeviceDense) -> None:
        self._first = first.source
        self._library = library(first.source)
        self.types = frozenset({type(first.array)})

    def plan(self, *arguments: Any, **packed: Any) -> Any:
        return native().StepPlan(*arguments, **packed)

    def limit(
        self, plans: list[Any], grads: list[list[Any]], max_norm: float, room: list[Any] | None = None
    ) -> Tail:
        """Return how gradients are scaled; `room` is what `norm_room` has made."""
        norm, scale, *norms = room or self.norm_room(len(plans))
        if len(plans) == 1:
            return Tail(1.0, norm, scale, max_norm)
        for i, (plan, gs) in enumerate(zip(plans, grads, strict=True)):
            plan.norm(gs, 2.0, norms[0][i : i + 1], self.stream())
        native().join_norms(norms[0], max_norm, norm, scale, self.stream())
        return Tail(1.0, norm, scale)

    def norm_room(self, plans: int) -> list[Any]:
        """Return new arrays for the norm, the scale and, of several plans, their norms."""
        shapes: list[tuple[int, ...]] = [(), (), *([(plans,)] if plans > 1 else [])]
        return [self._numbers(shape) for shape in shapes]

    def norms(self, plan: Any, grads: list[Any]) -> Any:
        out = self._numbers((len(grads),))
        plan.norms(grads, out, self.stream())
        return out

    def param_norms(self, plan: Any, n: int) -> Any:
        out = self._numbers((n,))
        plan.param_norms(out, self.stream())
        return out

    def measure(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail
    ) -> tuple[Any, Tail]:
        out = self._numbers((2, len(grads)))
        plan.measure(grads, coefs, sets, out, self.stream(), tail.max_norm, tail.norm, tail.scale)
        return out, tail._replace(max_norm=None)

    def numbers(self, values: Array) -> Any:
        return self._library.unwrap(self._library.from_host(values, self._first))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self._library.where(condition, a, b)

    def table(self, columns: tuple[Any, ...], n: int) -> Any:
        out = self._numbers((n, len(columns)))
        for i, column in enumerate(columns):
            out[:, i] = column
        return out

    def step(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail, factors: Any = None
    ) -> None:
        plan.step(grads, coefs, sets, self.stream(), tail.max_norm, tail.norm, tail.scale, factors)

    def capture(self, plan: Any, grads: list[Any], tail: Tail) -> None:
        """Queue a step that a graph repeats with the numbers of the plan's last `advance`."""
        plan.capture(grads, self.stream(), tail.max_norm, tail.norm, tail.scale)

    def capturing(self) -> bool:
        capturing: bool = native().is_capturing(self.stream())
        return capturing

    def stream(self) -> int:
        """Return the address of the library's current stream."""
        return self._library.stream(self._first)

    def _numbers(self, shape: tuple[int, ...]) -> Any:
        """Return room for float64 on the device."""
        return self._library.unwrap(self._library.empty(self._first, shape, np.float64))


HOST = Host()


def place(dense: list[Dense | DeviceDense], labels: list[str], owner: str) -> Host | Device:
    """Return where all of these parameters are.

    Raises
    ------
    ValueError
        They are in different places.
    """
    places = [_where(d) for d in dense]
    for where, label in zip(places, labels, strict=True):
        if where != places[0]:
            raise ValueError(
                f"{owner}: {label} is {where}, {labels[0]} is {places[0]}; use an optimizer for each"
            )
    first = dense[0] if dense else None
    return Device(first) if isinstance(first, DeviceDense) else HOST


def _where(dense: Dense | DeviceDense) -> str:
    """Return the place of an array as a message has it."""
    if not is_device_array(dense.source):
        return "on the host"
    device: Any = dense.source.device
    index = device.index if isinstance(dense.source, TorchArray) else device.id
    return f"an array of {library(dense.source).name} on CUDA device {index}"
