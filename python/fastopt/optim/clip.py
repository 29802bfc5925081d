"""Clipping gradients in place. An optimizer's `max_norm` and `clip_value` do it inside the step."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastopt import _ops
from fastopt._arrays import Array, as_view
from fastopt._device import is_device_array, library
from fastopt.optim.params import is_tensor

_WIDE = (np.dtype(np.float32), np.dtype(np.float64))


def get_total_norm(tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Any:
    """Return the norm of all arrays together, as if they were one vector.

    Parameters
    ----------
    tensors : array or iterable of arrays
        Arrays or Tensors; of a Tensor its values count, not its gradient.
    norm_type : float
        The order p of the norm; `inf` for the largest magnitude.
    error_if_nonfinite : bool
        Raise RuntimeError when the norm is NaN or infinite.
    """
    arrays = [_array(x, f"get_total_norm: tensors[{i}]") for i, x in enumerate(_listed(tensors))]
    return _total_norm(arrays, float(norm_type), error_if_nonfinite, "get_total_norm")


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Any:
    """Scale gradients in place so that their norm, all together, is at most `max_norm`.

    Each is multiplied by ``min(1, max_norm / (norm + 1e-6))``, as in torch.

    Parameters
    ----------
    parameters : Tensor, array, or iterable of such
        Of Tensors the ``.grad`` (those without are skipped); plain arrays are the gradients themselves.
    max_norm : float
        The limit.
    norm_type : float
        The order p of the norm; `inf` for the largest magnitude.
    error_if_nonfinite : bool
        Raise RuntimeError when the norm is NaN or infinite, and change nothing.

    Returns
    -------
    float, or an array of one float64 of gradients on a GPU
        The norm before clipping.
    """
    grads = _gradients(parameters, "clip_grad_norm_")
    max_norm = float(max_norm)
    if not max_norm >= 0.0:
        raise ValueError(f"clip_grad_norm_: max_norm must be in [0, inf], got {max_norm}")
    norm = _total_norm(grads, float(norm_type), error_if_nonfinite, "clip_grad_norm_")
    factor = max_norm / (norm + 1e-6)
    if grads and is_device_array(grads[0]):
        scale_in_place(grads, library(grads[0]).at_most(factor, 1.0))
    elif not factor >= 1.0:
        scale_in_place(grads, factor)
    return norm


def scale_in_place(arrays: list[Any], factor: Any) -> None:
    """Multiply arrays, all on the host or all on a device, by a number that may be there."""
    for a in arrays:
        if is_device_array(a):
            raw: Any = library(a).unwrap(a)
            raw *= factor
        else:
            # Low-precision arrays are scaled in float32: the factor itself must not be rounded to their dtype.
            a[...] = (a if a.dtype in _WIDE else a.astype(np.float32)) * factor


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Limit every gradient element to ``[-clip_value, clip_value]`` in place.

    Parameters
    ----------
    parameters : Tensor, array, or iterable of such
        Of Tensors the ``.grad`` (those without are skipped); plain arrays are the gradients themselves.
    clip_value : float
        The limit.
    """
    grads = _gradients(parameters, "clip_grad_value_")
    clip_value = float(clip_value)
    if not clip_value >= 0.0:
        raise ValueError(f"clip_grad_value_: clip_value must be in [0, inf], got {clip_value}")
    for g in grads:
        if is_device_array(g):
            library(g).clip(g, -clip_value, clip_value)
            continue
        limit = g.dtype.type(clip_value)
        np.maximum(g, -limit, out=g)
        np.minimum(g, limit, out=g)


def _listed(x: Any) -> list[Any]:
    return [x] if hasattr(x, "shape") or not isinstance(x, Iterable) else list(x)


def _array(x: Any, name: str) -> Any:
    return as_view(x.data if is_tensor(x) else x, name)


def _gradients(parameters: Any, owner: str) -> list[Any]:
    """Return writable views of the gradients."""
    grads = []
    for i, p in enumerate(_listed(parameters)):
        name = f"{owner}: parameters[{i}]"
        g = p.grad if hasattr(p, "grad") else p
        if g is None:
            continue
        view = _array(g, name)
        if not is_device_array(view) and not view.flags.writeable:
            raise ValueError(f"{name} is read-only")
        grads.append(view)
    return grads


def _total_norm(arrays: list[Any], order: float, error_if_nonfinite: bool, owner: str) -> Any:
    if not order > 0.0:
        raise ValueError(f"{owner}: norm_type must be in (0, inf], got {order}")
    dense = [a if a.dtype in _WIDE else a.astype(np.float32) for a in arrays]
    norm = _norm_on_device(dense, order) if dense and is_device_array(dense[0]) else _norm(dense, order)
    # Of arrays on a device this waits for the answer.
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(f"{owner}: the norm of order {order} is {norm}")
    return norm


def _norm_on_device(arrays: list[Any], order: float) -> Any:
    """Return the norm as one float64 on the device."""
    lib = library(arrays[0])
    if order == 2.0:
        return functools.reduce(operator.add, map(_ops.sum_squares, arrays)) ** 0.5
    if math.isinf(order):
        return functools.reduce(lib.larger, map(_ops.abs_max, arrays))
    powers = [(abs(lib.unwrap(a.astype(np.float64))) ** order).sum() for a in arrays]
    return functools.reduce(operator.add, powers) ** (1.0 / order)


def _norm(dense: list[Array], order: float) -> float:
    if order == 2.0:
        norm: float = math.sqrt(sum(_ops.sum_squares(a) for a in dense))
    elif math.isinf(order):
        largest = [_ops.abs_max(a) for a in dense]
        norm = math.nan if any(map(math.isnan, largest)) else max(largest, default=0.0)
    else:
        norm = sum(float(np.sum(np.abs(a) ** order, dtype=np.float64)) for a in dense) ** (1.0 / order)
    return norm
