"""The losses of `functional`: value and gradient come from one pass of a kernel.

Every loss takes arrays or Tensors. With Tensors it returns a Tensor, recorded for `input` (and for `target`
where the loss is symmetric in both); the gradient is computed along with the value and kept for `backward`.
``<loss>_with_grad`` takes arrays and returns (loss, d loss / d input), the gradient in `grad_out` if given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import _ops
from fastopt._rules import as_float, is_one
from fastopt.tensor import Tensor, needs_grad, record, to_array, to_out, wrap

Array = npt.NDArray[Any]

#: (input, target, grad, grad_out) -> (loss, gradient or None)
_Kernel = Callable[[Array, Array, bool, Array | None], tuple[Array, Array | None]]

REDUCTIONS = ("none", "mean", "sum")
KL_REDUCTIONS = (*REDUCTIONS, "batchmean")


# ------------------------------------------------------------------------------------------------ running


def _run(name: str, kernel: _Kernel, input: Any, target: Any, symmetric: bool = False) -> Any:
    """Compute a loss of arrays, or of Tensors and record it."""
    x, t = _arrays(input, target)
    takes_x, takes_t = needs_grad(input), needs_grad(target)
    if takes_t and not symmetric:
        raise ValueError(f"{name}: target requires grad, only input can: detach() it")
    loss, g = kernel(x, t, takes_x or takes_t, None)
    if g is None:
        return wrap(loss) if isinstance(input, Tensor) or isinstance(target, Tensor) else loss
    gradient = g

    def fn(dy: Array) -> Any:
        if 0 < dy.ndim < gradient.ndim:  # one number for each row of classes
            dy = np.expand_dims(dy, 1)
        # A mean or sum that ends the graph has dy = 1; a view of what is kept spares its copy.
        dx = gradient[...] if is_one(dy) else dy * gradient
        if not takes_t:
            return dx
        return (dx, -dx) if takes_x else -dx

    return record(name, loss, tuple([v for v, takes in ((input, takes_x), (target, takes_t)) if takes]), fn)


def _run_with_grad(kernel: _Kernel, input: Any, target: Any, grad_out: Array | None) -> tuple[Array, Array]:
    """Compute a loss and its gradient as arrays."""
    loss, g = kernel(*_arrays(input, target), True, to_out(grad_out, "grad_out"))
    assert g is not None
    return loss, g


def _arrays(input: Any, target: Any) -> tuple[Array, Array]:
    """Input and target as arrays; numbers that are no class indices in the dtype of the input."""
    return as_float(to_array(input)), to_array(target, "target")


def _elementwise(
    name: str,
    kernel: str,
    reduction: str,
    params: tuple[Any, ...] = (),
    weight: Any = None,
    reductions: tuple[str, ...] = REDUCTIONS,
) -> _Kernel:
    """The kernel of a loss that compares input and target element by element."""
    check_reduction(name, reduction, reductions)

    def run(x: Array, t: Array, grad: bool, grad_out: Array | None) -> tuple[Array, Array | None]:
        if t.shape != x.shape:
            raise ValueError(f"{name}: target has shape {t.shape}, input has shape {x.shape}")
        w = None if weight is None else to_array(weight, "weight").astype(x.dtype, copy=False)
        return _ops.loss(kernel, x, t.astype(x.dtype, copy=False), params, w, reduction, grad, grad_out)

    return run


def check_reduction(name: str, reduction: str, reductions: tuple[str, ...] = REDUCTIONS) -> None:
    """Refuse a `reduction` that the loss `name` does not have."""
    if reduction not in reductions:
        raise ValueError(f"{name}: reduction must be one of {', '.join(reductions)}, got {reduction!r}")


# -------------------------------------------------------------------------------------------- class losses


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The cross-entropy of softmax(input) with the classes of `target`, softmax and loss in one pass.

    Parameters
    ----------
    input : array or Tensor, shape (C,), (N, C) or (N, C, d1, ...)
        The logits.
    target : array or Tensor
        Integers: the classes, of the input's shape without C. Floats: probabilities, of the input's shape.
    weight : array, shape (C,), optional
        A factor for each class. The mean over class indices divides by the sum of the weights used.
    ignore_index : int
        Targets of this class count for nothing.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float
        In [0, 1]: this share of each target is spread evenly over all classes.
    """
    kernel = _cross_entropy("cross_entropy", weight, ignore_index, reduction, label_smoothing)
    return _run("cross_entropy", kernel, input, target)


