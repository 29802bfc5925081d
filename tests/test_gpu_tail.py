"""Scaled losses, accumulated gradients and kinds of clipping on a device: the bits of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
import host_gpu
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
    assert norms == expected
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
    assert optimizer.grad_norm == pytest.approx(0.5 * 33**0.5)
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


@pytest.mark.usefixtures("cp")
def test_what_a_compiled_step_leaves_to_the_optimizer_is_refused() -> None:
    model = fo.nn.Linear(3, 2).to("cuda")
    optimizer = fo.optim.SGD(model.parameters(), accumulate=2)
    with pytest.raises(
        ValueError, match="compile: accumulate is for compiled steps on the CPU and for eager ones"
    ):
        fo.compile(model, fo.nn.MSELoss(), optimizer)
