"""The functions of `_ops` for arrays in the memory of a CUDA device, queued on their library's current stream.

They differ where raising an error or returning a number would have to wait for the device: sums are arrays of
one element, and a class out of range, or a probability outside [0, 1], makes the loss NaN. Arguments and
results are as `_ops` has them; a result is of the library of the first array.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastopt._device import Array, Library, device_view, library, native
from fastopt._formulas import WEIGHTED_AVERAGE, Params, check_reduction, check_seed, checked, class_axis

View = Any  # of CuPy, or a TorchArray


class Call:
    """One call: its name for messages, and the library, stream and device of its first array."""

    def __init__(self, name: str, x: Any, argument: str) -> None:
        self.name = name
        self.native = native()
        self.first = self.view(x, argument)
        self.library: Library = library(self.first)
        self.stream = self.library.stream(self.first)

    def view(self, x: Any, argument: str) -> View:
        view = device_view(x, f"{self.name}: {argument}")
        if view is None:
            raise TypeError(
                f"{self.name}: {argument} is {type(x).__module__}.{type(x).__qualname__}, "
                "other arguments are on a CUDA device"
            )
        return view

    def dense(self, x: Any, argument: str) -> View:
        """Return `x` itself where the kernels can read it, else a copy."""
        view = self.view(x, argument)
        return library(view).dense(view)

    def optional(self, x: Any, argument: str) -> View | None:
        return None if x is None else self.dense(x, argument)

    def room(self, out: Any, like: View, argument: str = "out") -> Room:
        """Return where a kernel writes a result shaped as `like`."""
        if out is None:
            return Room(self.library.empty(self.first, like.shape, like.dtype), None)
        target = self.view(out, argument)
        if target.dtype != like.dtype:
            raise TypeError(f"{self.name}: {argument} is {target.dtype}, expected {like.dtype}")
        if target.shape != like.shape:
            raise ValueError(f"{self.name}: {argument} has shape {target.shape}, expected shape {like.shape}")
        dense = library(target).dense(target)
        return Room(dense, None if dense is target else target)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> View:
        return self.library.empty(self.first, shape, dtype)

    def run(self, function: str, *arguments: Any) -> None:
        """Queue a native function; arrays among the arguments are views."""
        raw = [library(a).unwrap(a) if hasattr(a, "shape") else a for a in arguments]
        getattr(self.native, function)(*raw, self.stream)


class Room(NamedTuple):
    """Memory for a result, and the array that it has to be copied to, if any."""

    dense: View
    target: View | None

    def deliver(self) -> Array:
        """Return the result as the caller gets it."""
        if self.target is None:
            return library(self.dense).unwrap(self.dense)
        library(self.target).copy_into(self.target, self.dense)
        return library(self.target).unwrap(self.target)


# ---------------------------------------------------------------------------------------------- elementwise


def bias_activation(z: Any, bias: Any, name: str | None, params: Params, out: Any) -> Array:
    """Return act(z + bias)."""
    call = Call(name or "bias_activation", z, "x" if bias is None else "z")
    params = checked(name, params) if name else ()
    x, b = library(call.first).dense(call.first), call.optional(bias, "bias")
    room = call.room(out, x)
    if bias is None and name is None:
        call.library.copy_into(room.dense, x)
    else:
        call.run("activation", name or "", x, b, params, room.dense)
    return room.deliver()


def activation_grad(name: str, dy: Any, x: Any, y: Any, params: Params, out: Any) -> Array:
    """Return dy * act'(x)."""
    call = Call(name, dy, "dy")
    params = checked(name, params)
    d = call.library.dense(call.first)
    room = call.room(out, d)
    call.run("activation_grad", name, d, call.optional(x, "x"), call.optional(y, "y"), params, room.dense)
    return room.deliver()


def dropout(x: Any, p: float, seed: int, offset: int, out: Any) -> Array:
    """Return x * keep / (1 - p)."""
    call = Call("dropout", x, "x")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    check_seed("dropout", seed, offset)
    dense = call.library.dense(call.first)
    room = call.room(out, dense)
    call.run("dropout", dense, p, seed, offset, room.dense)
    return room.deliver()


