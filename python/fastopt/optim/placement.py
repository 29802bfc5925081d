"""Where an optimizer's arrays are: on the host, or on a CUDA device; and what its step does differently there."""

from __future__ import annotations

import functools
import math
import operator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastopt import _core
from fastopt._arrays import Array, Dense, DeviceDense
from fastopt._device import is_device_array, library, native
from fastopt._torch_array import TorchArray
from fastopt.optim.tail import Range, Tail, each_factor, joined, known_factors, known_tail


class Host:
    """NumPy arrays and what shares their memory."""

    #: Types of gradients that native calls take as they are.
    types: frozenset[type] = frozenset({np.ndarray})

    def plan(self, *arguments: Any, **packed: Any) -> Any:
        """Return a native plan of a rule, parameters, states, averages, and what is stored in fewer bytes."""
        return _core.StepPlan(*arguments, **packed)

    def tail(
        self,
        plans: list[Any],
        grads: list[list[Any]],
        max_norm: float | None,
        inverse: float | None,
        order: float = 2.0,
    ) -> Tail | None:
        """Return how the gradients of several plans are scaled together; None where the step is to be skipped.

        Times `inverse` their norm is to be at most `max_norm`. With an `inverse` they must be finite.
        """
        # The largest magnitude shows whether all are finite where no norm is needed.
        order = math.inf if max_norm is None else order
        return known_tail(joined(self._norms(plans, grads, order), order), max_norm, inverse)

    def tails(
        self, plans: list[Any], grads: list[list[Any]], ranges: list[list[Range]], inverse: float | None
    ) -> list[Tail] | None:
        """Return how the gradients of each plan are scaled by ranges of its tensors; None as `tail`."""
        norms = [
            self._on_host(self.norms(plan, gs, own[-1].end)) for plan, gs, own in _zip(plans, grads, ranges)
        ]
        if inverse is not None:
            if not all(np.isfinite(each).all() for each in norms):
                return None
            norms = [each * inverse for each in norms]
        total = _core.joint_norm(np.concatenate([[], *norms]).tolist())
        tails = []
        for plan, each, own in _zip(plans, norms, ranges):
            params = self._on_host(self.param_norms(plan, len(each))) if own[0].adaptive else None
            factors = known_factors(each, own, params)
            tails.append(Tail(1.0 if inverse is None else inverse, total, factors=factors))
        return tails

    def _norms(self, plans: list[Any], grads: list[list[Any]], order: float) -> list[float]:
        return [plan.norm(gs, order) for plan, gs in zip(plans, grads, strict=True)]

    def _on_host(self, norms: Any) -> Array:
        on_host: Array = norms
        return on_host

    def norms(self, plan: Any, grads: list[Any], n: int | None = None) -> Any:
        """Return the L2 norm of each gradient of a plan, or of its n tensors, float64; 0 for None."""
        out = np.empty(len(grads) if n is None else n)
        plan.norms(grads, out)
        return out

    def param_norms(self, plan: Any, n: int) -> Any:
        """Return the L2 norms of the parameters of a plan's n tensors, float64."""
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
        out = self._numbers((n, len(columns)))
        for i, column in enumerate(columns):
            out[:, i] = column
        return out

    def _numbers(self, shape: tuple[int, ...]) -> Any:
        """Return room for float64."""
        return np.empty(shape)

    def step(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail, factors: Any = None
    ) -> None:
        """Run one plan's step; `factors` are three for each tensor, as `Factors` in csrc/formulas/common.hpp."""
        if factors is None:
            plan.step(grads, coefs, sets)
        else:
            plan.step(grads, coefs, sets, factors)

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which the library of the parameters makes new arrays where they are."""
        return nullcontext()

    def require_no_capture(self, owner: str) -> None:
        """Raise RuntimeError where what is queued now would be recorded into a CUDA graph."""
        if self.capturing():
            raise RuntimeError(
                f"step: the stream is being captured into a CUDA graph, which cannot repeat a step of {owner}"
            )

    def capturing(self) -> bool:
        """Whether what is queued now is recorded into a CUDA graph."""
        return False


class Device(Host):
    """Arrays of one library on one CUDA device. A step is queued on the library's current stream."""

    def __init__(self, first: DeviceDense) -> None:
        self._first = first.source
        self._library = library(first.source)
        self.types = frozenset({type(first.array)})

    def plan(self, *arguments: Any, **packed: Any) -> Any:
        return native().StepPlan(*arguments, **packed)

    def tail(
        self,
        plans: list[Any],
        grads: list[list[Any]],
        max_norm: float | None,
        inverse: float | None,
        order: float = 2.0,
    ) -> Tail | None:
        """Return the same; with an `inverse` this waits for the norm, without it nothing does."""
        if inverse is not None or max_norm is None:
            return super().tail(plans, grads, max_norm, inverse, order)
        if order == 2.0:
            return self.limit(plans, grads, max_norm)
        norm, scale = self._numbers(()), self._numbers(())
        norms = self._queue_norms(plans, grads, order, self._numbers((len(plans),)))
        norms = (norms.sum() if order == 1.0 else norms.max()).reshape(1)
        self._join(norms, max_norm, norm, scale)
        return Tail(1.0, norm, scale)

    def limit(
        self, plans: list[Any], grads: list[list[Any]], max_norm: float, room: list[Any] | None = None
    ) -> Tail:
        """Return how gradients are scaled; `room` is what `norm_room` has made."""
        norm, scale, *norms = room or self.norm_room(len(plans))
        if len(plans) == 1:
            return Tail(1.0, norm, scale, max_norm)
        self._join(self._queue_norms(plans, grads, 2.0, norms[0]), max_norm, norm, scale)
        return Tail(1.0, norm, scale)

    @property
    def first(self) -> Any:
        """An array that is there."""
        return self._first

    def norm_room(self, plans: int) -> list[Any]:
        """Return new arrays for the norm, the scale and, of several plans, their norms."""
        shapes: list[tuple[int, ...]] = [(), (), *([(plans,)] if plans > 1 else [])]
        return [self._numbers(shape) for shape in shapes]

    def tails(
        self, plans: list[Any], grads: list[list[Any]], ranges: list[list[Range]], inverse: float | None
    ) -> list[Tail] | None:
        if inverse is not None:
            return super().tails(plans, grads, ranges, inverse)
        total, each_total = self._numbers(()), self._numbers((len(plans),))
        scales = []
        for i, (plan, gs, own) in enumerate(_zip(plans, grads, ranges)):
            norms = self.norms(plan, gs, own[-1].end)
            self._join(norms, math.inf, each_total[i : i + 1], self._numbers(()))
            scales.append(self._scales(plan, norms, own))
        self._join(each_total, math.inf, total, self._numbers(()))
        return [Tail(1.0, total, scale) for scale in scales]

    def limit_scaled(
        self,
        plans: list[Any],
        grads: list[list[Any]],
        limit: float | list[list[Range]],
        order: float,
        inverse: Any,
    ) -> tuple[Any, Any, list[Any]]:
        """Return what is not 0 where a gradient is not finite, the norm times `inverse`, and what scales each plan's.

        `limit` is that of the norm of all gradients, or how ranges of tensors are clipped. Nothing waits, also where
        `inverse` is on the device.
        """
        with self.current():
            if isinstance(limit, float):
                norms = [self._queue_norms(plans, grads, order, self._numbers((len(plans),)))]
            else:
                norms = [self.norms(plan, gs, own[-1].end) for plan, gs, own in _zip(plans, grads, limit)]
            found = functools.reduce(operator.add, [(each * 0.0).sum() for each in norms])
            total, scale = self._numbers(()), self._numbers(())
            if isinstance(limit, float):
                joined = norms[0].sum() if order == 1.0 else norms[0].max()
                self._join((joined * inverse).reshape(1), limit, total, scale)
                return found, total, [scale * inverse] * len(plans)
            norms = [each * inverse for each in norms]
            each_total = self._numbers((len(plans),))
            for i, each in enumerate(norms):
                self._join(each, math.inf, each_total[i : i + 1], scale)
            self._join(each_total, math.inf, total, scale)
            scales = [self._scales(plan, each, own) for plan, each, own in _zip(plans, norms, limit)]
            return found, total, [each * inverse for each in scales]

    def _scales(self, plan: Any, norms: Any, ranges: list[Range]) -> Any:
        """Return what scales each tensor of a plan, whose norms these are."""
        scales = self._numbers(norms.shape)
        params = self.param_norms(plan, len(norms)) if ranges[0].adaptive else None
        for r in ranges:
            own = slice(r.begin, r.end)
            if r.together and r.max_norm is not None:
                factor = self._numbers(())
                self._join(norms[own], r.max_norm, self._numbers(()), factor)
                scales[own] = factor
            elif r.max_norm is not None or r.adaptive is not None:
                rows = None if params is None else params[own]
                scales[own] = each_factor(norms[own], r, rows, self._library.at_most)
            else:
                scales[own] = 1.0
        return scales

    def _join(self, norms: Any, max_norm: float, norm: Any, scale: Any) -> None:
        native().join_norms(norms, max_norm, norm, scale, self.stream())

    def _norms(self, plans: list[Any], grads: list[list[Any]], order: float) -> list[float]:
        norms: list[float] = self._queue_norms(plans, grads, order, self._numbers((len(plans),))).tolist()
        return norms

    def _on_host(self, norms: Any) -> Array:
        return np.array(norms.tolist())

    def _queue_norms(self, plans: list[Any], grads: list[list[Any]], order: float, norms: Any) -> Any:
        for i, (plan, gs) in enumerate(zip(plans, grads, strict=True)):
            plan.norm(gs, order, norms[i : i + 1], self.stream())
        return norms

    def norms(self, plan: Any, grads: list[Any], n: int | None = None) -> Any:
        out = self._numbers((len(grads) if n is None else n,))
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

    def step(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail, factors: Any = None
    ) -> None:
        plan.step(grads, coefs, sets, self.stream(), tail.max_norm, tail.norm, tail.scale, factors)

    def capture(self, plan: Any, grads: list[Any], tail: Tail) -> None:
        """Queue a step that a graph repeats with the numbers of the plan's last `advance`."""
        plan.capture(grads, self.stream(), tail.max_norm, tail.norm, tail.scale)

    def current(self) -> AbstractContextManager[Any]:
        return self._library.current(self._first)

    def capturing(self) -> bool:
        capturing: bool = native().is_capturing(self.stream())
        return capturing

    def stream(self) -> int:
        """Return the address of the library's current stream."""
        return self._library.stream(self._first)

    def is_beside(self, x: Any) -> bool:
        """Whether an array is on this device, and of this library."""
        return library(x) is self._library and x.device == self._first.device

    def room(self, dtype: Any) -> Any:
        """Return room for one number on the device."""
        return self._library.unwrap(self._library.empty(self._first, (), dtype))

    def _numbers(self, shape: tuple[int, ...]) -> Any:
        """Return room for float64 on the device."""
        return self._library.unwrap(self._library.empty(self._first, shape, np.float64))


_zip = functools.partial(zip, strict=True)

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
