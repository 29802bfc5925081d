"""L-BFGS with an optional strong Wolfe line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from fastopt import _ops
from fastopt._arrays import Array, as_view, assign
from fastopt._device import is_device_array
from fastopt.optim.base import COUNT, NONNEGATIVE, Interval, Optimizer
from fastopt.optim.line_search import Point, strong_wolfe
from fastopt.optim.vectors import add_scaled, empty, numbers, part, two_loop, unwrapped

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

    Parameters on a GPU stay there, and so do all vectors. An iteration waits for the device twice, for a few numbers
    that decide how it goes on, and a line search once more for each evaluation.

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

    Notes
    -----
    When to use: for smooth functions with exact gradients - fits, physics, logistic regression on all data - of up to
    millions of numbers, with ``line_search_fn="strong_wolfe"``. Not with mini-batches: changes of the gradient must not
    be noise. For a function of one array `fastopt.minimize` is shorter.

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
        with self._lock:
            return self._iterate(closure)

    def _iterate(self, closure: Callable[[], Any]) -> Any:
        group = self.param_groups[0]
        self._validate(group)
        max_iter, max_eval = int(group["max_iter"]), int(group["max_eval"])
        change = group["tolerance_change"]
        first_loss, g = self._evaluate_flat(closure)
        evals = 1
        s = self._state[0]
        s["func_evals"] = s.get("func_evals", 0) + 1
        s.setdefault("n_iter", 0)
        pair = _Pair.of(s, g)
        loss, largest = pair.read(first_loss, _ops.abs_max(g))
        if largest <= group["tolerance_grad"]:
            return first_loss

        for iteration in range(1, max_iter + 1):
            s["n_iter"] += 1
            s["d"] = d = self._direction(s, g, pair, int(group["history_size"]))
            s["prev_flat_grad"], s["prev_loss"] = g, loss
            slope, longest = _ops.dot(g, d), _ops.abs_max(d)
            if s["n_iter"] == 1:
                slope, longest, total = numbers(slope, longest, _ops.abs_sum(g))
                t = group["lr"] * min(1.0, 1.0 / total)
            else:
                slope, longest = numbers(slope, longest)
                t = group["lr"] * 1.0
            s["t"] = t
            if slope > -change:
                break
            searched, result = 0, loss
            if group["line_search_fn"] is not None and t > 0.0:
                x = self._weights()

                def probe(t: float, x: Array = x, d: Array = d) -> Point:
                    try:
                        self._place(x, t, d)
                        result, g = self._evaluate_flat(closure)
                    finally:
                        self._place(x, 0.0, d)
                    loss, slope = numbers(result, _ops.dot(g, d))
                    return Point(t, loss, g, slope)

                start = Point(0.0, loss, g, slope)
                point, searched = strong_wolfe(
                    probe, start, t, longest, change, min(_MAX_SEARCH, max_eval - evals)
                )
                s["t"] = t = point.t
                result, g = point.loss, point.grad
                self._place(x, t, d)
            else:
                self._place(self._weights(), t, d)
                # The last iteration's new loss would serve nothing, and a stochastic one would mislead.
                if iteration < max_iter:
                    result, g = self._evaluate_flat(closure)
                    searched = 1
            evals += searched
            s["func_evals"] += searched
            if iteration == max_iter or evals >= max_eval:
                break
            pair = _Pair.of(s, g)
            loss, largest = pair.read(result, _ops.abs_max(g))
            if (
                largest <= group["tolerance_grad"]
                or abs(t) * longest <= change
                or abs(loss - s["prev_loss"]) < change
            ):
                break
        return first_loss

    def _direction(self, s: dict[str, Any], g: Array, pair: _Pair, history_size: int) -> Array:
        """Return -H g, after taking the pair of the last step into the history."""
        d = -g
        if pair.change is None:
            s.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            return d
        changes, steps, ro = s["old_dirs"], s["old_stps"], s["ro"]  # torch's names for y, s and 1 / y.s
        if pair.curvature > _MIN_CURVATURE:
            while len(changes) >= history_size:
                del changes[0], steps[0], ro[0]
            changes.append(pair.change)
            steps.append(pair.step)
            ro.append(1.0 / pair.curvature)
            s["H_diag"] = pair.curvature / pair.square
        al = two_loop(d, changes, steps, ro, s["H_diag"])
        # Factors on a device stay there; they serve nothing but the state's likeness to torch's.
        known = [] if is_device_array(d) else al
        s["al"] = known + [None] * (history_size - len(known))
        return d

    # Flat vectors ---------------------------------------------------------------------------------------

    def _dtype(self) -> np.dtype[Any]:
        wide = any(d.source.dtype == np.float64 for d in self._dense)
        return np.dtype(np.float64 if wide else np.float32)

    def _flat(self, arrays: list[Array | None]) -> Array:
        """Return one vector of all arrays, zeros in place of None."""
        if not self._dense:
            return np.zeros(0, self._dtype())
        flat = empty(self._dense[0].source, (self._size(),), self._dtype())
        begin = 0
        for a, dense in zip(arrays, self._dense, strict=True):
            size = dense.source.size
            here = part(flat, begin, begin + size)
            if a is None:
                here.fill(0)
            else:
                assign(here, a.reshape(-1))
            begin += size
        vector: Array = flat
        return vector

    def _size(self) -> int:
        return sum(d.source.size for d in self._dense)

    def _evaluate_flat(self, closure: Callable[[], Any]) -> tuple[Any, Array]:
        """Call the closure; return its loss as it is, and the gradient."""
        result, grads = self._evaluate(closure)
        flat = self._gather(grads)
        return result, self._flat([None if g is None else self._checked(i, g) for i, g in enumerate(flat)])

    def _weights(self) -> Array:
        return self._flat([d.source for d in self._dense])

    def _place(self, x: Array, t: float, d: Array) -> None:
        """Set the parameters to x + t d."""
        if t != 0.0:
            x = x.copy()
            add_scaled(float(t), d, x)
        begin = 0
        for dense in self._dense:
            p = dense.source
            assign(p, part(x, begin, begin + p.size).reshape(p.shape))
            begin += p.size

    def _entry(self, i: int) -> dict[str, Any]:
        return {name: _shown(value) for name, value in self._state[i].items()}

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
        vector: Array = empty(self._dense[0].source, view.shape, self._dtype())
        assign(vector, view)
        return vector


class _Pair:
    """How gradient and parameters changed with the last step; without one, `change` is None."""

    def __init__(self, change: Any, step: Any) -> None:
        self.change, self.step = change, step
        self.curvature = self.square = 0.0

    @classmethod
    def of(cls, s: dict[str, Any], g: Any) -> _Pair:
        """Return the pair that a step from the state `s` to the gradient `g` makes."""
        return cls(g - s["prev_flat_grad"], s["d"] * s["t"]) if "d" in s else cls(None, None)

    def read(self, *scalars: Any) -> list[float]:
        """Return scalars as floats, and read the pair's own products beside them."""
        if self.change is None:
            return numbers(*scalars)
        products = _ops.dot(self.change, self.step), _ops.dot(self.change, self.change)
        *values, self.curvature, self.square = numbers(*scalars, *products)
        return values


def _shown(value: Any) -> Any:
    """Return a value of the state with the vectors as their library's arrays."""
    if isinstance(value, list):
        return [_shown(v) for v in value]
    return unwrapped(value)
