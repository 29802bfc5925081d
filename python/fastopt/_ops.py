"""The native kernels as plain functions: arrays in, arrays out, no Tensor.

float32 and float64 everywhere; bfloat16 and float16 where a function says so. Inputs of any layout are taken,
those that are not C-contiguous through a copy. An ``out`` (or ``grad_out``) has the result's shape and dtype
and any layout; it may be an input itself, but may not overlap one otherwise. A call that is refused has
changed nothing. Arrays of a CUDA device go to `_device_ops`, which says what is different there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _core, _device_ops
from fastopt._arrays import overlaps_itself
from fastopt._device import on_device
from fastopt._formulas import (
    LOSSES,
    WEIGHTED_AVERAGE,
    Params,
    check_reduction,
    check_seed,
    checked,
    class_axis,
)

Array = npt.NDArray[Any]

# ---------------------------------------------------------------------------------------------- elementwise


def activation(name: str, x: Array, params: Params = (), out: Array | None = None) -> Array:
    """Return act(x); bfloat16 and float16 too.

    Parameters
    ----------
    name : str
        relu, leaky_relu (negative_slope), sigmoid, tanh, gelu, gelu_tanh, silu, elu (alpha) or softplus
        (beta, threshold).
    x : ndarray
    params : tuple of float
        The activation's parameters; an empty tuple stands for torch's defaults.
    out : ndarray, optional

    Raises
    ------
    TypeError, ValueError
        An unknown name, a parameter out of its range, an array of another dtype, shape or layout.
    """
    return bias_activation(x, None, name, params, out)


def activation_grad(
    name: str,
    dy: Array,
    x: Array | None = None,
    y: Array | None = None,
    params: Params = (),
    out: Array | None = None,
) -> Array:
    """Return dx = dy * act'(x); bfloat16 and float16 too.

    Of `x` and ``y = act(x)`` those are read that `_formulas.activation_needs` names; the other may be None.
    """
    if on_device(dy):
        return _device_ops.activation_grad(name, dy, x, y, params, out)
    params = checked(name, params)
    dy = _dense(dy, name, "dy")
    x = None if x is None else _dense(x, name, "x")
    y = None if y is None else _dense(y, name, "y")
    dx = _room(out, dy, name)
    _core.activation_grad(name, dy, x, y, params, dx)
    return _deliver(dx, out)


def bias_activation(
    z: Array, bias: Array | None, name: str | None = None, params: Params = (), out: Array | None = None
) -> Array:
    """Return act(z + bias) in one pass; bfloat16 and float16 too.

    Parameters
    ----------
    z : ndarray, shape (..., n)
    bias : ndarray, shape (n,), or None
    name, params
        The activation, see `activation`; None for none.
    out : ndarray, optional
        `z` itself computes in place.
    """
    if on_device(z):
        return _device_ops.bias_activation(z, bias, name, params, out)
    call = name or "bias_activation"
    params = checked(name, params) if name else ()
    z = _dense(z, call, "x" if bias is None else "z")
    bias = None if bias is None else _dense(bias, call, "bias")
    y = _room(out, z, call)
    if bias is None and name is None:
        np.copyto(y, z, casting="no")
    else:
        _core.activation(name or "", z, bias, params, y)
    return _deliver(y, out)


def dropout(x: Array, p: float, seed: int, offset: int, out: Array | None = None) -> Array:
    """Return x * keep / (1 - p), where an element is dropped with probability `p`; bfloat16 and float16 too.

    Element i in C order stays where word i of the Philox stream (seed, offset) says so: the mask depends on
    nothing else, and the same call on the gradient of the result is the backward pass. A dropped element is 0
    whatever it was, and with p = 1 all are.
    """
    if on_device(x):
        return _device_ops.dropout(x, p, seed, offset, out)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    check_seed("dropout", seed, offset)
    x = _dense(x, "dropout", "x")
    y = _room(out, x, "dropout")
    _core.dropout(x, p, seed, offset, y)
    return _deliver(y, out)


def axpy(a: float, x: Array, y: Array) -> None:
    """Add a * x to `y` in place; bfloat16 and float16 too."""
    if on_device(y):
        _device_ops.axpy(a, x, y)
        return
    x = _dense(x, "axpy", "x")
    dense = _room(y, x, "axpy", "y")
    if dense is not y:
        np.copyto(dense, y)
    _core.axpy(a, x, dense)
    _deliver(dense, y)


# --------------------------------------------------------------------------------------------- reductions


def sum(x: Array) -> Any:
    """Return the sum of all elements, accumulated in double; the same for any number of threads.

    Like the other reductions of one array it takes bfloat16 and float16 too.
    """
    if on_device(x):
        return _device_ops.reduce("sum", x)
    return _core.sum(_dense(x, "sum", "x"))


def abs_sum(x: Array) -> Any:
    """Return the sum of absolute values; see `sum`."""
    if on_device(x):
        return _device_ops.reduce("abs_sum", x)
    return _core.abs_sum(_dense(x, "abs_sum", "x"))


def sum_squares(x: Array) -> Any:
    """Return the sum of squares; see `sum`."""
    if on_device(x):
        return _device_ops.reduce("sum_squares", x)
    return _core.sum_squares(_dense(x, "sum_squares", "x"))


def abs_max(x: Array) -> Any:
    """Return the largest absolute value, 0 of an empty array, NaN where there is a NaN."""
    if on_device(x):
        return _device_ops.reduce("abs_max", x)
    return _core.abs_max(_dense(x, "abs_max", "x"))


def dot(x: Array, y: Array) -> Any:
    """Return the sum of x * y over two arrays of one shape, accumulated in double."""
    if on_device(x):
        return _device_ops.dot(x, y)
    return _core.dot(_dense(x, "dot", "x"), _dense(y, "dot", "y"))


def bias_grad(dy: Array) -> Array:
    """Return the sums over all axes of `dy` but the last, shape (n,): the gradient of a bias."""
    if on_device(dy):
        return _device_ops.bias_grad(dy)
    dy = _dense(dy, "bias_grad", "dy")
    out = np.empty(dy.shape[-1:], dy.dtype)
    _core.bias_grad(dy, out)
    return out


# ------------------------------------------------------------------------------------------------- softmax


def softmax(x: Array, axis: int = -1, out: Array | None = None) -> Array:
    """Return exp(x) / sum(exp(x)) along an axis."""
    return _softmax("softmax", x, axis, out)


def log_softmax(x: Array, axis: int = -1, out: Array | None = None) -> Array:
    """Return x - log(sum(exp(x))) along an axis."""
    return _softmax("log_softmax", x, axis, out)


def softmax_grad(dy: Array, y: Array, axis: int = -1, out: Array | None = None) -> Array:
    """Return the gradient by x of ``y = softmax(x, axis)``."""
    return _softmax_grad("softmax_grad", dy, y, axis, out)


def log_softmax_grad(dy: Array, y: Array, axis: int = -1, out: Array | None = None) -> Array:
    """Return the gradient by x of ``y = log_softmax(x, axis)``."""
    return _softmax_grad("log_softmax_grad", dy, y, axis, out)


def _softmax(call: str, x: Array, axis: int, out: Array | None) -> Array:
    if on_device(x):
        return _device_ops.softmax(call, x, axis, out)
    rows = _dense(_axis_last(x, axis, call, "x"), call, "x")
    room = _out_axis_last(out, x, axis, call, "out")
    y = _room(room, rows, call)
    _core.softmax(rows, y, call == "log_softmax")
    return _axis_back(_deliver(y, room), axis, out)


def _softmax_grad(call: str, dy: Array, y: Array, axis: int, out: Array | None) -> Array:
    if on_device(dy):
        return _device_ops.softmax_grad(call, dy, y, axis, out)
    dy_rows = _dense(_axis_last(dy, axis, call, "dy"), call, "dy")
    y_rows = _dense(_axis_last(y, axis, call, "y"), call, "y")
    room = _out_axis_last(out, dy, axis, call, "out")
    dx = _room(room, dy_rows, call)
    _core.softmax_grad(dy_rows, y_rows, dx, call == "log_softmax_grad")
    return _axis_back(_deliver(dx, room), axis, out)


# -------------------------------------------------------------------------------------------------- losses


def loss(
    name: str,
    input: Array,
    target: Array,
    params: Params = (),
    weight: Array | None = None,
    reduction: str = "mean",
    grad: bool = False,
    grad_out: Array | None = None,
) -> tuple[Array, Array | None]:
    """Return a loss of two arrays of one shape, and its gradient by `input` from the same pass.

    Parameters
    ----------
    name : str
        mse, l1, smooth_l1 (beta), huber (delta), bce, bce_with_logits (pos_weight: a number, or an array that
        broadcasts to the input), kl_div (probabilities as target) or kl_div_log (log-probabilities).
    input : ndarray
    target : ndarray
        Integers are converted to the dtype of `input`.
    params : tuple
        The loss's parameters; an empty tuple stands for torch's defaults.
    weight : ndarray, optional
        A factor for each element, broadcast to the input.
    reduction : {"mean", "sum", "none", "batchmean"}
        "batchmean" divides the sum by the length of the first axis and is for kl_div. The mean of weighted
        mse and l1 divides by the sum of the weights, of other losses by the number of elements.
    grad : bool
        Compute the gradient. With "none" it is that of the sum.
    grad_out : ndarray, optional
        Receives the gradient.

    Returns
    -------
    loss : ndarray
        Of the input's dtype, 0-d unless the reduction is "none".
    gradient : ndarray or None

    Raises
    ------
    TypeError, ValueError
        Arrays of other dtypes or shapes, a parameter out of its range, or for bce a value outside [0, 1].
    """
    if name not in LOSSES:
        raise ValueError(f"loss: name is {name!r}, expected one of {', '.join(LOSSES)}")
    if on_device(input):
        return _device_ops.loss(name, input, target, params, weight, reduction, grad, grad_out)
    check_reduction(name, reduction, batchmean=name.startswith("kl_div"))
    x = _dense(input, name, "input")
    t = _companion(target, x, name, "target")
    param: Array | None = None
    if name == "bce_with_logits" and params and np.ndim(params[0]) > 0:
        param, params = _broadcast(params[0], x, name, "pos_weight"), ()
    params = checked(name, params)
    w = None if weight is None else _broadcast(weight, x, name, "weight")
    if name == "bce":
        _check_probabilities(x, "input")
        _check_probabilities(t, "target")
    if reduction == "mean":
        divisor = _core.sum(w) if w is not None and name in WEIGHTED_AVERAGE else float(x.size)
    else:
        divisor = float(x.shape[0]) if reduction == "batchmean" and x.ndim else 1.0
    g = _room(grad_out, x, name, "grad_out") if grad or grad_out is not None else None
    value = np.empty(x.shape if reduction == "none" else (), x.dtype)
    _core.loss(name, x, t, params, w, param, value, g, divisor, reduction == "none")
    return value, None if g is None else _deliver(g, grad_out)


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    grad: bool = False,
    grad_out: Array | None = None,
) -> tuple[Array, Array | None]:
    """Return the cross-entropy of softmax(logits) with targets, and its gradient from the same pass.

    Parameters
    ----------
    logits : ndarray, shape (C,), (N, C) or (N, C, d1, ...)
    target : ndarray
        Integers: the class of each row, of the logits' shape without C. Otherwise probabilities, of the
        logits' shape and dtype.
    weight : ndarray, shape (C,), optional
        A factor for each class.
    ignore_index : int
        Rows of this class count nothing and get a gradient of 0.
    label_smoothing : float
        In [0, 1]: this share of every target is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        The mean over classes divides by the summed weights of the classes used, the mean over probabilities
        by the number of rows.
    grad, grad_out
        As in `loss`. `grad_out` may be `logits`.

    Raises
    ------
    TypeError, ValueError
        Arrays of other dtypes or shapes, a parameter out of its range, a class that is not in [0, C).
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    smoothing = float(label_smoothing)
    return _classes(
        "cross_entropy", logits, target, weight, ignore_index, smoothing, reduction, grad, grad_out
    )


