"""Optimizers that compute with whole arrays: matrix products and factorisations instead of one native rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastopt import _ops, _products
from fastopt._arrays import Array, as_view, assign
from fastopt._device import is_device_array, library, on_host
from fastopt.optim.base import NONNEGATIVE, Optimizer, number
from fastopt.optim.vectors import unwrapped


class MatrixOptimizer(Optimizer):
    """Base class of the optimizers that compute with whole arrays.

    Parameters and gradients are on the host or on one device, where the array's own library computes what is no matrix
    product. Those of two bytes are computed with in float32, which is then the dtype of their state.
    """

    #: Whether a step count is part of the state.
    counts: ClassVar[bool] = True

    def update(
        self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any], stored: np.dtype[Any]
    ) -> Array:
        """Return the parameter `p` after a step with gradient `g`; `state` is brought forward in place.

        `p` and `g` have elements, may not be written to, and are in the dtype to compute in; `stored` is the
        parameter's own. ``state["step"]`` counts this step already.
        """
        raise NotImplementedError

    def shapes(self, p: Any, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the state arrays of a parameter that has taken a step."""
        raise NotImplementedError

    def step(self, grads: Any = None, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        grads : list, dict, tree or callable, optional
            Gradients in the structure of the parameters, or as a flat list; None in place of one skips its
            parameter. Without it the gradients are the Tensors' ``.grad``. A callable is taken as `closure`.
        closure : callable, optional
            Evaluates the model. For Tensors it runs backward and returns the loss; for plain
            arrays it returns ``(loss, grads)``.

        Returns
        -------
        The closure's loss, None without a closure.

        Raises
        ------
        TypeError, ValueError
            A gradient's structure, dtype or shape differs from its parameter's, or a setting went
            out of range. Parameters and state are as before then.
        """
        if callable(grads):
            grads, closure = None, grads
        loss = None
        if closure is not None:
            loss, grads = self._evaluate(closure)
        with self._lock, self._placement.current():
            self._placement.require_no_capture(type(self).__name__)
            flat = self._gather(grads)
            views = [None if g is None else self._checked(i, g) for i, g in enumerate(flat)]
            for g, group in enumerate(self.param_groups):
                self._validate(group, f" in param_groups[{g}]")
            for g in range(len(self.param_groups)):
                self._step_group(g, views[self._starts[g] : self._starts[g + 1]])
        return loss

    def _step_group(self, g: int, grads: list[Any]) -> None:
        group = self.param_groups[g]
        for i, gradient in enumerate(grads, self._starts[g]):
            p, state = self._dense[i].source, self._state[i]
            if gradient is None or not p.size:
                continue
            if self.counts:
                state["step"] = state.get("step", 0) + 1
            dtype = _compute_dtype(p)
            wide = gradient.astype(dtype, copy=False)
            wide = -wide if group.get("maximize") else wide
            assign(p, self.update(p.astype(dtype, copy=False), wide, state, group, p.dtype))

    # State ----------------------------------------------------------------------------------------------

    def _entry(self, i: int) -> dict[str, Any]:
        entry = {name: unwrapped(value) for name, value in self._state[i].items()}
        if "step" in entry:
            entry["step"] = np.asarray(entry["step"], np.float32)
        return entry

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        loaded = []
        for i, entry in enumerate(entries):
            g = int(np.searchsorted(self._starts, i, side="right")) - 1
            loaded.append(self._loaded_entry(i, entry, groups[g]) if entry else {})
        self._take(loaded)

    def _take(self, loaded: list[dict[str, Any]]) -> None:
        """Replace the state of each parameter."""
        for state, new in zip(self._state, loaded, strict=True):
            state.clear()
            state.update(new)

    def _loaded_entry(self, i: int, entry: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """Return copies of one entry's arrays where parameter i is, or raise."""
        p, state = self._dense[i].source, {}
        wanted = self.shapes(p, group)
        for name in [*wanted, *(["step"] if self.counts else [])]:
            where = f"load_state_dict: state[{i}][{name!r}]"
            if entry.get(name) is None:
                raise ValueError(
                    f"load_state_dict: state[{i}] has no {name!r}, it has {sorted(map(str, entry))}"
                )
            if name == "step":
                value = entry[name]
                steps = number(
                    "load_state_dict",
                    f"state[{i}]['step']",
                    on_host(value) if is_device_array(value) else value,
                )
                if not NONNEGATIVE.holds(steps):
                    raise ValueError(f"{where} must be in {NONNEGATIVE.text}, got {steps}")
                state["step"] = int(steps)
                continue
            view = as_view(entry[name], where)
            if view.dtype.kind in "cOSUMm":
                raise TypeError(f"{where} is {view.dtype}, expected real numbers")
            if view.shape != wanted[name]:
                raise ValueError(f"{where} has shape {view.shape}, expected {wanted[name]}")
            state[name] = zeros_like(p, view.shape)
            assign(state[name], view)
        return state


def _compute_dtype(p: Any) -> np.dtype[Any]:
    return np.dtype(np.float64 if p.dtype == np.float64 else np.float32)


def zeros_like(p: Any, shape: tuple[int, ...]) -> Any:
    """Return zeros of a shape for the state of parameter `p`, where it is."""
    dtype = _compute_dtype(p)
    return library(p).zeros(p, shape, dtype) if is_device_array(p) else np.zeros(shape, dtype)


def matrix_of(a: Any) -> Any:
    """Return an array of two dimensions or more as a matrix: its first axis by all others."""
    return a.reshape(a.shape[0], math.prod(a.shape[1:]))


def norm(x: Any) -> Any:
    """Return the L2 norm of all elements: a float, or of an array on a device one of no dimensions and its dtype."""
    squares = _ops.sum_squares(x if is_device_array(x) else np.asarray(x))
    if not is_device_array(x):
        return math.sqrt(squares)
    return np.sqrt(as_view(squares, "norm")).reshape(()).astype(x.dtype)


def matmul(x: Array, y: Array) -> Array:
    """Return ``x @ y`` as the factors are: of a device in the form in which this package works on it."""
    product: Array = as_view(_products.matmul(x, y), "product")
    return product


def multiply_add(x: Array, y: Array, beta: float, z: Array) -> Array:
    """Return ``x @ y + beta * z`` of matrices."""
    if is_device_array(x):
        return matmul(x, y) + beta * z
    return _products.gemm(x, y, z.copy(), beta=beta)


def at_least(value: Any, floor: float) -> Any:
    """Return the larger of a `norm` and a number."""
    return np.maximum(value, value.dtype.type(floor)) if is_device_array(value) else max(value, floor)