def cross_entropy_with_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `cross_entropy` and its gradient by `input`; see there for the arguments.

    With ``reduction="none"`` the gradient is that of the sum. `grad_out` receives the gradient in place.
    """
    kernel = _cross_entropy("cross_entropy_with_grad", weight, ignore_index, reduction, label_smoothing)
    return _run_with_grad(kernel, input, target, grad_out)


def _cross_entropy(
    name: str, weight: Any, ignore_index: int, reduction: str, label_smoothing: float
) -> _Kernel:
    check_reduction(name, reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}")

    def run(x: Array, t: Array, grad: bool, grad_out: Array | None) -> tuple[Array, Array | None]:
        if t.dtype.kind not in "iub":
            t = t.astype(x.dtype, copy=False)
        w = _class_weight(name, weight, x)
        return _ops.cross_entropy(x, t, w, ignore_index, label_smoothing, reduction, grad, grad_out)

    return run


def nll_loss(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Minus the log-probability in `input` (as from `log_softmax`) of each class of `target`.

    Shapes and arguments are those of `cross_entropy`; `target` holds classes.
    """
    return _run("nll_loss", _nll("nll_loss", weight, ignore_index, reduction), input, target)


def nll_loss_with_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `nll_loss` and its gradient by `input`."""
    return _run_with_grad(
        _nll("nll_loss_with_grad", weight, ignore_index, reduction), input, target, grad_out
    )


def _nll(name: str, weight: Any, ignore_index: int, reduction: str) -> _Kernel:
    check_reduction(name, reduction)

    def run(x: Array, t: Array, grad: bool, grad_out: Array | None) -> tuple[Array, Array | None]:
        return _ops.nll(x, t, _class_weight(name, weight, x), ignore_index, reduction, grad, grad_out)

    return run


def _class_weight(name: str, weight: Any, x: Array) -> Array | None:
    if weight is None:
        return None
    w = to_array(weight, "weight").astype(x.dtype, copy=False)
    classes = x.shape[:1] if x.ndim == 1 else x.shape[1:2]
    if w.shape != classes:
        raise ValueError(f"{name}: weight has shape {w.shape}, input {x.shape} has {classes} classes")
    return w


# ------------------------------------------------------------------------------------- elementwise losses


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """-(t log x + (1 - t) log(1 - x)) for probabilities `input`, each logarithm held at -100 or above.

    `weight` is broadcast to the elements; the mean divides by their number.
    """
    kernel = _elementwise("binary_cross_entropy", "bce", reduction, weight=weight)
    return _run("binary_cross_entropy", kernel, input, target)


def binary_cross_entropy_with_grad(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `binary_cross_entropy` and its gradient by `input`."""
    kernel = _elementwise("binary_cross_entropy_with_grad", "bce", reduction, weight=weight)
    return _run_with_grad(kernel, input, target, grad_out)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """`binary_cross_entropy` of sigmoid(input), computed without overflow.

    `pos_weight` is a factor for the positive part, broadcast to the elements; so is `weight` for the whole.
    """
    kernel = _bce_with_logits("binary_cross_entropy_with_logits", weight, reduction, pos_weight)
    return _run("binary_cross_entropy_with_logits", kernel, input, target)


