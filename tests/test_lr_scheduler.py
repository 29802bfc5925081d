"""The schedules: closed forms against the references and torch, resuming, errors."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from cases import SCHEDULERS
from fastopt import optim
from fastopt.optim import lr_scheduler
from reference_optim import SCHEDULES

STEPS = 60
ROWS = [(name, row) for name in SCHEDULERS for row in range(len(SCHEDULERS[name]["options"]))]
BY_STEP = [(name, row) for name, row in ROWS if name != "ReduceLROnPlateau"]


def split(name, row):
    """The class of the optimizer, its settings, and the arguments of the schedule."""
    options = dict(SCHEDULERS[name]["options"][row])
    kind = options.pop("optimizer", "SGD")
    return kind, {"lr": 0.2, **({"momentum": 0.9} if kind == "SGD" else {})}, options


def make(name, row, package=None):
    """The schedule of a row with its optimizer, ours or torch's."""
    kind, settings, options = split(name, row)
    if package is None:
        opt = getattr(optim, kind)([np.zeros(2)], **settings)
        return opt, getattr(lr_scheduler, name)(opt, **options)
    opt = getattr(package.optim, kind)([package.zeros(2)], **settings)
    return opt, getattr(package.optim.lr_scheduler, name)(opt, **options)


def rates(opt):
    """What a schedule moves: the rate and the momentum."""
    group = opt.param_groups[0]
    return [float(group["lr"]), float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))]


