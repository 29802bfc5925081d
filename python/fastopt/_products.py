"""Matrix products and linear layers as plain functions: ndarrays in, ndarrays out, no Tensor.

float32 and float64. Operands of any strides are read where they lie; what is off the alignment of its items is
copied. An ``out`` has the result's shape and dtype and any layout, and may not overlap an input or another
output. The sums do not depend on the number of threads. A call that is refused has changed nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _core, _device_products
from fastopt._arrays import rows
from fastopt._device import on_device
from fastopt._dtypes import float32, float64, is_floating
from fastopt._formulas import NO_DROPOUT, Dropout, Params, check_seed, checked
from fastopt._ops import _check_array, _check_out, _deliver, _dense

Array = npt.NDArray[Any]


_COMPUTED = frozenset({float32, float64})


# ------------------------------------------------------------------------------------------------ products


def gemm(x: Array, y: Array, out: Array | None = None, *, beta: float = 0.0, bf16: bool = False) -> Array:
    """Return ``x @ y + beta * out``.

    Parameters
    ----------
    x : ndarray, shape (..., m, k)
    y : ndarray, shape (..., k, n)
        Both with the same leading axes; broadcasting is the caller's (strides of 0 are fine).
    out : ndarray, shape (..., m, n), optional
    beta : float
        With 0 `out` is not read.
    bf16 : bool
        Round float32 operands to bfloat16; sums stay float32.

    Raises
    ------
    TypeError, ValueError
        Arrays of other dtypes or shapes, an `out` that overlaps an operand.
    """
    a, b = _operand(x, "matmul", "x"), _operand(y, "matmul", "y")
    shape = (*a.shape[:-1], *b.shape[-1:])
    room = _room(out, shape, a.dtype, "matmul", "out", columns=True, load=beta != 0.0)
    _core.matmul(a, b, room, beta, bf16)
    return _deliver(room, out)


def matmul(x: Any, y: Any) -> Array:
    """Return ``x @ y`` by the rules of `numpy.matmul`, of vectors, matrices and stacks of them.

    bfloat16 and float16 are summed in float32 and rounded once. Integers are NumPy's.
    """
    if on_device(x) or on_device(y):
        return _device_products.matmul(x, y)
    x, y = np.asarray(x), np.asarray(y)
    dtype = x.dtype
    if dtype not in _COMPUTED or dtype != y.dtype or x.ndim == 0 or y.ndim == 0:
        if dtype.itemsize == 2 and dtype == y.dtype and is_floating(dtype):
            return matmul(x.astype(float32), y.astype(float32)).astype(dtype)
        return np.asarray(x @ y)
    a = x[None] if x.ndim == 1 else x
    b = y[:, None] if y.ndim == 1 else y
    shape = (*x.shape[:-1], *y.shape[-1:]) if y.ndim == 2 else x.shape[:-1]
    if a.ndim > 2 and b.ndim == 2:
        a = rows(a)
    elif a.ndim > 2 or b.ndim > 2:
        try:
            lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError as error:
            raise ValueError(f"matmul: x has shape {x.shape}, y has shape {y.shape}: {error}") from None
        a, b = (np.broadcast_to(v, lead + v.shape[-2:]) for v in (a, b))
        shape = (*lead, *x.shape[-2:-1], *(y.shape[-1:] if y.ndim > 1 else ()))
    return gemm(a, b).reshape(shape)


# ------------------------------------------------------------------------------------------- linear layers


def linear(
    x: Array,
    w: Array,
    bias: Array | None = None,
    activation: str | None = None,
    params: Params = (),
    *,
    dropout: Dropout = NO_DROPOUT,
    residual: Array | None = None,
    residual_scale: float = 1.0,
    kept_input: Array | None = None,
    kept_output: Array | None = None,
    out: Array | None = None,
    bf16: bool = False,
) -> Array:
    """Return ``residual + residual_scale * dropout(act(x @ w.T + bias))``, all in one pass over the result.

    Parameters
    ----------
    x : ndarray, shape (..., in)
    w : ndarray, shape (out, in)
    bias : ndarray, shape (out,), optional
    activation, params
        See `_ops.activation`; None for none.
    dropout : Dropout
        The mask is that of `_ops.dropout` on the activation's result.
    residual : ndarray, shape (..., out), optional
    residual_scale : float
    kept_input, kept_output : C-contiguous ndarray, shape (..., out), optional
        Receive what the activation sees and returns: what `linear_backward` reads.
    out : ndarray, shape (..., out), optional
    bf16 : bool
        Round float32 `x` and `w` to bfloat16; sums stay float32.
    """
    params = checked(activation, params) if activation else ()
    _check_dropout("linear", dropout)
    a, b = _operand(x, "linear", "input"), _operand(w, "linear", "weight")
    shape = (*x.shape[:-1], *w.shape[:1])
    room = _room(out, shape, x.dtype, "linear", "out")
    _core.linear(
        rows(a),
        b,
        None if bias is None else _dense(bias, "linear", "bias"),
        activation or "",
        params,
        *dropout,
        None if residual is None else _companion(residual, shape, "linear", "residual"),
        residual_scale,
        None if kept_input is None else _companion(kept_input, shape, "linear", "kept_input", written=True),
        None
        if kept_output is None
        else _companion(kept_output, shape, "linear", "kept_output", written=True),
        rows(room),
        bf16,
    )
    return _deliver(room, out)


def linear_dx(
    dy: Array,
    w: Array,
    activation: str | None = None,
    params: Params = (),
    x: Array | None = None,
    y: Array | None = None,
    *,
    dropout: Dropout = NO_DROPOUT,
    out: Array | None = None,
    bf16: bool = False,
) -> Array:
    """Return ``dropout(dy @ w) * act'(x)``: a layer's backward step down to the pre-activation of the one below.

    Parameters
    ----------
    dy : ndarray, shape (..., out)
    w : ndarray, shape (out, in)
    activation, params, x, y
        The activation of the layer below, what it saw and returned; see `_ops.activation_grad`.
    dropout : Dropout
        The dropout that followed it.
    out : ndarray, shape (..., in), optional
    """
    params = checked(activation, params) if activation else ()
    _check_dropout("linear_dx", dropout)
    a, b = _operand(dy, "linear_dx", "dy"), _operand(w, "linear_dx", "w")
    shape = (*dy.shape[:-1], *w.shape[-1:])
    room = _room(out, shape, dy.dtype, "linear_dx", "out")
    _core.linear_dx(
        rows(a),
        b,
        activation or "",
        params,
        None if x is None else _companion(x, shape, "linear_dx", "x"),
        None if y is None else _companion(y, shape, "linear_dx", "y"),
        *dropout,
        rows(room),
        bf16,
    )
    return _deliver(room, out)


def linear_backward(
    dy: Array,
    x: Array | None,
    w: Array | None,
    activation: str | None = None,
    params: Params = (),
    z: Array | None = None,
    y: Array | None = None,
    *,
    dropout: Dropout = NO_DROPOUT,
    residual_scale: float = 1.0,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[Array | None, Array | None, Array | None] = (None, None, None),
    dz: Array | None = None,
    accumulate: bool = False,
    bf16: bool = False,
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients (dx, dw, db) of `linear` with the same arguments, None for those not needed.

    Parameters
    ----------
    dy : ndarray, shape (..., out)
    x : ndarray, shape (..., in)
        May be None where dw is not needed.
    w : ndarray, shape (out, in)
        May be None where dx is not needed.
    activation, params, z, y
        The activation, what it saw and returned; see `_ops.activation_grad`.
    dropout, residual_scale
        As `linear` had them.
    needs : tuple of bool
        Which of dx, dw and db to compute.
    out : tuple of ndarray or None
        Receive dx, dw and db.
    dz : C-contiguous ndarray, shape (..., out), optional
        Receives the gradient by ``x @ w.T + bias``; may be `dy` itself.
    accumulate : bool
        Add to the dw and db of `out`.
    bf16 : bool
        Round the float32 factors of the products to bfloat16; sums stay float32.
    """
    if not any(needs) and dz is None:
        return None, None, None
    call = "linear_backward"
    params = checked(activation, params) if activation else ()
    _check_dropout(call, dropout)
    g = rows(_dense(dy, call, "dy"))
    if dz is not None:
        dz = g if dz is dy and dy.flags.c_contiguous else _companion(dz, dy.shape, call, "dz", written=True)
    elif activation or dropout.p or residual_scale != 1.0:
        dz = np.empty(g.shape, g.dtype)
    a = rows(_operand(x, call, "x")) if needs[1] else None
    b = _operand(w, call, "w") if needs[0] else None
    dx_shape = (*dy.shape[:-1], *(() if b is None else b.shape[-1:]))
    dw_shape = (*g.shape[1:], *(() if a is None else a.shape[1:]))
    shapes, names = (dx_shape, dw_shape, g.shape[1:]), ("dx", "dw", "db")
    dx, dw, db = rooms = [
        _room(out[i], shapes[i], g.dtype, call, names[i], columns=True, load=accumulate) if needs[i] else None
        for i in range(3)
    ]
    _core.linear_backward(
        g,
        a,
        b,
        activation or "",
        params,
        None if z is None else _companion(z, dy.shape, call, "z"),
        None if y is None else _companion(y, dy.shape, call, "y"),
        *dropout,
        residual_scale,
        dz,
        None if dx is None else rows(dx),
        dw,
        db,
        accumulate,
        bf16,
    )
    dx, dw, db = [
        None if room is None else _deliver(room, given) for room, given in zip(rooms, out, strict=True)
    ]
    return dx, dw, db


