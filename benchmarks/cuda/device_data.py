"""Arrays on the device, and in a dry run what stands for them: the CuPy of the tests, over host memory."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: CuPy, or its stand-in.
xp: Any = None
dry = False

_BLOCK = 1 << 22
#: Working sets smaller than this are measured in several copies by turns, so that none is found in the L2 cache.
COLD_BYTES = 256e6


def setup(in_dry_run: bool) -> None:
    """Import CuPy; in a dry run the stand-in and the extension over it."""
    global xp, dry
    dry = in_dry_run
    if dry:
        sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
        import host_gpu

        xp = host_gpu.install()
    else:
        import cupy

        xp = cupy


def device_name() -> str:
    if dry:
        return "dry run"
    name: bytes = xp.cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode()


def synchronize() -> None:
    xp.cuda.Device(0).synchronize()


def normal(shape: int | Sequence[int], seed: int = 0, scale: float = 1.0) -> Any:
    """Normal random float32: a block of a few million drawn on the host, repeated on the device."""
    n = int(np.prod(shape))
    drawn = np.random.default_rng(seed).standard_normal(min(n, _BLOCK), dtype=np.float32) * np.float32(scale)
    block, x = xp.asarray(drawn), xp.empty(n, np.float32)
    for start in range(0, n, _BLOCK):
        part = x[start : start + _BLOCK]
        part[...] = block[: part.size]
    return x.reshape(shape)


def labels(rows: int, classes: int, seed: int = 0) -> Any:
    return xp.asarray(np.random.default_rng(seed).integers(0, classes, rows))


def as_torch(x: Any) -> Any:
    """The device array as a torch tensor: of the same memory, in a dry run a copy on the CPU."""
    import torch

    return torch.from_numpy(x.get()) if dry else torch.from_dlpack(x)


def as_numpy(x: Any) -> np.ndarray:
    """An array of any library, or a number, as float64 on the host."""
    if hasattr(x, "get"):
        x = x.get()
    elif hasattr(x, "detach"):
        x = x.detach().float().cpu().numpy()
    return np.asarray(x, np.float64)


def beginning(*arrays: Any) -> tuple[Any, ...]:
    """The first rows of each array: enough to compare, and quickly brought to the host."""
    return tuple(a[:64] if getattr(a, "ndim", 0) else a for a in arrays)


def copies(nbytes: float) -> int:
    """How many sets of a working set of so many bytes are needed to find none of them in the cache."""
    return 2 if dry else max(1, min(64, int(-(-COLD_BYTES // nbytes))))


@dataclass
class Timed:
    """A call to be timed, and what it has computed: read only for comparison, never while timing."""

    call: Callable[[], Any]
    result: Callable[[], Any]


def in_turn(timed: Sequence[Timed]) -> Timed:
    """Calls over several sets of arrays as one, each time over the next set."""
    turns = itertools.cycle(timed)
    latest = timed[0]

    def call() -> Any:
        nonlocal latest
        latest = next(turns)
        return latest.call()

    return Timed(call if len(timed) > 1 else timed[0].call, lambda: latest.result())
