"""Schedules of any setting."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt import optim
from fastopt.optim.lr_scheduler import CosineAnnealingLR, ParamScheduler
from optim_tools import refuse


def groups():
    return [{"params": [np.zeros(3)]}, {"params": [np.zeros(2)], "weight_decay": 0.5}]


def test_any_setting_of_any_group():
    opt = optim.AdamW(groups(), lr=0.1, max_norm=1.0, clip_scope="group")
    schedule = ParamScheduler(
        opt,
        {
            "weight_decay": [lambda t: 0.01 * t, None],
            "betas": lambda t: (0.95 if t < 2 else 0.9, 0.999),
            "max_norm": lambda t: 1.0 + t,
            "lr": [None, lambda t: 0.2 / (1 + t)],
        },
    )
    for t in range(4):
        assert schedule.last_epoch == t
        first, second = opt.param_groups
        assert (first["weight_decay"], second["weight_decay"]) == (0.01 * t, 0.5)
        assert first["betas"] == second["betas"] == (0.95 if t < 2 else 0.9, 0.999)
        assert first["max_norm"] == 1.0 + t
        assert (first["lr"], second["lr"]) == (0.1, 0.2 / (1 + t))
        assert schedule.get_last_values()[1] == {
            "betas": second["betas"],
            "max_norm": 1.0 + t,
            "lr": second["lr"],
        }
        opt.step([[np.ones(3)], [np.ones(2)]])
        schedule.step()
    schedule.step(epoch=1.5)
    assert opt.param_groups[0]["weight_decay"] == 0.015
    assert schedule.last_epoch == 1


def run(steps, resume_at=None):
    """Parameters after training with two schedules, resumed on the way from what was saved."""

    def begin(p):
        opt = optim.AdamW([p], lr=0.1)
        rate = CosineAnnealingLR(opt, 10)
        decay = ParamScheduler(
            opt, {"weight_decay": lambda t: math.sin(t) ** 2, "eps": lambda t: 1e-8 * (t + 1)}
        )
        return opt, rate, decay

    p = np.ones(4)
    opt, rate, decay = begin(p)
    for t in range(steps):
        if t == resume_at:
            saved = [each.state_dict() for each in (opt, rate, decay)]
            p = p.copy()
            opt, rate, decay = begin(p)
            for each, state in zip((opt, rate, decay), saved, strict=True):
                each.load_state_dict(state)
        opt.step([np.cos(np.arange(4.0) + t)])
        rate.step()
        decay.step()
    return p


def test_a_resumed_run_has_the_same_bits():
    np.testing.assert_array_equal(run(8), run(8, resume_at=5))


def test_in_a_compiled_run():
    def trained(compiled):
        fo.manual_seed(1)
        model = fo.nn.Linear(3, 2)
        opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = ParamScheduler(
            opt, {"momentum": lambda t: 0.9 - 0.05 * t, "weight_decay": lambda t: 0.1 if t > 2 else 0.0}
        )
        x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
        y, loss_fn = x[:, :2].copy(), fo.nn.MSELoss()
        step = fo.compile(model, loss_fn, opt)
        if compiled:
            step.run(x, y, epochs=6, scheduler=schedule)
        else:
            for _ in range(6):
                step(x, y)
                schedule.step()
        assert schedule.last_epoch == 6
        return [p.numpy().copy() for p in model.parameters()]

    for a, b in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"momentum": lambda t: 0.9},
            ValueError,
            r"param_groups\[0\] has no setting 'momentum', it has \['adaptive",
        ),
        ({"params": lambda t: []}, ValueError, r"param_groups\[0\] has no setting 'params'"),
        ({"lr": 0.1}, TypeError, "lr is 0.1, expected a function of the step number"),
        ({"lr": [lambda t: 0.1]}, ValueError, "lr has 1 entries, the optimizer has 2 groups"),
        (
            {"lr": lambda t: 0.3, "weight_decay": lambda t: -1.0},
            ValueError,
            r"AdamW: weight_decay must be in \[0, inf\), got -1.0 in param_groups\[0\] after 0 steps",
        ),
    ],
)
def test_what_is_refused(settings, error, message):
    opt = optim.AdamW(groups())
    refuse(opt, lambda: ParamScheduler(opt, settings), message, error)


def test_what_is_refused_later():
    with pytest.raises(TypeError, match="ParamScheduler: optimizer is list, expected a fastopt optimizer"):
        ParamScheduler([], {})
    opt = optim.AdamW(groups())
    schedule = ParamScheduler(opt, {"weight_decay": lambda t: 0.5 - t})
    refuse(opt, schedule.step, "weight_decay must be in .* got -0.5 in .* after 1 steps")
    assert schedule.last_epoch == 0
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        schedule.step(-1)
    opt.add_param_group({"params": [np.zeros(1)]})
    with pytest.raises(RuntimeError, match="the optimizer has 3 groups, the schedule was made for 2"):
        schedule.step(0)
