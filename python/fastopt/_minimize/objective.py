"""The function that is minimised, its gradient and its bounds, in the form that the methods use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt._arrays import as_view
from fastopt._device import is_device_array, library
from fastopt.optim.params import is_tensor
from fastopt.optim.vectors import unwrapped

DIFFERENCES = ("2-point", "3-point")


def start(x0: Any) -> Any:
    """Return a C-contiguous copy of `x0` that the methods may change.

    Raises
    ------
    TypeError
        It is neither float32 nor float64, nor integers, which become float64.
    """
    if is_tensor(x0):
        x0 = x0.data
    if not (hasattr(x0, "dtype") or hasattr(x0, "__dlpack__")):
        x0 = np.asarray(x0)
    view = as_view(np.asarray(x0) if isinstance(x0, np.generic) else x0, "minimize: x0")
    dtype = np.dtype(np.float64) if view.dtype.kind in "biu" else view.dtype
    if dtype.name not in ("float32", "float64"):
        raise TypeError(f"minimize: x0 is {dtype}, expected float32 or float64")
    if is_device_array(view):
        dense = library(view).dense(view.astype(dtype))
        return dense.reshape(1) if dense.ndim == 0 else dense
    return np.atleast_1d(np.array(view, dtype, order="C"))


class Objective:
    """The caller's function with its arguments and the way to its gradient.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)``.
    args : tuple
        Further arguments of `fun` and `jac`.
    jac : callable, bool, str or None
        As `minimize` has it.
    box : Box or None
        Differences stay inside it.
    rel_step, abs_step : float or array, optional
        SciPy's steps of differences.

    Attributes
    ----------
    nfev, njev : int
        Evaluations of the function and of its gradient.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Any,
        jac: Any,
        box: Box | None = None,
        rel_step: Any = None,
        abs_step: Any = None,
    ) -> None:
        if not callable(fun):
            raise TypeError(f"minimize: fun is {type(fun).__name__}, expected a function")
        if isinstance(jac, str) and jac not in DIFFERENCES:
            raise ValueError(f"minimize: jac is {jac!r}, expected a function, True or one of {DIFFERENCES}")
        self._fun = fun
        self._args = args if isinstance(args, tuple) else (args,)
        self._jac = jac if callable(jac) or isinstance(jac, str) else bool(jac) or "2-point"
        self._box = box
        self._steps = {"rel_step": rel_step, "abs_step": abs_step}
        self.nfev = self.njev = 0

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """Return fun at `x`, as it came, and the gradient in the shape, dtype and place of `x`."""
        shown = unwrapped(x)
        if isinstance(shown, np.ndarray):
            shown = shown.view()
            shown.flags.writeable = False
        if self._jac is True:
            self.nfev += 1
            self.njev += 1
            both = self._fun(shown, *self._args)
            if not isinstance(both, tuple | list) or len(both) != 2:
                raise TypeError(f"minimize: jac is True, fun returned {type(both).__name__}, not (f, g)")
            loss, g = both
        else:
            loss = self._value(shown)
            self.njev += 1
            g = self._jac(shown, *self._args) if callable(self._jac) else self._difference(x, loss)
        return _scalar(loss), _gradient(g, x)

    def _value(self, x: Any) -> Any:
        self.nfev += 1
        return self._fun(x, *self._args)

    def _difference(self, x: Any, loss: Any) -> Any:
        """Return the gradient by differences."""
        if is_device_array(x):
            raise TypeError(
                f"minimize: jac is {self._jac!r}, differences are for arrays on the host; give jac"
            )
        try:
            from scipy.optimize._numdiff import approx_derivative
        except ImportError as error:
            raise ImportError(
                f"minimize: jac is {self._jac!r}, finite differences need SciPy; install it or give jac"
            ) from error
        bounds = (-np.inf, np.inf) if self._box is None else self._box.flat
        gradient = approx_derivative(
            lambda flat: _scalar(self._value(flat.reshape(x.shape))),
            x.reshape(-1),
            self._jac,
            f0=np.atleast_1d(np.asarray(_scalar(loss))),
            bounds=bounds,
            **self._steps,
        )
        return np.asarray(gradient).reshape(x.shape)


def _scalar(loss: Any) -> Any:
    """Return what `fun` gave: a number, or what a device has of one element."""
    if loss is None or isinstance(loss, tuple | list | str | complex):
        raise TypeError(
            f"minimize: fun returned {type(loss).__name__}, expected one number, or (f, g) with jac=True"
        )
    if not isinstance(loss, np.ndarray):
        return loss.detach() if hasattr(loss, "detach") else loss
    if loss.size != 1:
        raise ValueError(f"minimize: fun returned an array of shape {loss.shape}, expected one number")
    return float(loss.reshape(()))


