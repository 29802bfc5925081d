"""cupy.ndarray over host memory: what is there, what is refused, and what differs from NumPy."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import cuda
from .lists import UFUNCS

# -------------------------------------------------------------------------------------- host and device


def to_host(x: Any) -> Any:
    """Return what NumPy computes with for an argument of a device function; host arrays are refused as by CuPy."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)([to_host(part) for part in x])
    if isinstance(x, dict):
        return {key: to_host(part) for key, part in x.items()}
    return ndarray.of_interface(x)._a if hasattr(x, "__cuda_array_interface__") else x


def to_device(x: Any) -> Any:
    """Return NumPy's result as CuPy's: arrays and scalars as device arrays."""
    if isinstance(x, (np.ndarray, np.generic)):
        return wrap(np.asarray(x))
    if isinstance(x, (list, tuple)):
        parts = [to_device(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def wrap(a: np.ndarray) -> ndarray:
    """Return the device array over the memory of `a`."""
    x = object.__new__(ndarray)
    x._a = a
    return x


class Flags:
    """CuPy's flags: these and no others."""

    def __init__(self, a: np.ndarray) -> None:
        self.c_contiguous: bool = a.flags.c_contiguous
        self.f_contiguous: bool = a.flags.f_contiguous
        self.owndata: bool = a.base is None

    fnc = property(lambda self: self.f_contiguous and not self.c_contiguous)
    forc = property(lambda self: self.f_contiguous or self.c_contiguous)

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return bool(getattr(self, name.lower()))


class MemoryPointer:
    """Where an array lies."""

    def __init__(self, a: np.ndarray) -> None:
        self.ptr: int = a.ctypes.data
        self.device_id = 0
        self.device = cuda.Device(0)

    def __int__(self) -> int:
        return self.ptr


class _Interface:
    """An array's memory as NumPy reads it."""

    def __init__(self, owner: Any) -> None:
        given = owner.__cuda_array_interface__
        if given.get("mask") is not None:
            raise ValueError("CuPy currently does not support masked arrays.")
        self.owner = owner
        kept = {key: given[key] for key in ("shape", "typestr", "data")}
        self.__array_interface__ = {**kept, "strides": given.get("strides"), "version": 3}


# -------------------------------------------------------------------------------------------- operators


def _binary(ufunc: np.ufunc) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operator and its reflection: on what is no device array NumPy decides who computes."""

    def forward(x: ndarray, y: Any) -> Any:
        if isinstance(y, ndarray):
            return _module_function(ufunc.__name__)(x, y)
        return NotImplemented if _gives_way(x, y) else ufunc(x, y)

    def reflected(y: ndarray, x: Any) -> Any:
        return _module_function(ufunc.__name__)(x, y)

    return forward, reflected


def _in_place(ufunc: np.ufunc) -> Callable[..., Any]:
    def update(self: ndarray, other: Any) -> ndarray:
        _module_function(ufunc.__name__)(self, other, self)
        return self

    return update


def _comparison(ufunc: np.ufunc) -> Callable[..., Any]:
    def compare(x: ndarray, y: Any) -> Any:
        if isinstance(y, ndarray):
            return _module_function(ufunc.__name__)(x, y)
        if _gives_way(x, y):
            return NotImplemented
        if isinstance(y, np.ndarray) and y.ndim == 0:
            y = y.item()
        if ufunc in (np.equal, np.not_equal) and (y is None or type(y).__eq__ is object.__eq__):
            return wrap(np.full(x.shape, ufunc is np.not_equal))
        return ufunc(x, y)

    return compare


def _gives_way(x: Any, y: Any) -> bool:
    """Whether the other operand's reflected operator comes first, as NEP 13 has it."""
    if hasattr(y, "__array_ufunc__"):
        return y.__array_ufunc__ is None
    return getattr(x, "__array_priority__", 0) < getattr(y, "__array_priority__", 0)


def _module_function(name: str) -> Any:
    return getattr(sys.modules[__package__ or ""], name)


# ---------------------------------------------------------------------------------------------- methods

#: Methods that do what NumPy's do, by the arguments CuPy has, in its order.
METHODS = {
    "all": ("axis", "out", "keepdims"),
    "any": ("axis", "out", "keepdims"),
    "argmax": ("axis", "out", "dtype", "keepdims"),
    "argmin": ("axis", "out", "dtype", "keepdims"),
    "argsort": ("axis", "kind"),
    "clip": ("min", "max", "out"),
    "cumprod": ("axis", "dtype", "out"),
    "cumsum": ("axis", "dtype", "out"),
    "diagonal": ("offset", "axis1", "axis2"),
    "max": ("axis", "out", "keepdims"),
    "mean": ("axis", "dtype", "out", "keepdims"),
    "min": ("axis", "out", "keepdims"),
    "nonzero": (),
    "prod": ("axis", "dtype", "out", "keepdims"),
    "ravel": ("order",),
    "repeat": ("repeats", "axis"),
    "round": ("decimals", "out"),
    "searchsorted": ("v", "side", "sorter"),
    "sort": ("axis", "kind"),
    "squeeze": ("axis",),
    "std": ("axis", "dtype", "out", "ddof", "keepdims"),
    "sum": ("axis", "dtype", "out", "keepdims"),
    "take": ("indices", "axis", "out"),
    "trace": ("offset", "axis1", "axis2", "dtype", "out"),
    "var": ("axis", "dtype", "out", "ddof", "keepdims"),
}


def _method(name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(parameters):
            raise TypeError(f"{name}() takes at most {len(parameters)} positional arguments")
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        for key in given.keys() - set(parameters):
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            result = getattr(self._a, name)(**to_host(given))
        return given["out"] if given.get("out") is not None else to_device(result)

    method.__name__ = method.__qualname__ = name
    return method


class ndarray:
    """An array in what stands for device memory."""

    __module__ = "cupy"
    __array_priority__ = 100
    __slots__ = ("__weakref__", "_a")
    __hash__ = None  # type: ignore[assignment]

    _a: np.ndarray

    def __new__(
        cls, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> ndarray:
        if memptr is not None or strides is not None:
            raise NotImplementedError("only arrays of new memory")
        return _module_function("empty")(shape, dtype, order)

    @staticmethod
    def of_interface(x: Any) -> ndarray:
        """The array over the memory that an object's __cuda_array_interface__ names."""
        if x.__cuda_array_interface__["data"][0] == 0:  # no elements
            return wrap(np.empty(x.__cuda_array_interface__["shape"], x.__cuda_array_interface__["typestr"]))
        return wrap(np.asarray(_Interface(x)))

    # ------------------------------------------------------------------------------- what it is

    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    flags = property(lambda self: Flags(self._a))
    data = property(lambda self: MemoryPointer(self._a))
    device = property(lambda self: cuda.Device(0))
    base = property(lambda self: None if self._a.base is None else wrap(np.asarray(self._a.base)))
    T = property(lambda self: wrap(self._a.T))
    mT = property(lambda self: wrap(self._a.mT))
    real = property(lambda self: wrap(self._a.real))
    imag = property(lambda self: wrap(self._a.imag))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._a.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._a = self._a.reshape(shape, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": cuda.get_current_stream().ptr or 1,  # 0 is not allowed there; 1 is the default stream
            "version": 3,
            "strides": None if self._a.flags.c_contiguous else self.strides,
            "data": (self._a.ctypes.data if self.size else 0, False),
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        from . import dlpack

        return dlpack.CUDA, 0

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        from . import dlpack

        return dlpack.capsule(self, stream, max_version, dl_device, copy)

    # ------------------------------------------------------------------------------ to the host

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host."""
        if out is None:
            return np.array(self._a, order="C" if order == "A" and not self.flags.f_contiguous else order)
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if self.dtype != out.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if self.shape != out.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not (out.flags.c_contiguous or out.flags.f_contiguous):
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
        np.copyto(out, self._a)
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        """Copy a host array of the same dtype and shape into this one."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        np.copyto(self._a, arr)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._a.item()

    def tolist(self) -> Any:
        return self._a.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self._a.tobytes(order)

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return self.size == 1 and bool(self._a.item())

    def __int__(self) -> int:
        return int(self._a)

    def __float__(self) -> float:
        return float(self._a)

    def __complex__(self) -> complex:
        return complex(self._a)

    def __repr__(self) -> str:
        return repr(self._a)

    def __str__(self) -> str:
        return str(self._a)

    def __format__(self, spec: str) -> str:
        return format(self._a, spec)

    # ------------------------------------------------------------------------------------ copies

    def copy(self, order: str = "C") -> ndarray:
        return wrap(self._a.copy(order))

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def __reduce__(self) -> Any:
        return _module_function("array"), (self.get(order="A"),)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        for name, value in (("casting", casting), ("subok", subok)):
            if value is not None:
                raise TypeError(f"{name} is not supported yet")
        with np.errstate(all="ignore"):
            a = self._a.astype(dtype, order, copy=copy)
        return self if a is self._a else wrap(a)

    def fill(self, value: Any) -> None:
        value = value if isinstance(value, ndarray) else np.asarray(value, self.dtype)
        if value.shape != ():
            kind = "cupy" if isinstance(value, ndarray) else "numpy"
            raise ValueError(f"non-scalar {kind}.ndarray cannot be used for fill")
        self._a.fill(value._a if isinstance(value, ndarray) else value)

    # ------------------------------------------------------------------------------------- shape

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return wrap(self._a.view() if dtype is None else self._a.view(dtype))

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> ndarray:
        return wrap(self._a.reshape(*shape, order=order, copy=copy))

    def transpose(self, *axes: Any) -> ndarray:
        return wrap(self._a.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return wrap(self._a.swapaxes(axis1, axis2))

    def flatten(self, order: str = "C") -> ndarray:
        return wrap(self._a.flatten(order))

    def dot(self, b: ndarray, out: Any = None) -> Any:
        return _module_function("dot")(self, b, out)

    # ---------------------------------------------------------------------------------- elements

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self._a)))

    def plain_key(self, key: Any) -> Any:
        """An index as NumPy takes it; indices beyond an end wrap around, as they do on a device, with no error."""
        parts = [x._a if isinstance(x, ndarray) else x for x in (key if isinstance(key, tuple) else (key,))]
        parts = [np.asarray(x) if isinstance(x, (list, tuple, np.ndarray)) else x for x in parts]
        parts = [x.astype(np.int32) if isinstance(x, np.ndarray) and not x.size and x.dtype.kind == "f" else x
                 for x in parts]  # fmt: skip
        axis = 0
        for i, part in enumerate(parts):
            if part is None:
                continue
            if part is Ellipsis or (isinstance(part, np.ndarray) and part.dtype.kind == "b"):
                break
            if isinstance(part, np.ndarray) and part.dtype.kind in "iu" and self.shape[axis] > 0:
                parts[i] = part % self.shape[axis]
            axis += 1
        return tuple(parts) if isinstance(key, tuple) else parts[0]

    def __getitem__(self, key: Any) -> ndarray:
        key = self.plain_key(key)
        part = self._a[key]
        if not isinstance(part, np.ndarray):  # one element is a view of it
            part = self._a[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return wrap(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        key = self.plain_key(key)
        indexed = any(isinstance(x, np.ndarray) for x in (key if isinstance(key, tuple) else (key,)))
        with np.errstate(all="ignore"):
            if indexed or isinstance(value, ndarray) or hasattr(value, "__cuda_array_interface__"):
                self._a[key] = value if isinstance(value, np.ndarray) else to_host(value)
            else:
                self[key].fill(value)

    # ------------------------------------------------------------------------ NumPy's functions

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        involved = inputs
        if "out" in kwargs:
            if len(kwargs["out"]) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            involved += kwargs["out"]
            kwargs["out"] = kwargs["out"][0]
        name = ufunc.__name__
        if name not in UFUNCS:
            return NotImplemented
        function = _module_function(name)
        if method != "__call__":
            function = getattr(function, method)
        for x in involved:
            if not (
                type(x) in (int, float, bool, complex)
                or isinstance(x, (np.generic, np.ndarray, ndarray))
                or hasattr(x, "__cuda_array_interface__")
            ):
                return NotImplemented
        if name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"):
            inputs = tuple([x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs])
        return function(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        where: Any = sys.modules[__package__ or ""]
        try:
            for name in [*func.__module__.split(".")[1:], func.__name__]:
                where = getattr(where, name)
        except AttributeError:
            return NotImplemented
        if where is func or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return where(*args, **kwargs)


_OPERATORS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "matmul": np.matmul, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power, "lshift": np.left_shift,
    "rshift": np.right_shift, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_COMPARISONS = {
    "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
_UNARY = {"neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert}


def _complete() -> None:
    """Give the class its operators and the methods of METHODS."""
    for name, ufunc in _OPERATORS.items():
        forward, reflected = _binary(ufunc)
        setattr(ndarray, f"__{name}__", forward)
        setattr(ndarray, f"__r{name}__", reflected)
        if name != "matmul":
            setattr(ndarray, f"__i{name}__", _in_place(ufunc))
    for name, ufunc in _COMPARISONS.items():
        setattr(ndarray, f"__{name}__", _comparison(ufunc))
    for name, ufunc in _UNARY.items():
        setattr(ndarray, f"__{name}__", lambda self, name=ufunc.__name__: _module_function(name)(self))
    for name, parameters in METHODS.items():
        setattr(ndarray, name, _method(name, parameters))


_complete()
