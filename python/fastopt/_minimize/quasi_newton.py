"""L-BFGS as a method of `minimize`: the optimizer's two-loop recursion under the line search of L-BFGS-B."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastopt import _ops
from fastopt._arrays import assign
from fastopt._minimize.objective import Box, Objective
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

    def scaled(self, g: Any) -> Any:
        """Return `g` times the approximation of H before any pair, a number."""
        result = g.copy()
        result *= self._scale
        return result

    def restricted(self, mask: Any) -> Memory:
        """Return what is known of the elements where `mask` is 1: the pairs that are 0 elsewhere and still curve up."""
        rest = Memory(self._size)
        rest._scale = self._scale
        eps = float(np.finfo(mask.dtype).eps)
        pairs = [(y * mask, s * mask) for y, s in zip(self._changes, self._steps, strict=True)]
        products = numbers(*[_ops.dot(a, b) for y, s in pairs for a, b in ((y, s), (y, y), (s, s))])
        for k, (y, s) in enumerate(pairs):
            curvature, of_change, of_step = products[3 * k : 3 * k + 3]
            if curvature > eps * math.sqrt(of_change) * math.sqrt(of_step):
                rest.add(y, s, curvature)
        return rest


class Move(NamedTuple):
    """What an iteration changed: the gradient, x, the product of both, and the largest element of x's change."""

    change: Any
    step: Any
    curvature: float
    longest: float


class Descent:
    """Where a run of L-BFGS stands: x, fun, and a copy of the gradient, which the caller may compute in one array."""

    def __init__(self, objective: Objective, x: Any) -> None:
        self._objective = objective
        self.x = x
        self._trial = x.copy()
        loss, g = objective(x)
        self.loss, self.steepest = numbers(loss, self._steepest(x, g))
        self.g = g.copy()
        self._steepest_there = self.steepest
        self._longest = 0.0

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.steepest)

    def direction(self, memory: Memory) -> tuple[Any, float]:
        """Return where to search, and the slope there."""
        d = memory.direction(self.g)
        slope, self._longest = numbers(_ops.dot(self.g, d), _ops.abs_max(d))
        return d, slope

    def search(self, d: Any, slope: float, t: float, max_search: int) -> Point | None:
        """Return a point along `d` that is good enough, None without one."""

        def probe(t: float) -> Point:
            tangent = self._place(t, d)
            loss, g = self._objective(self._trial)
            steepest = self._steepest(self._trial, g)
            loss, slope, self._steepest_there = numbers(loss, _ops.dot(g, tangent), steepest)
            return Point(t, loss, g, slope)

        noise = float(np.finfo(self.x.dtype).eps) * abs(self.loss)
        return more_thuente(probe, Point(0.0, self.loss, self.g, slope), t, max_search, noise=noise)

    def promise(self, d: Any, slope: float, t: float) -> float:
        """Return by how much fun would fall within distance `t`, were it linear."""
        return t * -slope

    def move(self, point: Point, d: Any, slope: float) -> Move:
        """Go to the point along `d` that was evaluated last."""
        change = self._go(point)
        return Move(change, d * point.t, point.t * (point.slope - slope), point.t * self._longest)

    def _go(self, point: Point) -> Any:
        change = point.grad - self.g
        assign(self.g, point.grad)
        self.x, self._trial = self._trial, self.x
        self.loss, self.steepest = point.loss, self._steepest_there
        return change

    def _steepest(self, x: Any, g: Any) -> Any:
        """Return the largest element of what has to become 0."""
        return _ops.abs_max(g)

    def _place(self, t: float, d: Any) -> Any:
        """Put the trial at distance `t`; return the direction of the path there."""
        assign(self._trial, self.x)
        add_scaled(t, d, self._trial)
        return d


