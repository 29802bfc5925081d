"""Layers, activations and losses as functions: arrays in, arrays out; Tensors in, recorded Tensors out.

Names, arguments and defaults are torch's. Numbers are computed in the dtype of the input (integers as
float32). Each activation has a ``<name>_grad(dy, x)`` and each loss a ``<name>_with_grad`` on plain arrays,
for those who write their own backward pass; `linear` is in `_linear`, `batch_norm` in `_batch_norm`, the losses are in
`_losses`, exported here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _ops, _random
from fastopt._batch_norm import batch_norm
from fastopt._device import as_data
from fastopt._formulas import activation_needs
from fastopt._linear import linear, linear_backward
from fastopt._losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    cross_entropy,
    cross_entropy_with_grad,
    huber_loss,
    huber_loss_with_grad,
    kl_div,
    kl_div_with_grad,
    l1_loss,
    l1_loss_with_grad,
    mse_loss,
    mse_loss_with_grad,
    nll_loss,
    nll_loss_with_grad,
    poisson_nll_loss,
    poisson_nll_loss_with_grad,
    quantile_loss,
    quantile_loss_with_grad,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_grad,
    smooth_l1_loss,
    smooth_l1_loss_with_grad,
)
from fastopt._rules import as_float
from fastopt.tensor import Tensor, activate, needs_grad, record, to_array, to_out, wrap

__all__ = [
    "activation",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "dropout",
    "dropout_grad",
    "elu",
    "elu_grad",
    "gelu",
    "gelu_grad",
    "huber_loss",
    "huber_loss_with_grad",
    "kl_div",
    "kl_div_with_grad",
    "l1_loss",
    "l1_loss_with_grad",
    "l1_penalty",
    "l2_penalty",
    "leaky_relu",
    "leaky_relu_grad",
    "linear",
    "linear_backward",
    "log_softmax",
    "log_softmax_grad",
    "mse_loss",
    "mse_loss_with_grad",
    "nll_loss",
    "nll_loss_with_grad",
    "one_hot",
    "poisson_nll_loss",
    "poisson_nll_loss_with_grad",
    "quantile_loss",
    "quantile_loss_with_grad",
    "relu",
    "relu_grad",
    "sigmoid",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_with_grad",
    "sigmoid_grad",
    "silu",
    "silu_grad",
    "smooth_l1_loss",
    "smooth_l1_loss_with_grad",
    "softmax",
    "softmax_grad",
    "softplus",
    "softplus_grad",
    "tanh",
    "tanh_grad",
]

Array = npt.NDArray[Any]

# -------------------------------------------------------------------------------------------- activations


def activation(
    name: str, input: Any, params: tuple[float, ...] = (), inplace: bool = False, *, out: Array | None = None
) -> Any:
    """Apply the activation `name` (see `linear`) with its `params`: what the functions below have in common.

    `inplace` overwrites the input where nothing is recorded; `out` receives the result and is for arrays.
    """
    if isinstance(input, Tensor):
        _check_out(name, out)
        if not inplace or needs_grad(input):
            return activate(input, name, params)
        _ops.activation(name, input.data, params, input.data)
        return input
    a = to_array(input)
    return _ops.activation(name, as_float(a), params, a if inplace else to_out(out))


def _check_out(name: str, out: Any) -> None:
    """Refuse an `out` for a Tensor."""
    if out is not None:
        raise TypeError(f"{name}: out is for arrays, input is a Tensor")


def _activation_grad(
    name: str, dy: Any, x: Any, y: Any, params: tuple[float, ...], out: Array | None
) -> Array:
    needs_x, needs_y = activation_needs(name)
    a = None if x is None else to_array(x, "x")
    b = None if y is None else to_array(y, "y")
    d, room = to_array(dy, "dy"), to_out(out)
    if needs_y and b is None and a is not None:
        b = _ops.activation(name, a, params)
        room = _over(b, d, room)
    if (needs_x and a is None) or (needs_y and b is None):
        raise TypeError(f"{name}_grad: x is missing")
    return _ops.activation_grad(name, d, a if needs_x else None, b if needs_y else None, params, room)


def _over(y: Array, dy: Array, out: Array | None) -> Array | None:
    """Where a gradient goes: `out`, or else over the result `y` that was made for it alone, if it fits."""
    return y if out is None and y.shape == dy.shape and y.dtype == dy.dtype else out


def relu(input: Any, inplace: bool = False, *, out: Array | None = None) -> Any:
    """max(x, 0). `inplace` overwrites the input where nothing is recorded; `out` is for arrays."""
    return activation("relu", input, (), inplace, out=out)


def relu_grad(dy: Any, x: Any = None, *, y: Any = None, out: Array | None = None) -> Array:
    """The gradient of `relu` at the input `x` or result `y` (one is enough), times `dy`; 0 at 0."""
    return _activation_grad("relu", dy, x, y, (), out)


def leaky_relu(
    input: Any, negative_slope: float = 0.01, inplace: bool = False, *, out: Array | None = None
) -> Any:
    """x where positive, else ``negative_slope * x``."""
    return activation("leaky_relu", input, (negative_slope,), inplace, out=out)


def leaky_relu_grad(dy: Any, x: Any, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """The gradient of `leaky_relu` at `x`, times `dy`."""
    return _activation_grad("leaky_relu", dy, x, None, (negative_slope,), out)


def sigmoid(input: Any, *, out: Array | None = None) -> Any:
    """1 / (1 + exp(-x))."""
    return activation("sigmoid", input, out=out)


def sigmoid_grad(dy: Any, x: Any = None, *, y: Any = None, out: Array | None = None) -> Array:
    """The gradient of `sigmoid` at the input `x` or result `y` (one is enough), times `dy`."""
    return _activation_grad("sigmoid", dy, x, y, (), out)


def tanh(input: Any, *, out: Array | None = None) -> Any:
    """The hyperbolic tangent."""
    return activation("tanh", input, out=out)


def tanh_grad(dy: Any, x: Any = None, *, y: Any = None, out: Array | None = None) -> Array:
    """The gradient of `tanh` at the input `x` or result `y` (one is enough), times `dy`."""
    return _activation_grad("tanh", dy, x, y, (), out)


def gelu(input: Any, approximate: str = "none", *, out: Array | None = None) -> Any:
    """x * Phi(x), exact or with `approximate="tanh"` (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return activation(gelu_name(approximate), input, out=out)


def gelu_grad(dy: Any, x: Any, approximate: str = "none", *, out: Array | None = None) -> Array:
    """The gradient of `gelu` at `x`, times `dy`."""
    return _activation_grad(gelu_name(approximate), dy, x, None, (), out)


def gelu_name(approximate: str) -> str:
    """The kernel's name of a `gelu`."""
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return names[approximate]


def silu(input: Any, inplace: bool = False, *, out: Array | None = None) -> Any:
    """x * sigmoid(x) (Elfwing et al. 2018, arXiv:1702.03118)."""
    return activation("silu", input, (), inplace, out=out)


def silu_grad(dy: Any, x: Any, *, out: Array | None = None) -> Array:
    """The gradient of `silu` at `x`, times `dy`."""
    return _activation_grad("silu", dy, x, None, (), out)


def elu(input: Any, alpha: float = 1.0, inplace: bool = False, *, out: Array | None = None) -> Any:
    """x where positive, else ``alpha * (exp(x) - 1)`` (Clevert et al. 2016, arXiv:1511.07289)."""
    return activation("elu", input, (alpha,), inplace, out=out)


def elu_grad(dy: Any, x: Any, alpha: float = 1.0, *, out: Array | None = None) -> Array:
    """The gradient of `elu` at `x`, times `dy`."""
    return _activation_grad("elu", dy, x, None, (alpha,), out)


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0, *, out: Array | None = None) -> Any:
    """log(1 + exp(beta * x)) / beta, and x itself where ``beta * x > threshold``."""
    return activation("softplus", input, (beta, threshold), out=out)


