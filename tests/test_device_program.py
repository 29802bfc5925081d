"""The native program over device arrays: what `_core.Program` does, on a device or over host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import host_gpu
from fastopt import _core, _device

Array = npt.NDArray[Any]

SAMPLES, BATCH, IN, HIDDEN, OUT = 50, 8, 5, 9, 4
STEPS = -(-SAMPLES // BATCH)


@pytest.fixture(params=["device", "host"])
def cupy(request: pytest.FixtureRequest) -> Iterator[Any]:
    with host_gpu.cupy_on(request.param) as cupy:
        yield cupy


def program(module: Any, array: Callable[[Array], Any], precision: Any) -> tuple[list[Any], Any]:
    """Two linear layers under Adam, and their parameters."""
    rng = np.random.default_rng(1)
    shapes = [(HIDDEN, IN), (HIDDEN,), (OUT, HIDDEN), (OUT,)]
    params = [array(0.3 * rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    states = [[array(np.zeros(shape, np.float32)) for shape in shapes] for _ in range(2)]
    plan = module.StepPlan("adam", params, states)
    parameters = [(p, None, 0, i, 0) for i, p in enumerate(params)]
    layers = [
        ("linear", IN, HIDDEN, parameters[0], parameters[1], "relu", (), False, None),
        ("linear", HIDDEN, OUT, parameters[2], parameters[3], "", (), False, None),
    ]
    loss = ("cross_entropy", (), "mean", None, -100, 0.0)
    return params, module.Program("float32", precision, layers, loss, [(plan, 1, None)])


def data() -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(SAMPLES, IN)).astype(np.float32)
    row = [1.0, np.inf, 0.0, 0.0, 0.01, 1.0, 0.0, 1.0] + [0.5] * len(_core.rules()["adam"]["coefs"])
    return x, rng.integers(0, OUT, SAMPLES), rng.permutation(SAMPLES), np.tile(np.array(row), (STEPS, 1))


def close(got: Array, want: Array) -> bool:
    return bool(np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max()))


def test_runs_steps_and_outputs_are_those_of_the_cpu(cupy: Any) -> None:
    x, y, order, coefs = data()
    params, cpu = program(_core, np.copy, False)
    device_params, device = program(_device.native(), cupy.asarray, None)
    device_x, device_y = cupy.asarray(x), cupy.asarray(y)
    for _ in range(2):
        args: Any = (order, 0, SAMPLES, BATCH, STEPS, None, None, [], 3, 0, coefs, np.inf)
        want, _ = cpu.run("run", x, y, *args)
        got, _ = device.run("run", device_x, device_y, *args, 0)
        assert close(got, want)
    want = cpu.step_plain(x[:BATCH], y[:BATCH], coefs[0])
    assert close(device.step_plain(device_x[:BATCH], device_y[:BATCH], coefs[0], 0), want)
    assert device.steps == cpu.steps == 2 * STEPS + 1
    out = cupy.empty((SAMPLES, OUT), np.float32)
    device.predict(device_x, 16, out, 0)
    assert close(cupy.asnumpy(out), cpu.predict(x, 16))
    for p, device_p in zip(params, device_params, strict=True):
        assert close(cupy.asnumpy(device_p), p)


def test_a_refused_call_changes_nothing(cupy: Any) -> None:
    x, y, order, coefs = data()
    params, device = program(_device.native(), cupy.asarray, None)
    before = [cupy.asnumpy(p) for p in params]
    args: Any = (order, 0, SAMPLES, BATCH, STEPS, None, None, [], 3, 0, coefs, np.inf, 0)
    bad = y.copy()
    bad[33] = OUT
    x_there, y_there, bad_there = cupy.asarray(x), cupy.asarray(y), cupy.asarray(bad)
    message = r"run: target\[33\] is 4, input has 4 classes"
    with pytest.raises(ValueError, match=message):
        device.run("run", x_there, bad_there, *args)
    with pytest.raises(ValueError, match=message):
        device.check_classes("run", bad_there, 0)
    with pytest.raises(TypeError, match=r"run: x is numpy\.ndarray, expected an array on a CUDA device"):
        device.run("run", x, y_there, *args)
    with pytest.raises(TypeError, match="run: x is float64, the model is float32"):
        device.run("run", cupy.asarray(x.astype(np.float64)), y_there, *args)
    with pytest.raises(ValueError, match="precision is 'f8'"):
        program(_device.native(), cupy.asarray, "f8")
    assert device.step_plain(x, y_there, coefs[0], 0) is None
    assert device.step_plain(x_there, bad_there, coefs[0], 0) is None
    assert device.steps == 0
    for p, old in zip(params, before, strict=True):
        assert np.array_equal(cupy.asnumpy(p), old)
