"""Tensor's methods that read its array or are words for other methods; nothing here is recorded."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from fastopt._device import device_name, moved
from fastopt._dtypes import DType, bool_, float16, float32, float64, int32, int64
from fastopt._rules import dimension

# The class has methods of these names.
Bool: TypeAlias = bool
Float: TypeAlias = float
Int: TypeAlias = int


class Methods:
    """Mixin of `tensor.Tensor`."""

    __slots__ = ()

    # ------------------------------------------------------------------------------------- the array

    @property
    def shape(self: Any) -> tuple[Int, ...]:
        """The lengths of the dimensions."""
        return self._data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self: Any) -> DType:
        """The array's dtype."""
        return self._data.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self: Any) -> Int:
        """The number of dimensions."""
        return self._data.ndim  # type: ignore[no-any-return]

    def dim(self: Any) -> Int:
        """The number of dimensions."""
        return self._data.ndim  # type: ignore[no-any-return]

    def size(self: Any, dim: Int | None = None) -> Any:
        """The shape, or the length of one dimension."""
        return self._data.shape if dim is None else self._data.shape[dim]

    def numel(self: Any) -> Int:
        """The number of elements."""
        return self._data.size  # type: ignore[no-any-return]

    nelement = numel

    def numpy(self: Any) -> Any:
        """The NumPy array itself, without a copy. What is done to it is not recorded.

        Raises
        ------
        TypeError
            The Tensor is on a GPU: `cpu` copies it from there.
        """
        if not isinstance(self._data, np.ndarray):
            raise TypeError(f"numpy: the Tensor is on {self.device}, use .cpu().numpy()")
        return self._data

    def item(self: Any) -> Any:
        """The only element as a Python number."""
        return self._data.item()

    def tolist(self: Any) -> Any:
        """The elements as nested lists of Python numbers."""
        return self._data.tolist()

    def __len__(self: Any) -> Int:
        if not self._data.ndim:
            raise TypeError("len() of a 0-d Tensor")
        return len(self._data)

    def __iter__(self: Any) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __reversed__(self: Any) -> Iterator[Any]:
        return (self[i] for i in reversed(range(len(self))))

    def __contains__(self: Any, value: Any) -> Bool:
        return (self == value)._data.any().item()  # type: ignore[no-any-return]

    def __bool__(self: Any) -> Bool:
        if self._data.size != 1:
            raise RuntimeError(f"the truth value of a Tensor of shape {self.shape} is ambiguous")
        return builtins.bool(self._data.item())

    def __float__(self: Any) -> Float:
        return builtins.float(self._data.item())

    def __int__(self: Any) -> Int:
        return builtins.int(self._data.item())

    def __index__(self: Any) -> Int:
        return operator.index(self._data.item())

    def __format__(self: Any, spec: str) -> str:
        return format(self._data.item() if self._data.ndim == 0 else repr(self), spec)

    def __repr__(self: Any) -> str:
        text = np.array2string(moved(self._data, "cpu"), precision=4, separator=", ", prefix="tensor(")
        if self.dtype not in (float32, int64, bool_):
            text += f", dtype={self.dtype.name}"
        if self.device != "cpu":
            text += f", device={self.device!r}"
        if self._node is not None:
            text += f", grad_fn={self._node!r}"
        elif self._requires_grad:
            text += ", requires_grad=True"
        return f"tensor({text})"

    # ---------------------------------------------------------------------------------- the gradient

    @property
    def requires_grad(self: Any) -> Bool:
        """Whether operations on this Tensor are recorded."""
        return self._requires_grad  # type: ignore[no-any-return]

    @requires_grad.setter
    def requires_grad(self: Any, flag: Bool) -> None:
        self.requires_grad_(flag)

    @property
    def grad_fn(self: Any) -> Any:
        """The recorded operation this Tensor is the result of, None for a leaf."""
        return self._node

    @property
    def is_leaf(self: Any) -> Bool:
        """Whether this Tensor is no result of a recorded operation: `backward` fills its `grad`."""
        return self._node is None

    # ------------------------------------------------------------------------------ dtype and device

    @property
    def device(self: Any) -> str:
        """Where the array is: "cpu", or "cuda:0" and so on."""
        return device_name(self._data)

    def half(self: Any) -> Any:
        """The Tensor in float16."""
        return self.to(float16)

    def float(self: Any) -> Any:
        """The Tensor in float32."""
        return self.to(float32)

    def double(self: Any) -> Any:
        """The Tensor in float64."""
        return self.to(float64)

    def int(self: Any) -> Any:
        """The Tensor in int32."""
        return self.to(int32)

    def long(self: Any) -> Any:
        """The Tensor in int64."""
        return self.to(int64)

    def bool(self: Any) -> Any:
        """The Tensor in bool."""
        return self.to(bool_)

    def type(self: Any, dtype: Any) -> Any:
        """The Tensor in `dtype`."""
        return self.to(dtype)

    def cpu(self: Any) -> Any:
        """The Tensor on the CPU, itself where it is there already."""
        return self.to("cpu")

    def cuda(self: Any, device: Any = None) -> Any:
        """The Tensor on a GPU, the current one unless told its number, itself where it is there already."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    # ----------------------------------------------------------------------------------------- shape

    def view(self: Any, *shape: Any) -> Any:
        """The same as `reshape`."""
        return self.reshape(*shape)

    def flatten(self: Any, start_dim: Any = 0, end_dim: Any = -1) -> Any:
        """Join the dimensions from `start_dim` to `end_dim`, both included, to one."""
        shape = self.shape or (1,)
        first, last = (dimension("flatten", len(shape), dim) for dim in (start_dim, end_dim))
        return self.reshape(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])

    def squeeze(self: Any, dim: Any = None) -> Any:
        """Drop the dimensions of length 1, or `dim` if it is of length 1."""
        shape = self.shape
        drop = range(len(shape)) if dim is None else (dimension("squeeze", len(shape), dim),)
        return self.reshape(tuple([n for i, n in enumerate(shape) if i not in drop or n != 1]))

    def unsqueeze(self: Any, dim: Any) -> Any:
        """Insert a dimension of length 1 before `dim`."""
        at = dimension("unsqueeze", self.ndim + 1, dim)
        return self.reshape((*self.shape[:at], 1, *self.shape[at:]))

    def transpose(self: Any, dim0: Any, dim1: Any) -> Any:
        """Swap two dimensions."""
        axes = list(range(self.ndim))
        first, second = (dimension("transpose", self.ndim, dim) for dim in (dim0, dim1))
        axes[first], axes[second] = second, first
        return self.permute(axes)

    def t(self: Any) -> Any:
        """The transpose of a matrix; a vector is returned as it is."""
        if self.ndim > 2:
            raise ValueError(f"t: expected at most 2 dimensions, got shape {self.shape}")
        return self.permute(tuple(reversed(range(self.ndim))))

    @property
    def T(self: Any) -> Any:
        """The Tensor with its dimensions in reverse order."""
        return self.permute(tuple(reversed(range(self.ndim))))

    # ------------------------------------------------------------------------------------- functions

    def add(self: Any, other: Any) -> Any:
        """The same as ``self + other``."""
        return self + other

    def sub(self: Any, other: Any) -> Any:
        """The same as ``self - other``."""
        return self - other

    def mul(self: Any, other: Any) -> Any:
        """The same as ``self * other``."""
        return self * other

    def div(self: Any, other: Any) -> Any:
        """The same as ``self / other``."""
        return self / other

    def matmul(self: Any, other: Any) -> Any:
        """The same as ``self @ other``."""
        return self @ other

    mm = mv = dot = matmul

    def pow(self: Any, exponent: Any) -> Any:
        """The same as ``self ** exponent``."""
        return self**exponent

    def square(self: Any) -> Any:
        """The same as ``self ** 2``."""
        return self**2

    def neg(self: Any) -> Any:
        """The same as ``-self``."""
        return -self

    def eq(self: Any, other: Any) -> Any:
        """The same as ``self == other``."""
        return self == other

    # -------------------------------------------------------------------------------------- in place

    def copy_(self: Any, source: Any) -> Any:
        """Write the elements of `source` (broadcast, converted) into this Tensor."""
        self[...] = source
        return self

    def fill_(self: Any, value: Any) -> Any:
        """Write `value` into every element."""
        self[...] = value
        return self

    def zero_(self: Any) -> Any:
        """Write 0 into every element."""
        self[...] = 0
        return self

    def add_(self: Any, other: Any, *, alpha: Any = 1) -> Any:
        """Add ``alpha * other`` in place."""
        return self._write(np.add, other if alpha == 1 else alpha * other)

    def sub_(self: Any, other: Any, *, alpha: Any = 1) -> Any:
        """Subtract ``alpha * other`` in place."""
        return self._write(np.subtract, other if alpha == 1 else alpha * other)

    def mul_(self: Any, other: Any) -> Any:
        """Multiply by `other` in place."""
        return self._write(np.multiply, other)

    def div_(self: Any, other: Any) -> Any:
        """Divide by `other` in place."""
        return self._write(np.true_divide, other)
