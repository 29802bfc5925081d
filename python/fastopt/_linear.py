"""The linear layer as a function, and its gradients; `functional` exports both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _core, _device_linear, _ops, _products, _random
from fastopt._device_linear import is_here
from fastopt._dtypes import float32, float64, is_floating
from fastopt._formulas import NO_DROPOUT, Dropout, activation_needs, check_seed, checked
from fastopt.tensor import Tensor, needs_grad, record, to_array, to_out, wrap

Array = npt.NDArray[Any]


def linear(
    input: Any,
    weight: Any,
    bias: Any = None,
    activation: str | None = None,
    params: tuple[float, ...] = (),
    *,
    dropout: float = 0.0,
    training: bool = True,
    seed: int | None = None,
    offset: int | None = None,
    residual: Any = None,
    residual_scale: float = 1.0,
    out: Any = None,
    precision: str | None = None,
) -> Any:
    """Compute ``residual + residual_scale * dropout(activation(input @ weight.T + bias))`` in one pass.

    Parameters
    ----------
    input : array or Tensor, shape (..., in)
        Of any strides. Converted to the dtype of `weight` where it has another.
    weight : array or Tensor, shape (out, in)
        float32 or float64; bfloat16 and float16 are computed in float32 and the result rounded once.
    bias : array or Tensor, shape (out,), optional
    activation : str, optional
        relu, leaky_relu, sigmoid, tanh, gelu, gelu_tanh, silu, elu or softplus.
    params : tuple of float
        The activation's parameters, e.g. ``(negative_slope,)``; torch's defaults where it is empty.
    dropout : float
        In [0, 1]: with this probability an element is set to 0, others are scaled by 1 / (1 - dropout).
    training : bool
        Without it there is no dropout.
    seed, offset : int, optional
        The mask of `dropout`, see there; without them the next one after `manual_seed`.
    residual : array or Tensor, shape (..., out), optional
        Added last, of the dtype of `weight`.
    residual_scale : float
        Multiplies what is added to the residual.
    out : array, shape (..., out), optional
        Receives the result; only where no argument is a Tensor. May not overlap another argument.
    precision : {None, "bf16", "tf32", "fp16"}
        "bf16" rounds float32 `input` and `weight` to bfloat16 and sums in float32; the gradients of a recorded
        result too. That is faster on CPUs with AVX512-BF16, with errors of some 2**-9 of the terms. On a GPU
        also "tf32" (ten bits of mantissa) and "fp16"; there None is IEEE float32.

    Returns
    -------
    array or Tensor, shape (..., out)
        The same bits for any number of threads. A Tensor where an argument is one; recorded as one node.

    Raises
    ------
    ValueError
        The shapes do not fit; a number is out of range; `out` overlaps an argument; `precision` is unknown or
        not for this dtype. Nothing was changed.
    TypeError
        The dtypes differ, an array holds no floating-point numbers, or `out` is given with a Tensor.
    """
    if residual is None and precision is None and dropout == 0 and seed is offset is None and not len(params):
        done = _core.linear_plain(input, weight, bias, activation, out)
        if done is not None:
            return done
    _check_dropout("linear", dropout, seed, offset)
    if is_here(input, weight):
        mask = _mask(dropout if training else 0.0, seed, offset)
        return _device_linear.linear(
            input,
            weight,
            bias,
            activation,
            params,
            mask,
            residual,
            residual_scale,
            out,
            precision,
            _check_layer,
        )
    x, w = to_array(input), to_array(weight, "weight")
    b = None if bias is None else to_array(bias, "bias")
    r = None if residual is None else to_array(residual, "residual")
    _check_layer(x, w, b, r)
    bf16 = _is_bf16("linear", precision, w)
    needs_z, needs_y = _needs(activation, params)
    own, dtype, shape = x.dtype, w.dtype, (*x.shape[:-1], w.shape[0])
    is_tensor = any(isinstance(v, Tensor) for v in (input, weight, bias, residual))
    room = to_out(out)
    if room is not None:
        if is_tensor:
            raise TypeError("linear: out is for arrays, an argument is a Tensor")
        if dropout or dtype.itemsize == 2:  # before a mask is drawn; the native call checks it anyway
            _ops._check_out(room, np.broadcast_to(np.empty((), dtype), shape), "linear", "out")

    x, w = _wide(x if own == dtype else x.astype(dtype)), _wide(w)
    mask = _mask(dropout if training else 0.0, seed, offset)
    takes = [needs_grad(v) for v in (input, weight, bias, residual)] if is_tensor else [False] * 4
    if not any(takes[:3]):
        needs_z = needs_y = False
    z = np.empty(shape, w.dtype) if needs_z else None
    # What the activation returns is the result itself where nothing comes after it.
    kept = np.empty(shape, w.dtype) if needs_y and (mask.p or r is not None) else None
    y = _products.linear(
        x,
        w,
        None if b is None else _wide(b),
        activation,
        params,
        dropout=mask,
        residual=None if r is None else _wide(r),
        residual_scale=residual_scale,
        kept_input=z,
        kept_output=kept,
        out=room if dtype == w.dtype else None,
        bf16=bf16,
    )
    result = y if y.dtype == dtype else _ops._deliver(y.astype(dtype), room)
    if not any(takes):
        return wrap(result) if is_tensor else result

    keep_x, keep_w = x if takes[1] else None, w if takes[0] else None
    keep_y = y if needs_y and kept is None else kept

    def fn(dy: Array) -> tuple[Array | None, ...]:
        dx, dw, db = _products.linear_backward(
            _wide(dy),
            keep_x,
            keep_w,
            activation,
            params,
            z,
            keep_y,
            dropout=mask,
            residual_scale=residual_scale,
            needs=(takes[0], takes[1], takes[2]),
            bf16=bf16,
        )
        return _fit(dx, own), _fit(dw, dtype), _fit(db, dtype), dy if takes[3] else None

    inputs = [v if taken else None for v, taken in zip((input, weight, bias, residual), takes, strict=True)]
    return record("linear", result, tuple(inputs), fn)


def linear_backward(
    dy: Any,
    x: Any,
    w: Any,
    *,
    activation: str | None = None,
    params: tuple[float, ...] = (),
    z: Any = None,
    y: Any = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offset: int | None = None,
    residual_scale: float = 1.0,
    needs: tuple[bool, bool, bool] = (True, True, True),
    out: tuple[Any, Any, Any] = (None, None, None),
    dz: Any = None,
    accumulate: bool = False,
    precision: str | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Return the gradients (dx, dw, db) of ``linear(x, w, b, ...)`` from the gradient `dy` of its result.

    Parameters
    ----------
    dy : array, shape (..., out)
        The gradient by a `residual` is `dy` itself.
    x : array, shape (..., in)
    w : array, shape (out, in)
        All in one dtype; bfloat16 and float16 are computed in float32.
    activation, params
        As `linear` had them.
    z, y : array, shape (..., out), optional
        What the activation saw, ``x @ w.T + b``, and what it returned, before any dropout. `z` is enough for
        all of them, `y` for relu, sigmoid and tanh.
    dropout, seed, offset
        As `linear` had them; the mask is made again from `seed` and `offset`, which are needed then.
    residual_scale : float
        As `linear` had it.
    needs : tuple of bool
        Which of the three to compute; the others are None.
    out : tuple of array or None
        Receive dx (..., in), dw (out, in) and db (out,). May not overlap an argument or each other.
    dz : array, shape (..., out), optional
        Work space, C-contiguous: receives the gradient by `z`. May be `dy` itself.
    accumulate : bool
        Add to the dw and db of `out` rather than overwrite them.
    precision : {None, "bf16"}
        See `linear`; here `dy`, `x` and `w` are rounded.

    Returns
    -------
    dx, dw, db : array or None
        The same bits for any number of threads.

    Raises
    ------
    ValueError
        The shapes do not fit; a number is out of range; an output overlaps another argument; `accumulate`
        without something to add to. Nothing was changed.
    TypeError
        The dtypes differ; `z` or `y` is missing; `dropout` without `seed` and `offset`.
    """
    whole = all(needs) and len(needs) == len(out) == 3 and residual_scale == 1.0 and not accumulate
    if whole and precision is None and dropout == 0 and seed is offset is None and not len(params):
        done: tuple[Array, Array, Array] | None
        done = _core.linear_backward_plain(dy, x, w, activation, z, y, *out, dz)
        if done is not None:
            return done
    _check_dropout("linear_backward", dropout, seed, offset)
    if dropout and seed is None:
        raise TypeError("linear_backward: dropout needs the seed and offset of the mask")
    if accumulate and ((needs[1] and out[1] is None) or (needs[2] and out[2] is None)):
        raise ValueError("linear_backward: accumulate needs dw and db in out to add to")
    if is_here(dy, x, w):
        return _device_linear.linear_backward(  # type: ignore[no-any-return]
            dy,
            x,
            w,
            activation,
            params,
            z,
            y,
            mask=_mask(dropout, seed, offset),
            residual_scale=residual_scale,
            needs=needs,
            out=out,
            dz=dz,
            accumulate=accumulate,
            precision=precision,
            check=_check_layer,
        )
    dy, x, w = to_array(dy, "dy"), to_array(x, "x"), to_array(w, "w")
    z, y = (None if a is None else to_array(a, name) for a, name in ((z, "z"), (y, "y")))
    _check_layer(x, w, None, None)
    expected = (*x.shape[:-1], w.shape[0])
    if dy.shape != expected:
        raise ValueError(f"linear_backward: dy has shape {dy.shape}, x and w give {expected}")
    bf16 = _is_bf16("linear_backward", precision, w)
    dx, dw, db = (to_out(a, name) for a, name in zip(out, ("dx", "dw", "db"), strict=True))
    if activation and y is None and z is not None and activation_needs(activation)[1]:
        y = _ops.activation(activation, z, params)
    compute = _products.linear_backward if w.dtype.itemsize > 2 else _half_backward
    return compute(
        dy,
        x,
        w,
        activation,
        params,
        z,
        y,
        dropout=_mask(dropout, seed, offset),
        residual_scale=residual_scale,
        needs=needs,
        out=(dx, dw, db),
        dz=to_out(dz, "dz"),
        accumulate=accumulate,
        bf16=bf16,
    )


