"""Steps that a device takes or leaves out by itself, by whether gradients under a loss scale are finite.

The host learns later what became of them, so it does not know how many steps came before the next one. It gives the
device the coefficients for each number that is possible, and the device chooses.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._arrays import as_view
from fastopt._device import library, native
from fastopt.optim.placement import Device
from fastopt.optim.plans import Numbers, Plan, Row, parts, take_over

if TYPE_CHECKING:
    from fastopt.optim.rule import RuleOptimizer


class LossScale:
    """The numbers of a `GradScaler` on a device: scale, growth tracker, and whether a gradient was not finite.

    Parameters
    ----------
    placement : Device
        Where they are.
    scale : float
    growth_tracker : int
    found_inf : float
        What was found since the last update, nonzero for yes.
    """

    def __init__(self, placement: Device, scale: float, growth_tracker: int, found_inf: float = 0.0) -> None:
        self._placement = placement
        self.numbers = placement.numbers(np.array([scale, growth_tracker, found_inf]))

    #: Of gradients that were divided by the scale before the step: one number on the device, not 0 where one of them
    #: was not finite.
    found: Any = None

    def undone(self, found: Any) -> LossScale:
        """Return the same numbers for a step with such gradients."""
        undone = copy.copy(self)
        undone.found = found
        return undone

    def inverse(self) -> Any:
        """Return what undoes the scale where that is still to be done, else 1."""
        if self.found is not None:
            return 1.0
        with self._placement.current():
            return 1.0 / self.numbers[0]

    def is_beside(self, x: Any) -> bool:
        """Whether an array is on the same device, and of the same library."""
        return self._placement.is_beside(x)

    def read(self) -> tuple[float, int, float]:
        """Return scale, growth tracker and what was found; waits for the device."""
        scale, growth_tracker, found_inf = self.numbers.tolist()
        return scale, int(growth_tracker), found_inf

    def write(self, scale: float, growth_tracker: int | None = None) -> None:
        """Change the numbers, and forget what was found."""
        with self._placement.current():
            self.numbers[0] = scale
            if growth_tracker is not None:
                self.numbers[1] = growth_tracker
            self.numbers[2] = 0.0

    def update(self, settings: tuple[float, float, int], found_inf: bool) -> None:
        """Queue what `GradScaler.update` does; `found_inf` is what was found elsewhere."""
        native().update_scale(self.numbers, *map(float, settings), found_inf, self._placement.stream())

    def factor(self, dtype: Any) -> Any:
        """Return the scale as an array of one number, of a dtype that holds it."""
        with self._placement.current():
            scale = as_view(self.numbers[0], "scale")
            return library(scale).unwrap(scale.astype(np.result_type(dtype, np.float32)))


class Attempts:
    """The attempts at steps of one optimizer's plans, eager or captured.

    Parameters
    ----------
    optimizer : RuleOptimizer
        Its parameters are on a CUDA device.
    """

    def __init__(self, optimizer: RuleOptimizer, plans: list[Any]) -> None:
        assert isinstance(optimizer._placement, Device)
        self._placement = optimizer._placement
        self.plans = plans
        self._native = native().Attempts([plan.native for plan in plans], self._placement.stream())
        self._most_ahead: int = self._native.most_ahead
        self._made, self._taken = self._native.settle()
        self._queued = self._made
        self._given: list[bool] | None = None
        # The rows' numbers after one more step than the host knows of, after two, ...
        self._numbers: list[Numbers] = []

    def advance(self, optimizer: RuleOptimizer, given: list[bool], captured: bool = False) -> None:
        """Queue the coefficients of the next attempt, in which these parameters have a gradient.

        Few of them travel with the attempt, unless it is `captured`.

        Raises
        ------
        ValueError
            A setting went out of range; nothing is changed then.
        """
        self._see(*self._native.counts())
        ahead = self._queued - self._made
        # Which rows count a step, and what other numbers become, depends on the steps that were taken.
        if ahead and (ahead >= self._most_ahead or given != self._given or len(optimizer.scalars) > 1):
            self._see(*self._native.settle())
            self._queued, ahead = self._made, 0
        optimizer._pending = None
        try:
            active = None if all(given) else optimizer._split(np.array(given))
            coefs, numbers = optimizer._ahead(self.plans, active, ahead + 1)
            tables = [part.reshape(-1, part.shape[-1]) for part in parts(self.plans, coefs)]
            sets = [plan.sets for plan in self.plans]
            stream = self._placement.stream()
            self._native.advance(tables, sets, ahead + 1, self._taken, not captured, stream)
            self._numbers, self._given = numbers, given
            self._queued += 1
        finally:
            optimizer._pending = self if self._queued > self._made else None

    def step(
        self,
        grads: list[list[Any]],
        max_norm: float | None,
        scale: LossScale,
        before: Any,
        norm: Any,
        taken: Any = None,
        scales: list[Any] | None = None,
    ) -> None:
        """Queue an attempt with the gradients of each plan, as `advance` has announced it.

        `scales` are what to multiply those by where it does not follow from scale and `max_norm`. `norm` and `taken`
        are room for the norm of all gradients, with a `max_norm`, and for whether the step was taken; `before` is what
        the norm is where it was not, None for NaN.
        """
        stream = self._placement.stream()
        self._native.step(
            grads, max_norm, scale.numbers, before, norm, taken, scale.found, scales or [], stream
        )

    def settle(self, optimizer: RuleOptimizer) -> None:
        """Wait for the device, and count the steps that it took."""
        self._see(*self._native.settle())
        # An attempt may have been announced whose graph is still to be replayed.
        if self._queued <= self._made:
            optimizer._pending = None

    def _see(self, made: int, taken: int) -> None:
        """Take over how many attempts were made, and how many of them were steps."""
        steps = min(taken - self._taken, len(self._numbers))
        if steps > 0:
            take_over(self._numbers[steps - 1])
            del self._numbers[:steps]
        self._made, self._taken = made, taken


class Attempting:
    """What an optimizer has of attempts at its steps."""

    _attempts: Attempts | None = None
    _pending: Attempts | None = None  # the same where the host does not know what became of all
    grad_norm: Any

    @property
    def _rows(self: Any) -> list[Row]:
        """The rows, with their numbers as they are: this waits for attempts whose outcome the device alone knows."""
        if self._pending is not None:
            self._pending.settle(self)
        rows: list[Row] = self._known_rows
        return rows

    @_rows.setter
    def _rows(self: Any, rows: list[Row]) -> None:
        self._pending = None
        self._known_rows = rows

    def skips_on_device(self: Any) -> bool:
        """Whether a step's own kernels can leave it out, without the host's knowing."""
        if self._movable:
            self._follow()
        plain: bool = isinstance(self._placement, Device) and self.is_plain() and self.by_element
        return plain and self.eager_setting() != "accumulate"

    def unscale(self: Any, grads: list[Any], scale: LossScale) -> Any:
        """Queue the division of gradients by a scale; return where it is found whether they were finite.

        None, and nothing is queued, of gradients that a step would refuse or copy, and where one array is several.
        """
        with self._lock:
            try:
                views = [None if g is None else self._checked(i, g) for i, g in enumerate(grads)]
                given = [v for v in views if v is not None]
                begins = [library(v).address(v) for v in given if v.size]
                if any(library(v).dense(v) is not v for v in given) or len(set(begins)) < len(begins):
                    return None
                own = [None if v is None else library(v).unwrap(v) for v in views]
                plans = self._refresh()
                captured = self._captured if self._placement.capturing() else None
                found = self._placement.room(np.float64) if captured is None else captured.found
                chosen, natives = [plan.select(own) for plan in plans], [plan.native for plan in plans]
                native().unscale(natives, chosen, scale.numbers, found, self._placement.stream())
            except (TypeError, ValueError):
                return None
            return found

    def _attempt(self: Any, plans: list[Plan], grads: list[Any], scale: LossScale) -> Any:
        """Queue a step that the device takes where gradients are finite; return room for whether it did."""
        chosen = [plan.select(grads) for plan in plans]
        for plan, gs in zip(plans, chosen, strict=True):
            plan.native.check(gs)
        attempts, taken = self._attempts_at(plans), self._placement.room(np.bool_)
        max_norm, known = self._max_norm, self.grad_norm
        before = norm = scales = None
        if self._scoped or (max_norm is not None and self._norm_type != 2.0):
            limit = [plan.ranges for plan in plans] if self._scoped else float(max_norm)
            found, norm, scales = self._placement.limit_scaled(
                [plan.native for plan in plans], chosen, limit, self._norm_type, scale.inverse()
            )
            max_norm, scale = None, scale if scale.found is not None else scale.undone(found)
            norm = self._placement.where(scale.found == 0.0, norm, math.nan if known is None else known)
        elif max_norm is not None:
            norm = self._placement.room(np.float64)
            before = self._placement.numbers(np.array(known)) if isinstance(known, float) else known
        attempts.advance(self, [g is not None for g in grads])
        attempts.step(chosen, max_norm, scale, before, None if scales else norm, taken, scales)
        self.grad_norm = norm
        return taken

    def _attempts_at(self: Any, plans: list[Plan]) -> Attempts:
        """Return what keeps count of attempts at steps of these plans."""
        attempts: Attempts | None = self._attempts
        if attempts is None or attempts.plans is not plans:
            attempts = self._attempts = Attempts(self, plans)
        return attempts

    def __getstate__(self) -> dict[str, Any]:
        rows = self._rows  # waits before anything is copied
        derived = ("_attempts", "_pending", "_known_rows")
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**{key: value for key, value in state.items() if key not in derived}, "_rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rows = state["_rows"]
        super().__setstate__({key: value for key, value in state.items() if key != "_rows"})  # type: ignore[misc]
