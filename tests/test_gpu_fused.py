"""Compiled steps on a device whose products update weights by plain gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from gpu_tools import assert_same_bits, cp, drawn, kind

__all__ = ["cp", "kind"]

ROWS, INSIDE, OUTSIDE = 48, 20, 5


def _trained(dtype: str, place: Any, fuse: Any, classes: bool, **options: Any) -> list[np.ndarray]:
    """The parameters after two epochs; `place` puts arrays and the model where they are to be."""
    fo.manual_seed(3)
    model = fo.nn.Sequential(fo.nn.Linear(INSIDE, 16), fo.nn.Tanh(), fo.nn.Linear(16, OUTSIDE))
    model.to(dtype)
    place.model(model)
    x = place.array(drawn((ROWS, INSIDE), dtype, 1))
    y = np.random.default_rng(2).integers(0, OUTSIDE, ROWS) if classes else drawn((ROWS, OUTSIDE), dtype, 2)
    loss = fo.nn.CrossEntropyLoss() if classes else fo.nn.MSELoss()
    groups = [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:], "lr": 0.05}]
    step = fo.compile(model, loss, fo.optim.SGD(groups, lr=0.1, **options), fuse_update=fuse)
    step.run(x, place.array(y), batch_size=16, epochs=2, shuffle=False)
    return [np.asarray(p.data.get() if hasattr(p.data, "get") else p.data) for p in model.parameters()]


class OnHost:
    def model(self, model: Any) -> None:
        """It is there."""

    def array(self, a: np.ndarray) -> np.ndarray:
        return a


class OnDevice:
    def __init__(self, cp: Any) -> None:
        self.array = cp.asarray

    def model(self, model: Any) -> None:
        model.to("cuda")


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}])
@pytest.mark.parametrize("classes", [False, True])
def test_products_that_update_are_as_accurate_as_steps(
    cp: Any, classes: bool, options: dict[str, Any]
) -> None:
    """The error against float64 is at most twice that of the CPU, whose update is a step of its own."""
    exact = _trained("float64", OnHost(), "auto", classes, **options)
    plain = _trained("float32", OnHost(), "auto", classes, **options)
    apart = _trained("float32", OnDevice(cp), False, classes, **options)
    fused = _trained("float32", OnDevice(cp), "auto", classes, **options)
    for ours, other, theirs, want in zip(fused, apart, plain, exact, strict=True):
        allowed = 2 * np.abs(theirs - want).max() + 1e-6 * np.abs(want).max()
        assert np.abs(ours - want).max() <= allowed
        assert np.abs(other - want).max() <= allowed
    assert any(not np.array_equal(a, b) for a, b in zip(fused, apart, strict=True))  # another path


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"l1": 0.01}, {"clip_value": 0.1}, {"max_norm": 1.0}])
def test_what_is_no_plain_descent_is_left_alone(cp: Any, options: dict[str, Any]) -> None:
    fused, apart = (_trained("float32", OnDevice(cp), fuse, False, **options) for fuse in ("auto", False))
    for a, b in zip(fused, apart, strict=True):
        assert_same_bits(a, b)


def test_a_step_with_a_class_out_of_range_changes_nothing(cp: Any) -> None:
    """Its inputs are such that it would show."""
    model = fo.nn.Sequential(fo.nn.Linear(INSIDE, OUTSIDE)).to("cuda")
    step = fo.compile(model, fo.nn.CrossEntropyLoss(), fo.optim.SGD(model.parameters(), lr=0.1))
    x, y = drawn((ROWS, INSIDE), np.float32, 1), np.zeros(ROWS, np.int64)
    x[40:] = np.nan
    y[42] = OUTSIDE
    x, y = cp.asarray(x), cp.asarray(y)
    with pytest.raises(ValueError, match=r"target\[42\] is 5"):
        step.run(x, y, batch_size=8, epochs=1, shuffle=False)
    before = model[0].weight.data.get()
    assert np.isfinite(before).all()
    with pytest.raises(ValueError, match=r"target\[2\] is 5"):
        step(x[40:], y[40:])
    with pytest.raises(ValueError, match=r"target\[2\] is 5"):
        step.run(x[40:], y[40:], batch_size=4, epochs=1, shuffle=False)
    assert_same_bits(model[0].weight.data, before)
