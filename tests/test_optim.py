"""The optimizers: rules against the references and torch, groups, missing gradients, one native call."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import fastopt
from cases import OPTIMIZERS
from fastopt import _core, optim
from fastopt.optim.plans import parts, take_over
from optim_tools import (
    PEER_ROWS,
    ROWS,
    RULES,
    STEPS,
    TorchTwin,
    assert_close,
    assert_matches,
    make,
    problem,
    references,
    refuse,
)
from reference_optim import run


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_rule_matches_reference(name, row, dtype, isa):
    start, grads = problem(dtype.name)
    params = [p.copy() for p in start]
    opt = make(name, params, OPTIMIZERS[name]["options"][row])
    for t, g in enumerate(grads, 1):
        assert opt.step(g) is None
        if t in (1, STEPS):
            assert_matches(opt, params, *references(name, row, dtype.name, t), dtype)
    assert all(np.array_equal(a, b) for a, b in zip(grads[0], problem(dtype.name)[1][0], strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_low_precision_parameters(name, row, dtype):
    pytest.importorskip("ml_dtypes")
    start, grads = problem(dtype)
    params = [p.copy() for p in start]
    opt = make(name, params, OPTIMIZERS[name]["options"][row])
    for t, g in enumerate(grads[:10], 1):
        opt.step(g)
        if t in (1, 10):
            assert_matches(opt, params, *references(name, row, dtype, t), dtype)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_threads_change_no_bit(name, row, threads):
    start, grads = problem("float32")
    results = []
    for n in (1, 2):
        threads(n)
        params = [p.copy() for p in start]
        opt = make(name, params, OPTIMIZERS[name]["options"][row])
        for g in grads[:3]:
            opt.step(g)
        results.append([*params, *(a for s in opt.state.values() for a in s.values())])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_every_native_rule_is_used():
    used = set()
    for name, row in ROWS:
        opt = make(name, [np.zeros(1)], OPTIMIZERS[name]["options"][row])
        used |= {opt.rule(opt.param_groups[0])} | OPTIMIZERS[name].get("rules", set())
    assert used == set(_core.rules())


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_coefficients_fit_the_rule(name, row):
    opt = make(name, [np.zeros(1)], OPTIMIZERS[name]["options"][row])
    group = opt.param_groups[0]
    s = {**opt.scalars, "step": 1}
    assert len(opt.coefficients(group, s)) == 1 + len(_core.rules()[opt.rule(group)]["coefs"])


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_coefficients_of_steps_ahead_are_those_of_one_after_another(name, row):
    opt = make(name, [{"params": [np.ones(2)]} for _ in range(5)], OPTIMIZERS[name]["options"][row])
    opt.param_groups[1]["penalised"] = True  # which is no setting of the rule's
    opt.param_groups[2]["lr"] = 0.0173
    opt.param_groups[3]["weight_decay"] = 0.021
    plans = opt._refresh()
    take_over(opt._advance(plans, [False, True, False, False, False], 1.0))
    active = [True, True, True, True, False]
    before = [dict(r.scalars) for r in opt._rows]
    table, numbers = opt._ahead(plans, active, 37)
    assert [r.scalars for r in opt._rows] == before
    for step, advanced in enumerate(numbers):
        following = opt._advance(plans, active, 1.0)
        assert advanced == following
        take_over(following)
        for plan, part in zip(plans, parts(plans, table), strict=True):
            ours = [k for k, r in enumerate(plan.rows) if active[r]]
            assert part[step, ours].tobytes() == plan.coefs[ours].tobytes()


def test_rows_with_equal_settings_and_numbers_are_worked_out_once():
    class Counting(optim.Adam):
        calls = 0

        def coefficients(self, group, s):
            self.calls += 1
            return super().coefficients(group, s)

    for settings, calls in (({}, 9), ({"lr": 0.02}, 18)):
        opt = Counting([{"params": [np.ones(2)]}, {"params": [np.ones(3)], **settings}], lr=0.01)
        plans = opt._refresh()
        table, numbers = opt._ahead(plans, None, 9)
        assert opt.calls == calls
        assert parts(plans, table)[0][:, :, 4].min(axis=0).tolist() == pytest.approx(
            [0.01 / (1 - 0.9**9), settings.get("lr", 0.01) / (1 - 0.9**9)]
        )
        assert [s["step"] for _, s in numbers[-1]] == [9, 9]


def test_rows_differ_by_settings_of_subclasses_too():
    class Scaled(optim.Adam):
        def coefficients(self, group, s):
            lr, *rest = super().coefficients(group, s)
            return (lr * group.get("lr_scale", 1.0), *rest)

    opt = Scaled([{"params": [np.ones(2)]}, {"params": [np.ones(3)], "lr_scale": 0.0}], lr=0.01)
    plans = opt._refresh()
    table, _ = opt._ahead(plans, None, 4)
    rates = parts(plans, table)[0][:, :, 4]
    assert rates[:, 0].min() > 0
    assert rates[:, 1].tolist() == [0.0] * 4


def test_velocity_keeps_the_rate_of_each_step():
    p, q = np.ones(3), np.ones(3)
    a = optim.SGD([p], lr=0.1, momentum=0.9, momentum_form="velocity")
    b = optim.SGD([q], lr=0.1, momentum=0.9)
    for lr in (0.1, 0.01):
        a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = lr
        a.step([np.ones(3)])
        b.step([np.ones(3)])
    np.testing.assert_allclose(p, 1 - 0.1 - (0.9 * 0.1 + 0.01), rtol=1e-12)
    np.testing.assert_allclose(q, 1 - 0.1 - 0.01 * (0.9 + 1), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_minimises_parabola_and_rosenbrock(name):
    lr = {"Adadelta": 30.0, "Adagrad": 0.5, "Lion": 0.01, "LAMB": 0.02}.get(
        name, 0.05 if name != "SGD" else 0.2
    )
    x = np.array([-1.0, 10.0])
    opt = make(name, [x], OPTIMIZERS[name].get("parabola", {"lr": lr}))
    target = np.array([3.0, -2.0])
    for _ in range(3000):
        opt.step([2 * (x - target)])
    np.testing.assert_allclose(x, target, atol=0.02)

    x = np.array([-1.2, 1.0])
    # Adadelta's steps do not shrink: it comes near and circles.
    rosenbrock = {
        "SGD": ({"lr": 1e-3, "momentum": 0.9}, 5e-3),
        "Adagrad": ({"lr": 0.3}, 5e-3),
        "Adadelta": ({"lr": 0.3}, 0.25),
        "RMSprop": ({"lr": 1e-3, "centered": True}, 5e-3),
        "Lion": ({"lr": 1e-3}, 5e-3),
        "LARS": ({"lr": 1e-3}, 5e-3),
        "LAMB": ({"lr": 3e-3}, 5e-3),
        "NovoGrad": ({"lr": 5e-3}, 5e-3),
        "RAdam": ({"lr": 1e-3}, 5e-3),  # begins with plain momentum
    }
    usual = rosenbrock.get(name, ({"lr": 0.02}, 5e-3))
    options, bound = OPTIMIZERS[name].get("rosenbrock", usual)
    opt = make(name, [x], options)
    for _ in range(8000):
        a, b = x
        opt.step([np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])])
    a, b = x
    assert (1 - a) ** 2 + 100 * (b - a * a) ** 2 < bound


@pytest.mark.peers
@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_matches_torch(name, row, dtype):
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(dtype.name)
    start, grads = start[:-1], [g[:-1] for g in grads]
    twin = TorchTwin(torch, name, start, options)
    params = [p.copy() for p in start]
    opt = make(name, params, options)
    for t, g in enumerate(grads, 1):
        opt.step(g)
        twin.step(g)
        if t in (1, STEPS):
            exact = run(name, start, grads[:t], options, np.longdouble)
            assert_close(params, exact.params, twin.arrays(), dtype, f"after {t} steps")


# -------------------------------------------------------------------------------- groups, missing gradients


@pytest.mark.parametrize("name", RULES)
def test_missing_gradients_skip_their_parameters(name):
    start, grads = problem("float64")
    start, grads = start[1:6], [g[1:6] for g in grads[:12]]
    pattern = [[t % (i + 1) == 0 or t > 8 for i in range(5)] for t in range(12)]
    given_grads = [
        [g if use else None for g, use in zip(gs, row, strict=True)]
        for gs, row in zip(grads, pattern, strict=True)
    ]
    params = [p.copy() for p in start]
    opt = make(name, params, {"ema_decay": 0.9})
    for g in given_grads:
        opt.step(g)
    exact = run(name, start, given_grads, {"ema_decay": 0.9})
    for i, p in enumerate(params):
        np.testing.assert_allclose(p, exact.params[i], rtol=1e-12)
        np.testing.assert_allclose(opt.state[i]["ema"], exact.emas[i], rtol=1e-12)
        count = sum(row[i] for row in pattern)
        assert opt.state[i].get("step", count) == count


def test_all_gradients_missing():
    p = np.ones(2)
    opt = optim.Adam([p])
    opt.step([None])
    assert opt.state_dict()["state"] == {}
    np.testing.assert_array_equal(p, 1)


def test_groups_of_different_rules_and_global_norm():
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(n) for n in (5, 3, 8, 2)]
    copies = [a.copy() for a in arrays]
    steps = [[rng.standard_normal(a.size) for a in arrays] for _ in range(6)]
    groups = [
        {"params": arrays[:2]},
        {"params": [arrays[2]], "amsgrad": True, "lr": 0.05, "maximize": True},
        {"params": [arrays[3]], "betas": (0.5, 0.9), "ema_decay": 0.5},
    ]
    opt = optim.Adam(groups, lr=0.1, max_norm=0.8)
    for g in steps:
        opt.step(g)
        assert opt.grad_norm == pytest.approx(np.sqrt(sum((x**2).sum() for x in g)), rel=1e-14)
    scaled = [[x * min(1.0, 0.8 / (np.sqrt(sum((y**2).sum() for y in g)) + 1e-6)) for x in g] for g in steps]
    expected = [
        *run("Adam", copies[:2], [g[:2] for g in scaled], {"lr": 0.1}).params,
        *run(
            "Adam", copies[2:3], [g[2:3] for g in scaled], {"lr": 0.05, "amsgrad": True, "maximize": True}
        ).params,
        *run("Adam", copies[3:], [g[3:] for g in scaled], {"lr": 0.1, "betas": (0.5, 0.9)}).params,
    ]
    for a, b in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert "ema" in opt.state[3]
    assert "ema" not in opt.state[0]


def test_norm_of_bad_gradients_is_torch_s():
    p = np.ones(2)
    opt = optim.SGD([p], lr=1.0, max_norm=1.0)
    opt.step([np.array([np.nan, 1.0])])
    assert np.isnan(p).all()
    assert np.isnan(opt.grad_norm)
    opt.max_norm = None
    opt.step([np.zeros(2)])
    assert opt.grad_norm is None
    with pytest.raises(ValueError, match=r"SGD: max_norm must be in \(0, inf\), got -1"):
        opt.max_norm = -1


def test_a_nan_in_one_rule_s_gradients_shows_in_the_norm_of_all():
    p, q = np.ones(2), np.ones(2)
    opt = optim.Adam([{"params": [p]}, {"params": [q], "amsgrad": True}], lr=0.1, max_norm=1.0)
    opt.step([np.array([np.inf, 1.0]), np.array([np.nan, 1.0])])
    assert np.isnan(opt.grad_norm)
    assert np.isnan(p).all()
    assert np.isnan(q).all()


@pytest.mark.parametrize(
    ("name", "options", "states"),
    [
        ("SGD", {"momentum": 0.9}, ["momentum_buffer"]),
        ("SGD", {"momentum": 0.9, "nesterov": True}, ["momentum_buffer"]),
        ("RMSprop", {"momentum": 0.9, "centered": True, "alpha": 0.9}, ["momentum_buffer", "grad_avg"]),
        ("Adam", {}, ["exp_avg"]),
        ("Adam", {"amsgrad": True}, ["exp_avg"]),
        ("NAdam", {}, ["exp_avg"]),
    ],
)
def test_moments_of_gradients_that_stay_zero_reach_zero(name, options, states, isa):
    """Rounded to nearest they would stay at some of the smallest numbers, which are slow to compute with."""
    p = np.ones(100, np.float32)
    opt = make(name, [p], options)
    opt.step([np.linspace(-1, 1, 100, dtype=np.float32)])
    smallest = np.finfo(np.float32).smallest_normal
    for _ in range(1200):
        opt.step([np.zeros(100, np.float32)])
        for key in states:
            m = np.abs(opt.state[0][key])
            assert not ((m > 0) & (m < smallest)).any()
    for key in states:
        assert not opt.state[0][key].any()


def test_settings_may_change_between_steps():
    start, grads = problem("float64")
    p = start[5].copy()
    opt = optim.SGD([p], lr=0.1)
    expected = start[5].copy()
    g = [gs[5] for gs in grads]
    opt.step([g[0]])
    expected -= 0.1 * g[0]
    opt.param_groups[0].update(lr=0.2, momentum=0.5, dampening=0.5)
    opt.step([g[1]])  # the buffer starts here, without dampening
    buffer = g[1].copy()
    expected -= 0.2 * buffer
    opt.param_groups[0]["momentum"] = 0.0
    opt.step([g[2]])
    expected -= 0.2 * g[2]
    opt.param_groups[0].update(momentum=0.5, nesterov=True, dampening=0.0)
    opt.step([g[3]])  # and is still there
    buffer = 0.5 * buffer + g[3]
    expected -= 0.2 * (g[3] + 0.5 * buffer)
    np.testing.assert_allclose(p, expected, rtol=1e-13)


def test_added_group_starts_its_own_count():
    a, b = np.zeros(2), np.zeros(3)
    opt = optim.Adam({"a": a}, lr=0.1)
    opt.step({"a": np.ones(2)})
    opt.add_param_group({"params": {"b": b}, "lr": 0.5})
    opt.step([{"a": np.ones(2)}, {"b": np.ones(3)}])
    opt.step([np.ones(2), np.ones(3)])
    np.testing.assert_allclose(a, -0.3, rtol=1e-6)
    np.testing.assert_allclose(b, -1.0, rtol=1e-6)
    steps = [float(s["step"]) for s in opt.state.values()]
    assert steps == [3, 2]
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    refuse(
        opt,
        lambda: opt.add_param_group({"params": [a[:1]]}),
        r"params\[1\]\[0\] overlaps params\['a'\]|overlaps",
    )


def test_groups_without_parameters():
    p = np.ones(2)
    opt = optim.Adam([{"params": []}, {"params": [p]}, {"params": {}, "amsgrad": True}], lr=0.5, max_norm=9.0)
    opt.step([p.copy()])
    opt.step([[], [None], {}])
    np.testing.assert_allclose(p, 0.5, rtol=1e-6)
    opt.load_state_dict(opt.state_dict())
    assert opt.state.keys() == {0}
    none = optim.SGD([{"params": []}])
    none.step([])
    assert none.state_dict()["state"] == {}


def test_torch_s_words_for_fusing_are_taken():
    a, b = np.ones(3), np.ones(3)
    optim.AdamW([a], fused=True, foreach=False).step([np.ones(3)])
    optim.AdamW([b]).step([np.ones(3)])
    np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="lrr"):
        optim.AdamW([a], lrr=0.1)


def test_the_caller_s_group_is_not_changed():
    group = {"params": [np.zeros(1)], "lr": 0.3, "note": "kept"}
    before = dict(group)
    opt = optim.SGD([group])
    assert group == before
    assert opt.param_groups[0]["note"] == "kept"


def test_many_small_arrays_are_one_call():
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(i % 7) for i in range(1000)]
    grads = [rng.standard_normal(a.size) for a in arrays]
    exact = run("Adam", arrays, [grads] * 3, {})
    calls = []
    opt = optim.Adam(arrays)
    opt.step(grads)
    plan = opt._plans[0]
    native = plan.native

    class Counting:
        steps = property(lambda self: native.steps)

        def step(self, *args):
            calls.append(args)
            native.step(*args)

    plan.native = Counting()
    opt.step(grads)
    opt.step(grads)
    assert len(calls) == 2
    assert calls[0][0] is grads  # not even the list is made anew
    for a, b in zip(arrays, exact.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_exports():
    assert re.fullmatch(r"\d+\.\d+.*", fastopt.__version__)
    for name in OPTIMIZERS:
        assert name in optim.__all__
        assert issubclass(getattr(optim, name), optim.Optimizer)
        assert "References" in getattr(optim, name).__doc__
    subclasses = {
        c.__name__ for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)
    }
    assert subclasses - {"Optimizer"} == OPTIMIZERS.keys()


def test_tutorial_cases(shared):
    cases = json.loads((shared / "data" / "tutorial_cases.json").read_text())["cases"]
    used = 0
    for case in cases:
        if not case["case"].startswith("optim.") or case.get("objective") != "sum(w**2)/2":
            continue
        used += 1
        w = np.array(case["w0"], np.float32)
        opt = getattr(optim, case["case"].removeprefix("optim."))([w], **case["options"])
        for expected in case["steps"]:
            np.testing.assert_allclose(w, expected["grad"], rtol=1e-6)
            opt.step([w.copy()])
            np.testing.assert_allclose(w, expected["weight"], rtol=1e-6)
    assert used