def _half_backward(
    dy: Array,
    x: Array,
    w: Array,
    activation: str | None,
    params: tuple[float, ...],
    z: Array | None,
    y: Array | None,
    *,
    out: tuple[Array | None, Array | None, Array | None],
    dz: Array | None,
    **options: Any,
) -> tuple[Array | None, Array | None, Array | None]:
    """`_products.linear_backward` of arrays of half precision, computed in float32."""
    outputs = {"dx": out[0], "dw": out[1], "db": out[2], "dz": dz}
    for name, a in {"dy": dy, "x": x, "z": z, "y": y, **outputs}.items():
        if a is not None and a.dtype != w.dtype:
            raise TypeError(f"linear_backward: {name} is {a.dtype}, w is {w.dtype}")
        if a is not None and name in outputs and not a.flags.writeable:
            raise ValueError(f"linear_backward: {name} is read-only")
    wide = [None if a is None else _wide(a) for a in (*out, dz)]
    gradients = _products.linear_backward(
        _wide(dy),
        _wide(x),
        _wide(w),
        activation,
        params,
        None if z is None else _wide(z),
        None if y is None else _wide(y),
        out=(wide[0], wide[1], wide[2]),
        dz=wide[3],
        **options,
    )
    dx, dw, db, _ = (
        None if made is None else made.astype(w.dtype) if a is None else _ops._deliver(made, a)
        for made, a in zip((*gradients, wide[3]), outputs.values(), strict=True)
    )
    return dx, dw, db


