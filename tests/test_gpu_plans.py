"""Step plans on a device: gradients elsewhere, and several rules under one norm."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import _device
from gpu_tools import assert_same_bits, cp, drawn, fused, kind

__all__ = ["cp", "fused", "kind"]


def test_a_gradient_on_another_device_is_refused_and_changes_nothing(kind: str, cp: Any) -> None:
    w = cp.asarray(drawn(33, np.float32, 1))
    optimizer = fo.optim.SGD([w], lr=0.1)
    before = w.get()
    if kind == "device":
        if cp.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("needs two devices")
        with cp.cuda.Device(1):
            g = cp.ones(33, cp.float32)
    else:
        g = cp.ones(33, cp.float32)
        give = ctypes.CDLL(_device.native().__file__).host_cuda_give_to_device
        give(ctypes.c_void_p(g.data.ptr), ctypes.c_size_t(g.nbytes), ctypes.c_int(1))
    try:
        with pytest.raises(ValueError, match=r"grads\[0\] is on CUDA device 1, params\[0\] is on device 0"):
            optimizer.step([g])
    finally:
        if kind == "host":
            give(ctypes.c_void_p(g.data.ptr), ctypes.c_size_t(g.nbytes), ctypes.c_int(0))
    np.testing.assert_array_equal(w.get(), before)


@pytest.mark.usefixtures("fused")
def test_rules_under_one_norm_have_the_bits_of_the_cpu(cp: Any) -> None:
    """Two groups of SGD that are two rules: their norms are joined on the device."""
    values = [drawn(n, np.float32, n) for n in (257, 1000)]
    grads = [drawn(n, np.float32, n + 1) for n in (257, 1000)]

    def stepped(place: Any) -> tuple[list[Any], Any]:
        params = [place(v) for v in values]
        groups = [{"params": [params[0]]}, {"params": [params[1]], "momentum": 0.9}]
        optimizer = fo.optim.SGD(groups, lr=0.1, max_norm=0.5)
        for _ in range(3):
            optimizer.step([[place(grads[0])], [place(grads[1])]])
        return params, optimizer.grad_norm

    ours, norm = stepped(cp.asarray)
    theirs, expected = stepped(np.array)
    assert float(norm) == expected > 0.5
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)


@pytest.mark.usefixtures("fused")
def test_norms_of_each_tensor_have_the_bits_of_the_cpu(cp: Any) -> None:
    values = [drawn(n, np.float32, n) for n in (3, 20_000, 0, 8192)]
    grads = [drawn(n, np.float32, n + 1) for n in (3, 20_000, 0, 8192)]

    def norms(place: Any) -> tuple[Any, Any]:
        optimizer = fo.optim.SGD([place(v) for v in values], lr=0.1)
        given = [place(g) for g in grads]
        optimizer.step(given)
        plan = optimizer._refresh()[0].native
        where = optimizer._placement
        return where.norms(plan, [None, *given[1:]]), where.param_norms(plan, 4)

    for ours, theirs in zip(norms(cp.asarray), norms(np.array), strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_array_equal(ours.get(), theirs)
