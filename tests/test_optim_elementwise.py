"""Rules element by element that came after torch's: against optax where it has the same, and what only they do."""

from __future__ import annotations

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import optim
from gpu_tools import assert_same_bits, cp, drawn, fused, kind
from optim_tools import make, problem, refuse

__all__ = ["cp", "fused", "kind"]

#: name, our options, optax's function in its words
OPTAX = [
    ("Yogi", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2}, ("yogi", {"b1": 0.8, "b2": 0.95, "eps": 1e-2})),
    ("Yogi", {"lr": 0.02}, ("yogi", {})),
    ("ADOPT", {"lr": 0.02, "betas": (0.8, 0.95)}, ("contrib.adopt", {"b1": 0.8, "b2": 0.95})),
    ("ADOPT", {"lr": 0.02, "clip_exponent": None}, ("contrib.adopt", {"use_clipping": False})),
    (
        "AdEMAMix",
        {"lr": 0.02, "betas": (0.8, 0.95, 0.99), "alpha": 5.0, "weight_decay": 0.1},
        ("contrib.ademamix", {"b1": 0.8, "b2": 0.95, "b3": 0.99, "alpha": 5.0, "weight_decay": 0.1}),
    ),
]


def with_optax(function, options, params, grads, lr):
    """The parameters after optax's steps, in float64."""
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    space = optax
    for part in function.split("."):
        space = getattr(space, part)
    with jax.enable_x64(True):
        transform = space(lr, **options)
        ours = [jax.numpy.asarray(p) for p in params]
        state = transform.init(ours)
        for g in grads:
            updates, state = transform.update([jax.numpy.asarray(x) for x in g], state, ours)
            ours = optax.apply_updates(ours, updates)
        return [np.asarray(p) for p in ours]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "options", "peer"), OPTAX)
