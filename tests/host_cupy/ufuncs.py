"""CuPy's ufuncs: NumPy's of the same name on device arrays and scalars, with the keywords and methods CuPy has."""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import ndarray, to_device, to_host

#: Where CuPy has the methods of a ufunc.
METHODS = {
    "reduce": {"add", "multiply"},
    "accumulate": {"add", "multiply"},
    "reduceat": {"add"},
    "at": {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"},
}
#: Dtypes that ufunc.at has.
AT_KINDS = ("int32", "float16", "float32", "float64", "complex64", "complex128", "uint32", "uint64")


def _operand(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        raise TypeError(f"Unsupported type {type(x)}")
    return to_host(x)


class Ufunc:
    """A ufunc of this module."""

    def __init__(self, ufunc: np.ufunc) -> None:
        self.ufunc = ufunc
        self.inputs: int = len(ufunc.types[0].split("->")[0])
        self.__name__ = ufunc.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for key in kwargs.keys() - {"out", "dtype", "casting"}:
            raise TypeError(f"Wrong arguments {{{key!r}: {kwargs[key]!r}}}")
        out = kwargs.get("out") if len(args) <= self.inputs else args[-1]
        with np.errstate(all="ignore"):
            result = self.ufunc(*[_operand(x) for x in args], **to_host(kwargs))
        return to_device(result) if out is None else out

    def _method(self, method: str) -> Any:
        if self.__name__ not in METHODS[method]:
            raise NotImplementedError(f"`cupy_{self.__name__}.{method}` is not supported yet")
        return getattr(self.ufunc, method)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        method = self._method("at")
        if a.dtype.name not in AT_KINDS:
            raise TypeError(f"cupy.scatter_add only supports {', '.join(AT_KINDS)} as data type")
        method(a._a, a.plain_key(indices), to_host(b))

    def reduce(
        self, array: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        self._method("reduce")
        fold = array.sum if self.__name__ == "add" else array.prod
        return fold(axis, dtype, out, keepdims)

    def accumulate(self, array: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
        self._method("accumulate")
        fold = array.cumsum if self.__name__ == "add" else array.cumprod
        return fold(axis, dtype, out)

    def reduceat(self, array: ndarray, indices: Any, axis: int = 0, dtype: Any = None) -> Any:
        return to_device(self._method("reduceat")(array._a, to_host(indices), axis, dtype))

    def outer(self, a: Any, b: Any, **kwargs: Any) -> Any:
        return to_device(self.ufunc.outer(to_host(a), to_host(b), **to_host(kwargs)))
