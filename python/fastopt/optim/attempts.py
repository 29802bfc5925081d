"""Steps that a device takes or leaves out by itself, by whether gradients under a loss scale are finite.

The host learns later what became of them, so it does not know how many steps came before the next one. It gives the
device the coefficients for each number that is possible, and the device chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._arrays import as_view
from fastopt._device import library, native
from fastopt.optim.placement import Device

if TYPE_CHECKING:
    from fastopt.optim.rule import RuleOptimizer, _Row


class LossScale:
    """The numbers of a `GradScaler` on a device: scale, growth tracker, and whether a gradient was not finite.

    Parameters
    ----------
    placement : Device
        Where they are.
    scale : float
    growth_tracker : int
    """

    def __init__(self, placement: Device, scale: float, growth_tracker: int) -> None:
        self._placement = placement
        self.numbers = placement.numbers(np.array([scale, growth_tracker, 0.0]))

    def is_beside(self, x: Any) -> bool:
        """Whether an array is on the same device, and of the same library."""
        return self._placement.is_beside(x)

    def read(self) -> tuple[float, int]:
        """Return scale and growth tracker; waits for the device."""
        scale, growth_tracker, _ = self.numbers.tolist()
        return scale, int(growth_tracker)

    def write(self, scale: float, growth_tracker: int | None = None) -> None:
        """Change the numbers, and forget what was found."""
        self.numbers[0] = scale
        if growth_tracker is not None:
            self.numbers[1] = growth_tracker
        self.numbers[2] = 0.0

    def update(self, settings: tuple[float, float, int], found_inf: bool) -> None:
        """Queue what `GradScaler.update` does; `found_inf` is what was found elsewhere."""
        native().update_scale(self.numbers, *map(float, settings), found_inf, self._placement.stream())

    def factor(self, dtype: Any) -> Any:
        """Return the scale as an array of one number, of a dtype that holds it."""
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
        self._numbers: list[list[tuple[_Row, dict[str, float]]]] = []

    def advance(self, optimizer: RuleOptimizer, given: list[bool]) -> None:
        """Queue the coefficients of the next attempt, in which these parameters have a gradient.

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
            tables, numbers = self._ahead(optimizer, active, ahead + 1)
            sets = [plan.sets for plan in self.plans]
            self._native.advance(tables, sets, ahead + 1, self._taken, self._placement.stream())
            self._numbers, self._given = numbers, given
            self._queued += 1
        finally:
            optimizer._pending = self if self._queued > self._made else None

    def _ahead(
        self, optimizer: RuleOptimizer, active: list[bool] | None, counts: int
    ) -> tuple[list[Any], list[list[tuple[_Row, dict[str, float]]]]]:
        """Return each plan's coefficients for so many numbers of steps, and the rows' numbers after each."""
        rows, tables, numbers = optimizer._rows, [], []
        before = [row.scalars for row in rows]
        try:
            for _ in range(counts):
                numbers.append(optimizer._advance(self.plans, active, 1.0))
                tables.append([plan.coefs.copy() for plan in self.plans])
                for row, s in numbers[-1]:
                    row.scalars = s
        finally:
            for row, s in zip(rows, before, strict=True):
                row.scalars = s
        return [np.concatenate(blocks) for blocks in zip(*tables, strict=True)], numbers

    def step(
        self,
        grads: list[list[Any]],
        max_norm: float | None,
        scale: LossScale,
        before: Any,
        norm: Any,
        taken: Any = None,
    ) -> None:
        """Queue an attempt with the gradients of each plan, as `advance` has announced it.

        `norm` and `taken` are room for the norm of all gradients, with a `max_norm`, and for whether the step was
        taken; `before` is what the norm is where it was not, None for NaN.
        """
        stream = self._placement.stream()
        self._native.step(grads, max_norm, scale.numbers, before, norm, taken, stream)

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
            for row, s in self._numbers[steps - 1]:
                row.scalars = s
            del self._numbers[:steps]
        self._made, self._taken = made, taken