def softplus_grad(
    dy: Any, x: Any, beta: float = 1.0, threshold: float = 20.0, *, out: Array | None = None
) -> Array:
    """The gradient of `softplus` at `x`, times `dy`."""
    return _activation_grad("softplus", dy, x, None, (beta, threshold), out)


def softmax(input: Any, dim: int = -1, *, out: Array | None = None) -> Any:
    """exp(x) over its sum along `dim`, computed without overflow."""
    if isinstance(input, Tensor):
        _check_out("softmax", out)
        return input.softmax(dim)
    return _ops.softmax(as_float(to_array(input)), dim, to_out(out))


def softmax_grad(dy: Any, x: Any = None, dim: int = -1, *, y: Any = None, out: Array | None = None) -> Array:
    """The gradient of `softmax` from its input `x` or result `y` (one is enough), and `dy`."""
    d, room = to_array(dy, "dy"), to_out(out)
    if y is None:
        y = _ops.softmax(to_array(x, "x"), dim)
        room = _over(y, d, room)
    return _ops.softmax_grad(d, to_array(y, "y"), dim, room)


def log_softmax(input: Any, dim: int = -1, *, out: Array | None = None) -> Any:
    """The logarithm of `softmax`, computed without overflow."""
    if isinstance(input, Tensor):
        _check_out("log_softmax", out)
        return input.log_softmax(dim)
    return _ops.log_softmax(as_float(to_array(input)), dim, to_out(out))


def log_softmax_grad(
    dy: Any, x: Any = None, dim: int = -1, *, y: Any = None, out: Array | None = None
) -> Array:
    """The gradient of `log_softmax` from its input `x` or result `y` (one is enough), and `dy`."""
    d, room = to_array(dy, "dy"), to_out(out)
    if y is None:
        y = _ops.log_softmax(to_array(x, "x"), dim)
        room = _over(y, d, room)
    return _ops.log_softmax_grad(d, to_array(y, "y"), dim, room)


