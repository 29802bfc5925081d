"""Making Tensors: from data, filled, random."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _random
from fastopt._dtypes import DEFAULT_FLOAT, is_floating
from fastopt._rules import sizes
from fastopt.tensor import Tensor, to_array, wrap

Array = npt.NDArray[Any]


def tensor(data: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return a new leaf Tensor with a copy of `data`.

    Parameters
    ----------
    data : number, nested list or array
        Python floats become float32, ints int64, bools bool; arrays keep their dtype.
    dtype : dtype, optional
        Another dtype.
    requires_grad : bool
        Record the operations on the result.
    """
    return Tensor(np.array(to_array(data, "data"), dtype), requires_grad)


def as_tensor(data: Any, dtype: npt.DTypeLike | None = None) -> Tensor:
    """Return `data` as a Tensor, sharing its memory where that can be."""
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(dtype)
    return wrap(np.asarray(to_array(data, "data"), dtype))


def from_numpy(array: Array) -> Tensor:
    """Return a Tensor that shares the memory of `array`."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected an ndarray, got {type(array).__name__}")
    return Tensor(array)


# ------------------------------------------------------------------------------------------------- filled


def full(
    size: Any, fill_value: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Return a Tensor of shape `size` full of `fill_value`, in the dtype `tensor` would give it."""
    value = to_array(fill_value, "fill_value")
    return Tensor(np.full(sizes((size,)), value, value.dtype if dtype is None else dtype), requires_grad)


def zeros(*size: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return a Tensor of zeros, float32 unless said otherwise."""
    return Tensor(np.zeros(sizes(size), dtype or DEFAULT_FLOAT), requires_grad)


def ones(*size: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return a Tensor of ones, float32 unless said otherwise."""
    return Tensor(np.ones(sizes(size), dtype or DEFAULT_FLOAT), requires_grad)


def empty(*size: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return a Tensor of whatever the memory held, float32 unless said otherwise."""
    return Tensor(np.empty(sizes(size), dtype or DEFAULT_FLOAT), requires_grad)


def eye(
    n: int, m: int | None = None, dtype: npt.DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Return the n x m matrix with ones on its diagonal."""
    return Tensor(np.eye(n, m, dtype=dtype or DEFAULT_FLOAT), requires_grad)


def zeros_like(input: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return zeros of the shape and dtype of `input`."""
    return Tensor(np.zeros_like(to_array(input), dtype=dtype), requires_grad)


def ones_like(input: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Return ones of the shape and dtype of `input`."""
    return Tensor(np.ones_like(to_array(input), dtype=dtype), requires_grad)


def full_like(
    input: Any, fill_value: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Return a Tensor of the shape and dtype of `input`, full of `fill_value`."""
    return Tensor(np.full_like(to_array(input), fill_value, dtype=dtype), requires_grad)


def arange(
    start: float, end: float | None = None, step: float = 1, dtype: npt.DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return start, start + step and so on below `end`; ``arange(n)`` counts from 0. Integers give int64."""
    first, last = (0, start) if end is None else (start, end)
    if dtype is None:
        dtype = (
            np.int64 if all(isinstance(v, (int, np.integer)) for v in (first, last, step)) else DEFAULT_FLOAT
        )
    return Tensor(np.arange(first, last, step).astype(dtype), requires_grad)


def linspace(
    start: float, end: float, steps: int, dtype: npt.DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Return `steps` numbers evenly spaced from `start` to `end`, both included."""
    return Tensor(np.linspace(start, end, steps).astype(dtype or DEFAULT_FLOAT), requires_grad)


# ------------------------------------------------------------------------------------------------- random


def _draw(
    dtype: npt.DTypeLike | None, generator: np.random.Generator | None
) -> tuple[Any, Any, np.random.Generator]:
    """The dtype wanted, the one to draw in (NumPy draws float32 and float64) and the generator."""
    wanted = np.dtype(dtype or DEFAULT_FLOAT)
    if not is_floating(wanted):
        raise TypeError(f"dtype must be floating-point, got {wanted}")
    return wanted, wanted if wanted.itemsize >= 4 else DEFAULT_FLOAT, generator or _random.generator()


def randn(
    *size: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return numbers from the standard normal distribution."""
    wanted, drawn, rng = _draw(dtype, generator)
    return Tensor(
        np.asarray(rng.standard_normal(sizes(size), drawn)).astype(wanted, copy=False), requires_grad
    )


def rand(
    *size: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return numbers uniform in [0, 1)."""
    wanted, drawn, rng = _draw(dtype, generator)
    return Tensor(np.asarray(rng.random(sizes(size), drawn)).astype(wanted, copy=False), requires_grad)


def randn_like(
    input: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return numbers from the standard normal distribution, of the shape and dtype of `input`."""
    a = to_array(input)
    return randn(a.shape, dtype=dtype or a.dtype, requires_grad=requires_grad, generator=generator)


def rand_like(
    input: Any, dtype: npt.DTypeLike | None = None, requires_grad: bool = False,
    generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return numbers uniform in [0, 1), of the shape and dtype of `input`."""
    a = to_array(input)
    return rand(a.shape, dtype=dtype or a.dtype, requires_grad=requires_grad, generator=generator)


def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Any = None, dtype: npt.DTypeLike | None = None,
    requires_grad: bool = False, generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return numbers from normal distributions.

    Parameters
    ----------
    mean, std : number or array
        Of all elements, or of each. `std` is at least 0.
    size : int or sequence of int, optional
        The shape; without it that of `mean` and `std` together.
    dtype : dtype, optional
        float32 unless said otherwise.
    """
    centre, spread = to_array(mean, "mean"), to_array(std, "std")
    if not (spread >= 0).all():
        raise ValueError(f"normal: std must be at least 0, got {spread.min()}")
    shape = np.broadcast_shapes(centre.shape, spread.shape) if size is None else sizes((size,))
    wanted, drawn, rng = _draw(dtype, generator)
    numbers = centre + spread * rng.standard_normal(shape, drawn)
    return Tensor(np.asarray(numbers).astype(wanted, copy=False), requires_grad)


def randint(
    low: int, high: Any = None, size: Any = None, dtype: npt.DTypeLike | None = None,
    generator: np.random.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return integers uniform in [low, high), int64; ``randint(high, size)`` draws from [0, high)."""
    if size is None:
        low, high, size = 0, low, high
    if size is None:
        raise TypeError("randint: size is missing")
    low, high = operator.index(low), operator.index(high)
    if not low < high:
        raise ValueError(f"randint: high must be above low, got low {low} and high {high}")
    drawn = (generator or _random.generator()).integers(low, high, sizes((size,)))
    return wrap(np.asarray(drawn).astype(dtype or np.int64, copy=False))


def randperm(n: int, generator: np.random.Generator | None = None) -> Tensor:
    """Return the integers 0 ... n - 1 in random order."""
    return wrap((generator or _random.generator()).permutation(n))
