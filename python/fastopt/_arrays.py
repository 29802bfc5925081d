"""Arrays of other libraries as NumPy views of the same memory, and views as the kernels want them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._device import device_view, is_device_array, library

Array = npt.NDArray[Any]

_DLPACK_CPU = 1
_LINE, _PAGE = 64, 4096  # bytes of a cache line, of a page
_LARGE_PAGE = 2**21  # that the system may use for large arrays
_APART = 640  # bytes in a page between arrays of a parameter


def as_view(x: Any, name: str) -> Any:
    """Return `x` as an ndarray that shares its memory; of an array on a CUDA device its `device_view`.

    Parameters
    ----------
    x : array
        A NumPy array, a torch tensor, or any object with DLPack's protocol or ``__cuda_array_interface__``.
    name : str
        How messages call it, e.g. ``"params[3]"``.

    Raises
    ------
    TypeError
        `x` is no such array.
    ValueError
        `x` is neither on the CPU nor on a CUDA device.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, expected a plain array")
        return x.view(np.ndarray)
    module = type(x).__module__.partition(".")[0]
    if module == "torch" and hasattr(x, "detach") and not x.is_cuda:
        return _torch_view(x, name)
    device = device_view(x, name)
    if device is not None:
        return device
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        kind, index = x.__dlpack_device__()
        if kind != _DLPACK_CPU:
            raise ValueError(
                f"{name} is on DLPack device ({int(kind)}, {index}), expected the CPU ({_DLPACK_CPU}, 0)"
            )
        try:
            view: Array = np.from_dlpack(x)
        except (BufferError, RuntimeError) as error:
            raise TypeError(f"{name} cannot be viewed as a NumPy array: {error}") from error
        return view
    raise TypeError(f"{name} is {type(x).__name__}, expected an array (NumPy, torch on the CPU, or DLPack)")


def _torch_view(x: Any, name: str) -> Array:
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on device {x.device}, expected cpu")
    torch = sys.modules["torch"]
    x = x.detach()
    if x.dtype == torch.bfloat16:
        import ml_dtypes

        bits: Array = x.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    try:
        view: Array = x.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, conjugated
        raise TypeError(f"{name} cannot be viewed as a NumPy array: {error}") from error
    return view