def axpy(a: float, x: Any, y: Any) -> None:
    """Add a * x to `y` in place."""
    call = Call("axpy", y, "y")
    dense = call.library.dense(call.first)
    call.run("axpy", a, call.dense(x, "x"), dense)
    if dense is not call.first:
        call.library.copy_into(call.first, dense)


# --------------------------------------------------------------------------------------------- reductions


def reduce(name: str, x: Any) -> Array:
    """Return the sum, abs_sum, sum_squares or abs_max of all elements: one float64, of shape ()."""
    call = Call(name, x, "x")
    out = call.empty((), np.float64)
    call.run(name, call.library.dense(call.first), out)
    return call.library.unwrap(out)


def dot(x: Any, y: Any) -> Array:
    """Return the sum of x * y: one float64, of shape ()."""
    call = Call("dot", x, "x")
    out = call.empty((), np.float64)
    call.run("dot", call.library.dense(call.first), call.dense(y, "y"), out)
    return call.library.unwrap(out)


def bias_grad(dy: Any) -> Array:
    """Return the sums over all axes of `dy` but the last."""
    call = Call("bias_grad", dy, "dy")
    out = call.empty(call.first.shape[-1:], call.first.dtype)
    call.run("bias_grad", call.library.dense(call.first), out)
    return call.library.unwrap(out)


# ------------------------------------------------------------------------------------------------- softmax


def softmax(name: str, x: Any, axis: int, out: Any) -> Array:
    """Return softmax or log_softmax along an axis."""
    call = Call(name, x, "x")
    rows = call.library.dense(_axis_last(call, call.first, axis, "x"))
    y = call.empty(rows.shape, rows.dtype)
    call.run("softmax", rows, y, name == "log_softmax")
    return _axis_back(call, y, axis, out)


def softmax_grad(name: str, dy: Any, y: Any, axis: int, out: Any) -> Array:
    """Return the gradient by x of softmax or log_softmax."""
    call = Call(name, dy, "dy")
    dy_rows = call.library.dense(_axis_last(call, call.first, axis, "dy"))
    y_rows = call.dense(_axis_last(call, call.view(y, "y"), axis, "y"), "y")
    dx = call.empty(dy_rows.shape, dy_rows.dtype)
    call.run("softmax_grad", dy_rows, y_rows, dx, name == "log_softmax_grad")
    return _axis_back(call, dx, axis, out)


def _axis_last(call: Call, x: View, axis: int, argument: str) -> View:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{call.name}: axis is {axis}, {argument} has {x.ndim} axes")
    return x if axis in (-1, x.ndim - 1) else library(x).moveaxis(x, axis, -1)


def _axis_back(call: Call, rows: View, axis: int, out: Any) -> Array:
    """Return rows with their axis where it was, in `out` where that is given."""
    lib = call.library
    moved = rows if axis in (-1, rows.ndim - 1) else lib.moveaxis(rows, -1, axis)
    if out is None:
        return lib.unwrap(lib.dense(moved))
    room = call.room(out, moved)
    lib.copy_into(room.dense, moved)
    return room.deliver()


# --------------------------------------------------------------------------------------- batch normalisation


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """Return the normalised numbers and what their gradient needs."""
    call = Call("batch_norm", x, "input")
    rows = call.library.dense(_axis_last(call, call.first, 1, "input"))
    numbers = (call.optional(weight, "weight"), call.optional(bias, "bias"))
    pair = (("running_mean", running_mean), ("running_var", running_var))
    running = [None if a is None else call.view(a, name) for name, a in pair]
    saved, y = call.empty((3, rows.shape[-1]), rows.dtype), call.empty(rows.shape, rows.dtype)
    call.run("batch_norm", rows, *numbers, *running, training, momentum, eps, saved, y)
    return _axis_back(call, y, 1, None), call.library.unwrap(saved)