# ------------------------------------------------------------------------------------------------- helpers


def _wide(a: Array) -> Array:
    """Return `a`, as float32 where it is of half precision."""
    return a.astype(float32) if a.dtype.itemsize == 2 else a


def _fit(g: Array | None, dtype: np.dtype[Any]) -> Array | None:
    return g if g is None or g.dtype == dtype else g.astype(dtype)


def _mask(p: float, seed: int | None, offset: int | None) -> Dropout:
    """Return the mask asked for, or the next one of `manual_seed` where there is to be one."""
    if p == 0:
        return NO_DROPOUT
    return Dropout(p, *(_random.next_dropout() if seed is None or offset is None else (seed, offset)))


def _needs(activation: str | None, params: tuple[float, ...]) -> tuple[bool, bool]:
    """Return whether a backward pass reads z and y, of an activation whose parameters are checked."""
    if not activation:
        return False, False
    needs = activation_needs(activation)
    checked(activation, params)
    return needs


def _check_dropout(call: str, p: float, seed: int | None, offset: int | None) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{call}: dropout must be in [0, 1], got {p}")
    if (seed is None) != (offset is None):
        raise TypeError(f"{call}: seed and offset go together, got seed={seed} and offset={offset}")
    if seed is not None and offset is not None:
        check_seed(call, seed, offset)


def _is_bf16(call: str, precision: str | None, w: Array) -> bool:
    """Whether products are to be of numbers rounded to bfloat16; of bfloat16 arrays they are anyway."""
    if precision not in (None, "bf16"):
        raise ValueError(f"{call}: precision must be None or 'bf16', got {precision!r}")
    if precision and w.dtype == float64:
        raise ValueError(f"{call}: precision 'bf16' is for float32, weight is {w.dtype}")
    return precision is not None or (w.dtype.kind != "f" and w.dtype.name == "bfloat16")


def _check_layer(x: Array, w: Array, b: Array | None, r: Array | None) -> None:
    if not is_floating(w.dtype) or w.dtype.itemsize > 8:
        raise TypeError(f"linear: weight is {w.dtype}, expected float32, float64, float16 or bfloat16")
    if w.ndim != 2:
        raise ValueError(f"linear: weight must have shape (out, in), got {w.shape}")
    if x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: input has shape {x.shape}, weight {w.shape} takes (..., {w.shape[1]})")
    for name, a in (("bias", b), ("residual", r)):
        if a is not None and a.dtype != w.dtype:
            raise TypeError(f"linear: {name} is {a.dtype}, weight is {w.dtype}")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"linear: bias has shape {b.shape}, weight has {w.shape[0]} rows")
    if r is not None and r.shape != (*x.shape[:-1], w.shape[0]):
        raise ValueError(f"linear: residual has shape {r.shape}, the result {(*x.shape[:-1], w.shape[0])}")