def metrics():
    rng = np.random.default_rng(3)
    return 1.0 / (1.0 + np.arange(STEPS) // 4) + 0.02 * rng.standard_normal(STEPS)


@pytest.mark.parametrize(("name", "row"), [(n, r) for n, r in ROWS if n in SCHEDULES])
def test_matches_the_formula(name, row):
    _, _, options = split(name, row)
    opt, scheduler = make(name, row)
    for t in range(STEPS + 1):
        expected = SCHEDULES[name](0.2, t, **options)
        assert opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert scheduler.get_last_lr() == [opt.param_groups[0]["lr"]] == scheduler.lr_at(t)
        assert scheduler.last_epoch == t
        scheduler.step()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*optimizer.step")
@pytest.mark.parametrize(("name", "row"), [(n, r) for n, r in ROWS if n != "WarmupCosineLR"])
def test_matches_torch(name, row):
    torch = pytest.importorskip("torch")
    (opt, scheduler), (theirs, peer) = make(name, row), make(name, row, torch)
    signal = metrics() if name == "ReduceLROnPlateau" else None
    for t in range(STEPS):
        assert rates(opt) == pytest.approx(rates(theirs), rel=1e-10, abs=1e-13), f"step {t}"
        theirs.step()
        args = [] if signal is None else [signal[t]]
        scheduler.step(*args)
        peer.step(*args)
        assert scheduler.get_last_lr() == pytest.approx(peer.get_last_lr(), rel=1e-10, abs=1e-13)
    assert rates(opt) == pytest.approx(rates(theirs), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_resume_is_exact(name, row):
    signal = metrics()

    def drive(opt, scheduler, steps):
        seen = []
        for t in steps:
            scheduler.step(*([signal[t]] if name == "ReduceLROnPlateau" else []))
            seen.append(rates(opt))
        return seen

    whole = drive(*make(name, row), range(STEPS))
    opt, scheduler = make(name, row)
    drive(opt, scheduler, range(23))
    saved, at_23 = json.loads(json.dumps(scheduler.state_dict())), rates(opt)
    opt, scheduler = make(name, row)
    scheduler.load_state_dict(saved)
    assert rates(opt) == at_23
    assert drive(opt, scheduler, range(23, STEPS)) == whole[23:]


@pytest.mark.parametrize(("name", "row"), BY_STEP)
def test_resume_by_step_number_is_exact(name, row):
    opt, scheduler = make(name, row)
    for _ in range(17):
        scheduler.step()
    _, _, options = split(name, row)
    again = copy.deepcopy(opt)
    resumed = getattr(lr_scheduler, name)(again, **options, last_epoch=16)
    for _ in range(30):
        assert rates(again) == rates(opt)
        assert resumed.last_epoch == scheduler.last_epoch
        scheduler.step()
        resumed.step()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [(name, *error) for name in SCHEDULERS for error in SCHEDULERS[name]["errors"]],
)
def test_settings_that_are_refused(name, options, message):
    options = dict(options)
    kind = options.pop("optimizer", "SGD")
    opt = getattr(optim, kind)([np.zeros(2)], lr=0.2)
    before = dict(opt.param_groups[0])
    with pytest.raises((TypeError, ValueError), match=name + ": .*" + message):
        getattr(lr_scheduler, name)(opt, **options)
    assert {k: v for k, v in opt.param_groups[0].items() if k != "params"} == {
        k: v for k, v in before.items() if k != "params"
    }


@pytest.mark.parametrize("name", SCHEDULERS)
def test_optimizer_is_checked(name):
    options = {k: v for k, v in SCHEDULERS[name]["options"][0].items() if k != "optimizer"}
    with pytest.raises(TypeError, match=name + ": optimizer is list, expected a fastopt optimizer"):
        getattr(lr_scheduler, name)([np.zeros(2)], **options)


def test_groups_have_their_own_rates():
    groups = [{"params": [np.zeros(1)], "lr": 0.1}, {"params": [np.zeros(1)], "lr": 0.4}]
    opt = optim.SGD(groups, momentum=0.9)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    scheduler.step()
    assert [g["lr"] for g in opt.param_groups] == [0.05, 0.2] == scheduler.get_last_lr()
    cycle = lr_scheduler.OneCycleLR(opt, [1.0, 2.0], total_steps=10, base_momentum=[0.5, 0.6])
    for _ in range(2):
        cycle.step()
    assert [g["lr"] for g in opt.param_groups] == [1.0, 2.0]
    assert [g["momentum"] for g in opt.param_groups] == [0.5, 0.6]
    by_group = lr_scheduler.LambdaLR(opt, [lambda t: 1.0, lambda t: t])
    assert by_group.lr_at(3) == [0.04, 2 / 25 * 3]
    with pytest.raises(ValueError, match="LambdaLR: lr_lambda has 1 entries, the optimizer has 2 groups"):
        lr_scheduler.LambdaLR(opt, [lambda t: 1.0])
    one = optim.SGD([np.zeros(1)])
    with pytest.raises(ValueError, match="base_lrs has 2 entries, the optimizer has 1 groups"):
        lr_scheduler.ExponentialLR(one, 0.5).load_state_dict(scheduler.state_dict())
    plateau = lr_scheduler.ReduceLROnPlateau(opt).state_dict()
    with pytest.raises(ValueError, match="_last_lr has 2 entries, the optimizer has 1 groups"):
        lr_scheduler.ReduceLROnPlateau(one).load_state_dict(plateau)


@pytest.mark.parametrize("name", ["ExponentialLR", "LambdaLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_a_group_added_later_is_refused_by_number(name):
    opt, scheduler = make(name, 0)
    opt.add_param_group({"params": [np.zeros(1)], "lr": 0.7})
    before = rates(opt), scheduler.state_dict()
    with pytest.raises(
        RuntimeError, match=f"{name}: the optimizer has 2 groups, the schedule was made for 1"
    ):
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert (rates(opt), scheduler.state_dict()) == before
    assert opt.param_groups[1]["lr"] == 0.7


def test_counts_may_be_numpy_integers():
    opt = optim.SGD([np.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, np.int64(2))
    for _ in range(3):
        scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.1
    assert json.loads(json.dumps(scheduler.state_dict()))["step_size"] == 2


def test_continuing_needs_the_initial_rate():
    with pytest.raises(
        ValueError, match=r"StepLR: last_epoch is 3 and param_groups\[0\] has no 'initial_lr'"
    ):
        lr_scheduler.StepLR(optim.SGD([np.zeros(1)]), 2, last_epoch=3)


def test_one_cycle_ends():
    opt = optim.SGD([np.zeros(1)])
    scheduler = lr_scheduler.OneCycleLR(opt, 1.0, total_steps=4, cycle_momentum=False)
    for _ in range(4):
        scheduler.step()
    before = opt.param_groups[0]["lr"], scheduler.last_epoch
    with pytest.raises(ValueError, match="OneCycleLR: step 5 is beyond total_steps 4"):
        scheduler.step()
    assert (opt.param_groups[0]["lr"], scheduler.last_epoch) == before
    assert before[1] == 4


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 1.0])
def test_one_cycle_with_an_empty_phase(pct_start):
    opt = optim.SGD([np.zeros(1)])
    scheduler = lr_scheduler.OneCycleLR(opt, 1.0, total_steps=10, pct_start=pct_start, cycle_momentum=False)
    peak = max(scheduler.lr_at(t)[0] for t in range(10))
    assert all(math.isfinite(scheduler.lr_at(t)[0]) for t in range(11))
    assert 0.9 < peak <= 1.0


def test_fractional_epochs():
    opt = optim.SGD([np.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=2, T_mult=2)
    for epoch in (0.5, 1.5, 2.0, 3.0, 5.75, 7.0):
        scheduler.step(epoch)
        start, length = ((0, 2), (2, 4), (6, 8))[sum(epoch >= b for b in (2, 6))]
        expected = (1 + math.cos(math.pi * (epoch - start) / length)) / 2
        assert opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-14)
        assert scheduler.last_epoch == int(epoch)
        again = optim.SGD([np.zeros(1)], lr=1.0)
        resumed = lr_scheduler.CosineAnnealingWarmRestarts(again, T_0=2, T_mult=2)
        resumed.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
        assert again.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        scheduler.step(-1)


# ------------------------------------------------------------------------------------------- SequentialLR


def sequential(package_scheduler, opt):
    first = package_scheduler.LinearLR(opt, start_factor=0.1, total_iters=5)
    second = package_scheduler.CosineAnnealingLR(opt, T_max=10)
    third = package_scheduler.ExponentialLR(opt, gamma=0.9)
    return package_scheduler.SequentialLR(opt, [first, second, third], milestones=[5, 20])


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sequential_matches_torch():
    torch = pytest.importorskip("torch")
    opt, theirs = optim.SGD([np.zeros(1)], lr=0.3), torch.optim.SGD([torch.zeros(1)], lr=0.3)
    ours, peer = sequential(lr_scheduler, opt), sequential(torch.optim.lr_scheduler, theirs)
    for t in range(STEPS):
        assert opt.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), (
            f"step {t}"
        )
        theirs.step()
        ours.step()
        peer.step()


def test_sequential_is_its_parts():
    opt = optim.SGD([np.zeros(1)], lr=0.3)
    scheduler = sequential(lr_scheduler, opt)
    for t in range(40):
        if t < 5:
            expected = 0.3 * (0.1 + 0.9 * t / 5)
        elif t < 20:
            expected = 0.3 * (1 + math.cos(math.pi * (t - 5) / 10)) / 2
        else:
            expected = 0.3 * 0.9 ** (t - 20)
        assert opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-13)
        assert scheduler.lr_at(t) == scheduler.get_last_lr() == [opt.param_groups[0]["lr"]]
        scheduler.step()