class BoxedDescent(Descent):
    """The same within bounds: the path is the projection of a ray.

    An element that a scaled step along minus the gradient takes to a bound does just that step. The others step by
    what the pairs tell of them alone, so that the path descends at first.
    """

    def __init__(self, objective: Objective, x: Any, box: Box) -> None:
        self._box = box
        super().__init__(objective, x)
        self._beyond = x.copy()

    def direction(self, memory: Memory) -> tuple[Any, float]:
        scaled = memory.scaled(self.g)
        free = self._box.inside(self.x - scaled)
        d = memory.restricted(free).direction(self.g * free)
        add_scaled(-1.0, scaled - scaled * free, d)
        d = d - d * self._box.held(self.x, d)
        (slope,) = numbers(_ops.dot(self.g, d))
        return d, slope

    def promise(self, d: Any, slope: float, t: float) -> float:
        self._place(t, d)
        return numbers(_ops.dot(self.g, self.x - self._trial))[0]

    def move(self, point: Point, d: Any, slope: float) -> Move:
        change = self._go(point)
        step = self.x - self._trial
        return Move(change, step, *numbers(_ops.dot(change, step), _ops.abs_max(step)))

    def _steepest(self, x: Any, g: Any) -> Any:
        return _ops.abs_max(self._box.projected(x, g))

    def _place(self, t: float, d: Any) -> Any:
        assign(self._beyond, self.x)
        add_scaled(t, d, self._beyond)
        assign(self._trial, self._beyond)
        self._box.project(self._trial)
        return d * self._box.inside(self._beyond)


def lbfgs(
    objective: Objective,
    x: Any,
    tell: Callable[[Any, float], bool],
    box: Box | None = None,
    *,
    maxcor: int = 10,
    ftol: float = 2.220446049250313e-09,
    gtol: float = 1e-5,
    xtol: float | None = None,
    maxiter: int = 15_000,
    maxfun: int = 15_000,
    maxls: int = 20,
) -> tuple[Any, float, Any, int, End]:
    """Minimise by L-BFGS; see `minimize` for the options. With a box, `x` lies inside.

    Vectors stay on the device of `x`. It is waited for once an evaluation, for fun, the slope and the largest element
    of the gradient, and once an iteration, for the slope along the new direction; with a box twice more, for what the
    pairs are worth where x is free and for the pair of the step.

    Returns
    -------
    x, fun, gradient, iterations, reason
    """
    at = Descent(objective, x) if box is None else BoxedDescent(objective, x, box)
    memory = Memory(maxcor)
    eps = float(np.finfo(x.dtype).eps)
    nit, promised = 0, math.inf
    end = NOT_FINITE if not at.finite else SMALL_GRADIENT if at.steepest <= gtol else None
    while end is None:
        if nit >= maxiter or objective.nfev >= maxfun:
            end = MAX_ITERATIONS if nit >= maxiter else MAX_EVALUATIONS
            break
        d, slope = at.direction(memory)
        # A step of length 1 along -g; the slope of a tiny gradient underflows.
        first = 1.0 if len(memory) or slope == 0.0 else min(1.0, 1.0 / math.sqrt(abs(slope)))
        point = at.search(d, slope, first, maxls) if slope < 0.0 else None
        if point is None:
            promised = min(promised, at.promise(d, slope, first))
            if not len(memory):
                end = PRECISION if promised <= 100 * eps * abs(at.loss) else NO_DESCENT
            memory.clear()
            continue
        promised = math.inf
        before = at.loss
        made = at.move(point, d, slope)
        if made.curvature > eps * -slope * point.t:
            memory.add(made.change, made.step, made.curvature)
        nit += 1
        if not at.finite:
            end = NOT_FINITE
        elif tell(at.x, at.loss):
            end = CALLBACK
        elif at.steepest <= gtol:
            end = SMALL_GRADIENT
        elif before - at.loss <= ftol * max(abs(before), abs(at.loss), 1.0):
            end = SMALL_DECREASE
        elif xtol is not None and made.longest <= xtol:
            end = SMALL_STEP
    return at.x, at.loss, at.g, nit, end
