"""Initialisation in place, under torch's names.

Each function fills a Tensor, a Parameter or a writable floating-point array and returns it. Numbers are drawn
from `generator`, by default the package's (`manual_seed`), in float32 for narrower dtypes.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt import _random
from fastopt._dtypes import DEFAULT_FLOAT, DType, is_floating
from fastopt.tensor import to_array

Array = npt.NDArray[Any]
Generator: TypeAlias = "np.random.Generator"  # a name only: importing numpy.random takes time

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which a layer before `nonlinearity` is to be scaled.

    Parameters
    ----------
    nonlinearity : str
        linear, conv1d, conv2d, conv3d, sigmoid, tanh, relu, leaky_relu or selu.
    param : float, optional
        leaky_relu's negative slope, 0.01 without it.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        names = ", ".join(sorted([*_GAINS, "leaky_relu"]))
        raise ValueError(f"calculate_gain: nonlinearity must be one of {names}, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


# ------------------------------------------------------------------------------------------- plain fillings


def uniform_(tensor: Any, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill with numbers uniform in [a, b)."""
    x = _target("uniform_", tensor)
    if not a <= b:
        raise ValueError(f"uniform_: a must be at most b, got a={a} and b={b}")
    x[...] = _rng(generator).random(x.shape, _drawn(x)) * (b - a) + a
    return tensor


def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill from the normal distribution."""
    x = _target("normal_", tensor)
    if not std >= 0:
        raise ValueError(f"normal_: std must be at least 0, got {std}")
    x[...] = _rng(generator).standard_normal(x.shape, _drawn(x)) * std + mean
    return tensor


def trunc_normal_(
    tensor: Any,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Any:
    """Fill from the normal distribution cut to [a, b]."""
    x = _target("trunc_normal_", tensor)
    if not (math.isfinite(mean) and 0 < std < math.inf and a < b):
        raise ValueError(
            "trunc_normal_: mean must be finite, std above 0 and a below b, "
            f"got mean={mean}, std={std}, a={a}, b={b}"
        )
    rng = _rng(generator)
    values = np.empty(x.size)
    missing = np.arange(x.size)
    low, high = (a - mean) / std, (b - mean) / std
    # Draw again what falls outside. Where little of the bell is inside, draw evenly from [low, high] instead
    # and keep by the height of the bell over its highest point there (Robert 1995).
    inside = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    top = min(max(0.0, low), high)
    while missing.size:
        if inside > 0.2:
            draw = rng.standard_normal(missing.size)
            kept = (draw >= low) & (draw <= high)
        else:
            draw = rng.uniform(low, high, missing.size)
            kept = rng.random(missing.size) <= np.exp((top**2 - draw**2) / 2)
        values[missing[kept]] = draw[kept]
        missing = missing[~kept]
    x[...] = np.clip(values * std + mean, a, b).reshape(x.shape)
    return tensor


def constant_(tensor: Any, val: float) -> Any:
    """Fill with `val`."""
    _target("constant_", tensor)[...] = val
    return tensor


def ones_(tensor: Any) -> Any:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Any) -> Any:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def eye_(tensor: Any) -> Any:
    """Make a matrix the identity."""
    x = _target("eye_", tensor, exactly=2)
    x[...] = np.eye(*x.shape)
    return tensor


# --------------------------------------------------------------------------------------- scaled by the fans


def xavier_uniform_(tensor: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill uniform in ±gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    fan_in, fan_out = _fans("xavier_uniform_", tensor)
    bound = gain * math.sqrt(6 / (fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010)."""
    fan_in, fan_out = _fans("xavier_normal_", tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2 / (fan_in + fan_out)), generator)


def kaiming_uniform_(
    tensor: Any,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Fill uniform in ±gain * sqrt(3 / fan) (He et al. 2015, arXiv:1502.01852).

    Parameters
    ----------
    tensor : Tensor or array with at least 2 dimensions
    a : float
        leaky_relu's negative slope.
    mode : {"fan_in", "fan_out"}
        Keep the variance of the forward or of the backward pass.
    nonlinearity : str
        What follows; see `calculate_gain`.
    generator : numpy.random.Generator, optional
    """
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Any,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Fill normal with standard deviation gain / sqrt(fan); see `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), generator)


def _kaiming_std(name: str, tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


# ---------------------------------------------------------------------------------------------- structured


def orthogonal_(tensor: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Make the matrix of the first and all other dimensions (semi-)orthogonal (Saxe et al. 2014)."""
    x = _target("orthogonal_", tensor, at_least=2)
    if not x.size:
        return tensor
    rows, columns = len(x), x.size // len(x)
    normal = _rng(generator).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diag(r))  # makes q uniform among the orthogonal matrices
    x[...] = gain * (q if rows >= columns else q.T).reshape(x.shape)
    return tensor


def sparse_(tensor: Any, sparsity: float, std: float = 0.01, generator: Generator | None = None) -> Any:
    """Fill a matrix normal, with the share `sparsity` of each column 0 (Martens 2010)."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparse_: sparsity must be in [0, 1], got {sparsity}")
    x = _target("sparse_", tensor, exactly=2)
    rng = _rng(generator)
    normal_(x, 0.0, std, rng)
    zeros = math.ceil(sparsity * len(x))
    for column in range(x.shape[1]):
        x[rng.permutation(len(x))[:zeros], column] = 0
    return tensor


# ------------------------------------------------------------------------------------------------- helpers


def _rng(generator: Generator | None) -> Generator:
    return _random.generator() if generator is None else generator


def _drawn(x: Array) -> DType:
    """The dtype to draw numbers for `x` in: NumPy draws float32 and float64."""
    return x.dtype if x.dtype.itemsize >= 4 else DEFAULT_FLOAT


def _target(name: str, tensor: Any, at_least: int = 0, exactly: int | None = None) -> Array:
    """The array to fill."""
    if isinstance(tensor, (list, tuple, int, float)):
        raise TypeError(f"{name}: tensor is {type(tensor).__name__}, expected a Tensor or an array to fill")
    x = to_array(tensor, "tensor")
    if not x.flags.writeable:
        raise ValueError(f"{name}: tensor is read-only")
    if not is_floating(x.dtype):
        raise TypeError(f"{name}: tensor must be floating-point, got {x.dtype}")
    if x.ndim < at_least or exactly not in (None, x.ndim):
        wanted = f"at least {at_least}" if exactly is None else str(exactly)
        raise ValueError(f"{name}: tensor must have {wanted} dimensions, got shape {x.shape}")
    return x


def _fans(name: str, tensor: Any) -> tuple[int, int]:
    """The inputs and outputs of each unit of a weight of shape (out, in, ...)."""
    shape = _target(name, tensor, at_least=2).shape
    if 0 in shape:
        raise ValueError(f"{name}: tensor must not be empty, got shape {shape}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field
