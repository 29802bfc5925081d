"""What is installed and what runs: versions, instruction sets, threads, GPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

from fastopt import _core

__all__ = ["build_info"]

_OPTIONAL = ("ml_dtypes", "scikit-learn", "matplotlib", "tqdm", "threadpoolctl", "torch")


def build_info() -> dict[str, Any]:
    """Describe the installation, ready for JSON.

    Returns
    -------
    dict
        ``version``, ``python``, ``numpy``, ``platform``, ``compiler``; ``isa`` (chosen), ``isas`` (all that
        this CPU can run), ``rejected_isa`` (what ``FASTOPT_ISA`` asked for in vain, or None); ``threads``
        (of the kernels), ``cpus`` (usable by this process), ``blas`` (NumPy's); ``gpu``: ``available``,
        ``devices`` and the ``reason`` when not available; ``optional``: version of each optional package,
        None where missing.
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
    devices = _cuda_devices()
    reason = "this build of fastopt has CPU kernels only"
    if isinstance(devices, str):
        return {"available": False, "devices": [], "reason": f"{reason}, and {devices}"}
    return {"available": False, "devices": devices, "reason": reason}


def _cuda_devices() -> list[str] | str:
    """Names of the CUDA devices that the driver sees, or why there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return "no NVIDIA driver was found"
    if status := driver.cuInit(0):
        return f"the NVIDIA driver finds no device (cuInit: error {status})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(name, 256, device)
        names.append(name.value.decode(errors="replace"))
    return names or "the NVIDIA driver sees no device"
