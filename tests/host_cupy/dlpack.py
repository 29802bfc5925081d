"""DLPack of device arrays: NumPy's own capsules, with the device in them changed."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .array import ndarray, wrap

CPU, CUDA = 1, 2

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _set_device(made: Any, device: int) -> Any:
    """Write the device type into a capsule: behind the data pointer, which versions and flags precede if versioned."""
    versioned = '"dltensor_versioned"' in repr(made)
    name, start = (b"dltensor_versioned", 32) if versioned else (b"dltensor", 0)
    ctypes.c_int32.from_address(_pointer(made, name) + start + 8).value = device
    return made


def capsule(
    x: ndarray,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> Any:
    """What `ndarray.__dlpack__` returns."""
    if dl_device == (CPU, 0):
        if copy is False:
            raise ValueError("GPU memory cannot be exported to CPU without copy.")
        return x.get().__dlpack__(max_version=max_version)
    if dl_device not in (None, (CUDA, 0)):
        raise BufferError("unsupported device requested.")
    if copy:
        raise BufferError("copy=True only supported for copy to CPU.")
    if isinstance(stream, int) and stream < -1:
        raise ValueError(
            "On CUDA, the valid stream for the DLPack protocol is -1, 1, 2, or any larger value, "
            f"but {stream} was provided"
        )
    return _set_device(x._a.__dlpack__(max_version=max_version), CUDA)


class _OnHost:
    """A device array as one that NumPy takes."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        return _set_device(self.x.__dlpack__(stream=1, max_version=(1, 0)), CPU)


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """A device array over the memory of another library's."""
    if device is not None:
        raise NotImplementedError("from_dlpack() does not support device yet.")
    kind, _ = array.__dlpack_device__()
    if kind == CPU:
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. "
            "Use `cupy.array(numpy.from_dlpack(input))` instead."
        )
    if kind != CUDA:
        raise TypeError(f"Unsupported array type: {kind}")
    return wrap(np.from_dlpack(_OnHost(array)))
