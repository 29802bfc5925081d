"""What the tests of device arrays share: arrays there and back, and comparisons of bits."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import host_gpu
from fastopt import _core, _device

#: Around packs of 16 bytes, warps, blocks and chunks.
SIZES = [0, 1, 3, 4, 5, 31, 33, 257, 1023, 4097]
LARGE = 100_003


def sizes() -> list[int]:
    """On a device one size of many blocks more; a checker gets few."""
    if host_gpu.SHORT:
        return [1, 33, 1025]
    return [*SIZES, LARGE] if host_gpu.has_device() else SIZES


@pytest.fixture(scope="module", params=[pytest.param("device", marks=pytest.mark.gpu), "host"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where a test runs."""
    return str(request.param)


@pytest.fixture(scope="module")
def cp(kind: str) -> Iterator[Any]:
    """CuPy or its stand-in."""
    with host_gpu.cupy_on(kind) as module:
        yield module


class There:
    """A library of arrays on the device, with the way there and back."""

    def __init__(self, name: str, kind: str, cp: Any) -> None:
        self.name, self._kind, self._cp = name, kind, cp

    def put(self, a: np.ndarray) -> Any:
        """Return a copy of an array on the device."""
        return self._cp.asarray(a) if self.name == "cupy" else host_gpu.torch_tensor(self._kind, a)

    def take(self, a: Any) -> np.ndarray:
        """Return a copy of a device array on the host."""
        assert self.owns(a)
        if self.name == "cupy":
            return a.get()
        a = a.detach().cpu().contiguous()
        if str(a.dtype) != "torch.bfloat16":
            return a.numpy()
        return a.view(importlib.import_module("torch").int16).numpy().view(*dtypes("bfloat16"))

    def owns(self, a: Any) -> bool:
        """Whether it is a device array of this library."""
        return isinstance(a, self._cp.ndarray) if self.name == "cupy" else getattr(a, "is_cuda", False)


@pytest.fixture(params=["cupy", pytest.param("torch", marks=pytest.mark.peers)])
def there(request: pytest.FixtureRequest, kind: str, cp: Any, monkeypatch: pytest.MonkeyPatch) -> There:
    """Each library whose arrays there may be on a device; torch has to do without CuPy."""
    if request.param == "torch":
        pytest.importorskip("torch")
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.setattr(_device, "_libraries", {})
    return There(request.param, kind, cp)


@pytest.fixture
def fused() -> Iterator[None]:
    """A device has fused multiply-adds: compare with a CPU level that has them."""
    levels = [level for level in _core.isas() if level != "v2"]
    if not levels:
        pytest.skip("this CPU has no fused multiply-adds")
    before = _core.isa()
    _core.set_isa(levels[-1])
    yield
    _core.set_isa(before)


def bits(a: Any) -> np.ndarray:
    """The array on the host as integers of its elements' size; a NaN is a NaN, whatever its bits."""
    a = np.ascontiguousarray(a.get() if hasattr(a, "get") else a)
    if a.dtype.kind not in "fV":
        return a
    a = a.copy()
    a[np.isnan(a)] = np.nan
    return a.view(f"u{a.dtype.itemsize}")


def assert_same_bits(device: Any, host: Any, what: str = "") -> None:
    """The same dtype, shape and bits."""
    assert device.dtype == host.dtype, what
    assert device.shape == host.shape, what
    np.testing.assert_array_equal(bits(device), bits(host), err_msg=what)


def assert_as_accurate(device: Any, host: Any, exact: np.ndarray, what: str = "") -> None:
    """The largest error against a float64 reference is at most twice that of the CPU, and a few ulp."""
    ours, theirs = np.asarray(device.get(), np.float64), np.asarray(host, np.float64)
    assert ours.shape == exact.shape, what
    scale = float(np.abs(exact).max(initial=0.0))
    eps = 2.0**-8 if host.dtype.name == "bfloat16" else float(np.finfo(host.dtype).eps)
    error = float(np.abs(ours - exact).max(initial=0.0))
    allowed = 2 * float(np.abs(theirs - exact).max(initial=0.0)) + 4 * eps * scale
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


def unaligned(cp: Any, a: np.ndarray, by: int = 1) -> Any:
    """The array on the device, starting so many elements after an allocation's start."""
    whole = cp.zeros(a.size + by, a.dtype)
    whole[by:] = cp.asarray(a.ravel())
    return whole[by:].reshape(a.shape)


def drawn(shape: Any, dtype: Any, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def dtypes(*names: str) -> list[np.dtype]:
    """NumPy's dtypes by name; bfloat16 where ml_dtypes is installed."""
    found = []
    for name in names:
        if name == "bfloat16":
            ml_dtypes = pytest.importorskip("ml_dtypes")
            found.append(np.dtype(ml_dtypes.bfloat16))
        else:
            found.append(np.dtype(name))
    return found


def flattened(state: Any) -> list[Any]:
    """The arrays of an optimizer's state, in order."""
    entries = [state[key] for key in sorted(state)]
    return list(itertools.chain.from_iterable([entry[k] for k in sorted(entry)] for entry in entries))
