"""Scaled losses, accumulated gradients and kinds of clipping on a device: the bits of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
import host_gpu
from fastopt import _device
from gpu_tools import assert_same_bits, cp, drawn, flattened, fused, kind

__all__ = ["cp", "fused", "kind"]

SIZES = (5, 33, 1023)


def groups(place: Any, dtype: Any = np.float32) -> list[dict[str, Any]]:
    """Parameters of two rules."""
    first, *rest = [place(drawn(n, dtype, n)) for n in SIZES]
    return [{"params": [first]}, {"params": rest, "momentum": 0.9}]


def gradients(place: Any, t: int, dtype: Any = np.float32, scale: float = 1.0) -> list[Any]:
    first, *rest = [place((drawn(n, dtype, 10 * t + n) * scale).astype(dtype)) for n in SIZES]
    return [[first], rest]


def assert_like_the_cpu(cp: Any, run: Any) -> None:
    """What `run` returns for arrays of a device has the bits of what it returns for NumPy's."""
    (ours, norms), (theirs, expected) = run(cp.asarray), run(np.array)
    # Norms of several plans are joined in another order than the CPU's.
    assert norms == expected or norms == pytest.approx(expected, rel=1e-14)
    arrays = [p for group in ours.param_groups for p in group["params"]] + flattened(ours.state)
    others = [p for group in theirs.param_groups for p in group["params"]] + flattened(theirs.state)
    for a, b in zip(arrays, others, strict=True):
        assert_same_bits(a, b)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_scaled_steps(cp: Any, max_norm: float | None) -> None:
    def run(place: Any) -> tuple[Any, list[Any]]:
        optimizer = fo.optim.SGD(groups(place), lr=0.1, max_norm=max_norm, ema_decay=0.9)
        scaler, found = fo.GradScaler(init_scale=64.0, growth_interval=2), []
        for t in range(6):
            scale = scaler.get_scale()
            grads = gradients(place, t, scale=scale)
            if t == 3:
                grads[1][1][1000] = np.nan
            found.append((scale, scaler.step(optimizer, grads), optimizer.grad_norm))
            scaler.update()
        assert [ran for _, ran, _ in found] == [True, True, True, False, True, True]
        return optimizer, found

    assert_like_the_cpu(cp, run)


def test_unscaled_in_place(cp: Any) -> None:
    w, g = cp.zeros(7, np.float32), cp.full(7, 8.0, np.float32)
    optimizer, scaler = fo.optim.SGD([w], lr=1.0), fo.GradScaler(init_scale=4.0)
    assert float(scaler.scale(cp.asarray(2.0))) == 8.0
    scaler.unscale_(optimizer, [g])
    np.testing.assert_array_equal(g.get(), 2.0)
    assert scaler.step(optimizer, [g])
    np.testing.assert_array_equal(w.get(), -2.0)
    scaler.update()
    g[3] = np.inf
    scaler.unscale_(optimizer, [g])
    assert not scaler.step(optimizer, [g])
    np.testing.assert_array_equal(w.get(), -2.0)


def test_scaled_steps_of_torch_tensors(kind: str, cp: Any) -> None:
    pytest.importorskip("torch")
    w = host_gpu.torch_tensor(kind, np.ones(33, np.float32))
    optimizer, scaler = fo.optim.SGD([w], lr=1.0, max_norm=100.0), fo.GradScaler(init_scale=4.0)
    g = host_gpu.torch_tensor(kind, np.full(33, 2.0, np.float32))
    scaler.get_scale()
    assert scaler.step(optimizer, [g])
    np.testing.assert_array_equal(w.cpu().numpy(), 0.5)
    assert float(optimizer.grad_norm) == pytest.approx(0.5 * 33**0.5)
    scaler.update()
    g[5] = np.nan
    assert not scaler.step(optimizer, [g])
    np.testing.assert_array_equal(w.cpu().numpy(), 0.5)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_accumulated_steps(cp: Any, dtype: str) -> None:
    def run(place: Any) -> tuple[Any, list[Any]]:
        optimizer = fo.optim.SGD(groups(place, dtype), lr=0.1, max_norm=0.5, accumulate=3)
        norms = []
        for t in range(8):
            optimizer.step(gradients(place, t, dtype))
            norms.append(None if optimizer.grad_norm is None else float(optimizer.grad_norm))
        waiting = optimizer.state_dict()
        assert waiting["accumulated"]["count"] == 2
        optimizer.load_state_dict(waiting)
        optimizer.step([[None], gradients(place, 8, dtype)[1]])
        return optimizer, norms

    assert_like_the_cpu(cp, run)


