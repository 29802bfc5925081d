"""Vectors on the host or on a CUDA device, for methods that combine whole vectors.

A vector is an ndarray or, on a device, what `_device.device_view` returns. Sums are floats on the host; on a device
they are arrays of one element that `numbers` reads, several of them in one wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import _core, _ops
from fastopt._arrays import assign
from fastopt._device import device_view, is_device_array, library
from fastopt.optim.params import is_tensor


def empty(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return memory for a C-contiguous array on the device of `like`."""
    return library(like).empty(like, shape, dtype) if is_device_array(like) else np.empty(shape, dtype)


def unwrapped(x: Any) -> Any:
    """Return a vector as the array of its library that a caller gets to see."""
    return library(x).unwrap(x) if is_device_array(x) else x


def part(x: Any, begin: int, end: int) -> Any:
    """Return a view of some elements of a vector."""
    return library(x).rows(x, slice(begin, end)) if is_device_array(x) else x[begin:end]


def add_scaled(a: Any, x: Any, y: Any) -> None:
    """Add a * x to `y` in place; `a` is a float, or an array of one element on the device."""
    if isinstance(a, float):
        _ops.axpy(a, x, y)
    else:
        y += x * (a.astype(y.dtype) if hasattr(a, "astype") else a)


def numbers(*scalars: Any) -> list[float]:
    """Return scalars as floats. All those on a device are read together, which waits for it once."""
    values = list(scalars)
    waiting = []
    for i, value in enumerate(values):
        if type(value) is float:
            continue
        if hasattr(value, "detach"):
            value = value.detach()
        view = device_view(value.data if is_tensor(value) else value, "scalar")
        if view is None:
            values[i] = float(value)
        else:
            waiting.append((i, view))
    if waiting:
        first = waiting[0][1]
        together = empty(first, (len(waiting),), np.float64)
        for k, (_, view) in enumerate(waiting):
            assign(part(together, k, k + 1), view.reshape(1))
        for (i, _), value in zip(waiting, library(first).to_host(together).tolist(), strict=True):
            values[i] = value
    return values


def two_loop(
    d: Any, changes: Sequence[Any], steps: Sequence[Any], ro: Sequence[float], scale: Any
) -> list[Any]:
    """Multiply `d` in place by L-BFGS's approximation of the inverse Hessian.

    Parameters
    ----------
    d : vector
        C-contiguous, as the others.
    changes, steps : sequence of vectors
        Changes y of the gradient and s of the parameters, the oldest first.
    ro : sequence of float
        1 / (y . s) of each pair.
    scale : float, or an array of one element on the device
        The approximation before any pair, a multiple of the identity.

    Returns
    -------
    The factors of the first loop, which on a device nobody waits for.

    References
    ----------
    Nocedal, Updating Quasi-Newton Matrices with Limited Storage, Mathematics of Computation 35, 1980.
    """
    on_host = type(d) is np.ndarray
    dot, add = (_core.dot, _core.axpy) if on_host else (_ops.dot, add_scaled)
    al: list[Any] = [None] * len(ro)
    for i in reversed(range(len(ro))):
        al[i] = dot(steps[i], d) * ro[i]
        add(-al[i], changes[i], d)
    d *= scale
    for i in range(len(ro)):
        add(al[i] - dot(changes[i], d) * ro[i], steps[i], d)
    return al