# ------------------------------------------------------------------------------------------------- helpers


def _operand(a: Any, call: str, argument: str) -> Array:
    """Return `a` itself where the kernels can read it, else a copy."""
    _check_array(a, call, argument)
    operand: Array = a if a.flags.aligned else np.array(a, order="C")
    return operand


def _companion(a: Any, shape: tuple[int, ...], call: str, argument: str, written: bool = False) -> Array:
    """Return an array of a certain shape as a dense matrix."""
    _check_array(a, call, argument)
    if a.shape != shape:
        raise ValueError(f"{call}: {argument} has shape {a.shape}, expected {shape}")
    if written and not a.flags.c_contiguous:
        raise ValueError(f"{call}: {argument} is not C-contiguous")
    matrix: Array = rows(a if written else _dense(a, call, argument))
    return matrix


def _room(
    out: Array | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    call: str,
    argument: str,
    *,
    columns: bool = False,
    load: bool = False,
) -> Array:
    """Return where a kernel writes a result of `shape`: `out` itself, or a temporary for `_deliver`.

    `columns`: an `out` whose columns are of adjacent elements will do. `load`: what `out` holds is read.
    """
    if out is not None:
        _check_array(out, call, argument)
        if out.shape == shape and out.flags.aligned:
            if out.flags.c_contiguous:
                return out
            if out.ndim == 2 and out.itemsize in (out.strides if columns else out.strides[1:]):
                return out
    room = np.empty(shape, dtype)
    if out is not None:
        _check_out(out, room, call, argument)
        if load:
            np.copyto(room, out)
    return room


def _check_dropout(call: str, dropout: Dropout) -> None:
    if dropout is NO_DROPOUT:
        return
    if not 0.0 <= dropout.p <= 1.0:
        raise ValueError(f"{call}: dropout must be in [0, 1], got {dropout.p}")
    check_seed(call, dropout.seed, dropout.offset)
