"""Tensor's functions that NumPy computes, with their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._dtypes import int64
from fastopt._rules import Dim, as_float, axes, root, spread
from fastopt._tape import as_array


def _check_out(name: str, out: Any) -> None:
    if out is not None:
        raise TypeError(f"{name}: out must be None, got {type(out).__name__}")


class Numeric:
    """Mixin of `tensor.Tensor`: elementwise functions, sums and what is made of them."""

    __slots__ = ()

    def abs(self: Any) -> Any:
        """The absolute value; its gradient at 0 is 0."""
        x = self._data
        return self._result("abs", np.abs(x), lambda: lambda dy: dy * np.sign(x))

    __abs__ = abs

    def exp(self: Any) -> Any:
        """e to the power of each element."""
        y = np.exp(as_float(self._data))
        return self._result("exp", y, lambda: lambda dy: dy * y)

    def log(self: Any) -> Any:
        """The natural logarithm."""
        x = as_float(self._data)
        return self._result("log", np.log(x), lambda: lambda dy: dy / x)

    def sqrt(self: Any) -> Any:
        """The square root; its gradient at 0 is infinite."""
        y = np.sqrt(as_float(self._data))
        return self._result("sqrt", y, lambda: lambda dy: dy / (2 * y))

    def sin(self: Any) -> Any:
        """The sine."""
        x = as_float(self._data)
        return self._result("sin", np.sin(x), lambda: lambda dy: dy * np.cos(x))

    def cos(self: Any) -> Any:
        """The cosine."""
        x = as_float(self._data)
        return self._result("cos", np.cos(x), lambda: lambda dy: -dy * np.sin(x))

    def clamp(self: Any, min: float | None = None, max: float | None = None) -> Any:
        """Limit the elements to [min, max]; no gradient passes outside."""
        x = self._data
        if isinstance(min, float) or isinstance(max, float):
            x = as_float(x)
        y = np.clip(x, min, max)
        return self._result("clamp", y, lambda: lambda dy: np.where(x == y, dy, 0))

    clip = clamp

    def sum(
        self: Any,
        dim: Dim = None,
        keepdim: bool = False,
        *,
        axis: Dim = None,
        dtype: Any = None,
        out: None = None,
    ) -> Any:
        """The sum of all elements, or along `dim` (`axis` is the same). `out` is NumPy's and must be None."""
        _check_out("sum", out)
        axis = axes(dim, axis)
        x = self._data if dtype is None else self._data.astype(dtype)
        if dtype is None and x.dtype.kind == "u":
            x = x.astype(int64)  # NumPy would sum to uint64, which is no dtype of a Tensor
        y = x.sum(axis=axis, keepdims=keepdim)
        own = self._data.dtype
        return self._result(
            "sum", y, lambda: lambda dy: spread(dy, x.shape, axis, keepdim).astype(own, copy=False)
        )

    def mean(
        self: Any,
        dim: Dim = None,
        keepdim: bool = False,
        *,
        axis: Dim = None,
        dtype: Any = None,
        out: None = None,
    ) -> Any:
        """The mean of all elements, or along `dim` (`axis` is the same); float32 for integers and bools."""
        _check_out("mean", out)
        axis = axes(dim, axis)
        x = as_float(self._data) if dtype is None else self._data.astype(dtype)
        y = as_array(x.mean(axis=axis, keepdims=keepdim))
        n = x.size / y.size if y.size else 1
        own = self._data.dtype
        return self._result(
            "mean",
            y,
            lambda: lambda dy: spread(dy / n, x.shape, axis, keepdim).astype(own, copy=False),
        )

    def var(
        self: Any,
        dim: Dim = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: int | None = None,
        axis: Dim = None,
    ) -> Any:
        """The variance of all elements, or along `dim`, over n - `correction`; that is 1 if `unbiased`."""
        dim = axes(dim, axis)
        d = self - self.mean(dim, True)
        total = (d * d).sum(dim, keepdim)
        n = d.numel() // max(total.numel(), 1)
        return total / max(n - (int(unbiased) if correction is None else correction), 0)

    def std(
        self: Any,
        dim: Dim = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: int | None = None,
        axis: Dim = None,
    ) -> Any:
        """The standard deviation, the root of `var`; its gradient where it is 0 is 0."""
        return self.var(dim, unbiased, keepdim, correction=correction, axis=axis)._root("std")

    def norm(self: Any, p: float = 2, dim: Dim = None, keepdim: bool = False) -> Any:
        """The sum of absolute values (`p` = 1) or the root of the sum of squares (2), its gradient at 0 is 0."""
        if p == 1:
            return self.abs().sum(dim, keepdim)
        if p != 2:
            raise ValueError(f"norm: p must be 1 or 2, got {p}")
        return (self * self).sum(dim, keepdim)._root("norm")

    def _root(self: Any, name: str) -> Any:
        y, fn = root(as_float(self._data))
        return self._result(name, y, lambda: fn)
