"""L-BFGS with an optional strong Wolfe line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fastopt import _ops
from fastopt._arrays import Array, as_view
from fastopt.optim.base import COUNT, NONNEGATIVE, Interval, Optimizer

_VECTORS = ("d", "prev_flat_grad")
_VECTOR_LISTS = ("old_dirs", "old_stps")
_MIN_CURVATURE = 1e-10
_MAX_SEARCH = 25


class LBFGS(Optimizer):
    r"""L-BFGS: quasi-Newton steps from the last changes of parameters and gradient.

    The direction is :math:`-H g`, where :math:`H` is made from pairs :math:`s` (change of the parameters)
    and :math:`y` (change of the gradient) by the two-loop recursion; pairs with :math:`y^\top s \le
    10^{-10}` are left out. Without a line search the first step has length :math:`\eta \min(1, 1 / \lVert
    g \rVert_1)` and later ones :math:`\eta`.

    Parameters
    ----------
    params : list, dict, nested tree or (name, array) pairs
        The parameters, updated in place; see `Optimizer`. One group only.
    lr : float
        Learning rate :math:`\eta`, where the line search starts.
    max_iter : int
        Iterations per step.
    max_eval : int, optional
        Evaluations of the closure per step; ``max_iter * 5 // 4`` when None.
    tolerance_grad : float
        Stop when no gradient element exceeds this.
    tolerance_change : float
        Stop when neither the loss nor any parameter changes by more than this.
    history_size : int
        How many pairs are kept.
    line_search_fn : {"strong_wolfe"}, optional
        Search along the direction until the strong Wolfe conditions hold (c1 = 1e-4, c2 = 0.9).

    References
    ----------
    Liu and Nocedal, On the Limited Memory BFGS Method for Large Scale Optimization, 1989; Nocedal and Wright,
    Numerical Optimization, 2006, algorithms 3.5, 3.6 and 7.4.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        "lr": NONNEGATIVE,
        "max_iter": COUNT,
        "max_eval": COUNT,
        "tolerance_grad": NONNEGATIVE,
        "tolerance_change": NONNEGATIVE,
        "history_size": COUNT,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: Literal["strong_wolfe"] | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, settings)

    def check(self, group: dict[str, Any]) -> None:
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ValueError(
                f"LBFGS: line_search_fn must be None or 'strong_wolfe', got {group['line_search_fn']!r}"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the only group; ValueError for another."""
        if self.param_groups:
            raise ValueError("LBFGS: params has several groups, L-BFGS works on one")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take up to `max_iter` quasi-Newton steps.

        Parameters
        ----------
        closure : callable
            Evaluates the model. For Tensors it clears the gradients, runs backward and returns
            the loss; for plain arrays it returns ``(loss, grads)``. A parameter without a
            gradient counts as having zeros.

        Returns
        -------
        The first loss that the closure returned.
        """
        if not callable(closure):
            raise TypeError(f"LBFGS: step needs a closure, got {type(closure).__name__}")
        group = self.param_groups[0]
        self._validate(group)
        max_iter, max_eval = int(group["max_iter"]), int(group["max_eval"])
        change = group["tolerance_change"]
        first_loss, loss, g = self._evaluate_flat(closure)
        evals = 1
        s = self._state[0]
        s["func_evals"] = s.get("func_evals", 0) + 1
        s.setdefault("n_iter", 0)
        if _ops.abs_max(g) <= group["tolerance_grad"]:
            return first_loss

        for iteration in range(1, max_iter + 1):
            s["n_iter"] += 1
            s["d"] = d = self._direction(s, g, int(group["history_size"]))
            s["prev_flat_grad"], s["prev_loss"] = g, loss
            t = group["lr"] * (min(1.0, 1.0 / _ops.abs_sum(g)) if s["n_iter"] == 1 else 1.0)
            s["t"] = t
            slope = _ops.dot(g, d)
            if slope > -change:
                break
            searched = 0
            if group["line_search_fn"] is not None and t > 0.0:
                x = self._weights()

                def probe(t: float, x: Array = x, d: Array = d) -> _Point:
                    try:
                        self._place(x, t, d)
                        _, loss, g = self._evaluate_flat(closure)
                    finally:
                        self._place(x, 0.0, d)
                    return _Point(t, loss, g, _ops.dot(g, d))

                start = _Point(0.0, loss, g, slope)
                point, searched = strong_wolfe(
                    probe, start, t, _ops.abs_max(d), change, min(_MAX_SEARCH, max_eval - evals)
                )
                s["t"] = t = point.t
                loss, g = point.loss, point.grad
                self._place(x, t, d)
            else:
                self._place(self._weights(), t, d)
                # The last iteration's new loss would serve nothing, and a stochastic one would mislead.
                if iteration < max_iter:
                    _, loss, g = self._evaluate_flat(closure)
                    searched = 1
            evals += searched
            s["func_evals"] += searched
            if (
                evals >= max_eval
                or _ops.abs_max(g) <= group["tolerance_grad"]
                or abs(t) * _ops.abs_max(d) <= change
                or abs(loss - s["prev_loss"]) < change
            ):
                break
        return first_loss

    def _direction(self, s: dict[str, Any], g: Array, history_size: int) -> Array:
        """Return -H g, after taking the pair of the last step into the history."""
        if "d" not in s:
            s.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            return -g
        changes, steps, ro = s["old_dirs"], s["old_stps"], s["ro"]  # torch's names for y, s and 1 / y.s
        change = g - s["prev_flat_grad"]
        step = s["d"] * s["t"]
        curvature = _ops.dot(change, step)
        if curvature > _MIN_CURVATURE:
            while len(changes) >= history_size:
                del changes[0], steps[0], ro[0]
            changes.append(change)
            steps.append(step)
            ro.append(1.0 / curvature)
            s["H_diag"] = curvature / _ops.dot(change, change)
        d = -g
        al = s["al"] = [None] * history_size
        for i in reversed(range(len(ro))):
            al[i] = _ops.dot(steps[i], d) * ro[i]
            _ops.axpy(-al[i], changes[i], d)
        d *= s["H_diag"]
        for i in range(len(ro)):
            _ops.axpy(al[i] - _ops.dot(changes[i], d) * ro[i], steps[i], d)
        return d

    # Flat vectors ---------------------------------------------------------------------------------------

    def _dtype(self) -> np.dtype[Any]:
        wide = any(d.source.dtype == np.float64 for d in self._dense)
        return np.dtype(np.float64 if wide else np.float32)

    def _flat(self, arrays: list[Array | None]) -> Array:
        """Return one vector of all arrays, zeros in place of None."""
        flat = np.zeros(self._size(), self._dtype())
        begin = 0
        for a, dense in zip(arrays, self._dense, strict=True):
            end = begin + dense.source.size
            if a is not None:
                flat[begin:end] = a.reshape(-1)
            begin = end
        return flat

    def _size(self) -> int:
        return sum(d.source.size for d in self._dense)

    def _evaluate_flat(self, closure: Callable[[], Any]) -> tuple[Any, float, Array]:
        """Call the closure; return its loss as it is and as a number, and the gradient."""
        result, grads = self._evaluate(closure)
        flat = self._gather(grads)
        return (
            result,
            float(result),
            self._flat([None if g is None else self._checked(i, g) for i, g in enumerate(flat)]),
        )

    def _weights(self) -> Array:
        return self._flat([d.source for d in self._dense])

    def _place(self, x: Array, t: float, d: Array) -> None:
        """Set the parameters to x + t d."""
        x = x if t == 0.0 else x + t * d
        begin = 0
        for dense in self._dense:
            p = dense.source
            p[...] = x[begin : begin + p.size].reshape(p.shape)
            begin += p.size

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        loaded: dict[str, Any] = {}
        for name, value in (entries[0] if entries else {}).items():
            where = f"load_state_dict: state[0][{name!r}]"
            if value is None:
                continue
            if name in _VECTORS:
                loaded[name] = self._load_vector(value, where)
            elif name in _VECTOR_LISTS:
                loaded[name] = [self._load_vector(v, f"{where}[{k}]") for k, v in enumerate(value)]
            elif name in ("ro", "al"):
                loaded[name] = [None if v is None else float(v) for v in value]
            elif name in ("n_iter", "func_evals"):
                loaded[name] = int(value)
            else:
                loaded[name] = float(value)
        if self._state:
            self._state[0] = loaded

    def _load_vector(self, value: Any, where: str) -> Array:
        view = as_view(value, where)
        if view.shape != (self._size(),):
            raise ValueError(f"{where} has shape {view.shape}, the parameters have {self._size()} elements")
        return np.array(view, self._dtype())


class _Point(NamedTuple):
    """The loss at distance `t` along the direction, its gradient, and the slope along the direction."""

    t: float
    loss: float
    grad: Array
    slope: float


def _cubic_minimum(a: _Point, b: _Point, low: float, high: float) -> float:
    """Return where the cubic through two points and their slopes is least, within [low, high]."""
    left, right = (a, b) if a.t <= b.t else (b, a)
    d1 = left.slope + right.slope - 3.0 * (left.loss - right.loss) / (left.t - right.t)
    square = d1 * d1 - left.slope * right.slope
    middle = (low + high) / 2.0
    if not 0.0 <= square < math.inf:  # no minimum, or a loss that is not finite
        return middle
    d2 = math.sqrt(square)
    span = right.slope - left.slope + 2.0 * d2
    if span == 0.0:
        return middle
    t = right.t - (right.t - left.t) * ((right.slope + d2 - d1) / span)
    return min(max(t, low), high) if math.isfinite(t) else middle


def strong_wolfe(
    probe: Callable[[float], _Point],
    start: _Point,
    t: float,
    longest: float,
    tolerance_change: float,
    max_search: int,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> tuple[_Point, int]:
    """Search along a direction of descent for a point that meets the strong Wolfe conditions.

    Parameters
    ----------
    probe : callable
        Evaluates the distance `t`.
    start : _Point
        Distance 0.
    t : float
        The first distance to try.
    longest : float
        Magnitude of the direction's largest element.
    tolerance_change : float
        The bracket is narrow enough when it moves no parameter by this much.
    max_search : int
        Evaluations after the first.
    c1, c2 : float
        Sufficient decrease and curvature.

    Returns
    -------
    point, evaluations
        The best point known when the search ended.
    """

    def too_high(point: _Point) -> bool:
        return not point.loss <= start.loss + c1 * point.t * start.slope  # NaN too

    def flat_enough(point: _Point) -> bool:
        return abs(point.slope) <= -c2 * start.slope

    # Grow the distance until an interval holds a minimum.
    before, point = start, probe(t)
    tries = 0
    while tries < max_search:
        if too_high(point) or (tries > 1 and point.loss >= before.loss):
            break
        if flat_enough(point):
            return point, tries + 1
        if point.slope >= 0.0:
            break
        t = _cubic_minimum(before, point, point.t + 0.01 * (point.t - before.t), 10.0 * point.t)
        before, point = point, probe(t)
        tries += 1
    else:
        before = start

    # Shrink the interval around it; `low` is the better end.
    low, high = (point, before) if point.loss < before.loss else (before, point)
    stuck = False
    while tries < max_search and abs(high.t - low.t) * longest >= tolerance_change:
        left, right = min(low.t, high.t), max(low.t, high.t)
        t = _cubic_minimum(low, high, left, right)
        # Twice near the same end, or on it: move a tenth of the interval inwards.
        margin = 0.1 * (right - left)
        near = min(right - t, t - left) < margin
        if near and (stuck or t >= right or t <= left):
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            near = False
        stuck = near
        point = probe(t)
        tries += 1
        if too_high(point) or point.loss >= low.loss:
            low, high = (point, low) if point.loss < low.loss else (low, point)
            continue
        if flat_enough(point):
            return point, tries + 1
        if point.slope * (high.t - low.t) >= 0.0:
            high = low
        low = point
    return low, tries + 1
