"""`_linear`'s functions for arrays on CUDA devices, and Tensors of such."""

from __future__ import annotations

from typing import Any

from fastopt import _device_ops, _device_products
from fastopt._device import device_view, on_device
from fastopt._device_products import check_precision
from fastopt._dtypes import is_floating
from fastopt._formulas import Dropout, Params, activation_needs, checked
from fastopt.tensor import Tensor, needs_grad, record, wrap


def is_here(*arguments: Any) -> bool:
    """Whether one of the arguments is an array, or a Tensor of one, on a CUDA device."""
    return any(on_device(a._data if isinstance(a, Tensor) else a) for a in arguments if a is not None)


def _view(call: str, a: Any, name: str) -> Any:
    if a is None:
        return None
    view = device_view(a._data if isinstance(a, Tensor) else a, f"{call}: {name}")
    if view is None:
        raise TypeError(f"{call}: {name} is on the host, other arguments are on a CUDA device")
    return view


def linear(
    input: Any,
    weight: Any,
    bias: Any,
    activation: str | None,
    params: Params,
    mask: Dropout,
    residual: Any,
    residual_scale: float,
    out: Any,
    precision: str | None,
    check: Any,
) -> Any:
    """Compute a linear layer, recorded where an argument is a Tensor that requires grad.

    `check` is called with input, weight, bias and residual, as `_linear` checks them.
    """
    x, w, b, r = (
        _view("linear", a, name)
        for a, name in ((input, "input"), (weight, "weight"), (bias, "bias"), (residual, "residual"))
    )
    check(x, w, b, r)
    word = check_precision("linear", precision, w.dtype)
    own = x.dtype
    if own != w.dtype:
        x = x.astype(w.dtype)
    is_tensor = any(isinstance(v, Tensor) for v in (input, weight, bias, residual))
    if is_tensor and out is not None:
        raise TypeError("linear: out is for arrays, an argument is a Tensor")
    takes = [needs_grad(v) for v in (input, weight, bias, residual)]
    needs_z = needs_y = False
    if activation:
        checked(activation, params)
        if any(takes[:3]):
            needs_z, needs_y = activation_needs(activation)
    # What the activation returns is the result itself where nothing comes after it.
    keeps = (needs_z, needs_y and bool(mask.p or r is not None))
    y, z, kept = _device_products.linear(
        x,
        w,
        b,
        activation,
        params,
        mask=mask,
        residual=r,
        residual_scale=residual_scale,
        keeps=keeps,
        out=out,
        precision=word,
    )
    if not is_tensor:
        return y
    if not any(takes):
        return wrap(y)
    keep_x, keep_w = x if takes[1] else None, w if takes[0] else None
    keep_y = device_view(y, "y") if needs_y and kept is None else kept

    def fn(dy: Any) -> Any:
        dx, dw, db = _device_products.linear_backward(
            device_view(dy, "dy"),
            keep_x,
            keep_w,
            activation,
            params,
            z,
            keep_y,
            mask=mask,
            residual_scale=residual_scale,
            needs=(takes[0], takes[1], takes[2]),
            precision=word,
        )
        return dx if dx is None or dx.dtype == own else dx.astype(own), dw, db, dy if takes[3] else None

    inputs = [v if taken else None for v, taken in zip((input, weight, bias, residual), takes, strict=True)]
    return record("linear", y, tuple(inputs), fn)


def linear_backward(
    dy: Any,
    x: Any,
    w: Any,
    activation: str | None,
    params: Params,
    z: Any,
    y: Any,
    *,
    mask: Dropout,
    residual_scale: float,
    needs: tuple[bool, bool, bool],
    out: tuple[Any, Any, Any],
    dz: Any,
    accumulate: bool,
    precision: str | None,
    check: Any,
) -> Any:
    """Return the gradients of `linear`; see `_linear.linear_backward`."""
    call = "linear_backward"
    arrays = {"dy": dy, "x": x, "w": w, "z": z, "y": y}
    g, a, b, z_view, y_view = (_view(call, value, name) for name, value in arrays.items())
    check(a, b, None, None)
    if not is_floating(g.dtype) or g.dtype != b.dtype:
        raise TypeError(f"{call}: dy is {g.dtype}, w is {b.dtype}")
    if g.shape != (*a.shape[:-1], b.shape[0]):
        raise ValueError(f"{call}: dy has shape {g.shape}, x and w give {(*a.shape[:-1], b.shape[0])}")
    if activation and y_view is None and z_view is not None and activation_needs(activation)[1]:
        y_view = device_view(_device_ops.bias_activation(z_view, None, activation, params, None), "y")
    outs = tuple(_view(call, value, name) for name, value in zip(("dx", "dw", "db"), out, strict=True))
    return _device_products.linear_backward(
        g,
        a,
        b,
        activation,
        params,
        z_view,
        y_view,
        mask=mask,
        residual_scale=residual_scale,
        needs=needs,
        out=(outs[0], outs[1], outs[2]),
        dz=dz,
        accumulate=accumulate,
        precision=check_precision(call, precision, b.dtype),
    )
