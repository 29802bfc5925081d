"""Arrays in the memory of CUDA devices: whose they are, and what their library does for us.

fastopt computes on them by `native()`, the module ``fastopt._cuda``. The array's own library (CuPy or torch) makes the
results and names the stream that work is queued on. Arrays of other libraries that have ``__cuda_array_interface__`` or
DLPack become CuPy arrays of the same memory, or torch tensors where there is no CuPy.

CuPy's arrays have NumPy's methods and go through this package as they are. A torch tensor does so as a
`TorchArray`, which has those that are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._torch_array import TorchArray, operand

#: As far as type checkers go: what is asked of these arrays are NumPy's own methods.
Array = npt.NDArray[Any]

_DLPACK_CUDA = 2

_native: Any = None


def native() -> Any:
    """Return the module ``fastopt._cuda``.

    Raises
    ------
    RuntimeError
        This build has none, or no device can be used; the message says what to install.
    """
    global _native
    if _native is None:
        try:
            module = importlib.import_module("fastopt._cuda")
        except ImportError as error:
            raise RuntimeError(
                "this build of fastopt has no CUDA kernels: install a wheel that has, or build it where nvcc is on the "
                f"PATH ({error})"
            ) from error
        module.device_count()
        if path := cublaslt_path():
            module.set_cublaslt_path(path)
        _native = module
    return _native


def is_refusal(error: Exception) -> bool:
    """Whether an error says what the device or its libraries lack, rather than that the program is wrong."""
    module: Any = sys.modules.get("fastopt._cuda")
    return module is not None and isinstance(error, (module.DeviceError, module.MissingLibrary))


def cublaslt_path() -> str | None:
    """Return the file of cuBLASLt in the wheels nvidia-cublas or nvidia-cublas-cu12, None without them."""
    spec = importlib.util.find_spec("nvidia")  # a namespace, which may be spread over several folders
    folders = spec.submodule_search_locations if spec else None
    for name in ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"):
        for folder in folders or ():
            if os.path.exists(path := os.path.join(folder, name)):
                return path
    return None


class CupyLibrary:
    """CuPy, as the package that an array's type is from."""

    name = "cupy"

    def __init__(self) -> None:
        self.cupy: Any = importlib.import_module("cupy")

    def stream(self, x: Any) -> int:
        """Return the address of the stream that the library would use for `x` now."""
        address: int = self.cupy.cuda.get_current_stream(x.device.id).ptr
        return address

    def current(self, x: Any) -> AbstractContextManager[Any]:
        """Return a context in which operators compute where `x` is."""
        device: AbstractContextManager[Any] = x.device
        return device

    def address(self, x: Any) -> int:
        """Return where the memory of `x` begins."""
        address: int = x.data.ptr
        return address

    def empty(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new C-contiguous array on the device of `like`."""
        with like.device:
            return self.cupy.empty(shape, dtype)

    def zeros(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return new zeros on the device of `like`."""
        with like.device:
            return self.cupy.zeros(shape, dtype)

    def dense(self, x: Any) -> Any:
        """Return `x`, or a C-contiguous copy."""
        if x.flags.c_contiguous:  # also without axes, of which ascontiguousarray makes one
            return x
        with x.device:
            return self.cupy.ascontiguousarray(x)

    def moveaxis(self, x: Any, source: int, target: int) -> Any:
        """Return a view of `x` with one axis moved."""
        return self.cupy.moveaxis(x, source, target)

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Return a view of `x` repeated to `shape`."""
        return self.cupy.broadcast_to(x, shape)

    def copy_into(self, target: Any, source: Any) -> None:
        """Write `source` into `target`."""
        target[...] = source

    def larger(self, a: Any, b: Any) -> Any:
        """Return the larger of two numbers on a device, a NaN if one is; they are the library's own."""
        return self.cupy.maximum(a, b)

    def at_most(self, a: Any, limit: float) -> Any:
        """Return a number on a device, or the limit where it is larger."""
        return self.cupy.minimum(a, limit)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Return `a` where a condition holds and `b` elsewhere; the arrays are the library's own."""
        return self.cupy.where(condition, a, b)

    def equal(self, a: Any, b: Any) -> Any:
        """Return 1 where two arrays are equal and 0 elsewhere, in their dtype."""
        return (a == b).astype(a.dtype)

    def clip(self, x: Any, lower: Any, upper: Any) -> None:
        """Limit `x` in place, element by element, by numbers or by arrays of its shape."""
        self.cupy.clip(x, lower, upper, out=x)

    def from_host(self, a: Any, like: Any) -> Any:
        """Return a copy of an ndarray on the device of `like`."""
        with like.device:
            return self.cupy.asarray(a)

    def to_host(self, x: Any) -> Any:
        """Return a copy as an ndarray; it waits for the work on `x`."""
        return self.cupy.asnumpy(x)

    def to_pinned(self, x: Any) -> Any:
        """The same in page-locked memory, where a device writes by itself; in ordinary memory where there is none."""
        try:
            memory = self.cupy.cuda.alloc_pinned_memory(max(x.nbytes, 1))
        except (MemoryError, self.cupy.cuda.runtime.CUDARuntimeError):
            return self.to_host(x)
        return self.cupy.asnumpy(x, out=np.frombuffer(memory, x.dtype, x.size).reshape(x.shape))

    def rows(self, x: Any, which: Any) -> Any:
        """Return rows of `x`: a view for a slice, a copy for indices that are on its device."""
        if isinstance(which, slice):
            return x[which]
        with x.device:
            return x.take(which, axis=0)

    def unwrap(self, x: Any) -> Array:
        """Return what the caller gets to see."""
        result: Array = x
        return result

    def adopt(self, x: Any) -> Any:
        """Return an array of the memory of another library's."""
        if hasattr(x, "__cuda_array_interface__"):
            return self.cupy.asarray(x)
        return self.cupy.from_dlpack(x)


class TorchLibrary:
    """torch, with the same methods over `TorchArray`."""

    name = "torch"

    def __init__(self) -> None:
        self.torch: Any = importlib.import_module("torch")

    def stream(self, x: Any) -> int:
        if x.device.type != "cuda":  # of a tensor on the host that stands for one
            return 0
        address: int = self.torch.cuda.current_stream(x.device).cuda_stream
        return address

    def current(self, x: Any) -> AbstractContextManager[Any]:
        return nullcontext()  # torch computes where the operands are

    def address(self, x: Any) -> int:
        address: int = x.tensor.data_ptr()
        return address

    def empty(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return TorchArray(like.tensor.new_empty(shape, dtype=self._dtype(dtype)))

    def zeros(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return TorchArray(like.tensor.new_zeros(shape, dtype=self._dtype(dtype)))

    def dense(self, x: Any) -> Any:
        return x if x.tensor.is_contiguous() else TorchArray(x.tensor.contiguous())

    def moveaxis(self, x: Any, source: int, target: int) -> Any:
        return TorchArray(x.tensor.movedim(source, target))

    def broadcast(self, x: Any, shape: tuple[int, ...]) -> Any:
        return TorchArray(x.tensor.broadcast_to(shape))

    def larger(self, a: Any, b: Any) -> Any:
        return self.torch.maximum(a, b)

    def at_most(self, a: Any, limit: float) -> Any:
        return self.torch.clamp(a, max=limit)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self.torch.where(condition, a, b)

    def equal(self, a: Any, b: Any) -> Any:
        return TorchArray((a.tensor == b.tensor).to(a.tensor.dtype))

    def clip(self, x: Any, lower: Any, upper: Any) -> None:
        self.torch.clamp(x.tensor, operand(lower), operand(upper), out=x.tensor)

    def copy_into(self, target: Any, source: Any) -> None:
        target.tensor.copy_(source.tensor if isinstance(source, TorchArray) else source)

    def from_host(self, a: Any, like: Any) -> Any:
        a = np.asarray(a, order="C")
        is_bfloat16 = a.dtype.name == "bfloat16"  # of which torch and NumPy only share the bits
        host = self.torch.from_numpy(a.view(np.int16) if is_bfloat16 else a)
        copied = like.tensor.new_empty(host.shape, dtype=host.dtype).copy_(host)
        return TorchArray(copied.view(self.torch.bfloat16) if is_bfloat16 else copied)

    def to_host(self, x: Any) -> Any:
        tensor = x.tensor.detach().cpu()
        if x.dtype.name == "bfloat16":
            return tensor.contiguous().view(self.torch.int16).numpy().view(x.dtype)
        return tensor.numpy()

    def to_pinned(self, x: Any) -> Any:
        try:
            pinned = self.torch.empty(x.shape, dtype=x.tensor.dtype, pin_memory=True)
        except RuntimeError:
            return self.to_host(x)
        return self.to_host(TorchArray(pinned.copy_(x.tensor.detach())))

    def rows(self, x: Any, which: Any) -> Any:
        if isinstance(which, slice):
            return TorchArray(x.tensor[which])
        return TorchArray(x.tensor.index_select(0, which.tensor))

    def unwrap(self, x: Any) -> Array:
        result: Array = x.tensor
        return result

    def adopt(self, x: Any) -> Any:
        if hasattr(x, "__cuda_array_interface__"):
            return TorchArray(self.torch.as_tensor(x, device="cuda"))
        return TorchArray(self.torch.from_dlpack(x))

    def _dtype(self, dtype: Any) -> Any:
        return getattr(self.torch, np.dtype(dtype).name)


Library = CupyLibrary | TorchLibrary

_libraries: dict[str, Any] = {}


def _loaded(name: str) -> Any:
    """Return the library of that name, imported at its first use."""
    if name not in _libraries:
        _libraries[name] = CupyLibrary() if name == "cupy" else TorchLibrary()
    return _libraries[name]


def _root(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def is_device_array(x: Any) -> bool:
    """Whether `x` is a CuPy array or a `TorchArray`, the forms in which this package works on device memory."""
    return x.__class__ is TorchArray or (_root(x) == "cupy" and hasattr(x, "__cuda_array_interface__"))


def library(x: Any) -> Library:
    """Return the library of an array for which `is_device_array` holds."""
    found: Library = _loaded("torch" if x.__class__ is TorchArray else "cupy")
    return found


def _default_library(name: str) -> Library:
    """Return CuPy, or torch where there is no CuPy, for an array of a third library."""
    for candidate in ("cupy", "torch"):
        try:
            found: Library = _loaded(candidate)
        except ImportError:
            continue
        return found
    raise RuntimeError(
        f"{name} is on a CUDA device, which needs CuPy or torch: pip install 'fastopt[cuda13]'"
    )


def device_view(x: Any, name: str) -> Any:
    """Return an array of device memory in the form in which this package works on it, None for any other object.

    Parameters
    ----------
    x : object
    name : str
        How messages call it.

    Returns
    -------
    CuPy array, `TorchArray` or None
        Of the same memory.
    """
    if is_device_array(x):
        return x
    root = _root(x)
    if hasattr(x, "is_cuda") and hasattr(x, "detach"):
        return TorchArray(x.detach()) if x.is_cuda else None
    if root == "numpy":
        return None
    is_cuda = hasattr(x, "__cuda_array_interface__")
    if not is_cuda and hasattr(x, "__dlpack_device__"):
        is_cuda = int(x.__dlpack_device__()[0]) == _DLPACK_CUDA
    if not is_cuda:
        return None
    try:
        native()
    except RuntimeError as error:
        raise RuntimeError(f"{name} is on a CUDA device: {error}") from error
    return _default_library(name).adopt(x)


def on_device(x: Any) -> bool:
    """Whether `x` is an array in the memory of a CUDA device, of any library."""
    return x.__class__ is not np.ndarray and device_view(x, "input") is not None


def cupy() -> CupyLibrary:
    """Return CuPy, which Tensors on a GPU are made of.

    Raises
    ------
    RuntimeError
        It is not installed, or no device can be used.
    """
    native()
    try:
        found: CupyLibrary = _loaded("cupy")
    except ImportError as error:
        raise RuntimeError("Tensors on a GPU need CuPy: pip install 'fastopt[cuda13]'") from error
    return found


def is_array(x: Any) -> bool:
    """Whether `x` is an array of the kinds that a Tensor holds: of NumPy or CuPy."""
    return isinstance(x, np.ndarray) or is_device_array(x)


def on_host(x: Any) -> Any:
    """Return an array of this package as an ndarray: itself, or a copy from a device once the work on it is done."""
    return library(x).to_host(x) if is_device_array(x) else x


def as_data(x: Any) -> Any:
    """Return an array or NumPy scalar as a Tensor holds it: as an ndarray, or as a CuPy array of the same memory."""
    if isinstance(x, np.ndarray | np.generic | int | float):
        return np.asarray(x)
    if is_device_array(x):
        return cupy().adopt(x.tensor) if x.__class__ is TorchArray else x
    view = device_view(x, "data")
    return np.asarray(x) if view is None else as_data(view)


def device_name(a: Any) -> str:
    """Return torch's name of where an array is: "cpu", "cuda:0"."""
    return f"cuda:{a.device.id}" if is_device_array(a) else "cpu"


def wanted_device(target: Any, caller: str = "to") -> str | None:
    """Return the device that a ``to(target)`` asks for, as `device_name` has it; None where it asks for no device.

    Raises
    ------
    ValueError
        It is no device that fastopt knows.
    """
    name = str(target) if isinstance(target, str) or type(target).__name__ == "device" else None
    kind, colon, index = (name or "").partition(":")
    if kind == "cpu" and not colon:
        return "cpu"
    if kind != "cuda" or (colon and not index.isdecimal()):
        return None
    count = native().device_count()
    number = int(index) if colon else int(cupy().cupy.cuda.Device().id)
    if number >= count:
        raise ValueError(f"{caller}: device is {name!r}, the number of CUDA devices is {count}")
    return f"cuda:{number}"


def moved(a: Any, device: str) -> Any:
    """Return an array of NumPy or CuPy on a device by its `device_name`, itself where it is there already."""
    if device_name(a) == device:
        return a
    if device == "cpu":
        return cupy().to_host(a)
    xp = cupy().cupy
    with xp.cuda.Device(int(device.partition(":")[2])):
        return xp.array(a) if is_device_array(a) else xp.asarray(a)
