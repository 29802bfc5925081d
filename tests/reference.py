"""Activations, losses, softmax and dropout in plain NumPy, straight from their definitions.

Every function computes in the dtype of its input. Given what `wide` makes of the input it is the oracle; given
the input itself it is the plain baseline, whose error the kernels' error is held to (`assert_accurate`) and whose
time they are measured against. Optimizers are in reference_optim.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

Array = npt.NDArray[Any]


def wide(x: Array) -> Array:
    """Return x in a wider format: float64 of float32, 80 or 128 bits of float64, where the platform has them."""
    return x.astype(np.float64 if x.dtype.itemsize < 8 else np.longdouble)


#: Where float64 has no wider format the oracle errs as much as the results do, and is allowed to.
ORACLE_ULPS = 0.0 if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps else 16.0


def assert_accurate(ours: Array, plain: Array, exact: Array, unit: float = 1.0, ulps: float = 4.0) -> None:
    """Hold `ours` to twice the error of `plain`, both of one dtype, plus a few ULP; `exact` is the oracle's.

    Errors are relative to max(|exact|, unit). NaN and infinities must be where they are in `plain`.
    """
    ours, plain, exact = np.asarray(ours), np.asarray(plain), np.asarray(exact)
    assert ours.dtype == plain.dtype, (ours.dtype, plain.dtype)
    assert ours.shape == plain.shape == exact.shape, (ours.shape, plain.shape, exact.shape)
    if ours.dtype == np.float64:
        ulps += ORACLE_ULPS
    with np.errstate(all="ignore"):
        finite = np.isfinite(plain) & np.isfinite(exact)
        np.testing.assert_array_equal(np.where(finite, 0, ours), np.where(finite, 0, plain))
        scale = np.maximum(np.abs(exact), unit)
        error = np.where(finite, np.abs(ours.astype(exact.dtype) - exact) / scale, 0)
        allowed = np.where(finite, np.abs(plain.astype(exact.dtype) - exact) / scale, 0)
    bound = 2 * allowed.max(initial=0) + ulps * float(np.finfo(ours.dtype).eps)
    worst = int(error.argmax()) if error.size else 0
    assert error.max(initial=0) <= bound, (
        f"error {error.max():.3g} above {bound:.3g} at {worst}: got {ours.flat[worst]!r}, plain "
        f"{plain.flat[worst]!r}, exact {exact.flat[worst]!r}"
    )


def quiet(f: Callable[..., Any]) -> Callable[..., Any]:
    """Overflow and the like are meant; NumPy need not warn of them."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return run


# --------------------------------------------------------------------------------------------- activations

ROOT_2_OVER_PI, ROOT_2_PI = (2 / np.pi) ** 0.5, (2 * np.pi) ** 0.5


def erf(x: Array) -> Array:
    """SciPy's, and beyond float64 2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, all terms of one sign."""
    if x.dtype != np.longdouble or ORACLE_ULPS:
        return scipy.special.erf(x)
    a = np.where(np.abs(x) < 7, x, 1)
    term, total = a.copy(), a.copy()
    for n in range(1, 200):
        term *= 2 * a * a / (2 * n + 1)
        total += term
    two_over_root_pi = np.longdouble("1.1283791670955125738961589031215451717")
    return np.where(np.abs(x) < 7, two_over_root_pi * np.exp(-a * a) * total, np.sign(x))


def normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + erf(x * np.sqrt(x.dtype.type(0.5))))


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def gelu_tanh_u(x: Array) -> Array:
    return ROOT_2_OVER_PI * (x + 0.044715 * x**3)


def gelu_tanh_grad(x: Array) -> Array:
    x = np.clip(x, -30, 30)  # where the limit is reached, and x**2 cannot overflow
    t = np.tanh(gelu_tanh_u(x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)


#: name -> (act(x, *params), act'(x, *params))
ACTIVATIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "relu": (
        lambda x: np.where(x < 0, 0, x).astype(x.dtype),
        lambda x: np.where(x <= 0, 0, 1).astype(x.dtype),
    ),
    "leaky_relu": (
        lambda x, slope: np.where(x > 0, x, slope * x),
        lambda x, slope: np.where(x > 0, 1, slope).astype(x.dtype),
    ),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "gelu": (
        lambda x: x * normal_cdf(x),
        lambda x: normal_cdf(x) + x * np.exp(-0.5 * x * x) / ROOT_2_PI,
    ),
    "gelu_tanh": (lambda x: 0.5 * x * (1 + np.tanh(gelu_tanh_u(x))), gelu_tanh_grad),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "elu": (
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)),
        lambda x, alpha: np.where(x > 0, 1, alpha * np.exp(x)).astype(x.dtype),
    ),
    "softplus": (
        lambda x, beta, threshold: np.where(
            beta * x > threshold, x, np.logaddexp(beta * x, np.zeros_like(x)) / beta
        ),
        lambda x, beta, threshold: np.where(beta * x > threshold, 1, sigmoid(beta * x)).astype(x.dtype),
    ),
}
ACTIVATIONS = {name: (quiet(value), quiet(grad)) for name, (value, grad) in ACTIVATIONS.items()}


