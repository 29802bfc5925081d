"""L-BFGS as a method of `minimize`: the optimizer's two-loop recursion under the line search of L-BFGS-B."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt import _ops
from fastopt._arrays import assign
from fastopt._minimize.objective import Objective
from fastopt._minimize.result import (
    CALLBACK,
    MAX_EVALUATIONS,
    MAX_ITERATIONS,
    NO_DESCENT,
    NOT_FINITE,
    PRECISION,
    SMALL_DECREASE,
    SMALL_GRADIENT,
    SMALL_STEP,
    End,
)
from fastopt.optim.line_search import Point, more_thuente
from fastopt.optim.vectors import add_scaled, numbers, two_loop


class Memory:
    """The last changes of the gradient and of x."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self._changes: list[Any] = []
        self._steps: list[Any] = []
        self._ro: list[float] = []
        self._scale: Any = 1.0

    def __len__(self) -> int:
        return len(self._ro)

    def add(self, change: Any, step: Any, curvature: float) -> None:
        """Take a pair whose dot product is `curvature` and positive in the place of the oldest one."""
        if len(self) == self._size:
            del self._changes[0], self._steps[0], self._ro[0]
        self._changes.append(change)
        self._steps.append(step)
        self._ro.append(1.0 / curvature)
        self._scale = curvature / _ops.dot(change, change)

    def direction(self, g: Any) -> Any:
        """Return -H g."""
        d = -g
        two_loop(d, self._changes, self._steps, self._ro, self._scale)
        return d


class Descent:
    """Where a run of L-BFGS stands: x, fun, and a copy of the gradient, which the caller may compute in one array."""

    def __init__(self, objective: Objective, x: Any) -> None:
        self._objective = objective
        self.x = x
        self._trial = x.copy()
        loss, g = objective(x)
        self.loss, self.steepest = numbers(loss, _ops.abs_max(g))
        self.g = g.copy()
        self._steepest_there = self.steepest

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.steepest)

    def search(self, d: Any, slope: float, t: float, max_search: int) -> Point | None:
        """Return a point along `d` that is good enough, None without one."""

        def probe(t: float) -> Point:
            assign(self._trial, self.x)
            add_scaled(t, d, self._trial)
            loss, g = self._objective(self._trial)
            loss, slope, self._steepest_there = numbers(loss, _ops.dot(g, d), _ops.abs_max(g))
            return Point(t, loss, g, slope)

        noise = float(np.finfo(self.x.dtype).eps) * abs(self.loss)
        return more_thuente(probe, Point(0.0, self.loss, self.g, slope), t, max_search, noise=noise)

    def move(self, point: Point) -> Any:
        """Go to the point that was evaluated last; return the change of the gradient."""
        change = point.grad - self.g
        assign(self.g, point.grad)
        self.x, self._trial = self._trial, self.x
        self.loss, self.steepest = point.loss, self._steepest_there
        return change


def lbfgs(
    objective: Objective,
    x: Any,
    tell: Callable[[Any, float], bool],
    *,
    maxcor: int = 10,
    ftol: float = 2.220446049250313e-09,
    gtol: float = 1e-5,
    xtol: float | None = None,
    maxiter: int = 15_000,
    maxfun: int = 15_000,
    maxls: int = 20,
) -> tuple[Any, float, Any, int, End]:
    """Minimise by L-BFGS; see `minimize` for the options.

    Vectors stay on the device of `x`. It is waited for once an evaluation, for fun, the slope and the largest element
    of the gradient, and once an iteration, for the slope along the new direction.

    Returns
    -------
    x, fun, gradient, iterations, reason
    """
    at = Descent(objective, x)
    memory = Memory(maxcor)
    eps = float(np.finfo(x.dtype).eps)
    nit = 0
    end = NOT_FINITE if not at.finite else SMALL_GRADIENT if at.steepest <= gtol else None
    while end is None:
        if nit >= maxiter or objective.nfev >= maxfun:
            end = MAX_ITERATIONS if nit >= maxiter else MAX_EVALUATIONS
            break
        d = memory.direction(at.g)
        slope, longest = numbers(_ops.dot(at.g, d), 0.0 if xtol is None else _ops.abs_max(d))
        first = 1.0 if len(memory) else min(1.0, 1.0 / math.sqrt(abs(slope)))  # a step of length 1 along -g
        point = at.search(d, slope, first, maxls) if slope < 0.0 else None
        if point is None:
            if not len(memory):
                end = PRECISION if first * -slope <= 100 * eps * abs(at.loss) else NO_DESCENT
            memory.clear()
            continue
        before = at.loss
        change = at.move(point)
        curvature = point.t * (point.slope - slope)
        if curvature > eps * -slope * point.t:
            memory.add(change, d * point.t, curvature)
        nit += 1
        if not at.finite:
            end = NOT_FINITE
        elif tell(at.x, at.loss):
            end = CALLBACK
        elif at.steepest <= gtol:
            end = SMALL_GRADIENT
        elif before - at.loss <= ftol * max(abs(before), abs(at.loss), 1.0):
            end = SMALL_DECREASE
        elif xtol is not None and point.t * longest <= xtol:
            end = SMALL_STEP
    return at.x, at.loss, at.g, nit, end