def test_sequential_resumes_exactly():
    opt = optim.SGD([np.zeros(1)], lr=0.3)
    scheduler = sequential(lr_scheduler, opt)
    for _ in range(23):
        scheduler.step()
    saved = json.loads(json.dumps(scheduler.state_dict()))
    opt2 = optim.SGD([np.zeros(1)], lr=0.3)
    scheduler2 = sequential(lr_scheduler, opt2)
    scheduler2.load_state_dict(saved)
    for _ in range(20):
        assert opt2.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
        assert scheduler2.last_epoch == scheduler.last_epoch
        scheduler.step()
        scheduler2.step()


def test_sequential_errors():
    opt, other = optim.SGD([np.zeros(1)]), optim.SGD([np.zeros(1)])
    a, b = lr_scheduler.ConstantLR(opt), lr_scheduler.ConstantLR(opt)
    make = lr_scheduler.SequentialLR
    for args, error, message in [
        (([], []), ValueError, "schedulers is empty"),
        (([a, lr_scheduler.ReduceLROnPlateau(opt)], [3]), TypeError, r"schedulers\[1\] is ReduceLROnPlateau"),
        (([a, lr_scheduler.ConstantLR(other)], [3]), ValueError, r"schedulers\[1\] is of another optimizer"),
        (([a, b], [3, 4]), ValueError, "milestones has 2 entries, 2 schedulers need 1"),
        (([a, b, a], [4, 3]), ValueError, r"milestones must be positive and increasing, got \[4, 3\]"),
        (([a, b], [0]), ValueError, r"milestones must be positive and increasing, got \[0\]"),
    ]:
        with pytest.raises(error, match="SequentialLR: " + message):
            make(opt, *args)
    saved = make(opt, [a, b], [3]).state_dict()
    with pytest.raises(ValueError, match="2 schedulers were saved, here are 1"):
        make(opt, [a], []).load_state_dict(saved)