def nll(
    log_probs: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    grad: bool = False,
    grad_out: Array | None = None,
) -> tuple[Array, Array | None]:
    """Return minus the log-probability of each row's class, and its gradient; see `cross_entropy`."""
    return _classes("nll", log_probs, target, weight, ignore_index, 0.0, reduction, grad, grad_out)


def _classes(
    call: str,
    input: Array,
    target: Array,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    grad: bool,
    grad_out: Array | None,
) -> tuple[Array, Array | None]:
    if on_device(input):
        return _device_ops.classes(
            call, input, target, weight, ignore_index, label_smoothing, reduction, grad, grad_out
        )
    check_reduction(call, reduction)
    _check_array(input, call, "input")
    _check_array(target, call, "target")
    axis, by_class = class_axis(call, input, target, ignore_index)
    x = _dense(_axis_last(input, axis, call, "input"), call, "input")
    if by_class:
        t = _dense(target.astype(np.int64, copy=False), call, "target")
    else:
        t = _dense(_axis_last(target, axis, call, "target"), call, "target")
    w = None if weight is None else _dense(weight, call, "weight")
    room = _out_axis_last(grad_out, input, axis, call, "grad_out")
    g = _room(room, x, call, "grad_out") if grad or grad_out is not None else None
    value = np.empty(x.shape[:-1] if reduction == "none" else (), x.dtype)
    _core.cross_entropy(x, t, w, value, g, ignore_index, label_smoothing, reduction, call == "nll")
    return value, None if g is None else _axis_back(_deliver(g, room), axis, grad_out)


