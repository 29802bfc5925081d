"""What a minimisation returns, and the caller's callback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from fastopt.optim.vectors import unwrapped


class PlainResult(dict[str, Any]):
    """A dict whose entries are attributes too: SciPy's `OptimizeResult` where there is no SciPy."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__

    def __dir__(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:>{width}}: {value!r}" for name, value in self.items())


@functools.cache
def result_class() -> type[Any]:
    """Return SciPy's `OptimizeResult`, `PlainResult` without SciPy."""
    try:
        from scipy.optimize import OptimizeResult
    except ImportError:
        return PlainResult
    found: type[Any] = OptimizeResult
    return found


class End(NamedTuple):
    """Why a minimisation ended; `status` 0 is success, and 1 and 99 are SciPy's numbers."""

    status: int
    message: str


SMALL_GRADIENT = End(0, "converged: no element of the gradient exceeds gtol")
SMALL_DECREASE = End(0, "converged: fun changes by no more than ftol, relative to its size")
SMALL_STEP = End(0, "converged: no element of x changes by more than xtol")
PRECISION = End(0, "converged to the precision of fun: what is left to gain is less than its rounding")
MAX_ITERATIONS = End(1, "stopped: maxiter iterations were not enough")
LARGE_AVERAGE = End(1, "stopped: the gradient is small where the last step was taken, not yet at the average")
MAX_EVALUATIONS = End(1, "stopped: maxfun evaluations were not enough")
NO_DESCENT = End(
    2,
    "stopped: the line search found no lower value; fun or jac is inexact, or jac is not the gradient of fun",
)
NOT_FINITE = End(3, "stopped: fun or its gradient is not finite")
CALLBACK = End(99, "stopped: callback raised StopIteration")


def at_iteration(callback: Callable[..., Any] | None) -> Callable[[Any, float], bool]:
    """Return a function of x and fun that calls the callback as it asks for and tells whether to stop.

    A callback whose only parameter is ``intermediate_result`` gets x and fun as a result does, by that keyword; any
    other gets x. The array is a copy.
    """
    if callback is None:
        return lambda x, loss: False
    if not callable(callback):
        raise TypeError(f"minimize: callback is {type(callback).__name__}, expected a function")
    whole = list(_parameters(callback)) == ["intermediate_result"]
    call = callback

    def tell(x: Any, loss: float) -> bool:
        seen = unwrapped(x.copy())
        try:
            if whole:
                call(intermediate_result=result_class()(x=seen, fun=loss))
            else:
                call(seen)
        except StopIteration:
            return True
        return False

    return tell


def _parameters(callback: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(callback).parameters)
    except ValueError:  # of some built-in functions
        return []