def test_matches_optax(name, options, peer):
    start, grads = problem("float64")
    start, grads = start[1:11], [g[1:11] for g in grads[:20]]
    theirs = with_optax(*peer, start, grads, options["lr"])
    params = [p.copy() for p in start]
    opt = make(name, params, options)
    for g in grads:
        opt.step(g)
    for ours, expected in zip(params, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_asgd_keeps_the_average_beside_the_parameters():
    p = np.array([1.0, -2.0])
    opt = make("ASGD", [p], {"lr": 0.1, "lambd": 0.0, "t0": 1.0})
    seen = []
    for _ in range(5):
        opt.step([np.ones(2)])
        seen.append(p.copy())
    np.testing.assert_allclose(p, [0.5, -2.5])
    np.testing.assert_allclose(opt.state[0]["ax"], np.mean(seen[2:], axis=0))


def test_adopt_s_first_step_moves_nothing():
    p = np.array([1.0, -2.0, 3.0], np.float32)
    start = p.copy()
    g = np.array([1e15, 0.0, -0.5], np.float32)
    opt = make("ADOPT", [p], {"weight_decay": 0.5, "decoupled_weight_decay": True, "eps": 0.0})
    opt.step([g])
    np.testing.assert_array_equal(p, start)
    np.testing.assert_array_equal(opt.state[0]["exp_avg"], 0)
    np.testing.assert_array_equal(opt.state[0]["exp_avg_sq"], g * g)


def test_ademamix_s_schedules_end_at_their_settings():
    p = np.zeros(1)
    opt = make("AdEMAMix", [p], {"t_alpha": 4, "t_beta3": 4, "betas": (0.9, 0.999, 0.9999), "alpha": 2.0})
    group = opt.param_groups[0]
    at = [opt.coefficients(group, {"step": t}) for t in (1, 2, 3, 4, 5)]
    alphas = [row[4] / (1 - 0.9**t) for t, row in enumerate(at, 1)]
    np.testing.assert_allclose(alphas, [0.5, 1.0, 1.5, 2.0, 2.0])
    half_lives = [np.log(0.5) / np.log(row[3]) for row in at]
    np.testing.assert_allclose(np.diff(half_lives[:4]), np.diff(half_lives[:2])[0])
    assert [row[3] for row in at[3:]] == [0.9999, 0.9999]


# --------------------------------------------------------------------------------------------------- Sophia


def test_sophia_steps_by_the_estimates(dtype):
    """Against the paper's loop, with an estimate every third step, of one parameter only now and then."""
    rng = np.random.default_rng(3)
    start = [rng.standard_normal(n).astype(dtype) for n in (5, 33)]
    params = [p.copy() for p in start]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "betas": (0.9, 0.5), "lr": 0.01}]
    opt = make("Sophia", groups, {"lr": 0.02, "rho": 0.7})
    exact = [p.astype(np.float64) for p in start]
    m, h = ([np.zeros_like(p) for p in exact] for _ in range(2))
    limited = set()
    for t in range(12):
        if t % 3 == 1:
            estimates = [rng.standard_normal(p.size).astype(dtype) ** 2 for p in params]
            opt.update_hessian([[estimates[0] if t == 4 else None], [estimates[1]]])
            for i, beta2 in enumerate((0.99, 0.5)):
                if i == 1 or t == 4:
                    h[i] = beta2 * h[i] + (1 - beta2) * estimates[i].astype(np.float64)
        grads = [rng.standard_normal(p.size).astype(dtype) for p in params]
        opt.step([[grads[0]], [grads[1]]])
        for i, (lr, beta1) in enumerate(((0.02, 0.965), (0.01, 0.9))):
            m[i] = beta1 * m[i] + (1 - beta1) * grads[i]
            u = m[i] / np.maximum(0.7 * h[i], 1e-15)
            limited |= set((np.abs(u) > 1).tolist())
            exact[i] = (1 - lr * 0.1) * exact[i] - lr * np.clip(u, -1, 1)
    assert limited == {False, True}
    rtol = 1e-12 if dtype == np.float64 else 1e-5
    for i, p in enumerate(params):
        np.testing.assert_allclose(p, exact[i], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(opt.state[i]["hessian"], h[i], rtol=rtol)


def test_sophia_s_estimates_may_come_first_and_travel():
    p = np.ones(3)
    opt = make("Sophia", [p], {"betas": (0.0, 0.5), "rho": 1.0, "lr": 1.0, "weight_decay": 0.0})
    opt.update_hessian([np.array([2.0, 4.0, 0.2])])
    heir = np.ones(3)
    other = make("Sophia", [heir])
    other.load_state_dict(opt.state_dict())
    for each in (opt, other):
        each.step([np.full(3, 0.5)])
    np.testing.assert_allclose(p, [0.5, 0.75, 0.0])
    np.testing.assert_array_equal(heir, p)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sophia_s_estimates_of_low_precision_parameters(dtype):
    pytest.importorskip("ml_dtypes")
    p = np.ones((4, 3)).astype(dtype)[:, ::2]  # not dense either
    opt = make("Sophia", [p], {"betas": (0.9, 0.75)})
    opt.update_hessian([np.full((4, 2), 3.0).astype(dtype)])
    hessian = opt.state[0]["hessian"]
    assert hessian.dtype == np.float32
    np.testing.assert_array_equal(hessian, np.full((4, 2), 0.75))


def test_estimates_that_sophia_refuses():
    p, q = np.ones(3), np.ones((2, 2))
    opt = make("Sophia", {"p": p, "q": q})
    opt.update_hessian({"p": p, "q": q})
    for hessians, message in [
        (None, r"update_hessian: hessians is None, expected"),
        (
            {"p": np.ones(3), "q": np.ones(4)},
            r"^update_hessian: hessians\['q'\] has shape \(4,\), params\['q'\]",
        ),
        (
            {"p": np.ones(3, np.float32), "q": q},
            r"^update_hessian: hessians\['p'\] is float32, params\['p'\] is",
        ),
        ({"p": np.ones(3)}, r"^update_hessian: hessians has no 'q', params has the keys 'p', 'q'"),
    ]:
        refuse(opt, lambda hessians=hessians: opt.update_hessian(hessians), message)


# -------------------------------------------------------------------------------------------- schedule-free

SCHEDULE_FREE = [
    ("SGDScheduleFree", {"lr": 0.1, "momentum": 0.8}),
    ("AdamWScheduleFree", {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULE_FREE)
def test_eval_mode_shows_the_average(name, options, dtype):
    """x is the mean of z at a constant rate; going to it and back changes the rounding alone."""
    rng = np.random.default_rng(2)
    memory = rng.standard_normal((6, 8)).astype(dtype)
    p = memory[:, ::2]
    opt = make(name, [p, rng.standard_normal(3).astype(dtype)], {**options, "ema_decay": 0.5})
    beside = memory[:, 1::2].copy()
    seen = []
    for _ in range(6):
        opt.step([rng.standard_normal(p.shape).astype(dtype), None])
        seen.append(opt.state[0]["z"].copy())
    y, state = p.copy(), {k: v.copy() for k, v in opt.state[0].items()}
    opt.eval()
    close = {"rtol": 50 * np.finfo(dtype).eps, "atol": 50 * np.finfo(dtype).eps}
    np.testing.assert_allclose(p, np.mean(seen, axis=0), **close)
    x = p.copy()
    opt.eval()
    np.testing.assert_array_equal(p, x)
    for key, value in state.items():
        np.testing.assert_array_equal(opt.state[0][key], value)
    refuse(opt, lambda: opt.step([p.copy(), None]), f"step: {name} is in eval mode", RuntimeError)
    opt.train()
    np.testing.assert_allclose(p, y, **close)
    opt.step([p.copy(), p.ravel()[:3].copy()])
    np.testing.assert_array_equal(memory[:, 1::2], beside)


@pytest.mark.parametrize(("name", "options"), SCHEDULE_FREE)
def test_the_mode_travels_and_spares_what_has_not_started(name, options):
    p, q = np.ones(3), np.full(2, 5.0)
    opt = make(name, [p, q], options)
    opt.step([np.ones(3), None])
    opt.eval()
    np.testing.assert_array_equal(q, 5.0)
    opt.add_param_group({"params": [np.ones(1)]})
    assert opt.param_groups[1]["train_mode"] is False
    heir = make(name, [{"params": [p.copy(), q.copy()]}, {"params": [np.ones(1)]}])
    heir.load_state_dict(opt.state_dict())
    for each in (opt, heir):
        with pytest.raises(RuntimeError, match="in eval mode"):
            each.step([[np.ones(3), np.ones(2)], [np.ones(1)]])
        each.train()
        each.step([[np.ones(3), np.ones(2)], [np.ones(1)]])
    for a, b in zip(opt.param_groups, heir.param_groups, strict=True):
        for ours, theirs in zip(a["params"], b["params"], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_modes_and_the_swapped_average_exclude_each_other():
    p = np.ones(2)
    opt = make("SGDScheduleFree", [p], {"ema_decay": 0.9})
    opt.step([np.ones(2)])
    with opt.swap_ema(), pytest.raises(RuntimeError, match="inside swap_ema"):
        opt.eval()
    assert opt.param_groups[0]["train_mode"] is True


def test_schedule_free_sgd_without_learning_rate_stays():
    p = np.ones(2)
    opt = make("SGDScheduleFree", [p], {"lr": 0.0})
    opt.step([np.ones(2)])
    np.testing.assert_array_equal(p, 1.0)


# ------------------------------------------------------------------------------------------------ on a device


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree"])
def test_modes_on_a_device_have_the_bits_of_the_cpu(cp, fused, name):
    start, grads = drawn((5, 7), "float32", 1), [drawn((5, 7), "float32", t) for t in range(2, 6)]
    host, device = start.copy(), cp.asarray(start)
    opts = [make(name, [array], OPTIMIZERS[name]["options"][1]) for array in (host, device)]
    for g in grads[:3]:
        for opt, put in zip(opts, (np.copy, cp.asarray), strict=True):
            opt.step([put(g)])
    for opt in opts:
        opt.eval()
    assert_same_bits(device, host)
    for opt, put in zip(opts, (np.copy, cp.asarray), strict=True):
        opt.train()
        opt.step([put(grads[3])])
    assert_same_bits(device, host)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_estimates_on_a_device_have_the_bits_of_the_cpu(cp, fused, dtype):
    start, estimate = drawn(37, dtype, 1), drawn(37, dtype, 2)
    host, device = start.copy(), cp.asarray(start)
    for array, put in ((host, np.copy), (device, cp.asarray)):
        opt = make("Sophia", [array], {"lr": 0.1, "rho": 1.0})
        for _ in range(2):
            opt.update_hessian([put(estimate)])
            opt.step([put(estimate)])
    assert_same_bits(device, host)


def test_ftrl_s_l1_makes_weights_exactly_zero():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((400, 30)), np.where(np.arange(30) < 5, 2.0, 0.0)
    y = x @ w + 0.1 * rng.standard_normal(400)
    for dtype in (np.float32, np.float64):
        p = np.zeros(30, dtype)
        opt = optim.Ftrl([p], lr=1.0, l1_regularization_strength=60.0, beta=1.0)
        for _ in range(300):
            opt.step([(x.T @ (x @ p.astype(np.float64) - y) / 400).astype(dtype)])
        assert np.count_nonzero(p) == 5
        np.testing.assert_allclose(p[:5], 2.0, atol=0.3)


def test_ftrl_without_a_gradient_yet_stays_where_it_is():
    """Nothing is known of an element: its new value would be 0 / 0."""
    p = np.array([1.5, -2.0])
    opt = optim.Ftrl([p], lr=0.1, initial_accumulator_value=0.0)
    opt.step([np.array([0.0, 1.0])])
    assert p[0] == 1.5
    assert np.isfinite(p).all()
    opt.step([np.array([np.nan, 1.0])])
    assert np.isnan(p[0])


def test_ftrl_is_adagrad_s_proximal_form():
    """McMahan 2011: without penalties and from an empty sum both take the same steps."""
    rng = np.random.default_rng(2)
    p = rng.standard_normal(50)
    q = p.copy()
    ours = optim.Ftrl([p], lr=0.3, initial_accumulator_value=0.0)
    theirs = optim.Adagrad([q], lr=0.3, eps=0.0)
    for _ in range(30):
        g = rng.standard_normal(50)
        ours.step([g])
        theirs.step([g])
    np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)