# ---------------------------------------------------------------------------- dropout, penalties, targets


def dropout(
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | None = None,
    offset: int | None = None,
) -> Any:
    """Set each element to 0 with probability `p` and scale the others by 1 / (1 - p).

    The mask is a function of (seed, offset, index) and is never stored (Philox, Salmon et al. 2011). It is
    the same for every instruction set and number of threads.

    Parameters
    ----------
    input : array or Tensor
    p : float
        In [0, 1].
    training : bool
        Without it, `input` is returned as it is.
    inplace : bool
        Overwrite the input where nothing is recorded.
    seed, offset : int, optional
        The mask to use; without them the next one after `manual_seed`.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    if not training or p == 0:
        return input
    if (seed is None) != (offset is None):
        raise TypeError(f"dropout: seed and offset go together, got seed={seed} and offset={offset}")
    a = to_array(input)
    x = as_float(a)
    if inplace and x is not a:
        raise TypeError(f"dropout: inplace needs a floating-point input, got {a.dtype}")
    key = _random.next_dropout() if seed is None or offset is None else (seed, offset)
    y = _dropped(x, p, key, a if inplace and not needs_grad(input) else None)
    if not isinstance(input, Tensor):
        return y
    if not needs_grad(input):
        return wrap(y)
    return record("dropout", y, (input,), lambda dy: _dropped(dy, p, key, None))


def dropout_grad(dy: Any, p: float, seed: int, offset: int, *, out: Array | None = None) -> Array:
    """The gradient of `dropout` with that `seed` and `offset`, from `dy`."""
    return _dropped(to_array(dy, "dy"), p, (seed, offset), to_out(out))


def _dropped(x: Array, p: float, key: tuple[int, int], out: Array | None) -> Array:
    return _ops.dropout(x, p, *key, out)


def l1_penalty(params: Any, alpha: float) -> Any:
    """Return ``alpha * sum(|p|)`` over one or many arrays or Tensors; its gradient is ``alpha * sign(p)``.

    Parameters
    ----------
    params : array, Tensor, iterable or mapping of these
    alpha : float

    Returns
    -------
    float, an array of one float64 of arrays on a GPU, or a Tensor where a parameter is one.
    """
    return _penalty("l1_penalty", params, alpha, _ops.abs_sum, np.sign)


def l2_penalty(params: Any, alpha: float) -> Any:
    """Return ``alpha / 2 * sum(p ** 2)``; its gradient ``alpha * p`` is that of ``weight_decay=alpha``.

    Parameters and result are those of `l1_penalty`.
    """
    return _penalty("l2_penalty", params, alpha, lambda a: _ops.sum_squares(a) / 2, lambda a: a)


def _penalty(name: str, params: Any, alpha: float, value: Any, gradient: Any) -> Any:
    if not math.isfinite(alpha):
        raise ValueError(f"{name}: alpha must be finite, got {alpha}")
    given: Iterable[Any]
    if isinstance(params, Mapping):
        given = params.values()
    elif hasattr(params, "shape"):
        given = [params]
    else:
        given = params
    items = list(given)
    arrays = [to_array(p, f"params[{i}]") for i, p in enumerate(items)]
    values = [value(as_float(a)) for a in arrays]
    on_host = all(isinstance(v, float) for v in values)
    total = alpha * (math.fsum(values) if on_host else sum(values[1:], values[0]))
    tensors = [p for p in items if isinstance(p, Tensor)]
    if not tensors:
        return total
    loss = as_data(total).astype(tensors[0].dtype)
    takers = [p for p in tensors if needs_grad(p)]
    if not takers:
        return wrap(loss)
    kept = [p.data for p in takers]

    def fn(dy: Any) -> Any:
        gradients = [gradient(a) * (alpha * dy).astype(a.dtype) for a in kept]
        return gradients if len(gradients) > 1 else gradients[0]

    return record(name, loss, tuple(takers), fn)


def one_hot(target: Any, num_classes: int = -1) -> Any:
    """Return int64 rows with a 1 at the class of each element of `target`, by default max + 1 wide."""
    t = as_data(to_array(target, "target"))
    if t.dtype.kind not in "iu":
        raise TypeError(f"one_hot: target must hold integers, got {t.dtype}")
    width = (int(t.max()) + 1 if t.size else 0) if num_classes == -1 else operator.index(num_classes)
    # On a device a class out of range has a row of zeros: asking would wait for the answer.
    if isinstance(t, np.ndarray) and t.size and not (t.min() >= 0 and t.max() < width):
        raise ValueError(f"one_hot: target has classes from {t.min()} to {t.max()}, num_classes is {width}")
    y = (t[..., None] == np.arange(width, like=t)).astype(np.int64)
    return wrap(y) if isinstance(target, Tensor) else y