# ------------------------------------------------------------------------------------------ softmax, dropout


@quiet
def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@quiet
def log_softmax(x: Array, axis: int = -1) -> Array:
    d = x - x.max(axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis, keepdims=True))


@quiet
def softmax_grad(dy: Array, y: Array, axis: int = -1) -> Array:
    return y * (dy - (dy * y).sum(axis, keepdims=True))


@quiet
def log_softmax_grad(dy: Array, y: Array, axis: int = -1) -> Array:
    return dy - np.exp(y) * dy.sum(axis, keepdims=True)


def philox(seed: int, offset: int, n: int) -> npt.NDArray[np.uint32]:
    """The first n words of Philox4x32-10: four for each counter (index / 4, offset) under the key seed."""
    low, thirty_two = np.uint64(0xFFFFFFFF), np.uint64(32)
    block = np.arange((n + 3) // 4, dtype=np.uint64)
    a, b = block & low, block >> thirty_two
    c, d = (np.full_like(block, w) for w in (offset & 0xFFFFFFFF, offset >> 32))
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (q >> thirty_two) ^ b ^ np.uint64(key[0]), q & low
        c, d = (p >> thirty_two) ^ d ^ np.uint64(key[1]), p & low
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack([a, b, c, d], axis=1).astype(np.uint32).ravel()[:n]


def dropout(x: Array, p: float, seed: int, offset: int) -> Array:
    if p == 1:
        return np.zeros_like(x)
    kept = philox(seed, offset, x.size).reshape(x.shape) < np.floor((1 - p) * 2**32)
    return np.where(kept, x * x.dtype.type(1 / (1 - p)), 0).astype(x.dtype)


# --------------------------------------------------------------------------------- losses of one element each


def l1(x: Array, t: Array) -> tuple[Array, Array]:
    return np.abs(x - t), np.sign(x - t)


def smooth_l1(x: Array, t: Array, beta: float) -> tuple[Array, Array]:
    if beta == 0:
        return l1(x, t)
    d = x - t
    near = np.abs(d) < beta
    return np.where(near, 0.5 * d * d / beta, np.abs(d) - 0.5 * beta), np.where(near, d / beta, np.sign(d))


def huber(x: Array, t: Array, delta: float) -> tuple[Array, Array]:
    d = x - t
    near = np.abs(d) <= delta
    return np.where(near, 0.5 * d * d, delta * (np.abs(d) - 0.5 * delta)), np.clip(d, -delta, delta)


def bce(x: Array, t: Array) -> tuple[Array, Array]:
    value = -(t * np.maximum(np.log(x), -100) + (1 - t) * np.maximum(np.log1p(-x), -100))
    return value, (x - t) / np.maximum((1 - x) * x, 1e-12)


def bce_with_logits(x: Array, t: Array, pos_weight: Any) -> tuple[Array, Array]:
    pos_weight = np.asarray(pos_weight, x.dtype)
    softplus = np.log1p(np.exp(-np.abs(x)))  # -log sigmoid(|x|)
    value = pos_weight * t * (softplus + np.maximum(-x, 0)) + (1 - t) * (softplus + np.maximum(x, 0))
    return value, (1 - t) * sigmoid(x) - pos_weight * t * sigmoid(-x)


def kl_div(x: Array, t: Array) -> tuple[Array, Array]:
    return np.where(t == 0, 0, t * (np.log(t) - x)).astype(x.dtype), -t


def kl_div_log(x: Array, t: Array) -> tuple[Array, Array]:
    return np.where(np.exp(t) == 0, 0, np.exp(t) * (t - x)).astype(x.dtype), -np.exp(t)


def poisson_nll(x: Array, t: Array) -> tuple[Array, Array]:
    return np.exp(x) - t * x, np.exp(x) - t


def quantile(x: Array, t: Array, share: float) -> tuple[Array, Array]:
    above, below = x.dtype.type(share), x.dtype.type(1 - share)
    d = x - t
    return np.where(d < 0, -above * d, below * d), np.where(d < 0, -above, np.where(d > 0, below, 0)).astype(
        x.dtype
    )


def sigmoid_focal(x: Array, t: Array, alpha: float, gamma: float) -> tuple[Array, Array]:
    positive, negative = (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    softplus = np.log1p(np.exp(-np.abs(x)))
    miss, alarm = softplus + np.maximum(-x, 0), softplus + np.maximum(x, 0)
    yes, no = sigmoid(x), sigmoid(-x)
    ours, others = positive * t * no**gamma, negative * (1 - t) * yes**gamma
    value = ours * miss + others * alarm
    return value, others * (gamma * no * alarm + yes) - ours * (gamma * yes * miss + no)


#: name -> (value, derivative by x) of each element
LOSSES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "mse": lambda x, t: ((x - t) ** 2, 2 * (x - t)),
    "l1": l1,
    "smooth_l1": smooth_l1,
    "huber": huber,
    "bce": bce,
    "bce_with_logits": bce_with_logits,
    "kl_div": kl_div,
    "kl_div_log": kl_div_log,
    "poisson_nll": poisson_nll,
    "quantile": quantile,
    "sigmoid_focal": sigmoid_focal,
}


@quiet
def loss(
    name: str,
    x: Array,
    t: Array,
    params: tuple[Any, ...] = (),
    weight: Array | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """The loss and its gradient by x; with reduction "none" that of the sum."""
    value, grad = LOSSES[name](x, t, *params)
    if weight is not None:
        value, grad = value * weight, grad * weight
    divisor: Any = 1
    if reduction == "mean":
        averaged = weight is not None and name in ("mse", "l1")
        divisor = np.broadcast_to(weight, x.shape).sum() if averaged else x.size
    elif reduction == "batchmean":
        divisor = x.shape[0]
    reduced = value if reduction == "none" else value.sum() / x.dtype.type(divisor)
    return np.asarray(reduced, x.dtype), grad / x.dtype.type(divisor)


# ---------------------------------------------------------------------------------------- batch normalisation


def batch_norm(
    x: Array,
    dy: Array,
    weight: Array | None,
    bias: Array | None,
    running: tuple[Array, Array] | None,
    eps: float,
) -> dict[str, Array]:
    """Over axis 1, with the batch's mean and variance or `running` ones: the result, its gradients, and the batch's
    mean and unbiased variance (Ioffe and Szegedy 2015, section 3)."""
    axes = (0, *range(2, x.ndim))
    column = (1, -1, *[1] * (x.ndim - 2))
    n = x.dtype.type(x.size // x.shape[1])
    mean, var = (x.mean(axes), x.var(axes)) if running is None else running
    scale = np.ones(x.shape[1], x.dtype) if weight is None else weight
    deviation = x - mean.reshape(column)
    rstd = 1 / np.sqrt(var + x.dtype.type(eps)).reshape(column)
    normal = deviation * rstd
    y = normal * scale.reshape(column) + (0 if bias is None else bias.reshape(column))
    by_normal = dy * scale.reshape(column)
    dx = by_normal * rstd
    if running is None:
        by_var = (by_normal * deviation).sum(axes).reshape(column) * rstd**3 / -2
        by_mean = (-by_normal * rstd).sum(axes).reshape(column)
        dx = by_normal * rstd + by_var * 2 * deviation / n + by_mean / n
    return {
        "y": y,
        "dx": dx,
        "dweight": (dy * normal).sum(axes),
        "dbias": dy.sum(axes),
        "mean": x.mean(axes),
        "var": x.var(axes, ddof=1),
    }


# ------------------------------------------------------------------------------------------ losses of classes


@quiet
def cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    log_probabilities: bool = False,
) -> tuple[Array, Array]:
    """The cross-entropy over axis 1 (axis 0 of a vector) and its gradient; the negative log-likelihood of
    log-probabilities where x has those."""
    if x.ndim == 1:
        value, grad = cross_entropy(
            x[None], target[None], weight, ignore_index, label_smoothing, reduction, log_probabilities
        )
        return (value[0] if reduction == "none" else value), grad[0]
    classes = x.shape[1]
    weight = np.ones(classes, x.dtype) if weight is None else weight
    column = weight.reshape(-1, *[1] * (x.ndim - 2))
    if target.dtype.kind in "iu":
        used = target != ignore_index
        label = np.where(used, target, 0)
        one_hot = np.moveaxis(np.eye(classes, dtype=x.dtype)[label], -1, 1) * np.expand_dims(used, 1)
        smooth = np.full_like(x, label_smoothing / classes) * np.expand_dims(used, 1)
        q = column * ((1 - label_smoothing) * one_hot + smooth)
        divisor = (weight[label] * used).sum()
    else:
        used = np.ones(target.shape[:1] + target.shape[2:], bool)
        q = column * ((1 - label_smoothing) * target + label_smoothing / classes)
        divisor = x.dtype.type(used.size)
    log_p = x if log_probabilities else log_softmax(x, 1)
    value = np.where(q == 0, 0, -q * log_p).sum(1).astype(x.dtype)
    grad = -q if log_probabilities else q.sum(1, keepdims=True) * softmax(x, 1) - q
    grad = np.where(np.expand_dims(used, 1), grad, 0)
    if reduction == "none":
        return value, grad.astype(x.dtype)
    divisor = divisor if reduction == "mean" else x.dtype.type(1)
    scaled = np.where(np.expand_dims(used, 1), grad / divisor, 0)
    return np.asarray(value.sum() / divisor, x.dtype), scaled.astype(x.dtype)
