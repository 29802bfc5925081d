"""Matrix products and linear layers over arrays in the memory of a CUDA device: cuBLASLt, and one kernel for the rest.

float32, float64, float16 and bfloat16; the last two are summed in float32. Results are of the library of the first
array. See `_products` for the functions of the same names.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastopt._device import Array, device_view, library
from fastopt._device_ops import Call, View
from fastopt._dtypes import is_floating
from fastopt._formulas import Dropout, Params, check_seed, checked

#: What the factors of float32 products may be rounded to, and the native word for it.
PRECISIONS = {None: "ieee", "ieee": "ieee", "tf32": "tf32", "bf16": "bf16", "fp16": "f16"}


def check_precision(call: str, precision: str | None, dtype: Any) -> str:
    """Return the native word for `precision`, refused where the dtype has no use for it."""
    if precision not in PRECISIONS:
        known = ", ".join(repr(p) for p in PRECISIONS)
        raise ValueError(f"{call}: precision must be one of {known}, got {precision!r}")
    if precision not in (None, "ieee") and dtype.name != "float32":
        raise ValueError(f"{call}: precision {precision!r} is for float32, weight is {dtype}")
    return PRECISIONS[precision]


def _rows(x: View) -> View:
    """Return an array as a matrix of its last axis, C-contiguous."""
    dense = library(x).dense(x)
    return dense if x.ndim == 2 else dense.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def _factor(x: View) -> View:
    """Return a matrix as cuBLASLt can read it: rows or columns of adjacent elements."""
    return x if x.ndim == 2 else _rows(x)


def matmul(x: Any, y: Any) -> Array:
    """Return ``x @ y`` by the rules of `numpy.matmul`."""
    a, b = device_view(x, "matmul: x"), device_view(y, "matmul: y")
    if a is None or b is None:
        raise TypeError("matmul: one operand is on the host, the other on a CUDA device")
    is_layer = a.ndim >= 1 and b.ndim == 2 and a.dtype == b.dtype and is_floating(a.dtype)
    if not is_layer or a.shape[-1] != b.shape[0]:
        product: Array = library(a).unwrap(a) @ library(b).unwrap(b)
        return product
    call = Call("matmul", a, "x")
    out = call.empty((*a.shape[:-1], b.shape[1]), a.dtype)
    left = a.reshape((1, a.shape[0])) if a.ndim == 1 else _rows(a)
    call.run("matmul", left, library(b).dense(b), _rows(out) if a.ndim > 1 else out.reshape((1, -1)), "ieee")
    return call.library.unwrap(out)


def linear(
    x: View,
    w: View,
    bias: View | None,
    activation: str | None,
    params: Params,
    *,
    mask: Dropout,
    residual: View | None,
    residual_scale: float,
    keeps: tuple[bool, bool],
    out: Any,
    precision: str,
) -> tuple[Array, View | None, View | None]:
    """Return the layer's result, and what its activation saw and returned where `keeps` says so."""
    params = checked(activation, params) if activation else ()
    check_seed("linear", mask.seed, mask.offset)
    call = Call("linear", x, "input")
    shape = (*x.shape[:-1], w.shape[0])
    kept = [call.empty(shape, w.dtype) if keep else None for keep in keeps]
    room = call.room(out, call.empty(shape, w.dtype)) if out is not None else None
    y = call.empty(shape, w.dtype) if room is None else room.dense
    call.run(
        "linear",
        _rows(x),
        _factor(w),
        None if bias is None else library(bias).dense(bias),
        activation or "",
        params,
        *mask,
        None if residual is None else _rows(residual),
        residual_scale,
        *[None if k is None else _rows(k) for k in kept],
        _rows(y),
        precision,
    )
    return call.library.unwrap(y) if room is None else room.deliver(), kept[0], kept[1]


def linear_backward(
    dy: View,
    x: View | None,
    w: View | None,
    activation: str | None,
    params: Params,
    z: View | None,
    y: View | None,
    *,
    mask: Dropout,
    residual_scale: float,
    needs: tuple[bool, bool, bool],
    out: tuple[Any, Any, Any] = (None, None, None),
    dz: Any = None,
    accumulate: bool = False,
    precision: str,
) -> tuple[Array | None, ...]:
    """Return the gradients (dx, dw, db) of `linear`, None for those not needed."""
    params = checked(activation, params) if activation else ()
    call = Call("linear_backward", dy, "dy")
    g = _rows(dy)
    if dz is not None:
        work = _rows(call.view(dz, "dz"))
    else:
        work = call.empty(g.shape, g.dtype) if activation or mask.p or residual_scale != 1.0 else None
    shapes: list[tuple[int, ...]] = [
        (*dy.shape[:-1], 0 if w is None else w.shape[1]),
        (g.shape[1], 0 if x is None else x.shape[-1]),
        (g.shape[1],),
    ]
    rooms = []
    for name, shape, needed, given in zip(("dx", "dw", "db"), shapes, needs, out, strict=True):
        like = _Shape(shape, dy.dtype)
        rooms.append(call.room(given, like, name) if needed else None)
    dx, dw, db = (None if room is None else room.dense for room in rooms)
    call.run(
        "linear_backward",
        g,
        None if x is None or not needs[1] else _rows(x),
        None if w is None or not needs[0] else _factor(w),
        activation or "",
        params,
        None if z is None else _rows(z),
        None if y is None else _rows(y),
        *mask,
        residual_scale,
        work,
        None if dx is None else _rows(dx),
        dw,
        db,
        accumulate,
        precision,
    )
    return tuple(None if room is None else room.deliver() for room in rooms)


class _Shape(NamedTuple):
    """As much of an array as a result is made after."""

    shape: tuple[int, ...]
    dtype: Any
