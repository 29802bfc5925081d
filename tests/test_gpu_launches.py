"""How many kernels a step is, scaled or not, eager or in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from gpu_tools import cp, fused, kind
from test_gpu_attempts import Twins, counted
from test_gpu_capture import captured, stream

__all__ = ["cp", "fused", "kind", "stream"]


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize(
    ("options", "scaled", "launches"),
    [
        ({}, False, 1),
        ({"max_norm": 0.5}, False, 2),
        ({}, True, 2),
        ({"max_norm": 0.5, "ema_decay": 0.9, "weight_decay": 0.1}, True, 2),
        ({"max_norm": 0.5, "state_dtype": "bfloat16", "rounding": "stochastic"}, True, 2),
    ],
)
@pytest.mark.usefixtures("fused", "stream")
def test_launches_of_a_step(
    cp: Any, kind: str, options: dict[str, Any], scaled: bool, launches: int, captures: bool
) -> None:
    """Two at most, whatever is done besides; coefficients travel with them, or go ahead of a graph."""
    twins = Twins(cp, "AdamW", {"lr": 0.01, **options})

    def step() -> None:
        twins.scaler.step(twins.ours, twins.room) if scaled else twins.ours.step(twins.room)

    if captures:
        twins.scaler.prepare_capture(twins.ours) if scaled else twins.ours.prepare_capture()
        with captured(cp) as graph:
            step()
    for turn in range(1, 6):
        twins.turn = turn if scaled else 1  # some are skipped
        grads = twins.draw()
        twins.other.step(twins.theirs, grads) if scaled else twins.theirs.step(grads)
        if captures:
            twins.ours.advance()
        before = kind == "host" and counted("kernels")
        graph.replay() if captures else step()
        # The first one makes room.
        assert kind != "host" or (turn == 1 and not captures) or counted("kernels") - before == launches
        if scaled:
            twins.scaler.update()
            twins.other.update()
    twins.check()


@pytest.mark.usefixtures("fused")
def test_more_coefficients_than_travel_with_a_launch(cp: Any, kind: str) -> None:
    """They go ahead of the attempt; of many rows at once, of few when the host is far ahead."""
    twins = Twins(cp, "AdamW", {"lr": 0.01}, lambda arrays: [{"params": [a]} for a in arrays])

    def nest(grads: list[Any]) -> list[list[Any]]:
        return [[g] for g in grads]

    twins.attempt(nest)
    twins.lag(20)
    launches = []
    for _ in range(6):
        before = kind == "host" and counted("kernels")
        twins.attempt(nest)
        launches.append(kind == "host" and counted("kernels") - before)
    # Three rows of 13 for each count that is possible; one launch more is that of update.
    assert kind != "host" or launches == [3, 3, 3, 3, 5, 5]
    twins.check()


@pytest.mark.usefixtures("fused", "stream")
def test_a_step_without_elements(cp: Any) -> None:
    """Of a parameter without elements, by itself and beside another of another rule."""
    empty, w = cp.zeros((0, 3), np.float32), cp.ones(2, np.float32)
    groups = ([empty], [{"params": [w]}, {"params": [empty], "momentum": 0.5}])
    grads = ([empty.copy()], [[cp.full(2, 8.0, np.float32)], [empty.copy()]])
    for params, gs in zip(groups, grads, strict=True):
        opt, scaler = fo.optim.SGD(params, lr=1.0, max_norm=10.0), fo.GradScaler(init_scale=8.0)
        scaler.get_scale()
        assert bool(scaler.step(opt, gs))
        scaler.update()
        scaler.prepare_capture(opt)
        with captured(cp) as graph:
            scaler.step(opt, gs)
            scaler.update()
        opt.advance()
        graph.replay()
        assert float(opt.grad_norm) == pytest.approx(2**0.5 if len(gs) == 2 else 0.0)
    np.testing.assert_array_equal(w.get(), -1.0)
