"""Prodigy: the estimate of the distance, which all parameters share, against optax and over groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastopt
from fastopt import nn, optim
from gpu_tools import cp, drawn, fused, kind
from optim_tools import problem, refuse
from test_optim_elementwise import with_optax

__all__ = ["cp", "fused", "kind"]

NUMBERS = ("d", "d_max", "d_numerator", "k")


def numbers(opt, g=0):
    return [opt.param_groups[g][name] for name in NUMBERS]


@pytest.mark.peers
@pytest.mark.parametrize("safeguard", [False, True])
def test_matches_optax(safeguard):
    """Whose bias correction is always on."""
    start, grads = problem("float64")
    start, grads = start[1:11], [g[1:11] for g in grads[:20]]
    peer = {"betas": (0.8, 0.95), "estim_lr0": 1e-3, "weight_decay": 0.1, "safeguard_warmup": safeguard}
    theirs = with_optax("contrib.prodigy", peer, start, grads, 0.5)
    params = [p.copy() for p in start]
    ours = {"lr": 0.5, "betas": (0.8, 0.95), "d0": 1e-3, "weight_decay": 0.1, "safeguard_warmup": safeguard}
    opt = optim.Prodigy(params, use_bias_correction=True, **ours)
    for g in grads:
        opt.step(g)
    for p, expected in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, expected, rtol=1e-9, atol=1e-12)


def quadratic(x, target):
    return [2 * (x - target)]


def test_the_estimate_reaches_the_distance_and_stays_in_bounds():
    x, target = np.zeros(20), np.full(20, 3.0)
    opt = optim.Prodigy([x])
    seen = []
    for _ in range(200):
        opt.step(quadratic(x, target))
        seen.append(opt.param_groups[0]["d"])
    assert seen[0] == 1e-6
    assert np.all(np.diff(seen) >= 0)
    assert 0.3 < seen[-1] < 2 * np.linalg.norm(target)
    slow = np.zeros(20)
    opt = optim.Prodigy([slow], growth_rate=1.1)
    ds = []
    for _ in range(60):
        opt.step(quadratic(slow, target))
        ds.append(opt.param_groups[0]["d"])
    grown = [b / a for a, b in itertools.pairwise(ds) if a > 1e-6]
    assert max(grown[1:]) <= 1.1 * (1 + 1e-12)


def test_groups_share_the_estimate():
    """As one group of the same arrays, but for what they set themselves; a rate of 0 leaves a group as it is."""
    rng = np.random.default_rng(1)
    start = [rng.standard_normal(n) for n in (4, 6, 5)]
    together, apart, still = ([p.copy() for p in start] for _ in range(3))
    one = optim.Prodigy(together[:2], d0=1e-3)
    two = optim.Prodigy([{"params": apart[:1]}, {"params": apart[1:2], "ema_decay": 0.5}], d0=1e-3)
    three = optim.Prodigy(still[:2], d0=1e-3)
    three.add_param_group({"params": still[2:], "lr": 0.0, "weight_decay": 0.5})
    for _ in range(8):
        g = [rng.standard_normal(p.size) + 0.5 for p in start]
        one.step(g[:2])
        two.step([g[:1], g[1:2]])
        three.step([g[:2], g[2:]])
    for other in (apart, still):
        for a, b in zip(together[:2], other[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_array_equal(still[2], start[2])
    assert numbers(two, 0) == numbers(two, 1)
    three.add_param_group({"params": [np.ones(3)]})
    assert numbers(three, 2) == numbers(three, 0)
    three.param_groups[2]["lr"] = 0.3
    refuse(
        three,
        lambda: three.step([g[:2], g[2:], [np.ones(3)]]),
        r"Prodigy: lr must be the same in all groups or 0, got 0.3 in param_groups\[2\] and 1.0",
    )


def test_gradients_of_zero_change_nothing():
    p = np.ones(3)
    opt = optim.Prodigy([p], weight_decay=0.5)
    opt.step([np.zeros(3)])
    np.testing.assert_array_equal(p, 1.0)
    assert numbers(opt) == [1e-6, 1e-6, 0.0, 0]
    assert opt.state_dict()["state"] == {}


def test_state_that_lacks_the_start():
    p = np.ones(3)
    opt = optim.Prodigy([p])
    opt.step([np.ones(3)])
    state = opt.state_dict()
    assert {"step", "exp_avg", "exp_avg_sq", "s", "p0"} == state["state"][0].keys()
    del state["state"][0]["p0"]
    refuse(opt, lambda: opt.load_state_dict(state), r"state\[0\] has no 'p0', it has \['exp_avg'")


def test_a_new_start_after_loading():
    """d and p0 travel: a resumed run goes on, with the bits of one that was not interrupted."""
    rng = np.random.default_rng(3)
    p = rng.standard_normal((6, 5)).astype(np.float32)
    q = p.copy()
    opt = optim.Prodigy([p[:, ::2]], d0=1e-3)
    grads = [rng.standard_normal((6, 3)).astype(np.float32) + np.float32(0.5) for _ in range(10)]
    for g in grads[:5]:
        opt.step([g])
    q[...] = p
    heir = optim.Prodigy([q[:, ::2]])
    heir.load_state_dict(opt.state_dict())
    for g in grads[5:]:
        opt.step([g])
        heir.step([g])
    np.testing.assert_array_equal(p, q)
    assert numbers(opt) == numbers(heir)


def test_exact_rounding_sees_the_bits_that_bfloat16_lacks():
    """Steps far below half a unit of bfloat16 lead away from p0 all the same."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow, wide = np.ones(64, ml_dtypes.bfloat16), np.ones(64, np.float32)
    opts = [optim.Prodigy([narrow], d0=1e-4, rounding="exact"), optim.Prodigy([wide], d0=1e-4)]
    g = np.linspace(0.5, 2, 64).astype(ml_dtypes.bfloat16)
    for _ in range(20):
        opts[0].step([g])
        opts[1].step([g.astype(np.float32)])
    assert numbers(opts[0]) == numbers(opts[1])
    assert opts[1].param_groups[0]["d"] > 1e-4


