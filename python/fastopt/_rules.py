"""The rules of differentiation: functions of arrays, used by the operations of `tensor`. No Tensor here."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._arrays import rows
from fastopt._device import device_name, is_array, is_device_array, moved
from fastopt._dtypes import DEFAULT_FLOAT, bool_, is_floating, promote
from fastopt._products import matmul
from fastopt._tape import Backward, as_array, unbroadcast

Array = npt.NDArray[Any]
Dim = int | tuple[int, ...] | None

#: Of two operands and the result, the function that takes the result's gradient to one operand's.
Rule = Callable[[Any, Any, Any], Backward]


def as_float(a: Array) -> Array:
    """Return `a`, as float32 where it holds integers or bools."""
    return a if is_floating(a.dtype) else a.astype(DEFAULT_FLOAT)


def meet(a: Any, b: Any) -> tuple[Any, Any]:
    """Bring two operands, arrays or Python numbers, to one dtype by torch's rules."""
    if is_array(a) and is_array(b):
        if a.__class__ is not b.__class__ and is_device_array(a) != is_device_array(b):
            a, b = _together(a, b)
        if a.dtype is not b.dtype and a.dtype != b.dtype:
            dtype = promote(a, b)
            return a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    elif isinstance(b, float):
        return _with_float(a, b)
    elif isinstance(a, float):
        return _with_float(b, a)[::-1]
    return a, b


def _together(a: Any, b: Any) -> tuple[Any, Any]:
    """Bring a number on the host to the array on a device; TypeError for arrays that are apart."""
    host, other = (b, a) if is_device_array(a) else (a, b)
    if host.ndim:
        raise TypeError(
            f"one operand, of shape {host.shape}, is on the CPU, the other on {device_name(other)}: use .to()"
        )
    brought = moved(host, device_name(other))
    return (a, brought) if host is b else (brought, b)


def _with_float(a: Array, number: float) -> tuple[Array, Any]:
    a = as_float(a)
    # A Python float takes the dtype of any array by itself, but for those that NumPy does not know.
    return a, a.dtype.type(number) if a.dtype.kind == "V" else number


def fitted(fn: Backward, source: Array, used: Array, result: Any) -> Backward:
    """Make what `fn` returns fit `source`, which took part as `used` and may have been broadcast."""
    if source.shape == result.shape and source is used:
        return fn
    shape, dtype = source.shape, source.dtype
    return lambda dy: unbroadcast(as_array(fn(dy)), shape).astype(dtype, copy=False)


def is_one(dy: Any) -> bool:
    """Whether `dy` is the number 1; of an array on a device nobody asks, for the answer would be waited for."""
    return isinstance(dy, np.ndarray) and dy.ndim == 0 and bool(dy == 1)


def pass_on(dy: Any) -> Any:
    return dy


def truediv(a: Any, b: Any) -> Any:
    a, b = (as_float(v) if is_array(v) else v for v in (a, b))
    return a / b


def pow_left(x: Any, y: Any, z: Any) -> Backward:
    if isinstance(y, (int, float)):
        if y == 0:
            return np.zeros_like
        return lambda dy: dy * (y * (x if y == 2 else x ** (y - 1)))
    return lambda dy: dy * np.where(y == 0, 0, y * x ** np.where(y == 0, 1, y - 1))


def pow_right(x: Any, y: Any, z: Any) -> Backward:
    # Where the base is 0 the power and its gradient are 0 too: log(1) keeps the product so.
    return lambda dy: dy * (z * np.log(np.where(np.equal(x, 0), 1, x)).astype(z.dtype, copy=False))


def root(x: Any) -> tuple[Array, Backward]:
    """The square root of `x`, with a gradient of 0 where `x` is 0 instead of an infinite one."""
    y = as_array(np.sqrt(x))
    return y, lambda dy: np.where(y != 0, dy / (2 * np.where(y != 0, y, 1)), 0).astype(y.dtype, copy=False)


