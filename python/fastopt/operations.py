"""Operations as functions, for those who write ``fo.exp(t)`` for ``t.exp()``, and those on several Tensors.

Arrays and numbers are taken as Tensors, and a Tensor comes out. (`functional` gives arrays for arrays.)
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._dtypes import promote
from fastopt.creation import as_tensor
from fastopt.tensor import Binary, Tensor, matmul, needs_grad, record, to_array, wrap

__all__ = [
    "abs",
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "cat",
    "clamp",
    "clip",
    "cos",
    "dot",
    "equal",
    "exp",
    "flatten",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mm",
    "mv",
    "norm",
    "permute",
    "pow",
    "reshape",
    "sin",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "sum",
    "transpose",
    "unsqueeze",
    "var",
    "where",
]

Array = npt.NDArray[Any]


def _method(name: str) -> Callable[..., Any]:
    """The method `name` of Tensor as a function."""

    def function(input: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(as_tensor(input), name)(*args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The same as ``input.{name}(...)``: see `Tensor.{name}`."
    return function


abs = _method("abs")
all = _method("all")
any = _method("any")
argmax = _method("argmax")
argmin = _method("argmin")
clamp = clip = _method("clamp")
cos = _method("cos")
exp = _method("exp")
flatten = _method("flatten")
log = _method("log")
mean = _method("mean")
norm = _method("norm")
permute = _method("permute")
pow = _method("pow")
reshape = _method("reshape")
sin = _method("sin")
sqrt = _method("sqrt")
square = _method("square")
squeeze = _method("squeeze")
std = _method("std")
sum = _method("sum")
transpose = _method("transpose")
unsqueeze = _method("unsqueeze")
var = _method("var")
mm = mv = dot = matmul


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join Tensors along a dimension they have."""
    arrays = [to_array(t, f"tensors[{i}]") for i, t in enumerate(tensors)]
    if not arrays:
        raise ValueError("cat: tensors is empty")
    y = np.concatenate(arrays, axis=dim, dtype=functools.reduce(_wider, arrays).dtype)
    inputs = [t if needs_grad(t) else None for t in tensors]
    if builtins.all(t is None for t in inputs):
        return wrap(y)
    ends = np.cumsum([a.shape[dim] for a in arrays])[:-1]
    dtypes = [a.dtype for a in arrays]

    def fn(dy: Any) -> Any:
        parts = [
            g.astype(dtype, copy=False) for g, dtype in zip(np.split(dy, ends, dim), dtypes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else parts

    return record("cat", y, tuple(inputs), fn)


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Join Tensors of one shape along a new dimension."""
    return cat([as_tensor(t).unsqueeze(dim) for t in tensors], dim)


def where(condition: Any, input: Any, other: Any) -> Tensor:
    """Take elements of `input` where `condition` holds, else of `other`."""
    pick = to_array(condition, "condition").astype(bool, copy=False)
    select = Binary(
        "where",
        lambda a, b: np.where(pick, a, b),
        lambda a, b, z: lambda dy: np.where(pick, dy, 0),
        lambda a, b, z: lambda dy: np.where(pick, 0, dy),
    )
    return select(to_array(input) if isinstance(input, (int, float)) else input, other)


def _larger(dy: Any, a: Any, b: Any) -> Array:
    """The share of `dy` that goes to `a` where the larger of `a` and `b` was taken: half of it in a tie."""
    return np.where(a == b, dy / 2, np.where(a > b, dy, 0))


maximum = Binary(
    "maximum",
    np.maximum,
    lambda a, b, z: lambda dy: _larger(dy, a, b),
    lambda a, b, z: lambda dy: _larger(dy, b, a),
    "The larger of two Tensors, element by element with broadcasting; in a tie each has half of the gradient.",
)
minimum = Binary(
    "minimum",
    np.minimum,
    lambda a, b, z: lambda dy: _larger(dy, b, a),
    lambda a, b, z: lambda dy: _larger(dy, a, b),
    "The smaller of two Tensors, element by element with broadcasting; in a tie each has half of the gradient.",
)


def max(input: Any, *args: Any, **kwargs: Any) -> Any:
    """The same as ``input.max(...)``: see `Tensor.max`; of two Tensors `maximum`."""
    return _extreme("max", maximum, input, *args, **kwargs)


def min(input: Any, *args: Any, **kwargs: Any) -> Any:
    """The same as ``input.min(...)``: see `Tensor.min`; of two Tensors `minimum`."""
    return _extreme("min", minimum, input, *args, **kwargs)


def _extreme(name: str, of_two: Binary, input: Any, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], (Tensor, np.ndarray)):
        return of_two(input, *args, **kwargs)
    return getattr(as_tensor(input), name)(*args, **kwargs)


def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> builtins.bool:
    """Whether all elements are equal up to ``atol + rtol * |other|``."""
    return np.allclose(to_array(input), to_array(other, "other"), rtol, atol, equal_nan)


def equal(input: Any, other: Any) -> builtins.bool:
    """Whether both have the same shape and the same elements."""
    return np.array_equal(to_array(input), to_array(other, "other"))


def _wider(a: Array, b: Array) -> Array:
    """An array of the dtype in which `a` and `b` meet."""
    return np.empty(1, promote(a, b))
