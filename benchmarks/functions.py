"""Test functions of minimisation: value and gradient in the dtype of x, where to start, bounds, and the least value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds

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
    lower, upper : float or ndarray of float64
        The bounds of x.
    """

    name: str
    evaluate: Evaluate
    start: Array
    least: float
    lower: float | Array = -np.inf
    upper: float | Array = np.inf

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @property
    def bounds(self) -> Bounds | None:
        """The bounds of each element as SciPy has them, None without any."""
        if not self.bounded:
            return None
        return Bounds(*(np.broadcast_to(b, self.start.shape).copy() for b in (self.lower, self.upper)))


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


def _mccormick(x: Array) -> tuple[float, Array]:
    total, apart = x[0] + x[1], x[0] - x[1]
    value = np.sin(total) + apart**2 - 1.5 * x[0] + 2.5 * x[1] + 1
    slope = np.cos(total)
    return value, np.stack([slope + 2 * apart - x.dtype.type(1.5), slope - 2 * apart + x.dtype.type(2.5)])


def _product(x: Array) -> tuple[float, Array]:
    """The objective of Hock and Schittkowski's problem 45."""
    others = np.array([np.prod(np.delete(x, i)) for i in range(x.size)], x.dtype)
    return 2 - np.prod(x) / 120, -others / 120


def _chain(x: Array) -> tuple[float, Array]:
    """The objective of the sample program that comes with L-BFGS-B."""
    apart = x[1:] - x[:-1] ** 2
    g = np.zeros_like(x)
    g[0] = 2 * (x[0] - 1)
    g[1:] += 8 * apart
    g[:-1] -= 16 * x[:-1] * apart
    return (x[0] - 1) ** 2 + 4 * np.sum(apart**2), g


def _least_squares(samples: int, n: int, least: float) -> Function:
    """Least squares with coefficients of at least 0; the least value is that of `scipy.optimize.nnls`."""
    rng = np.random.default_rng(samples)
    inputs = rng.standard_normal((samples, n)) / np.sqrt(samples)
    target = rng.standard_normal(samples)
    tables = {np.dtype(t): (inputs.astype(t), target.astype(t)) for t in (np.float32, np.float64)}

    def evaluate(x: Array) -> tuple[float, Array]:
        a, b = tables[x.dtype]
        rest = a @ x - b
        return (rest @ rest) / 2, rest @ a

    return Function(f"least squares {samples} x {n}, x >= 0", evaluate, np.ones(n), least, 0.0)


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


def _within(
    function: Function,
    least: float,
    lower: float | Array = -np.inf,
    upper: float | Array = np.inf,
    name: str = "",
) -> Function:
    """Return a function with bounds; the least value is what SciPy's methods agree on in float64."""
    name = f"{function.name}, {name or f'{lower} <= x <= {upper}'}"
    return Function(name, function.evaluate, function.start, least, lower, upper)


FREE = [
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

_ROSENBROCKS = {f.start.size: f for f in FREE if f.name.startswith("Rosenbrock")}

#: With bounds, most of them active at the minimum. HS: of Hock and Schittkowski's collection.
BOUNDED = [
    _within(_ROSENBROCKS[2], 0.25, np.array([-2.0, -2.0]), np.array([0.5, 2.0]), "x1 <= 0.5"),
    Function("HS1", _rosenbrock, np.array([-2.0, 1.0]), 0.0, np.array([-np.inf, -1.5])),
    Function("HS2", _rosenbrock, np.array([-2.0, 1.0]), 4.941229317989185, np.array([-np.inf, 1.5])),
    Function(
        "HS5", _mccormick, np.zeros(2), -1.9132229549810367, np.array([-1.5, -3.0]), np.array([4.0, 3.0])
    ),
    Function("HS45", _product, np.ones(5), 1.0, 0.0, np.arange(1.0, 6.0)),
    Function("L-BFGS-B's sample 25", _chain, np.full(25, 3.0), 0.0, np.tile([1.0, -100.0], 13)[:25], 100.0),
    _within(_ROSENBROCKS[10], 6.001016394606179, -2.0, 0.8),
    _within(_ROSENBROCKS[100], 95.0917350616381, -2.0, 0.8),
    _within(_quadratic(50, 1e2), 109.61450972487816, 0.5, 2.0),
    _within(_quadratic(50, 1e4), 2263.4725303178853, 0.5, 2.0),
    _least_squares(60, 40, 22.690855199488258),
    _least_squares(200, 150, 66.4452945619191),
    _within(_logistic(200, 20, 0.0), 0.29682679897716935, -0.5, 0.5),
    _within(_logistic(1000, 50, 0.0), 0.3699518572644202, 0.0, name="x >= 0"),
]

FUNCTIONS = [*FREE, *BOUNDED]
