"""Where an optimizer's arrays are: on the host, or on a CUDA device; and what its step does differently there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastopt import _core
from fastopt._arrays import Array, Dense, DeviceDense
from fastopt._device import TorchArray, is_device_array, library, native
from fastopt.optim.tail import Tail, known_tail


class Host:
    """NumPy arrays and what shares their memory."""

    #: Types of gradients that native calls take as they are.
    types: frozenset[type] = frozenset({np.ndarray})

    def plan(self, *arguments: Any) -> Any:
        """Return a native plan of a rule, parameters, states and averages."""
        return _core.StepPlan(*arguments)

    def tail(
        self, plans: list[Any], grads: list[list[Any]], max_norm: float | None, inverse: float | None
    ) -> Tail | None:
        """Return how the gradients of several plans are scaled; None where the step is to be skipped.

        Times `inverse` their norm is to be at most `max_norm`. With an `inverse` they must be finite.
        """
        # The largest magnitude shows whether all are finite where no sum of squares is needed.
        order = math.inf if max_norm is None else 2.0
        norms = self._norms(plans, grads, order)
        norm = _core.joint_norm(norms) if max_norm is not None else _largest(norms)
        return known_tail(norm, max_norm, inverse)

    def _norms(self, plans: list[Any], grads: list[list[Any]], order: float) -> list[float]:
        return [plan.norm(gs, order) for plan, gs in zip(plans, grads, strict=True)]

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

    def step(self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail) -> None:
        """Run one plan's step."""
        plan.step(grads, coefs, sets)


class Device(Host):
    """Arrays of one library on one CUDA device. A step is queued on the library's current stream."""

    def __init__(self, first: DeviceDense) -> None:
        self._first = first.source
        self._library = library(first.source)
        self.types = frozenset({type(first.array)})

    def plan(self, *arguments: Any) -> Any:
        return native().StepPlan(*arguments)

    def tail(
        self, plans: list[Any], grads: list[list[Any]], max_norm: float | None, inverse: float | None
    ) -> Tail | None:
        """Return the same; with an `inverse` this waits for the norm, without it nothing does."""
        if inverse is not None or max_norm is None:
            return super().tail(plans, grads, max_norm, inverse)
        norm, scale = self._numbers(()), self._numbers(())
        if len(plans) == 1:
            return Tail(1.0, norm, scale, max_norm)
        norms = self._queue_norms(plans, grads, 2.0)
        native().join_norms(norms, max_norm, norm, scale, self._stream())
        return Tail(1.0, norm, scale)

    def _norms(self, plans: list[Any], grads: list[list[Any]], order: float) -> list[float]:
        norms: list[float] = self._queue_norms(plans, grads, order).tolist()
        return norms

    def _queue_norms(self, plans: list[Any], grads: list[list[Any]], order: float) -> Any:
        norms = self._numbers((len(plans),))
        for i, (plan, gs) in enumerate(zip(plans, grads, strict=True)):
            plan.norm(gs, order, norms[i : i + 1], self._stream())
        return norms

    def norms(self, plan: Any, grads: list[Any]) -> Any:
        out = self._numbers((len(grads),))
        plan.norms(grads, out, self._stream())
        return out

    def param_norms(self, plan: Any, n: int) -> Any:
        out = self._numbers((n,))
        plan.param_norms(out, self._stream())
        return out

    def step(self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail) -> None:
        plan.step(grads, coefs, sets, self._stream(), tail.max_norm, tail.norm, tail.scale)

    def _stream(self) -> int:
        return self._library.stream(self._first)

    def _numbers(self, shape: tuple[int, ...]) -> Any:
        """Return room for float64 on the device."""
        return self._library.unwrap(self._library.empty(self._first, shape, np.float64))


def _largest(norms: list[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else max(norms, default=0.0)


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
