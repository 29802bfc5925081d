"""Test functions of minimisation: value and gradient in the dtype of x, where to start, and the least value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Evaluate = Callable[[Array], tuple[float, Array]]


@dataclass(frozen=True)
class Function:
    """A function of vectors.

    Attributes
    ----------
    name : str
    evaluate : callable
        Returns value and gradient at x, computed in the dtype of x.
    start : ndarray of float64
    least : float
        The value at the minimum that a descent from `start` finds.
    """

    name: str
    evaluate: Evaluate
    start: Array
    least: float


def _rosenbrock(x: Array) -> tuple[float, Array]:
    a, b = 1 - x[:-1], x[1:] - x[:-1] ** 2
    g = np.zeros_like(x)
    g[:-1] = -2 * a - 400 * x[:-1] * b
    g[1:] += 200 * b
    return np.sum(100 * b * b + a * a), g


def _beale(x: Array) -> tuple[float, Array]:
    powers = x[1] ** np.arange(1, 4, dtype=x.dtype)
    r = np.array([1.5, 2.25, 2.625], x.dtype) - x[0] * (1 - powers)
    slopes = np.arange(1, 4, dtype=x.dtype) * x[1] ** np.arange(0, 3, dtype=x.dtype)
    return r @ r, 2 * np.array([-(r @ (1 - powers)), x[0] * (r @ slopes)], x.dtype)


def _booth(x: Array) -> tuple[float, Array]:
    a, b = x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5
    return a * a + b * b, np.array([2 * a + 4 * b, 4 * a + 2 * b], x.dtype)


def _himmelblau(x: Array) -> tuple[float, Array]:
    a, b = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
    return a * a + b * b, np.array([4 * x[0] * a + 2 * b, 2 * a + 4 * x[1] * b], x.dtype)


def _styblinski_tang(x: Array) -> tuple[float, Array]:
    return np.sum(x**4 - 16 * x**2 + 5 * x) / 2, (4 * x**3 - 32 * x + 5) / 2


def _quadratic(n: int, condition: float) -> Function:
    """Half a sum of squares whose curvatures reach from 1 to `condition`, in rotated axes."""
    rng = np.random.default_rng(n)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    hessian = (q * np.geomspace(1.0, condition, n)) @ q.T
    matrices = {np.dtype(t): hessian.astype(t) for t in (np.float32, np.float64)}

    def evaluate(x: Array) -> tuple[float, Array]:
        g = matrices[x.dtype] @ x
        return (x @ g) / 2, g

    return Function(f"quadratic {n}, condition {condition:.0e}", evaluate, np.ones(n), 0.0)


def _logistic(samples: int, n: int, least: float) -> Function:
    """Logistic regression with an L2 penalty; the least value is what BFGS finds in float64."""
    rng = np.random.default_rng(samples)
    inputs = rng.standard_normal((samples, n)) * np.geomspace(0.1, 3.0, n)
    signs = np.sign(inputs @ rng.standard_normal(n) + rng.standard_normal(samples))
    tables = {np.dtype(t): (signs[:, None] * inputs).astype(t) for t in (np.float32, np.float64)}

    def evaluate(x: Array) -> tuple[float, Array]:
        a = tables[x.dtype]
        margin = a @ x
        share = np.exp(-np.logaddexp(margin, 0))
        value = np.mean(np.logaddexp(-margin, 0)) + (x @ x) * 0.0005
        return value, -(share @ a) / x.dtype.type(samples) + x * x.dtype.type(0.001)

    return Function(f"logistic regression {samples} x {n}", evaluate, np.zeros(n), least)


FUNCTIONS = [
    *(
        Function(f"Rosenbrock {n}", _rosenbrock, np.tile([-1.2, 1.0], n)[:n], 0.0)
        for n in (2, 3, 5, 10, 20, 50, 100)
    ),
    Function("Beale", _beale, np.array([1.0, 1.0]), 0.0),
    Function("Booth", _booth, np.array([0.0, 0.0]), 0.0),
    Function("Himmelblau", _himmelblau, np.array([0.0, 0.0]), 0.0),
    Function("Styblinski-Tang 10", _styblinski_tang, np.full(10, -1.0), -391.6616570377142),
    _quadratic(50, 1e2),
    _quadratic(50, 1e4),
    _quadratic(40, 1e5),
    _logistic(200, 20, 0.11360635679497576),
    _logistic(1000, 50, 0.10568898503555862),
]