def test_compiled_steps_are_the_eager_ones():
    def trained(compiled):
        fastopt.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        opt = optim.Prodigy(model.parameters(), d0=1e-3)
        loss_fn = nn.CrossEntropyLoss()
        step = fastopt.compile(model, loss_fn, opt) if compiled else None
        rng = np.random.default_rng(2)
        for _ in range(6):
            x, y = rng.standard_normal((7, 5)).astype(np.float32), rng.integers(0, 3, 7)
            if step is not None:
                step(x, y)
                continue
            opt.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
        return [p.numpy() for p in model.parameters()], numbers(opt)

    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="fuse_update is True, but Prodigy is no rule optimizer"):
        fastopt.compile(model, nn.MSELoss(), optim.Prodigy(model.parameters()), fuse_update=True)
    (ours, d), (eager, eager_d) = trained(True), trained(False)
    np.testing.assert_allclose(d, eager_d, rtol=1e-4)
    for a, b in zip(ours, eager, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_on_a_device(cp, fused):
    """Sums differ in their last bits, and so does d."""
    start = drawn(1000, "float32", 1)
    host, device = start.copy(), cp.asarray(start)
    opts = [optim.Prodigy([array], d0=1e-3, max_norm=20.0) for array in (host, device)]
    for t in range(8):
        g = drawn(1000, "float32", t + 2) + np.float32(0.3)
        opts[0].step([g])
        opts[1].step([cp.asarray(g)])
    np.testing.assert_allclose(numbers(opts[1]), numbers(opts[0]), rtol=1e-5)
    np.testing.assert_allclose(device.get(), host, rtol=1e-4, atol=1e-6)