def zeros_together(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any]], places: Sequence[int]
) -> list[Array]:
    """Return arrays of zeros that lie in one piece of memory, in order, each starting on a cache line.

    A kernel that walks many small arrays then sees one stream on a few large pages, and no load that
    straddles two lines. Those of pages begin at their `places`, see `place_beside`.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    starts, end = [], 0
    for size, place in zip(sizes, places, strict=True):
        if size >= 2 * _PAGE:
            end += (place - end) % _PAGE // _LINE * _LINE
        starts.append(end)
        end += -(-size // _LINE) * _LINE
    memory = _aligned_zeros(end)
    return [
        memory[start : start + size].view(dtype).reshape(shape)
        for start, size, shape, dtype in zip(starts, sizes, shapes, dtypes, strict=True)
    ]


def place_beside(p: Array, number: int) -> int:
    """Return an address whose place in a page suits an array that a kernel walks beside `p`, each with its `number`.

    A load that follows a store to the same place in another page waits for it, as if it were to the same
    address.
    """
    return int(p.ctypes.data) + (number + 1) * _APART


def _aligned_zeros(size: int, place: int = 0) -> Array:
    """Return zeroed bytes that begin on a cache line, many of them on large pages.

    NumPy's own large arrays begin 16 bytes after one, so that every vector of a line's length straddles two.
    `place` is an address whose place in a page theirs shall be, rounded to a line.
    """
    start, room = _LINE, size
    if size >= _LARGE_PAGE // 2:  # NumPy asks for large pages from two of them on
        start, room = _LARGE_PAGE, max(size, _LARGE_PAGE)
    memory = np.zeros(room + start + _PAGE, np.uint8)
    address = memory.ctypes.data
    first = -address % start
    first += (place - address - first) % _PAGE // _LINE * _LINE
    return memory[first : first + size]


def rows(a: Any) -> Any:
    """Return `a` as a matrix of its last axis; a vector is one row."""
    return a if a.ndim == 2 else a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def dense_order(a: Array) -> tuple[int, ...] | None:
    """Return the order of axes in which `a` is C-contiguous and aligned, None when there is none."""
    if not a.flags.aligned:
        return None
    order = tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))
    return order if a.transpose(order).flags.c_contiguous else None


def overlaps_itself(a: Array) -> bool:
    """Tell whether elements share memory, as in what `numpy.broadcast_to` makes."""
    reach = a.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            return a.size > 0
        reach += stride * (n - 1)
    return False


class Dense:
    """The C-contiguous, aligned form in which the kernels update one array.

    It is the array itself where that is C-contiguous, a transposed view where the axes are merely permuted,
    and otherwise a copy that `load` fills before and `store` writes back after an update.

    Attributes
    ----------
    source : ndarray
        The array as it was given.
    array : ndarray
        Its dense form.
    plain : bool
        `array` is `source`: gradients need no rearrangement.
    copied : bool
        `array` has memory of its own, so `load` and `store` have work to do.
    """

    __slots__ = ("_order", "array", "copied", "plain", "source")

    def __init__(self, source: Array) -> None:
        self.source = source
        self.plain = bool(source.flags.c_contiguous and source.flags.aligned)
        self._order = None if self.plain else dense_order(source)
        self.copied = not self.plain and self._order is None
        if self.plain:
            self.array = source
        elif self._order is not None:
            self.array = source.transpose(self._order)
        else:
            self.array = np.array(source, order="C")

    @property
    def address(self) -> int:
        """Where the source begins."""
        address: int = self.source.__array_interface__["data"][0]
        return address

    def load(self) -> None:
        """Bring the copy up to date with the source."""
        if self.copied:
            np.copyto(self.array, self.source)

    def store(self) -> None:
        """Write the copy back to the source."""
        if self.copied:
            np.copyto(self.source, self.array)

    def arrange(self, g: Array) -> Array:
        """Return `g`, of the source's shape, in the layout of `array`; a copy only where its own differs."""
        if self._order is not None:
            g = g.transpose(self._order)
        return g if g.flags.c_contiguous and g.flags.aligned else np.array(g, order="C")

    def restore(self, g: Array) -> Array:
        """Return what `arrange` returned in the source's layout again."""
        return g if self._order is None else g.transpose(np.argsort(self._order))


class DeviceDense:
    """What `Dense` is for a C-contiguous array on a CUDA device, the only ones that are updated there.

    Attributes
    ----------
    source : CuPy array or TorchArray
        The array as this package works on it.
    array : CuPy array or torch tensor
        The array as its library knows it.
    """

    __slots__ = ("array", "source")
    plain = True
    copied = False

    def __init__(self, source: Any, name: str) -> None:
        self.source = source
        self.array: Any = library(source).unwrap(source)
        if library(source).dense(source) is not source:
            raise ValueError(f"{name} is not C-contiguous, which parameters on a GPU have to be")

    @property
    def address(self) -> int:
        """Where the source begins."""
        return library(self.source).address(self.source)

    def load(self) -> None:
        """Do nothing: the array itself is updated."""

    def store(self) -> None:
        """Do nothing: the array itself is updated."""

    def arrange(self, g: Any) -> Any:
        """Return `g` as its library knows it, C-contiguous."""
        lib = library(g)
        return lib.unwrap(lib.dense(g))


def zeros_for(dense: Dense | DeviceDense, dtype: np.dtype[Any], number: int = 0) -> Any:
    """Return zeros in the shape, the place and, on the host, the layout of a parameter.

    The arrays that a kernel walks together have each their `number`.
    """
    p = dense.source
    if isinstance(dense, DeviceDense):
        return library(p).zeros(p, p.shape, dtype)
    if not (dense.plain or dense.copied):
        return np.zeros_like(p, dtype, order="K")
    return _aligned_zeros(p.size * dtype.itemsize, place_beside(p, number)).view(dtype).reshape(p.shape)


def assign(target: Any, source: Any) -> None:
    """Write `source` into `target`; either may be on the host or on a device."""
    if is_device_array(target):
        lib = library(target)
        lib.copy_into(target, source if is_device_array(source) else lib.from_host(source, target))
    else:
        on_host = library(source).to_host(source) if is_device_array(source) else source
        np.copyto(target, on_host, casting="same_kind")
