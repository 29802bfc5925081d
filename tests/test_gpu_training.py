"""Models on a GPU: moved there, trained step by step and compiled, saved and loaded; the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from gpu_tools import cp, drawn, kind

__all__ = ["cp", "kind"]

ROWS, INSIDE, OUTSIDE = 48, 20, 5


def _data() -> tuple[np.ndarray, np.ndarray]:
    return drawn((ROWS, INSIDE), np.float32, 1), np.random.default_rng(2).integers(0, OUTSIDE, ROWS)


def _model(dropout: float = 0.0) -> fo.nn.Sequential:
    fo.manual_seed(3)
    layers = [fo.nn.Linear(INSIDE, 16), fo.nn.ReLU()]
    layers += [fo.nn.Dropout(dropout)] if dropout else []
    return fo.nn.Sequential(*layers, fo.nn.Linear(16, OUTSIDE))


def _numbers(model: Any) -> list[np.ndarray]:
    return [np.asarray(p.data.get() if hasattr(p.data, "get") else p.data) for p in model.parameters()]


def _train(model: Any, x: Any, y: Any, steps: int = 12, batch: int = 16) -> list[float]:
    """Losses of eager steps."""
    loss_fn, opt = fo.nn.CrossEntropyLoss(), fo.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    fo.manual_seed(9)
    for t in range(steps):
        first = t * batch % ROWS
        opt.zero_grad()
        loss = loss_fn(model(x[first : first + batch]), y[first : first + batch])
        loss.backward()
        opt.step()
        losses.append(float(loss.item()))
    return losses


def test_a_model_moves_there_and_back(cp: Any) -> None:
    model = _model()
    before = _numbers(model)
    assert model.to("cuda") is model
    assert all(type(p.data) is cp.ndarray for p in model.parameters())
    for a, b in zip(_numbers(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.to("cpu")
    assert all(isinstance(p.data, np.ndarray) for p in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_follows_the_cpu(cp: Any, dropout: float) -> None:
    x, y = _data()
    host, device = _model(dropout), _model(dropout).to("cuda")
    expected = _train(host, x, y)
    got = _train(device, cp.asarray(x), cp.asarray(y))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for a, b in zip(_numbers(device), _numbers(host), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert expected[-1] < expected[0]


def test_a_compiled_step_follows_the_eager_one(cp: Any) -> None:
    x, y = map(cp.asarray, _data())
    eager, compiled = _model().to("cuda"), _model().to("cuda")
    expected = _train(eager, x, y)
    opt = fo.optim.Adam(compiled.parameters(), lr=0.01)
    step = fo.compile(compiled, fo.nn.CrossEntropyLoss(), opt)
    got = [float(step(x[t * 16 % ROWS :][:16], y[t * 16 % ROWS :][:16])) for t in range(12)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for a, b in zip(_numbers(compiled), _numbers(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_many_compiled_steps_in_a_call(cp: Any) -> None:
    x, y = _data()
    host, device = _model(), _model().to("cuda")
    runs = [
        fo.compile(model, fo.nn.CrossEntropyLoss(), fo.optim.Adam(model.parameters(), lr=0.01))
        for model in (host, device)
    ]
    runs[0].run(x, y, batch_size=16, epochs=4, shuffle=False)
    runs[1].run(cp.asarray(x), cp.asarray(y), batch_size=16, epochs=4, shuffle=False)
    for a, b in zip(_numbers(device), _numbers(host), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_state_goes_through_the_host(cp: Any, tmp_path: Path) -> None:
    x, y = map(cp.asarray, _data())
    model = _model().to("cuda")
    _train(model, x, y, steps=3)
    other = _model()
    other.load_state_dict({k: v.detach().cpu() for k, v in model.state_dict().items()})
    for a, b in zip(_numbers(model), _numbers(other), strict=True):
        np.testing.assert_array_equal(a, b)
    model.load_state_dict(other.state_dict())
    assert all(type(p.data) is cp.ndarray for p in model.parameters())


def test_the_command_line_trains_on_the_device(cp: Any, kind: str) -> None:
    if kind != "device":
        pytest.skip("another process has no stand-in")
    command = [sys.executable, "-m", "fastopt", "train", "digits", "--epochs", "3", "--json"]
    done = [
        subprocess.run([*command, *more], capture_output=True, text=True)
        for more in ([], ["--device", "cuda"])
    ]
    assert [d.returncode for d in done] == [0, 0], done[1].stderr
    host, device = (json.loads(d.stdout.strip().splitlines()[-1]) for d in done)
    assert abs(host["test_accuracy"] - device["test_accuracy"]) < 0.02