def matmul_left(x: Array, y: Array, z: Any) -> Backward:
    if y.ndim == 1:
        return lambda dy: dy[..., None] * y
    if x.ndim == 1:
        return lambda dy: matmul(dy[..., None, :], y.swapaxes(-1, -2))[..., 0, :]
    return lambda dy: matmul(dy, y.swapaxes(-1, -2))


def matmul_right(x: Array, y: Array, z: Any) -> Backward:
    if y.ndim == 1:
        return lambda dy: matmul(dy.reshape(-1), rows(x))
    if y.ndim == 2:
        return lambda dy: matmul(rows(x).T, rows(dy))
    if x.ndim == 1:
        return lambda dy: x[:, None] * dy[..., None, :]
    return lambda dy: matmul(x.swapaxes(-1, -2), dy)


def spread(dy: Any, shape: tuple[int, ...], axis: Dim, keepdim: bool) -> Any:
    """The gradient of a sum over `axis`: `dy` repeated to `shape`."""
    g = np.empty_like(dy, shape=shape)
    g[...] = dy if keepdim or axis is None else np.expand_dims(dy, axis)
    return g


def extreme(name: str, x: Array) -> tuple[Any, Backward]:
    """The largest ("max") or smallest ("min") element of `x`; elements that tie share the gradient."""
    y = getattr(x, name)()

    def fn(dy: Any) -> Any:
        ties = x == y
        return np.where(ties, dy / ties.sum().astype(dy.dtype), dy.dtype.type(0))

    return y, fn


def extreme_along(name: str, x: Array, dim: int, keepdim: bool) -> tuple[Array, Array, Backward]:
    """The largest or smallest elements of `x` along `dim`, and where the first of each is."""
    at = np.expand_dims(getattr(x, "arg" + name)(axis=dim), dim)
    y = np.take_along_axis(x, at, dim)
    shape = x.shape

    def fn(dy: Any) -> Any:
        along = [1] * len(shape)
        along[dim] = shape[dim]
        places = np.arange(shape[dim], like=at).reshape(along)
        return np.where(places == at, dy if keepdim else np.expand_dims(dy, dim), dy.dtype.type(0))

    return (y, at, fn) if keepdim else (y.squeeze(dim), at.squeeze(dim), fn)


def sizes(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes or axes given one by one or as one sequence."""
    given = shape[0] if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)) else shape
    try:
        return tuple([operator.index(n) for n in given])
    except TypeError:
        raise TypeError(
            f"expected integers, or one sequence of them, got {', '.join(map(repr, shape))}"
        ) from None


def axes(dim: Any, axis: Any) -> Any:
    """What is meant by a `dim` and NumPy's word for it, `axis`."""
    chosen = dim if axis is None else axis
    return tuple(chosen) if isinstance(chosen, list) else chosen


def dimension(name: str, ndim: int, dim: Any) -> int:
    """The dimension `dim` of `ndim`, counted from the front."""
    try:
        return range(ndim)[operator.index(dim)]
    except IndexError:
        raise IndexError(f"{name}: dim {dim} is out of range for {ndim} dimensions") from None


def scatter(dy: Any, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The gradient of ``x[key]``, `x` having that shape and dtype: elements picked twice get the sum."""
    if picks_once(key):
        g = np.zeros_like(dy, dtype, shape=shape)
        g[key] = dy
        return g
    if not is_device_array(dy):
        g = np.zeros(shape, dtype)
        np.add.at(g, key, dy)
        return g
    # CuPy adds at one index array only, and not to numbers of two bytes.
    wide = DEFAULT_FLOAT if dtype.itemsize == 2 else dtype
    places = np.arange(math.prod(shape), like=dy).reshape(shape)[key].ravel()
    total = np.zeros_like(dy, wide, shape=math.prod(shape))
    np.add.at(total, places, dy.astype(wide, copy=False).ravel())
    return total.reshape(shape).astype(dtype, copy=False)


def picks_once(key: Any) -> bool:
    """Whether an index can pick no element twice."""
    return all(
        k is None
        or k is Ellipsis
        or isinstance(k, (int, slice, np.integer))
        or getattr(k, "dtype", None) == bool_
        for k in (key if isinstance(key, tuple) else (key,))
    )
