"""Rules element by element that came after torch's: against optax where it has the same, and what only they do."""

from __future__ import annotations

import numpy as np
import pytest

from optim_tools import make, problem

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