# ------------------------------------------------------------------------------------ state of functions


class Power:
    def __init__(self, base):
        self.base = base

    def __call__(self, t):
        return self.base**t


def test_lambda_objects_are_saved():
    opt = optim.SGD([np.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(opt, Power(0.5))
    scheduler.step()
    saved = json.loads(json.dumps(scheduler.state_dict()))
    assert saved["lr_lambdas"] == [{"base": 0.5}]
    opt2 = optim.SGD([np.zeros(1)], lr=1.0)
    scheduler2 = lr_scheduler.LambdaLR(opt2, Power(0.9))
    scheduler2.load_state_dict(saved)
    assert opt2.param_groups[0]["lr"] == 0.5
    assert lr_scheduler.LambdaLR(opt, lambda t: 1.0).state_dict()["lr_lambdas"] == [None]


def test_plateau_with_nan_counts_as_bad():
    opt = optim.SGD([np.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(opt, patience=1)
    scheduler.step(np.float32(0.5))
    scheduler.step(float("nan"))
    assert opt.param_groups[0]["lr"] == 1.0
    scheduler.step(float("nan"))
    assert opt.param_groups[0]["lr"] == pytest.approx(0.1)


def test_every_schedule_has_a_row():
    named = set(lr_scheduler.__all__) - {"LRScheduler", "SequentialLR", "ParamScheduler"}
    assert named == SCHEDULERS.keys()


def test_the_rate_reaches_the_step():
    p = np.zeros(1)
    opt = optim.SGD([p], lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    for _ in range(3):
        opt.step([np.ones(1)])
        scheduler.step()
    assert p[0] == -(1 + 0.5 + 0.25)


def test_cycled_beta1_reaches_the_step():
    p = np.zeros(1)
    opt = optim.Adam([p], lr=1.0)
    scheduler = lr_scheduler.CyclicLR(opt, 0.1, 0.1, step_size_up=1, base_momentum=0.0, max_momentum=0.5)
    opt.step([np.ones(1)])  # beta1 = 0.5: m = 0.5, corrected to 1
    scheduler.step()
    assert opt.param_groups[0]["betas"] == (0.0, 0.999)
    opt.step([np.full(1, 3.0)])  # beta1 = 0: m = 3
    v = (0.999 * 0.001 * 1 + 0.001 * 9) / (1 - 0.999**2)
    np.testing.assert_allclose(p, -0.1 - 0.1 * 3 / np.sqrt(v), rtol=1e-7)
