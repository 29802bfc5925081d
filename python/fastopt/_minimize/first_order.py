"""The optimizers as methods of `minimize`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastopt import _ops, optim
from fastopt._minimize.objective import Box, Objective
from fastopt._minimize.result import (
    CALLBACK,
    LARGE_AVERAGE,
    MAX_ITERATIONS,
    NOT_FINITE,
    SMALL_DECREASE,
    SMALL_GRADIENT,
    SMALL_STEP,
    End,
)
from fastopt.optim.vectors import numbers, unwrapped

#: Classes that are no method: the base, the one with a driver of its own, and the one for gradients of some rows.
_NO_METHODS = ("Optimizer", "LBFGS", "SparseAdam")


def optimizers() -> dict[str, type[optim.Optimizer]]:
    """Return the optimizers that step by a gradient, by their names in lower case."""
    found = {name: getattr(optim, name) for name in optim.__all__ if name not in _NO_METHODS}
    return {
        name.lower(): cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, optim.Optimizer)
    }


def descend(
    cls: type[Any],
    objective: Objective,
    x: Any,
    box: Box | None,
    tell: Callable[[Any, float], bool],
    *,
    maxiter: int = 10_000,
    gtol: float = 1e-5,
    ftol: float | None = None,
    xtol: float | None = None,
    **settings: Any,
) -> tuple[Any, float, Any, int, End]:
    """Step by an optimizer until the gradient is small.

    Where the optimizer averages (schedule-free ones), the result is the average.

    Parameters
    ----------
    cls : type
        The optimizer.
    objective : Objective
    x : array
        Where to start; it becomes the result.
    box : Box or None
        Each step ends with a projection into it.
    tell : callable
        Gets x and fun after each step and tells whether to stop.
    maxiter : int
        Steps at most.
    gtol : float
        Stop when no element of the (projected) gradient is larger.
    ftol, xtol : float, optional
        Stop when fun, relative to its size or 1, or all elements of x change by no more than this in a step.
    **settings
        Of the optimizer. `lr` may be a function of the number of steps taken.

    Returns
    -------
    x, fun, gradient, number of steps, reason
    """
    schedule = settings.get("lr")
    if callable(schedule):
        settings["lr"] = schedule(0)
    opt: Any = cls([unwrapped(x)], **settings)
    group = opt.param_groups[0]
    averages = hasattr(opt, "train") and hasattr(opt, "eval")
    if averages:
        opt.train()

    def evaluate() -> tuple[float, Any, float]:
        loss, g = objective(x)
        limited = g if box is None else box.projected(x, g)
        value, largest = numbers(loss, _ops.abs_max(limited))
        return value, g, largest

    nit, before, last = 0, math.nan, None
    while True:
        loss, g, largest = evaluate()
        if nit and tell(x, loss):
            end = CALLBACK
            break
        if reason := _stop(nit, maxiter, loss, before, largest, gtol, ftol):
            end = reason
            break
        if last is not None:
            last -= x
            if numbers(_ops.abs_max(last))[0] <= (xtol or 0.0):
                end = SMALL_STEP
                break
        if callable(schedule):
            group["lr"] = schedule(nit)
        last = None if xtol is None else x.copy()
        before = loss
        opt.step([unwrapped(g)])
        if box is not None:
            box.project(x)
        nit += 1
    if averages:
        opt.eval()
        loss, g, largest = evaluate()
        if end is SMALL_GRADIENT and not largest <= gtol:
            end = LARGE_AVERAGE
    return x, loss, g, nit, end


def _stop(
    nit: int, maxiter: int, loss: float, before: float, largest: float, gtol: float, ftol: float | None
) -> End | None:
    if not (math.isfinite(loss) and math.isfinite(largest)):
        return NOT_FINITE
    if largest <= gtol:
        return SMALL_GRADIENT
    if ftol is not None and abs(before - loss) <= ftol * max(abs(before), abs(loss), 1.0):
        return SMALL_DECREASE
    return MAX_ITERATIONS if nit >= maxiter else None