KINDS = [
    {"max_norm": 0.5, "clip_scope": "group"},
    {"max_norm": 0.5, "clip_scope": "parameter"},
    {"max_norm": 0.5, "norm_type": 1.0},
    {"max_norm": 0.5, "norm_type": np.inf},
    {"adaptive_clip": 0.1},
    {"adaptive_clip": 0.1, "state_dtype": "bfloat16"},
]


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(map(str, kinds.values())))
def test_kinds_of_clipping(cp: Any, kinds: dict[str, Any], scaled: bool) -> None:
    """Two rules, of which one has two groups; units of a matrix. Without a scale nothing waits for the device."""
    shapes = [(5,), (33, 9), (1023,), (3, 2, 2)]

    def run(place: Any) -> tuple[Any, list[Any]]:
        params = [place(drawn(shape, np.float32, k)) for k, shape in enumerate(shapes)]
        own: dict[str, Any] = {"max_norm": None} if "clip_scope" in kinds else {}
        groups = [
            {"params": params[:2]},
            {"params": params[2:3], "momentum": 0.9},
            {"params": params[3:], **own},
        ]
        optimizer = fo.optim.SGD(groups, lr=0.1, **kinds)
        scaler, norms = fo.GradScaler(init_scale=32.0), []
        for t in range(3):
            scale = scaler.get_scale() if scaled else 1.0
            grads = [
                place(np.float32(scale) * drawn(s, np.float32, 10 * t + k)) for k, s in enumerate(shapes)
            ]
            nested = [[grads[0], None if t == 1 else grads[1]], grads[2:3], grads[3:]]
            if scaled:
                assert scaler.step(optimizer, nested)
                scaler.update()
            else:
                optimizer.step(nested)
            norms.append(float(optimizer.grad_norm))
        return optimizer, norms

    assert_like_the_cpu(cp, run)


def test_kinds_of_clipping_of_torch_tensors(kind: str, cp: Any) -> None:
    pytest.importorskip("torch")
    for kinds in KINDS:
        w = drawn((7, 5), np.float32, 1)
        ours, host = host_gpu.torch_tensor(kind, w), w.copy()
        g = drawn((7, 5), np.float32, 2)
        fo.optim.SGD([ours], lr=1.0, **kinds).step([host_gpu.torch_tensor(kind, g)])
        fo.optim.SGD([host], lr=1.0, **kinds).step([g])
        np.testing.assert_allclose(ours.cpu().numpy(), host, rtol=1e-6)


def test_a_factor_for_each_tensor_is_checked(cp: Any) -> None:
    w = cp.zeros((4, 3), np.float32)
    plan = _device.native().StepPlan("sgd", [w], [], parts=[4])
    coefs, stream = np.zeros((1, 8)), cp.cuda.get_current_stream().ptr
    coefs[0, [0, 1, 4, 5]] = 1.0, np.inf, 1.0, 1.0
    g = cp.ones((4, 3), np.float32)
    with pytest.raises(
        TypeError, match=r"scale is float64 of shape \(3,\), expected float64 of shape \(4,\)"
    ):
        plan.step([g], coefs, None, stream, None, None, cp.ones(3))
    plan.step([g], coefs, None, stream, None, None, cp.asarray(np.arange(4.0)))
    np.testing.assert_array_equal(w.get(), -np.repeat(np.arange(4.0)[:, None], 3, 1))
