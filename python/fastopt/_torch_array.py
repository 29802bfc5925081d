"""Torch tensors on a GPU with the part of NumPy's interface that this package needs there."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of a name, bfloat16 included."""
    dtype: np.dtype[Any] = np.dtype(
        importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name
    )
    return dtype


class TorchArray(NDArrayOperatorsMixin):
    """A torch tensor with those of NumPy's operators, methods and functions that are asked for on a device.

    Operators and NumPy's functions come here by NEP 13 and NEP 18, as they come to CuPy; the table below says which
    there are. Arrays on the host are refused, and nothing waits for the device that does not do so in torch.
    """

    __slots__ = ("dtype", "shape", "tensor")

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = numpy_dtype(str(tensor.dtype).partition(".")[2])

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return int(self.shape[0])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        size: int = self.tensor.numel()
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device(self) -> Any:
        return self.tensor.device

    @property
    def T(self) -> TorchArray:
        return TorchArray(self.tensor.T)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> TorchArray:
        wanted = getattr(sys.modules["torch"], np.dtype(dtype).name)
        return TorchArray(self.tensor.to(wanted, copy=copy))

    def reshape(self, *shape: Any) -> TorchArray:
        return TorchArray(self.tensor.reshape(*shape))

    def copy(self) -> TorchArray:
        return TorchArray(self.tensor.clone())

    def fill(self, value: float) -> None:
        self.tensor.fill_(value)

    def mean(self, axis: int, keepdims: bool = False) -> TorchArray:
        return TorchArray(self.tensor.mean(axis, keepdims))

    def sum(self, axis: int, keepdims: bool = False) -> TorchArray:
        return TorchArray(self.tensor.sum(axis, keepdims))

    def max(self) -> TorchArray:
        return TorchArray(self.tensor.max())

    def __iadd__(self, other: Any) -> TorchArray:
        self.tensor += operand(other)
        return self

    def __imul__(self, other: Any) -> TorchArray:
        self.tensor *= operand(other)
        return self

    def __getitem__(self, key: Any) -> TorchArray:
        return TorchArray(self.tensor[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tensor[_key(key)] = operand(value)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = _FUNCTIONS.get(ufunc)
        if function is None or method != "__call__" or kwargs:
            return NotImplemented
        if any(isinstance(x, np.ndarray) for x in inputs):
            return NotImplemented
        return TorchArray(function(*map(operand, inputs)))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        function = _FUNCTIONS.get(func)
        if function is None or any(issubclass(t, np.ndarray) for t in types):
            return NotImplemented
        result = function(*map(operand, args), **kwargs)
        if isinstance(result, int):
            return result
        return tuple(map(TorchArray, result)) if isinstance(result, tuple) else TorchArray(result)


def operand(x: Any) -> Any:
    """Return what torch computes with: a tensor, or a number of Python's, which leaves an array its dtype."""
    if isinstance(x, TorchArray):
        return x.tensor
    return x.item() if isinstance(x, np.generic) else x


def _key(key: Any) -> Any:
    return tuple(map(operand, key)) if isinstance(key, tuple) else operand(key)


def _torch() -> Any:
    return sys.modules["torch"]


#: What of NumPy is there, by functions of tensors.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.power: operator.pow,
    np.negative: operator.neg,
    np.equal: operator.eq,
    np.not_equal: operator.ne,
    np.sqrt: lambda x: x.sqrt(),
    np.maximum: lambda x, floor: x.clamp(min=floor),
    np.argsort: lambda x, kind=None: x.argsort(stable=kind == "stable"),
    np.diff: lambda x, **ends: x.diff(**{name: end.tensor for name, end in ends.items()}),
    np.flatnonzero: lambda x: x.flatten().nonzero().flatten(),
    np.flip: lambda x, axis: x.flip(axis),
    np.ndim: lambda x: x.ndim,
    np.moveaxis: lambda x, source, target: x.movedim(source, target),
    np.take: lambda x, which, axis: x.index_select(axis, operand(which)),
    np.where: lambda condition, x, y: _torch().where(condition, x, y),
    np.linalg.eigh: lambda x: tuple(_torch().linalg.eigh(x)),
    np.linalg.qr: lambda x: tuple(_torch().linalg.qr(x)),
}