# --------------------------------------------------------------------------------------- batch normalisation


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over axis 1, and what `batch_norm_grad` needs of it.

    Parameters
    ----------
    x : ndarray, shape (N, C) or (N, C, L)
    weight, bias : ndarray, shape (C,), or None
        None: 1 and 0.
    running_mean, running_var : ndarray, shape (C,), or None
        In training they are brought up to date in place, where they are given; else they are what is used.
    training : bool
        Normalise with mean and biased variance of the batch, summed in double.
    momentum : float
        The share of this batch in the running statistics, of which the variance is the unbiased one.
    eps : float

    Returns
    -------
    y : ndarray
        As `x`.
    saved : ndarray, shape (3, C)
        Mean, 1 / sqrt(var + eps) and, of training, the unbiased variance.
    """
    if on_device(x):
        return _device_ops.batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    rows = _dense(_axis_last(x, 1, "batch_norm", "input"), "batch_norm", "input")
    w = None if weight is None else _dense(weight, "batch_norm", "weight")
    b = None if bias is None else _dense(bias, "batch_norm", "bias")
    saved = np.empty((3, rows.shape[-1]), rows.dtype)
    y = np.empty(rows.shape, rows.dtype)
    _core.batch_norm(rows, w, b, running_mean, running_var, training, momentum, eps, saved, y)
    return _axis_back(y, 1, None), saved


def batch_norm_grad(
    dy: Array,
    x: Array,
    saved: Array,
    weight: Array | None,
    training: bool,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Array | None, Array | None]:
    """Return the gradients of `batch_norm` by x, and by weight and bias as the rows of one array (2, C).

    `needs` says which of the two are computed; the other is None.
    """
    if on_device(dy):
        return _device_ops.batch_norm_grad(dy, x, saved, weight, training, needs)
    call = "batch_norm_grad"
    dy_rows = _dense(_axis_last(dy, 1, call, "dy"), call, "dy")
    x_rows = _dense(_axis_last(x, 1, call, "input"), call, "input")
    dx = np.empty(dy_rows.shape, dy_rows.dtype) if needs[0] else None
    sums = np.empty((2, dy_rows.shape[-1]), dy_rows.dtype) if needs[1] else None
    w = None if weight is None else _dense(weight, call, "weight")
    _core.batch_norm_grad(dy_rows, x_rows, saved, w, training, dx, sums)
    return None if dx is None else _axis_back(dx, 1, None), sums


# ------------------------------------------------------------------------------------------------- helpers


def _check_array(x: Any, call: str, argument: str) -> None:
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{call}: {argument} is {type(x).__name__}, expected a NumPy array")


def _is_dense(x: Array) -> bool:
    return x.flags.c_contiguous and x.flags.aligned


def _dense(x: Array, call: str, argument: str) -> Array:
    """Return `x` itself where the kernels can read it, else a copy."""
    _check_array(x, call, argument)
    return x if _is_dense(x) else np.array(x, order="C")


def _room(out: Array | None, like: Array, call: str, argument: str = "out") -> Array:
    """Return where a kernel writes a result shaped as `like`: `out` itself, or a temporary for `_deliver`."""
    if out is None:
        return np.empty(like.shape, like.dtype)
    _check_array(out, call, argument)
    if _is_dense(out):
        return out  # checked by the native call
    _check_out(out, like, call, argument)
    return np.empty(like.shape, like.dtype)


def _check_out(out: Array, like: Array, call: str, argument: str) -> None:
    if out.dtype != like.dtype:
        raise TypeError(f"{call}: {argument} is {out.dtype}, expected {like.dtype}")
    if out.shape != like.shape:
        raise ValueError(f"{call}: {argument} has shape {out.shape}, expected shape {like.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{call}: {argument} is read-only")
    if overlaps_itself(out):
        raise ValueError(f"{call}: {argument} has elements that share memory (strides {out.strides})")


def _deliver(result: Array, out: Array | None) -> Array:
    """Copy a result into the `out` that it could not be computed in; return what the caller gets."""
    if out is None or out is result:
        return result
    np.copyto(out, result)
    return out


def _axis_last(x: Array, axis: int, call: str, argument: str) -> Array:
    _check_array(x, call, argument)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{call}: axis is {axis}, {argument} has {x.ndim} axes")
    return x if axis in (-1, x.ndim - 1) else np.moveaxis(x, axis, -1)


def _out_axis_last(out: Array | None, like: Array, axis: int, call: str, argument: str) -> Array | None:
    if out is None or axis in (-1, like.ndim - 1):
        return out
    _check_array(out, call, argument)
    _check_out(out, like, call, argument)
    return np.moveaxis(out, axis, -1)


def _axis_back(rows: Array, axis: int, out: Array | None) -> Array:
    if out is not None:
        return out
    return rows if axis in (-1, rows.ndim - 1) else np.ascontiguousarray(np.moveaxis(rows, -1, axis))


def _companion(y: Array, x: Array, call: str, argument: str) -> Array:
    """Return numbers that go with `x` in its dtype: integers are converted, other dtypes are left to fail."""
    _check_array(y, call, argument)
    return y.astype(x.dtype, order="C") if y.dtype.kind in "biu" else _dense(y, call, argument)


def _broadcast(y: Array, x: Array, call: str, argument: str) -> Array:
    y = _companion(y, x, call, argument)
    if y.shape == x.shape:
        return y
    try:
        full = np.broadcast_to(y, x.shape)
    except ValueError:
        raise ValueError(
            f"{call}: {argument} has shape {y.shape}, which does not broadcast to the input's {x.shape}"
        ) from None
    return np.array(full, order="C")


def _check_probabilities(x: Array, argument: str) -> None:
    # A NaN fails both comparisons and is refused with the rest.
    with np.errstate(invalid="ignore"):
        if x.size == 0 or (x.min() >= 0 and x.max() <= 1):
            return
        index = np.unravel_index(np.flatnonzero(~((x >= 0) & (x <= 1)))[0], x.shape)
    place = f"{argument}[{', '.join(map(str, index))}]" if index else argument
    raise ValueError(f"bce: {place} is {x[index]}, expected a probability in [0, 1]")
