"""Optimizers that scale a parameter's update by norms of the whole parameter: beside the table's rows, which run in
test_optim.py, what concerns several parameters, their numbers, and optax."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from fastopt import _core, nn, optim
from gpu_tools import assert_same_bits, cp, fused, kind
from optim_tools import refuse
from reference_optim import run

__all__ = ["cp", "fused", "kind"]

SHAPES = [(4, 3), (20, 700), (5,), (2, 3, 4), (1, 1), ()]
NAMES = ["LARS", "LAMB", "NovoGrad"]


def arrays(seed: int, dtype: Any = np.float64, shapes: Any = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s), dtype) for s in shapes]


OPTIONS: dict[str, dict[str, Any]] = {
    "LARS": {"lr": 2.0, "weight_decay": 0.1},
    "LAMB": {"lr": 0.02},
    "NovoGrad": {"lr": 0.02, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_has_its_own_norms(name: str) -> None:
    start, steps = arrays(1), [arrays(10 + t) for t in range(5)]
    params = [p.copy() for p in start]
    opt = getattr(optim, name)(params, **OPTIONS[name])
    for g in steps:
        opt.step(g)
    exact = run(name, start, steps, OPTIONS[name], np.longdouble)
    for p, want in zip(params, exact.params, strict=True):
        np.testing.assert_allclose(p, want.astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_their_own_settings(name: str) -> None:
    """Groups of other settings, one of them with averages: another native plan."""
    others: dict[str, dict[str, Any]] = {
        "LARS": {"trust_coefficient": 0.1, "ratio": "joint", "skip_1d": False, "eps": 0.3},
        "LAMB": {"weight_decay": 0.0, "max_param_norm": 2.0},
        "NovoGrad": {"betas": (0.8, 0.5), "eps": 0.2},
    }
    start, steps = arrays(2), [arrays(20 + t) for t in range(5)]
    params = [p.copy() for p in start]
    groups = [
        {"params": params[:2]},
        {"params": params[2:4], **others[name]},
        {"params": params[4:], **others[name], "lr": 0.3, "ema_decay": 0.5},
    ]
    opt = getattr(optim, name)(groups, **OPTIONS[name])
    given = [[g if (t + i) % 4 else None for i, g in enumerate(gs)] for t, gs in enumerate(steps)]
    for g in given:
        opt.step(g)
    for part, options in (
        (slice(0, 2), {}),
        (slice(2, 4), others[name]),
        (slice(4, 6), {**others[name], "lr": 0.3}),
    ):
        exact = run(name, start[part], [g[part] for g in given], {**OPTIONS[name], **options}, np.longdouble)
        for p, want in zip(params[part], exact.params, strict=True):
            np.testing.assert_allclose(p, want.astype(np.float64), rtol=1e-12)
    assert "ema" in opt.state[4]


@pytest.mark.parametrize("name", NAMES)
def test_settings_may_change_between_steps(name: str) -> None:
    start, steps = arrays(3), [arrays(30 + t) for t in range(2)]
    params = [p.copy() for p in start]
    opt = getattr(optim, name)(params, **OPTIONS[name])
    opt.step(steps[0])
    before = [p.copy() for p in params]
    opt.param_groups[0]["lr"] = 0.0
    opt.param_groups[0]["weight_decay"] = 0.0
    if name == "LARS":
        opt.param_groups[0].update(momentum=0.0, trust_coefficient=0.5, lr=1.0, skip_1d=False)
    opt.step(steps[1])
    for p, old, g in zip(params, before, steps[1], strict=True):
        ratio = 0.5 * np.linalg.norm(old) / np.linalg.norm(g) if name == "LARS" else 0.0
        np.testing.assert_allclose(p, old - ratio * g, rtol=1e-12)


def test_novograds_numbers_are_part_of_its_state() -> None:
    start, steps = arrays(4), [arrays(40 + t) for t in range(6)]
    params = [p.copy() for p in start]
    opt = optim.NovoGrad(params, lr=0.1)
    assert opt.state == {}
    opt.step([*steps[0][:5], None])
    assert opt.state[0]["exp_avg_sq"].shape == ()
    assert float(opt.state[0]["exp_avg_sq"]) == pytest.approx((steps[0][0] ** 2).sum())
    assert 5 not in opt.state
    opt.step(steps[1])
    v = 0.98 * (steps[0][1] ** 2).sum() + 0.02 * (steps[1][1] ** 2).sum()
    assert float(opt.state[1]["exp_avg_sq"]) == pytest.approx(v)
    assert float(opt.state[5]["exp_avg_sq"]) == pytest.approx(float(steps[1][5] ** 2))

    others = [p.copy() for p in params]
    again = optim.NovoGrad(others)
    again.load_state_dict(opt.state_dict())
    unpickled = pickle.loads(pickle.dumps(opt))
    for o in (opt, again, unpickled):
        o.step(steps[2])
    for a, b, c in zip(params, others, unpickled.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)

    lacking, negative = copy.deepcopy(opt.state_dict()), copy.deepcopy(opt.state_dict())
    del lacking["state"][3]["exp_avg_sq"]
    negative["state"][3]["exp_avg_sq"] = np.asarray(-1.0)
    refuse(opt, lambda: opt.load_state_dict(lacking), r"state\[3\] has no 'exp_avg_sq'")
    refuse(opt, lambda: opt.load_state_dict(negative), r"\['exp_avg_sq'\] must be in \[0, inf\), got -1.0")

    w = np.ones((2, 2))
    opt.add_param_group({"params": [w]})
    opt.step([steps[3], [np.full((2, 2), 3.0)]])
    assert float(opt.state[6]["exp_avg_sq"]) == 36.0
    np.testing.assert_allclose(w, 1 - 0.1 * 3 / 6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_step_has_changed_nothing(name: str) -> None:
    params, g = arrays(5), arrays(50)
    opt = getattr(optim, name)(params, **OPTIONS[name])
    opt.step(g)
    refuse(opt, lambda: opt.step([*g[:5], np.zeros(3)]), r"grads\[5\] has shape \(3,\)")
    refuse(opt, lambda: opt.step([g[0].astype(np.float32), *g[1:]]), r"grads\[0\] is float32")


def test_zero_parameters_and_gradients_have_a_ratio_of_one() -> None:
    for name in ("LARS", "LAMB"):
        zero, one = np.zeros((2, 2)), np.ones((2, 2))
        opt = getattr(optim, name)([zero, one], lr=0.1, weight_decay=0.0)
        opt.step([np.full((2, 2), 4.0), np.zeros((2, 2))])
        np.testing.assert_allclose(zero, -0.4 if name == "LARS" else -0.1, rtol=1e-6)
        np.testing.assert_array_equal(one, 1)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_measuring_lambs_direction_changes_nothing(state_dtype: str) -> None:
    rng = np.random.default_rng(2)
    p = rng.standard_normal((90, 130)).astype(np.float32)
    opt = optim.LAMB([p], lr=0.01, weight_decay=0.1, state_dtype=state_dtype)
    for _ in range(3):
        opt.step([rng.standard_normal(p.shape).astype(np.float32)])
    (plan,) = opt._refresh()
    before = p.copy(), copy.deepcopy(opt.state)
    g, out, again = rng.standard_normal(p.shape).astype(np.float32), np.empty((2, 1)), np.empty((2, 1))
    plan.native.measure([g], plan.coefs, None, out)
    plan.native.measure([g], plan.coefs, None, again)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_allclose(out[1], np.linalg.norm(p.astype(np.float64)), rtol=1e-6)
    np.testing.assert_array_equal(p, before[0])
    for key, value in opt.state[0].items():
        assert value.tobytes() == before[1][0][key].tobytes()


def test_measure_and_factors_are_checked() -> None:
    plan = _core.StepPlan("sgd", [np.ones(3), np.ones(2)], [])
    coefs = np.array([[1.0, np.inf, 0, 0.5, 0.1, 1, 0, 0]])
    grads = [np.full(3, 2.0), np.zeros(2)]
    out = np.empty((2, 2))
    plan.measure(grads, coefs, None, out)
    np.testing.assert_allclose(out, [[2.5 * 3**0.5, 0.5 * 2**0.5], [3**0.5, 2**0.5]])
    with pytest.raises(
        TypeError, match=r"measure: out is float64 of shape \(2,\), expected float64 of shape \(2, 2\)"
    ):
        plan.measure(grads, coefs, None, np.empty(2))
    with pytest.raises(TypeError, match=r"step: factors is float64 of shape \(2, 2\), expected .* \(2, 3\)"):
        plan.step(grads, coefs, None, out)


@pytest.mark.parametrize("name", NAMES)
def test_trains_a_compiled_model_as_an_eager_one(name: str) -> None:
    import fastopt as fo

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 5)).astype(np.float32), rng.integers(0, 3, 32)
    weights = []
    for compiled in (True, False):
        fo.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        opt = getattr(optim, name)(model.parameters(), **OPTIONS[name])
        loss_fn = nn.CrossEntropyLoss()
        step = fo.compile(model, loss_fn, opt) if compiled else None
        for _ in range(5):
            if step:
                step(x, y)
            else:
                opt.zero_grad()
                loss_fn(model(x), y).backward()
                opt.step()
        weights.append([p.data.copy() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", NAMES)
def test_the_device_has_the_bits_of_the_cpu(name: str, cp: Any) -> None:
    """Groups of two settings, a limit of the norm, and gradients that are missing now and then."""
    values = arrays(6, np.float32, SHAPES[:5])
    steps = [arrays(60 + t, np.float32, SHAPES[:5]) for t in range(4)]

    def stepped(place: Any) -> tuple[list[Any], Any]:
        params = [place(v) for v in values]
        groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0, "ema_decay": 0.9}]
        opt = getattr(optim, name)(groups, max_norm=0.7, **OPTIONS[name])
        for t, g in enumerate(steps):
            given = [None if t == 2 and i % 2 else place(x) for i, x in enumerate(g)]
            opt.step([given[:3], given[3:]])
        return params, opt

    ours, on_device = stepped(cp.asarray)
    theirs, on_host = stepped(np.array)
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)
    state = on_device.state_dict()
    assert state["state"].keys() == on_host.state_dict()["state"].keys()
    on_host.load_state_dict(state)
    on_device.load_state_dict(on_host.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_cannot_capture_two_passes(name: str, cp: Any) -> None:
    opt = getattr(optim, name)([cp.ones((2, 3), cp.float32)])
    with pytest.raises(RuntimeError, match=f"prepare_capture: {name} takes its steps in a way that no graph"):
        opt.prepare_capture()


# -------------------------------------------------------------------------------------------------- optax


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        (
            "LARS",
            {"lr": 2.0, "weight_decay": 0.1, "ratio": "joint", "skip_1d": False, "trust_coefficient": 0.01},
            {"weight_decay": 0.1, "trust_coefficient": 0.01},
        ),
        (
            "LARS",
            {"lr": 2.0, "ratio": "joint", "skip_1d": False, "momentum": 0.8, "nesterov": True, "eps": 0.1},
            {"momentum": 0.8, "nesterov": True, "eps": 0.1},
        ),
        ("LAMB", {"lr": 0.02, "weight_decay": 0.0, "use_nvlamb": True}, {}),
        ("LAMB", {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}, None),
        ("NovoGrad", {"lr": 0.02, "betas": (0.9, 0.25), "eps": 1e-6}, {}),
        ("NovoGrad", {"lr": 0.02, "betas": (0.8, 0.7), "eps": 1e-3, "weight_decay": 0.1}, None),
    ],
)
def test_matches_optax(name: str, ours: dict[str, Any], theirs: dict[str, Any] | None) -> None:
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    if theirs is None:
        theirs = {"eps": ours["eps"], "weight_decay": ours["weight_decay"]}
        theirs |= dict(zip(("b1", "b2"), ours["betas"], strict=True))
    start, steps = arrays(7), [arrays(70 + t) for t in range(6)]
    params = [p.copy() for p in start]
    opt = getattr(optim, name)(params, **ours)
    with jax.enable_x64(True):
        transform = getattr(optax, name.lower())(ours["lr"], **theirs)
        values = [jax.numpy.asarray(p) for p in start]
        state = transform.init(values)
        for g in steps:
            opt.step(g)
            updates, state = transform.update([jax.numpy.asarray(x) for x in g], state, values)
            values = optax.apply_updates(values, updates)
        for a, b in zip(params, values, strict=True):
            np.testing.assert_allclose(a, np.asarray(b), rtol=1e-9, atol=1e-12)
