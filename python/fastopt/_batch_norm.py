"""Batch normalisation as a function; `functional` exports it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _ops
from fastopt._dtypes import float32, is_floating
from fastopt._rules import as_float
from fastopt.tensor import Tensor, needs_grad, record, to_array, wrap

Array = npt.NDArray[Any]


def batch_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Parameters
    ----------
    input : array or Tensor, shape (N, C) or (N, C, L)
        float32 or float64; bfloat16 and float16 are computed in float32 and rounded once. Converted to the dtype
        of `weight`, or else of the running statistics, where it has another.
    running_mean, running_var : array or Tensor, shape (C,), optional
        With `training` they are brought up to date in place: ``momentum * batch + (1 - momentum) * running``, of
        the unbiased variance. Without it they are what is subtracted and divided by.
    weight, bias : array or Tensor, shape (C,), optional
    training : bool
        Use the mean and the biased variance of this batch; otherwise the running ones.
    momentum : float
    eps : float
        At least 0.

    Returns
    -------
    array or Tensor, shaped as `input`
        The same bits for any number of threads.

    Raises
    ------
    ValueError
        Shapes that do not fit, one value per channel in training, no running statistics without. Nothing was changed.
    TypeError
        Dtypes that differ.
    """
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"batch_norm: eps must be finite and at least 0, got {eps}")
    if not (math.isfinite(momentum) and momentum >= 0):
        raise ValueError(f"batch_norm: momentum must be finite and at least 0, got {momentum}")
    a = to_array(input)
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    numbers = {name: None if v is None else to_array(v, name) for name, v in given.items()}
    dtype = _check(a, numbers, training)
    x = _wide(as_float(a).astype(dtype, copy=False))
    w, b, mean, var = (None if v is None else _wide(v) for v in numbers.values())
    y, saved = _ops.batch_norm(x, w, b, mean, var, training, float(momentum), float(eps))
    for name, v in (("running_mean", mean), ("running_var", var)):
        if training and v is not None and v is not numbers[name]:
            numbers[name][...] = v.astype(dtype)  # type: ignore[index]
    y = y.astype(dtype, copy=False)
    sources = (input, weight, bias)
    if not any(isinstance(v, Tensor) for v in sources):
        return y
    takes = [needs_grad(v) for v in sources]
    if not any(takes):
        return wrap(y)

    def fn(dy: Any) -> Any:
        needs = (takes[0], takes[1] or takes[2])
        dx, sums = _ops.batch_norm_grad(_wide(dy), x, saved, w, training, needs)
        rows = (None, None) if sums is None else (sums[0], sums[1])
        found = [
            g.astype(v.dtype, copy=False)
            for g, v, takes_it in zip((dx, *rows), sources, takes, strict=True)
            if takes_it and g is not None
        ]
        return found if len(found) > 1 else found[0]

    return record("batch_norm", y, tuple([v for v, t in zip(sources, takes, strict=True) if t]), fn)


def _check(x: Array, numbers: dict[str, Array | None], training: bool) -> np.dtype[Any]:
    """Refuse what does not fit; return the dtype of the result."""
    if x.ndim not in (2, 3):
        raise ValueError(f"batch_norm: input has shape {x.shape}, expected (N, C) or (N, C, L)")
    channels = x.shape[1]
    if channels == 0:
        raise ValueError(f"batch_norm: input has shape {x.shape}, expected at least one channel")
    first = next((name for name in ("weight", "running_mean", "bias") if numbers[name] is not None), None)
    dtype: np.dtype[Any] = as_float(x).dtype if first is None else numbers[first].dtype  # type: ignore[union-attr]
    if not is_floating(dtype):
        raise TypeError(f"batch_norm: {first} is {dtype}, expected floating-point numbers")
    for name, v in numbers.items():
        if v is None:
            continue
        if v.dtype != dtype:
            raise TypeError(f"batch_norm: {name} is {v.dtype}, {first} is {dtype}")
        if v.shape != (channels,):
            raise ValueError(f"batch_norm: {name} has shape {v.shape}, input has {channels} channels")
    mean, var = numbers["running_mean"], numbers["running_var"]
    if (mean is None) != (var is None) or (mean is None and not training):
        raise ValueError(
            "batch_norm: running_mean and running_var go together, and training=False needs them"
        )
    for name, v in (("running_mean", mean), ("running_var", var)):
        if training and isinstance(v, np.ndarray) and not v.flags.writeable:
            raise ValueError(f"batch_norm: {name} is read-only")
    values = x.shape[0] * math.prod(x.shape[2:])
    if training and values < 2:
        raise ValueError(
            f"batch_norm: input has shape {x.shape}, {values} value{'s' * (values != 1)} per channel: "
            "training needs more than 1"
        )
    return dtype


def _wide(a: Array) -> Array:
    """Return `a`, as float32 where it is of half precision."""
    return a.astype(float32) if a.dtype.itemsize == 2 else a