def _gradient(g: Any, x: Any) -> Any:
    """Return the gradient as a C-contiguous array like `x`; it is the caller's own where that fits."""
    if type(g) is np.ndarray and g.dtype == x.dtype and g.shape == x.shape and not is_device_array(x):
        return np.asarray(g, order="C")
    if is_tensor(g):
        g = g.data
    view = as_view(g if hasattr(g, "shape") and not np.isscalar(g) else np.asarray(g), "minimize: jac")
    if is_device_array(view) != is_device_array(x):
        places = ("the host", "a CUDA device")
        raise TypeError(
            f"minimize: jac returned an array on {places[is_device_array(view)]}, x0 is on {places[is_device_array(x)]}"
        )
    if view.size != x.size:
        raise ValueError(f"minimize: jac returned an array of shape {view.shape}, x0 has shape {x.shape}")
    if view.dtype.kind not in "fiub":
        raise TypeError(f"minimize: jac returned an array of {view.dtype}, x0 is {x.dtype}")
    view = (view if view.dtype == x.dtype else view.astype(x.dtype)).reshape(x.shape)
    return library(x).dense(view) if is_device_array(x) else np.asarray(view, order="C")


class Box:
    """Lower and upper bounds of every element.

    Parameters
    ----------
    bounds : scipy.optimize.Bounds or sequence of (min, max)
        None in place of a bound is none.
    x : array
        What is bounded.

    Raises
    ------
    ValueError
        They do not fit `x`, or a lower bound exceeds its upper one.
    """

    def __init__(self, bounds: Any, x: Any) -> None:
        pairs = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else _columns(bounds, x.size)
        try:
            lower, upper = _bound(pairs[0], -np.inf, x), _bound(pairs[1], np.inf, x)
        except ValueError:
            shapes = [np.shape(b) for b in pairs]
            raise ValueError(f"minimize: bounds have shapes {shapes}, x0 has shape {x.shape}") from None
        wrong = np.flatnonzero(~(lower <= upper))
        if wrong.size:
            i = wrong[0]
            raise ValueError(f"minimize: bounds[{i}] has lower {lower.flat[i]} above upper {upper.flat[i]}")
        self.flat = lower.ravel(), upper.ravel()
        on_device = is_device_array(x)
        self._lower, self._upper = (library(x).from_host(b, x) if on_device else b for b in (lower, upper))

    def project(self, x: Any) -> None:
        """Move `x` to the nearest point inside, in place."""
        if is_device_array(x):
            library(x).clip(x, self._lower, self._upper)
        else:
            np.clip(x, self._lower, self._upper, out=x)

    def inside(self, x: Any) -> Any:
        """Return 1 for each element of `x` that lies within its bounds, 0 for the others, in the dtype of `x`."""
        nearest = x.copy()
        self.project(nearest)
        return self._equal(nearest, x)

    def held(self, x: Any, d: Any) -> Any:
        """Return 1 for each element of `x` that is at a bound which a step along `d` would cross, 0 for the others."""
        moved = x.copy()
        moved += d
        self.project(moved)
        return self._equal(moved, x)

    def _equal(self, a: Any, b: Any) -> Any:
        return library(a).equal(a, b) if is_device_array(a) else (a == b).astype(a.dtype)

    def projected(self, x: Any, g: Any) -> Any:
        """Return how far a step along minus `g` gets inside, as the gradient of which no part leads out."""
        target = x - g
        self.project(target)
        return x - target


def _columns(bounds: Any, n: int) -> tuple[list[Any], list[Any]]:
    """Return the lower and the upper bounds of a sequence of pairs."""
    pairs = list(bounds)
    if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"minimize: bounds has {len(pairs)} entries, expected a pair for each of {n} elements"
        )
    return [low for low, _ in pairs], [high for _, high in pairs]


def _bound(values: Any, missing: float, x: Any) -> Any:
    """Return bounds in the shape and dtype of `x`, `missing` in place of None."""
    given = np.asarray(values)
    if given.dtype == object:
        given = np.array([missing if v is None else v for v in given.ravel()])
    flat = given.astype(x.dtype).ravel()
    return np.broadcast_to(flat if flat.size == 1 else flat.reshape(x.shape), x.shape).copy()