def batch_norm_grad(
    dy: Any, x: Any, saved: Any, weight: Any, training: bool, needs: tuple[bool, bool]
) -> tuple[Array | None, Array | None]:
    """Return the gradients by x, and by weight and bias as rows."""
    call = Call("batch_norm_grad", dy, "dy")
    dy_rows = call.library.dense(_axis_last(call, call.first, 1, "dy"))
    x_rows = call.dense(_axis_last(call, call.view(x, "input"), 1, "input"), "input")
    dx = call.empty(dy_rows.shape, dy_rows.dtype) if needs[0] else None
    sums = call.empty((2, dy_rows.shape[-1]), dy_rows.dtype) if needs[1] else None
    kept = call.view(saved, "saved")
    call.run("batch_norm_grad", dy_rows, x_rows, kept, call.optional(weight, "weight"), training, dx, sums)
    given = None if dx is None else _axis_back(call, dx, 1, None)
    return given, None if sums is None else call.library.unwrap(sums)


# -------------------------------------------------------------------------------------------------- losses


def loss(
    name: str,
    input: Any,
    target: Any,
    params: Params,
    weight: Any,
    reduction: str,
    grad: bool,
    grad_out: Any,
) -> tuple[Array, Array | None]:
    """Return an elementwise loss and its gradient by `input`."""
    check_reduction(name, reduction, batchmean=name.startswith("kl_div"))
    call = Call(name, input, "input")
    x = call.library.dense(call.first)
    t = _companion(call, target, x, "target")
    param = None
    if name == "bce_with_logits" and params and getattr(params[0], "ndim", 0) > 0:
        param, params = _broadcast(call, params[0], x, "pos_weight"), ()
    params = checked(name, params)
    w = None if weight is None else _broadcast(call, weight, x, "weight")
    divisor: Any = 1.0
    if reduction == "mean":
        divisor = float(math.prod(x.shape))
        if w is not None and name in WEIGHTED_AVERAGE:
            divisor = call.empty((), np.float64)
            call.run("sum", w, divisor)
    elif reduction == "batchmean" and x.ndim:
        divisor = float(x.shape[0])
    room = call.room(grad_out, x, "grad_out") if grad or grad_out is not None else None
    value = call.empty(x.shape if reduction == "none" else (), x.dtype)
    gradient = None if room is None else room.dense
    call.run("loss", name, x, t, params, w, param, value, gradient, divisor, reduction == "none")
    return call.library.unwrap(value), None if room is None else room.deliver()


def classes(
    name: str,
    input: Any,
    target: Any,
    weight: Any,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    grad: bool,
    grad_out: Any,
) -> tuple[Array, Array | None]:
    """Return cross_entropy or nll and its gradient by `input`."""
    check_reduction(name, reduction)
    call = Call(name, input, "input")
    x, t = call.first, call.view(target, "target")
    axis, by_class = class_axis(name, x, t, ignore_index)
    rows = call.library.dense(_axis_last(call, x, axis, "input"))
    t = t.astype(np.int64, copy=False) if by_class else _axis_last(call, t, axis, "target")
    value = call.empty(rows.shape[:-1] if reduction == "none" else (), x.dtype)
    g = call.empty(rows.shape, rows.dtype) if grad or grad_out is not None else None
    call.run(
        "cross_entropy",
        rows,
        library(t).dense(t),
        call.optional(weight, "weight"),
        value,
        g,
        ignore_index,
        label_smoothing,
        reduction,
        name == "nll",
    )
    return call.library.unwrap(value), None if g is None else _axis_back(call, g, axis, grad_out)


def _companion(call: Call, y: Any, x: View, argument: str) -> View:
    """Return numbers that go with `x` in its dtype: integers are converted, other dtypes are left to fail."""
    view = call.view(y, argument)
    if view.dtype.kind in "biu":
        view = view.astype(x.dtype)
    return library(view).dense(view)


def _broadcast(call: Call, y: Any, x: View, argument: str) -> View:
    view = _companion(call, y, x, argument)
    if view.shape == x.shape:
        return view
    try:
        full = library(view).broadcast(view, x.shape)
    except (ValueError, RuntimeError):
        raise ValueError(
            f"{call.name}: {argument} has shape {view.shape}, which does not broadcast to the input's {x.shape}"
        ) from None
    return library(view).dense(full)