def binary_cross_entropy_with_logits_with_grad(
    input: Any,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `binary_cross_entropy_with_logits` and its gradient by `input`."""
    kernel = _bce_with_logits("binary_cross_entropy_with_logits_with_grad", weight, reduction, pos_weight)
    return _run_with_grad(kernel, input, target, grad_out)


def _bce_with_logits(name: str, weight: Any, reduction: str, pos_weight: Any) -> _Kernel:
    params = () if pos_weight is None else (to_array(pos_weight, "pos_weight"),)
    return _elementwise(name, "bce_with_logits", reduction, params, weight)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """The squared difference of `input` and `target`, which have one shape."""
    return _run("mse_loss", _elementwise("mse_loss", "mse", reduction), input, target, True)


def mse_loss_with_grad(
    input: Any, target: Any, reduction: str = "mean", *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `mse_loss` and its gradient by `input`."""
    return _run_with_grad(_elementwise("mse_loss_with_grad", "mse", reduction), input, target, grad_out)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """The absolute difference of `input` and `target`, which have one shape; its gradient at 0 is 0."""
    return _run("l1_loss", _elementwise("l1_loss", "l1", reduction), input, target, True)


def l1_loss_with_grad(
    input: Any, target: Any, reduction: str = "mean", *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `l1_loss` and its gradient by `input`."""
    return _run_with_grad(_elementwise("l1_loss_with_grad", "l1", reduction), input, target, grad_out)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """``d**2 / (2 * beta)`` where the difference ``|d|`` is below `beta`, else ``|d| - beta / 2`` (Girshick 2015)."""
    return _run("smooth_l1_loss", _smooth_l1("smooth_l1_loss", reduction, beta), input, target, True)


def smooth_l1_loss_with_grad(
    input: Any, target: Any, reduction: str = "mean", beta: float = 1.0, *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `smooth_l1_loss` and its gradient by `input`."""
    return _run_with_grad(_smooth_l1("smooth_l1_loss_with_grad", reduction, beta), input, target, grad_out)


def _smooth_l1(name: str, reduction: str, beta: float) -> _Kernel:
    if not beta >= 0:
        raise ValueError(f"{name}: beta must be at least 0, got {beta}")
    if beta == 0:
        return _elementwise(name, "l1", reduction)
    return _elementwise(name, "smooth_l1", reduction, (float(beta),))


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """``d**2 / 2`` where the difference ``|d|`` is at most `delta`, else ``delta * (|d| - delta / 2)`` (Huber 1964)."""
    return _run("huber_loss", _huber("huber_loss", reduction, delta), input, target, True)


def huber_loss_with_grad(
    input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `huber_loss` and its gradient by `input`."""
    return _run_with_grad(_huber("huber_loss_with_grad", reduction, delta), input, target, grad_out)


def _huber(name: str, reduction: str, delta: float) -> _Kernel:
    if not delta > 0:
        raise ValueError(f"{name}: delta must be above 0, got {delta}")
    return _elementwise(name, "huber", reduction, (float(delta),))


def poisson_nll_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """exp(x) - t x for the logarithm x of a Poisson distribution's mean and counts t.

    torch's with ``log_input=True`` and ``full=False``.
    """
    return _run("poisson_nll_loss", _elementwise("poisson_nll_loss", "poisson_nll", reduction), input, target)


def poisson_nll_loss_with_grad(
    input: Any, target: Any, reduction: str = "mean", *, grad_out: Array | None = None
) -> tuple[Array, Array]:
    """Return `poisson_nll_loss` and its gradient by `input`."""
    kernel = _elementwise("poisson_nll_loss_with_grad", "poisson_nll", reduction)
    return _run_with_grad(kernel, input, target, grad_out)


def quantile_loss(input: Any, target: Any, reduction: str = "mean", quantile: float = 0.5) -> Any:
    """quantile (t - x) where the target t is above x, else (1 - quantile) (x - t) (Koenker and Bassett 1978).

    Least where the share `quantile` of the targets, in (0, 1), lies below x: the pinball loss.
    """
    return _run("quantile_loss", _quantile("quantile_loss", reduction, quantile), input, target)


def quantile_loss_with_grad(
    input: Any,
    target: Any,
    reduction: str = "mean",
    quantile: float = 0.5,
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `quantile_loss` and its gradient by `input`."""
    kernel = _quantile("quantile_loss_with_grad", reduction, quantile)
    return _run_with_grad(kernel, input, target, grad_out)


def _quantile(name: str, reduction: str, quantile: float) -> _Kernel:
    if not 0 < quantile < 1:
        raise ValueError(f"{name}: quantile must be in (0, 1), got {quantile}")
    return _elementwise(name, "quantile", reduction, (float(quantile),))


def sigmoid_focal_loss(
    input: Any, target: Any, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean"
) -> Any:
    """`binary_cross_entropy_with_logits` with less weight on what is known already (Lin et al. 2017).

    Parameters
    ----------
    input, target : array or Tensor, one shape
        Logits, and targets in [0, 1].
    alpha : float
        Positives count `alpha`, negatives ``1 - alpha``; at most 1, and below 0 both count 1.
    gamma : float
        At least 0: a positive of probability p counts ``(1 - p) ** gamma``, a negative ``p ** gamma``.
    reduction : {"mean", "sum", "none"}
        torchvision's default is "none".
    """
    kernel = _sigmoid_focal("sigmoid_focal_loss", alpha, gamma, reduction)
    return _run("sigmoid_focal_loss", kernel, input, target)


def sigmoid_focal_loss_with_grad(
    input: Any,
    target: Any,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `sigmoid_focal_loss` and its gradient by `input`."""
    kernel = _sigmoid_focal("sigmoid_focal_loss_with_grad", alpha, gamma, reduction)
    return _run_with_grad(kernel, input, target, grad_out)


def _sigmoid_focal(name: str, alpha: float, gamma: float, reduction: str) -> _Kernel:
    if not alpha <= 1:
        raise ValueError(f"{name}: alpha must be at most 1, got {alpha}")
    if not gamma >= 0:
        raise ValueError(f"{name}: gamma must be at least 0, got {gamma}")
    return _elementwise(name, "sigmoid_focal", reduction, (float(alpha), float(gamma)))


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """t (log t - x) for log-probabilities `input` and probabilities `target`, 0 where t is 0.

    Parameters
    ----------
    input, target : array or Tensor, one shape
    reduction : {"mean", "batchmean", "sum", "none"}
        "mean" divides by the number of elements; "batchmean", the divergence proper, by the length of the
        first dimension.
    log_target : bool
        `target` holds log-probabilities too.
    """
    return _run("kl_div", _kl_div("kl_div", reduction, log_target), input, target)


def kl_div_with_grad(
    input: Any,
    target: Any,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    grad_out: Array | None = None,
) -> tuple[Array, Array]:
    """Return `kl_div` and its gradient by `input`."""
    return _run_with_grad(_kl_div("kl_div_with_grad", reduction, log_target), input, target, grad_out)


def _kl_div(name: str, reduction: str, log_target: bool) -> _Kernel:
    kernel = "kl_div_log" if log_target else "kl_div"
    return _elementwise(name, kernel, reduction, reductions=KL_REDUCTIONS)
