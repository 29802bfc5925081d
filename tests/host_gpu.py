"""A GPU for tests: the real one with CuPy where there is one, else the kernels over host memory with CuPy's stand-in.

The module over host memory is built beside the native tests (`cmake --preset dev && cmake --build --preset dev`);
FASTOPT_HOST_CUDA names another one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import host_cupy

#: Small arrays, for checkers that make a device tens of times slower.
SHORT = bool(os.environ.get("FASTOPT_GPU_SHORT"))

_BUILDS = Path(__file__).parents[1] / "build"


@cache
def has_device() -> bool:
    """Whether CuPy is installed and finds a device. Asked in another process: this one must not load its runtime."""
    if importlib.util.find_spec("cupy") is None:
        return False
    code = "import cupy, sys; sys.exit(not cupy.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def host_module() -> Path | None:
    """The extension over host memory: the one that was built last."""
    if path := os.environ.get("FASTOPT_HOST_CUDA"):
        return Path(path)
    built = _BUILDS.glob("*/tests/host_cuda/_cuda_on_host.*.so")
    plain = [path for path in built if "san" not in path.parts[-4]]
    return max(plain, key=lambda path: path.stat().st_mtime, default=None)


def install() -> Any:
    """Put the extension over host memory in the place of `fastopt._cuda` and the stand-in in CuPy's; return that."""
    path = host_module()
    if path is None:
        raise FileNotFoundError(f"no _cuda_on_host module under {_BUILDS}/*/tests/host_cuda")
    spec = importlib.util.spec_from_file_location("fastopt._cuda_on_host", path)
    assert spec is not None
    assert spec.loader is not None
    uninstall()
    module = _loaded.get(path)
    if module is None:
        module = _loaded[path] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    sys.modules["fastopt._cuda"] = module
    return host_cupy.install()


_loaded: dict[Path, Any] = {}


def uninstall() -> None:
    """Forget both, so that what is installed is found again."""
    for name in ("fastopt._cuda", "cupy", "cupy.cuda"):
        if sys.modules.get(name) is not None:
            del sys.modules[name]
    device = importlib.import_module("fastopt._device")
    device._native = None
    device._libraries.clear()


@contextmanager
def cupy_on(kind: str) -> Iterator[Any]:
    """CuPy on a "device", or its stand-in on the "host", which is skipped where there is a device."""
    if kind == "device":
        if not has_device():
            pytest.skip("no CUDA device")
        with warnings.catch_warnings(action="ignore"):
            import cupy
        if SHORT:  # each array in memory of its own, past whose end a checker sees
            cupy.cuda.set_allocator(None)
        yield cupy
        return
    if has_device():
        pytest.skip("there is a device")
    if host_module() is None:
        pytest.skip("the kernels over host memory are not built")
    try:
        yield install()
    finally:
        uninstall()


@cache
def _torch_stand_in() -> type:
    """The class of torch tensors over host memory that say they are on a device, and are held to what holds there."""
    import torch

    moving = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__}

    class OnDevice(torch.Tensor):
        is_cuda = True

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            """As torch refuses them, host tensors with axes are no operands."""
            for x in args:
                if isinstance(x, torch.Tensor) and not x.is_cuda and x.ndim and func not in moving:
                    raise RuntimeError("Expected all tensors to be on the same device")
            return super().__torch_function__(func, types, args, kwargs or {})

        def __deepcopy__(self, memo: Any) -> Any:
            return self.detach().clone().requires_grad_(self.requires_grad)

        def cpu(self) -> Any:
            return self.detach().as_subclass(torch.Tensor).clone()

        def numpy(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return self.numpy()

    return OnDevice


def torch_tensor(kind: str, a: np.ndarray) -> Any:
    """A torch tensor on the device, or one on the host that says it is on one; bfloat16 too."""
    import torch

    bits = a.dtype.name == "bfloat16"
    tensor = torch.from_numpy(a.view(np.int16) if bits else a)
    tensor = tensor.view(torch.bfloat16) if bits else tensor
    return tensor.cuda() if kind == "device" else tensor.clone().as_subclass(_torch_stand_in())
