"""A stand-in for the part of CuPy that fastopt and its tests use, over host memory.

`install()` puts it into `sys.modules` as "cupy". Together with the extension built over `tests/host_cuda`, whose device
memory is the heap too, tests of GPU arrays then run where there is no GPU. It follows CuPy 14 where that differs from
NumPy: no implicit conversion, 0-d arrays instead of scalars, the same functions and keywords refused, no warnings of
arithmetic; `tests/test_host_cupy.py` compares its lists with a real CuPy where one is installed.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import cuda
from .array import ndarray, to_device, to_host, wrap
from .dlpack import from_dlpack
from .lists import FUNCTIONS, LINALG, REFUSED, SCALARS, UFUNCS
from .ufuncs import Ufunc

__version__ = "14.2.0"

__all__ = ["cuda", "from_dlpack", "install", "ndarray"]


def install() -> Any:
    """Make `import cupy` mean this module, and return it."""
    me = sys.modules[__name__]
    sys.modules["cupy"] = me
    sys.modules["cupy.cuda"] = cuda  # type: ignore[assignment]
    return me


# ---------------------------------------------------------------------------------------------- creation


def _supported(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind not in "?biufc" and dtype.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Memory as it comes: bytes that are a NaN in every floating-point dtype, so that no test gets by with zeros."""
    a = np.empty(shape, _supported(dtype), order)
    if a.dtype.kind != "b":
        a.reshape(-1, order="A").view(np.uint8).fill(0xFF)
    return wrap(a)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return wrap(np.zeros(shape, _supported(dtype), order))


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return wrap(np.ones(shape, _supported(dtype), order))


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    return wrap(np.full(shape, to_host(fill_value), dtype, order))


def arange(*bounds: Any, dtype: Any = None) -> ndarray:
    return wrap(np.arange(*bounds, dtype=dtype))


def eye(n: int, m: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return wrap(np.eye(n, m, k, dtype, order))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str | None = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """A device array of what is on the device, on the host or in nested sequences."""
    if hasattr(obj, "__cuda_array_interface__"):
        on_device = obj if isinstance(obj, ndarray) else ndarray.of_interface(obj)
        a = np.array(on_device._a, dtype, copy=copy, order=order, ndmin=ndmin)
        return on_device if a is on_device._a else wrap(a)
    if copy is False:
        raise ValueError("Unable to avoid copy while creating an array as requested.")
    if isinstance(obj, (list, tuple)):
        obj = to_host(obj)
    a = np.array(obj, dtype, order=order, ndmin=ndmin)
    _supported(a.dtype)
    return wrap(a)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy, order, blocking=blocking)


asanyarray = asarray


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    return a if a.ndim and a.flags.c_contiguous else wrap(np.ascontiguousarray(a._a))


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    """A NumPy array of a device array, or of anything else that NumPy takes."""
    if hasattr(a, "__cuda_array_interface__"):
        return asarray(a).get(stream, order, out)
    converted = np.asarray(a, order=order)
    if out is None:
        return converted
    np.copyto(out, converted)
    return out


# ----------------------------------------------------------------------------------------------- copying


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Write `src` into `dst`; of host arrays only those of one element."""
    if isinstance(src, np.ndarray):
        if src.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        src = src.reshape(())[()]
    mask = {} if where is None else {"where": to_host(where)}
    np.copyto(dst._a, to_host(src), casting=casting, **mask)


def copy(a: ndarray, order: str = "K") -> ndarray:
    return a.copy(order)


def get_array_module(*args: Any) -> Any:
    """This module where an argument is a device array, else NumPy."""
    return sys.modules[__name__] if any(isinstance(x, ndarray) for x in args) else np


# ----------------------------------------------------------------- what NumPy's functions of the name do


def _forward(function: Any, name: str) -> Any:
    refused = REFUSED.get(name, frozenset())

    def forward(*args: Any, **kwargs: Any) -> Any:
        for key in refused & kwargs.keys():
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        if name.endswith("split") and len(args) > 1:  # where to split is a matter of the host
            args = (args[0], np.asarray(args[1]).tolist(), *args[2:])
        with np.errstate(all="ignore"):
            result = function(*to_host(args), **to_host(kwargs))
        if kwargs.get("out") is not None:
            return kwargs["out"]
        return to_device(np.asarray(result) if name in SCALARS else result)

    forward.__name__ = forward.__qualname__ = name
    return forward


_FORWARDED = {
    **{name: _forward(getattr(np, name), name) for name in FUNCTIONS},
    **{name: Ufunc(getattr(np, name)) for name in UFUNCS},
}
linalg = SimpleNamespace(**{name: _forward(getattr(np.linalg, name), name) for name in LINALG})


def __getattr__(name: str) -> Any:
    """Functions, and of NumPy itself dtypes and constants."""
    if name in _FORWARDED:
        return _FORWARDED[name]
    found = getattr(np, name, None)
    if isinstance(found, (type, float)) or name == "newaxis":
        return found
    raise AttributeError(f"module 'cupy' has no attribute {name!r}")
