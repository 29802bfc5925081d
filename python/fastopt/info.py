"""What is installed and what runs: versions, instruction sets, threads, GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

from fastopt import _core, _device

__all__ = ["build_info"]

_OPTIONAL = ("ml_dtypes", "scikit-learn", "matplotlib", "tqdm", "threadpoolctl", "torch")


def build_info() -> dict[str, Any]:
    """Describe the installation, ready for JSON.

    Returns
    -------
    dict
        ``version``, ``python``, ``numpy``, ``platform``, ``compiler``; ``isa`` (chosen), ``isas`` (all that
        this CPU can run), ``rejected_isa`` (what ``FASTOPT_ISA`` asked for in vain, or None); ``threads``
        (of the kernels), ``cpus`` (usable by this process), ``blas`` (NumPy's); ``gpu``: see below;
        ``optional``: version of each optional package, None where missing.

    Notes
    -----
    Of ``gpu``, ``available`` is whether arrays on a device can be computed with, and ``reason`` why not, or None.
    ``devices`` are the names of those that the driver sees; ``driver`` is the CUDA version that it knows;
    ``architectures`` are those of the kernels in this build, None where it has none; ``cupy`` is the version of
    CuPy, which is not imported for this, and ``cublaslt`` the file of cuBLASLt, None where they are not found.
    """
    return {
        "version": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "compiler": _core.compiler,
        "isa": _core.isa(),
        "isas": list(_core.isas()),
        "rejected_isa": _core.rejected_isa() or None,
        "threads": _core.num_threads(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "blas": _blas_name(),
        "gpu": _gpu(),
        "optional": {name: _version_of(name) for name in _OPTIONAL},
    }


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _blas_name() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _gpu() -> dict[str, Any]:
    devices, driver = _driver()
    found = {"devices": [] if isinstance(devices, str) else devices, "driver": driver}
    reason: str | None = None
    architectures: str | None = None
    try:
        architectures = importlib.import_module("fastopt._cuda").architectures
        _device.native()
    except ImportError:
        reason = "this build of fastopt has CPU kernels only"
        reason += f", and {devices}" if isinstance(devices, str) else ""
    except RuntimeError as err:
        reason = str(err)
    cupy = (_version_of(name) for name in ("cupy-cuda13x", "cupy"))
    return {
        "available": reason is None,
        "reason": reason,
        **found,
        "architectures": architectures,
        "cupy": next((version for version in cupy if version), None),
        "cublaslt": _device.cublaslt_path() or ctypes.util.find_library("cublasLt"),
    }


def _driver() -> tuple[list[str] | str, str | None]:
    """Names of the CUDA devices that the driver sees, or why there are none, and the CUDA version that it knows."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return "no NVIDIA driver was found", None
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver finds no device (cuInit: error {status})", version
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(name, 256, device)
        names.append(name.value.decode(errors="replace"))
    return names or "the NVIDIA driver sees no device", version
