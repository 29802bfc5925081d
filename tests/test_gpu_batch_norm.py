"""Batch normalisation on a GPU: kernels and function against the CPU's, models moved there, compiled steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
import reference as ref
from cases import BATCH_NORM_SHAPES
from fastopt import _ops, functional, nn
from gpu_tools import assert_as_accurate, assert_same_bits, cp, drawn, fused, kind, unaligned

__all__ = ["cp", "fused", "kind"]

pytestmark = pytest.mark.usefixtures("fused")

#: Of few blocks, of many bands of rows, and of more tiles of columns than there are counts.
SHAPES = [*[s for s in BATCH_NORM_SHAPES if np.prod(s) < 40_000], (700, 33), (260, 530)]


def numbers(channels: int, dtype: Any) -> list[np.ndarray]:
    """Weight, bias, running mean and running variance."""
    var = np.random.default_rng(4).uniform(0.5, 2, channels).astype(dtype)
    return [drawn(channels, dtype, 1), drawn(channels, dtype, 2), drawn(channels, dtype, 3), var]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_and_gradients(cp: Any, dtype: Any, training: bool) -> None:
    for shape in SHAPES:
        x, dy = drawn(shape, dtype, 5) + dtype(2), drawn(shape, dtype, 6)
        given = numbers(shape[1], dtype)
        host, device = [a.copy() for a in given], [cp.asarray(a) for a in given]
        y, saved = _ops.batch_norm(x, *host, training, 0.25, 1e-3)
        dx, sums = _ops.batch_norm_grad(dy, x, saved, host[0], training)
        on = cp.asarray(x), cp.asarray(dy)
        z, kept = _ops.batch_norm(on[0], *device, training, 0.25, 1e-3)
        dz, totals = _ops.batch_norm_grad(on[1], on[0], kept, device[0], training)
        wide = [ref.wide(a) for a in (x, dy, *given)]
        exact = ref.batch_norm(*wide[:4], None if training else (wide[4], wide[5]), 1e-3)
        what = f"{shape} {np.dtype(dtype).name}"
        assert_as_accurate(z, y, exact["y"], what)
        assert_as_accurate(totals, sums, np.stack([exact["dweight"], exact["dbias"]]), what)
        scale = exact["dx"] if np.prod(shape) > 2 * shape[1] else np.abs(exact["dx"]) + 1
        np.testing.assert_allclose(
            dz.get(), dx, rtol=1e-4, atol=1e-5 * float(np.abs(scale).max()), err_msg=what
        )
        if training:
            assert_as_accurate(device[2], host[2], 0.25 * exact["mean"] + 0.75 * wide[4], what)
            assert_as_accurate(device[3], host[3], 0.25 * exact["var"] + 0.75 * wide[5], what)
        else:  # with the same statistics the bits are the same
            assert_same_bits(z, y, what)
            assert_same_bits(dz, dx, what)
            assert_same_bits(device[3], host[3], what)


def test_the_passes_have_the_bits_of_the_cpu(cp: Any) -> None:
    """Given what the CPU has saved, the gradient differs only by the sums; of sums that are exact not at all."""
    x = np.random.default_rng(1).integers(-8, 9, (64, 37)).astype(np.float64)
    dy = np.random.default_rng(2).integers(-8, 9, (64, 37)).astype(np.float64)
    weight = drawn(37, np.float64, 3)
    saved = np.stack([np.arange(37.0) % 5, np.full(37, 0.5), np.ones(37)])
    dx, sums = _ops.batch_norm_grad(dy, x, saved, weight, True)
    for place in (cp.asarray, lambda a: unaligned(cp, a)):
        dz, totals = _ops.batch_norm_grad(place(dy), place(x), cp.asarray(saved), cp.asarray(weight), True)
        assert_same_bits(dz, dx)
        assert_same_bits(totals, sums)


def test_any_layout_and_only_what_is_wanted(cp: Any) -> None:
    x, dy = drawn((6, 8), np.float32, 1), drawn((6, 8), np.float32, 2)
    y, saved = _ops.batch_norm(cp.asarray(x)[:, ::2], None, None, None, None, True, 0.0, 1e-5)
    z, _ = _ops.batch_norm(cp.asarray(x[:, ::2].copy()), None, None, None, None, True, 0.0, 1e-5)
    assert_same_bits(y, z.get())
    part = cp.asarray(dy)[:, ::2], cp.asarray(x)[:, ::2], saved, None, True
    dx, sums = _ops.batch_norm_grad(*part)
    assert _ops.batch_norm_grad(*part, (False, False)) == (None, None)
    assert_same_bits(_ops.batch_norm_grad(*part, (True, False))[0], dx.get())
    assert_same_bits(_ops.batch_norm_grad(*part, (False, True))[1], sums.get())


def test_arrays_that_are_apart_or_do_not_fit_are_refused(cp: Any) -> None:
    x, mean, var = cp.asarray(drawn((4, 3), np.float32, 1)), cp.zeros(3, np.float32), cp.ones(3, np.float32)
    with pytest.raises(
        TypeError, match=r"running_mean is numpy\.ndarray, other arguments are on a CUDA device"
    ):
        functional.batch_norm(x, mean.get(), var.get(), training=True)
    with pytest.raises(ValueError, match="1 value per channel"):
        functional.batch_norm(x[:1], mean, var, training=True)
    np.testing.assert_array_equal(mean.get(), 0)


def model_of(device: str = "cpu", momentum: float | None = 0.1) -> nn.Sequential:
    fo.manual_seed(3)
    layers = [nn.BatchNorm1d(7), nn.Linear(7, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU()]
    layers += [nn.Linear(16, 6), nn.Tanh(), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4)]
    return nn.Sequential(*layers, nn.BatchNorm1d(4, track_running_stats=False)).double().to(device)


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {
        k: np.asarray(v.data.get() if hasattr(v.data, "get") else v.data)
        for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}], ids=str)
def test_training_is_that_of_the_cpu(cp: Any, momentum: float | None, options: dict[str, Any]) -> None:
    x, y = drawn((60, 7), np.float64, 1), np.random.default_rng(2).integers(0, 4, 60)
    found = []
    for device, is_compiled in (("cpu", True), ("cuda", False), ("cuda", True)):
        model = model_of(device, momentum)
        opt = fo.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, **options)
        loss_fn = nn.CrossEntropyLoss()
        a, b = (x, y) if device == "cpu" else (cp.asarray(x), cp.asarray(y))
        if is_compiled:
            step = fo.compile(model, loss_fn, opt)
            step.run(a, b, batch_size=12, epochs=4)
            step(a[:9], b[:9])
            out = step.predict(a)
        else:
            for k in range(21):
                rows = slice(0, 9) if k == 20 else slice(k % 5 * 12, k % 5 * 12 + 12)
                opt.zero_grad()
                loss_fn(model(a[rows]), b[rows]).backward()
                opt.step()
            out = model.eval()(a).data
        found.append((state(model), np.asarray(out.get() if hasattr(out, "get") else out)))
    (numbers_, out), *others = found
    assert int(numbers_["2.num_batches_tracked"]) == 21
    for theirs, z in others:
        for name, value in theirs.items():
            np.testing.assert_allclose(value, numbers_[name], rtol=1e-9, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(z, out, rtol=1e-9, atol=1e-11)


def test_models_move_with_their_buffers(cp: Any) -> None:
    model = model_of()
    model(drawn((8, 7), np.float64, 1))
    before = state(model)
    model.to("cuda")
    assert all(type(b.data) is cp.ndarray for b in model.buffers())
    model.to("cpu")
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_run_that_stops_tracks_nothing(cp: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to("cuda")
    step = fo.compile(model, nn.BCELoss(), fo.optim.SGD(model.parameters(), lr=0.1))
    before = state(model)
    x = cp.asarray(drawn((6, 3), np.float32, 1))
    with pytest.raises(ValueError, match="expected a probability"):
        step(x, cp.zeros((6, 2), np.float32))
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
