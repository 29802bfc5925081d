"""Tensors over arrays on a GPU: every operation's values and gradients as on the CPU, and no hidden copies."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import functional as F
from fastopt._device import library
from gpu_tools import cp, drawn, kind
from test_operations import OPERATIONS

__all__ = ["cp", "kind"]

FUNCTIONS: list[tuple[str, Callable[..., Any]]] = [
    ("relu", F.relu),
    ("gelu", F.gelu),
    ("softplus", F.softplus),
    ("softmax", lambda x: F.softmax(x, 0)),
    ("dropout", lambda x: F.dropout(x, 0.4, seed=3, offset=5)),
    ("mse", lambda x: F.mse_loss(x, x * 0.5 + 1)),
    ("cross_entropy", lambda x: F.cross_entropy(x, x.argmax(1))),
    ("l2_penalty", lambda x: F.l2_penalty([x], 0.1)),
    ("one_hot", lambda x: F.one_hot(x.argmax(1), 5) * x.sum()),
]


def _hold(cp: Any, f: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    """Hold a function's result and gradients on the device to those on the host, in float32."""
    host = [fo.Tensor(a.astype(np.float32), requires_grad=True) for a in arrays]
    device = [fo.Tensor(cp.asarray(a.astype(np.float32)), requires_grad=True) for a in arrays]
    expected, got = f(*host), f(*device)
    assert type(got.data) is cp.ndarray
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(got.data.get(), expected.data, rtol=2e-6, atol=1e-6)
    c = drawn(expected.shape, np.float32, 7)
    expected.backward(c)
    got.backward(cp.asarray(c))
    for h, d in zip(host, device, strict=True):
        assert type(d.grad.data) is cp.ndarray
        np.testing.assert_allclose(d.grad.data.get(), h.grad.data, rtol=1e-5, atol=1e-5)


#: All but those of one Tensor and an array on the host, which do not mix.
ALIKE = [row for row in OPERATIONS if row[0] != "numpy operand"]


@pytest.mark.parametrize(("f", "arrays"), [row[1:] for row in ALIKE], ids=[row[0] for row in ALIKE])
def test_operations(cp: Any, f: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    _hold(cp, f, arrays)


@pytest.mark.parametrize("f", [row[1] for row in FUNCTIONS], ids=[row[0] for row in FUNCTIONS])
def test_functions(cp: Any, f: Callable[..., Any]) -> None:
    _hold(cp, f, [drawn((4, 5), np.float32, 1)])


def test_there_and_back(cp: Any) -> None:
    a = drawn((2, 3), np.float32, 1)
    host = fo.Tensor(a, requires_grad=True)
    device = host.to("cuda")
    assert type(device.data) is cp.ndarray
    assert str(device.device).startswith("cuda")
    assert str(host.device) == "cpu"
    (device * 2).sum().backward()  # through the copy, to the leaf on the host
    np.testing.assert_array_equal(host.grad.data, np.full((2, 3), 2, np.float32))
    assert isinstance(host.grad.data, np.ndarray)
    back = device.detach().cpu()
    assert isinstance(back.data, np.ndarray)
    np.testing.assert_array_equal(back.data, a)
    assert device.to("cuda") is device
    with pytest.raises(TypeError, match=r"use \.cpu\(\)\.numpy\(\)"):
        device.detach().numpy()


def test_page_locked_memory_or_what_there_is(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, sizes = cp.cuda.alloc_pinned_memory, []

    def noted(size: int) -> Any:
        sizes.append(size)
        return allocate(size)

    def refused(size: int) -> Any:
        raise cp.cuda.runtime.CUDARuntimeError(2)

    a = drawn((2, 3), np.float32, 1)
    for x, expected in ((cp.asarray(a), a), (cp.asarray(a).T, a.T), (cp.asarray(a[:0]), a[:0])):
        for function in (noted, refused):
            monkeypatch.setattr(cp.cuda, "alloc_pinned_memory", function)
            host = library(x).to_pinned(x)
            assert type(host) is np.ndarray
            assert host.flags.c_contiguous
            np.testing.assert_array_equal(host, expected)
    assert sizes == [24, 24, 1]


def test_a_tensor_shares_the_memory_of_its_array(cp: Any) -> None:
    a = cp.asarray(drawn(4, np.float32, 1))
    t = fo.Tensor(a)
    t += 1
    t.mul_(2)
    assert t.data is a
    np.testing.assert_allclose(a.get(), (drawn(4, np.float32, 1) + 1) * 2, rtol=1e-6)
    t[0] = 5
    assert a[0].item() == 5


def test_numbers_and_text(cp: Any) -> None:
    t = fo.Tensor(cp.asarray(np.array([1.5, 2.0], np.float32)))
    assert (t.sum().item(), float(t[0]), t.tolist(), len(t)) == (3.5, 1.5, [1.5, 2.0], 2)
    assert bool((t > 1).all())
    assert repr(t).startswith("tensor([1.5")
    again = pickle.loads(pickle.dumps(t))
    np.testing.assert_array_equal(again.data.get() if hasattr(again.data, "get") else again.data, [1.5, 2.0])


def test_host_and_device_do_not_mix(cp: Any) -> None:
    host, device = fo.Tensor(np.ones(3, np.float32)), fo.Tensor(cp.ones(3, np.float32))
    for mixed in (
        lambda: host + device,
        lambda: device * host,
        lambda: device @ host,
        lambda: fo.cat([device, host]),
        lambda: device + np.ones(3, np.float32),
    ):
        with pytest.raises((TypeError, ValueError)):
            mixed()
    assert (device + 1).tolist() == (1 + device).tolist() == [2.0, 2.0, 2.0]
    assert (device * np.float32(3)).tolist() == [3.0, 3.0, 3.0]
