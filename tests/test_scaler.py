"""GradScaler: torch's scales and steps, skipped steps, wrong orders, and what it costs nothing to undo."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from fastopt import optim
from optim_tools import ROWS, RULES, make, snapshot

SIZES = (1, 33, 1023)


def problem(dtype, seed=0):
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal(n).astype(dtype) for n in SIZES]
    return params, [[rng.standard_normal(n).astype(dtype) for n in SIZES] for _ in range(6)]


def begun(**settings):
    """A scaler whose scale was read."""
    scaler = fo.GradScaler(**settings)
    scaler.get_scale()
    return scaler


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_scaled_step_has_the_bits_of_a_plain_one(name, row):
    """A power of two is undone exactly, so clipping, decay, rule and average see the gradients of a plain step."""
    start, steps = problem("float32")
    options = OPTIMIZERS[name]["options"][row]
    results = []
    for scale in (1.0, 2.0**12):
        params = [p.copy() for p in start]
        opt, scaler = make(name, params, options), begun(init_scale=scale)
        for grads in steps:
            scaled = [g * np.float32(scale) for g in grads]
            before = [g.copy() for g in scaled]
            assert scaler.step(opt, scaled) is True
            scaler.update()
            assert all(np.array_equal(a, b) for a, b in zip(scaled, before, strict=True))
        results.append((params, opt.grad_norm))
    plain = [p.copy() for p in start]
    opt = make(name, plain, options)
    for grads in steps:
        opt.step(grads)
    for params, norm in results:
        assert all(np.array_equal(a, b) for a, b in zip(params, plain, strict=True))
        assert norm == opt.grad_norm


@pytest.mark.parametrize("clip", [{}, {"max_norm": 1.0}, {"max_norm": 1.0, "clip_scope": "group"}])
def test_groups_without_parameters(clip):
    opt, scaler = fo.optim.SGD([{"params": []}], lr=1.0, **clip), begun()
    assert scaler.step(opt, []) is True
    opt.step([])
    assert not opt.grad_norm


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("name", RULES)
def test_a_skipped_step_changes_nothing(name, max_norm, bad):
    start, steps = problem("float32")
    params = [p.copy() for p in start]
    opt = make(name, params, {"ema_decay": 0.9, "max_norm": max_norm})
    scaler = begun(init_scale=4.0)
    assert scaler.step(opt, steps[0])
    scaler.update()
    before, norm = snapshot(opt), opt.grad_norm
    state = copy.deepcopy(opt.state_dict())
    broken = [g.copy() for g in steps[1]]
    broken[2][1000] = bad
    assert scaler.step(opt, broken) is False
    assert scaler.get_scale() == 4.0
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(np.array_equal(a, b) for a, b in zip(before[0], params, strict=True))
    now = opt.state_dict()
    assert now["state"].keys() == state["state"].keys()
    for i, entry in state["state"].items():
        assert all(np.array_equal(value, now["state"][i][key]) for key, value in entry.items())
    assert opt.grad_norm == norm
    # What follows is as if the skipped step had never been.
    assert scaler.step(opt, [g * np.float32(2) for g in steps[2]])
    other = [p.copy() for p in start]
    twin = make(name, other, {"ema_decay": 0.9, "max_norm": max_norm})
    twin.step([g / np.float32(4) for g in steps[0]])
    twin.step(steps[2])
    assert all(np.array_equal(a, b) for a, b in zip(other, params, strict=True))


def test_large_finite_gradients_are_not_skipped():
    """A sum of squares in their own dtype would overflow."""
    for dtype, large in (("float32", 1e38), ("float64", 1e300), ("float16", 6e4)):
        p = np.zeros(2000, dtype)
        scaler = begun(init_scale=2.0**16)
        assert scaler.step(optim.SGD([p], lr=1.0), [np.full(2000, large, dtype)])
        np.testing.assert_allclose(p.astype(float), -large / 2**16, rtol=1e-3)
    p = np.zeros(2000, np.float32)
    opt = optim.SGD([p], lr=1.0, max_norm=1.0)
    assert scaler.get_scale() == 2.0**16
    scaler.update()
    assert scaler.step(opt, [np.full(2000, 1e30, np.float32)])
    assert opt.grad_norm == pytest.approx(1e30 * math.sqrt(2000) / 2**16)


def test_half_gradients_are_unscaled_in_float32():
    """1e-8 is no float16; scaled it is one, and the step has what it was."""
    p = np.zeros(4, np.float16)
    opt, scaler = optim.Adam([p], lr=0.5, eps=0.0), begun()
    assert scaler.step(opt, [np.full(4, 1e-8 * 2**16, np.float16)])
    np.testing.assert_array_equal(p, -0.5)
    np.testing.assert_allclose(opt.state[0]["exp_avg"], 1e-9, rtol=1e-3)


def test_several_rules_and_missing_gradients():
    p, q, r = np.ones(3), np.ones(3), np.ones(2)
    opt = optim.SGD([{"params": [p, r]}, {"params": [q], "momentum": 0.9}], lr=0.1, max_norm=1.0)
    scaler = begun(init_scale=8.0)
    assert not scaler.step(opt, [np.ones(3), None, np.array([1.0, math.nan, 0.0])])
    scaler.update()
    assert (p == 1).all()
    assert (q == 1).all()
    assert scaler.step(opt, [np.full(3, 4.0), None, np.full(3, 4.0)])
    assert opt.grad_norm == pytest.approx(math.sqrt(6))
    np.testing.assert_allclose(p, 1 - 0.1 / math.sqrt(6), rtol=1e-6)
    assert (r == 1).all()
    assert opt.state.keys() == {2}


@pytest.mark.peers
@pytest.mark.parametrize("clipped", [False, True])
def test_scales_and_weights_are_torchs(clipped):
    torch = pytest.importorskip("torch")
    settings = {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}
    theirs, ours = torch.amp.GradScaler("cpu", **settings), fo.GradScaler("cpu", **settings)
    start, _ = problem("float64")  # and powers of two: torch rounds a scale's inverse to float32
    params, tensors = [p.copy() for p in start], [torch.tensor(p, requires_grad=True) for p in start]
    options = {"lr": 0.05, "weight_decay": 0.1}
    opt = optim.AdamW(params, max_norm=2.0 if clipped else None, **options)
    twin = torch.optim.AdamW(tensors, **options)
    rng = np.random.default_rng(5)
    skipped = 0
    for t in range(40):
        assert ours.get_scale() == theirs.get_scale()
        grads = [rng.standard_normal(p.shape) for p in params]
        if t % 7 == 5:
            grads[1][3] = math.inf
        assert float(ours.scale(1.5)) == float(theirs.scale(torch.tensor(1.5)))
        scaled = [g * ours.get_scale() for g in grads]
        for tensor, g in zip(tensors, scaled, strict=True):
            tensor.grad = torch.tensor(g)
        skipped += not ours.step(opt, scaled)
        if clipped:
            theirs.unscale_(twin)
            torch.nn.utils.clip_grad_norm_(tensors, 2.0)
        theirs.step(twin)
        ours.update()
        theirs.update()
    assert skipped == 5
    for p, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-9)
    mine, yours = ours.state_dict(), theirs.state_dict()
    assert mine == yours
    other = fo.GradScaler()
    other.load_state_dict(yours)
    assert other.state_dict() == yours


def test_tensors():
    w = fo.tensor([1.0, -2.0], requires_grad=True)
    opt, scaler = optim.SGD([w], lr=0.5), fo.GradScaler(init_scale=64.0)
    scaler.scale((w * w).sum()).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [128.0, -256.0])
    assert scaler.step(opt)
    np.testing.assert_array_equal(w.numpy(), [0.0, 0.0])
    scaler.update()
    opt.zero_grad()
    scaler.scale((w - 3).sum()).backward()
    scaler.unscale_(opt)
    np.testing.assert_array_equal(w.grad.numpy(), [1.0, 1.0])
    optim.clip_grad_value_([w], 0.5)
    assert scaler.step(opt)
    np.testing.assert_array_equal(w.numpy(), [-0.25, -0.25])


def test_unscale_in_place():
    p, g = {"w": np.zeros((4, 3), np.float32)}, np.full((3, 4), 8.0, np.float32).T
    opt, scaler = optim.SGD(p, lr=1.0), begun(init_scale=4.0)
    scaler.unscale_(opt, {"w": g})
    np.testing.assert_array_equal(g, 2.0)
    assert scaler.step(opt, {"w": g})
    np.testing.assert_array_equal(p["w"], -2.0)
    scaler.update()
    g[0, 0] = math.nan
    scaler.unscale_(opt, {"w": g})
    g[0, 0] = 0.0  # what was found stays found
    assert not scaler.step(opt, {"w": g})
    scaler.update()
    assert scaler.get_scale() == 2.0
    np.testing.assert_array_equal(p["w"], -2.0)


def test_two_optimizers_share_a_scaler():
    p, q = np.zeros(1), np.zeros(1)
    a, b, scaler = optim.SGD([p], lr=1.0), optim.SGD([q], lr=1.0), begun(init_scale=2.0)
    assert scaler.step(a, [np.ones(1)])
    assert not scaler.step(b, [np.full(1, math.inf)])
    scaler.update()
    assert (p[0], q[0], scaler.get_scale()) == (-0.5, 0.0, 1.0)


def test_scale_of_what_there_is():
    scaler = fo.GradScaler(init_scale=2.0**17)
    assert scaler.scale(0.5) == 2.0**16
    half = scaler.scale(np.float16(1.5))
    assert (half.dtype, half) == (np.float32, 1.5 * 2**17)
    assert scaler.scale(np.ones(2, np.float16)).dtype == np.float32
    assert scaler.scale(np.ones(2, np.float32)).dtype == np.float32
    assert scaler.scale((1.0, [2.0])) == (2.0**17, [2.0**18])
    for bad in ("loss", {"a": 1.0}, None):
        with pytest.raises(TypeError, match=f"scale: outputs is {type(bad).__name__}, expected"):
            scaler.scale(bad)


def test_disabled():
    scaler = fo.GradScaler(enabled=False)
    p = np.zeros(1)
    opt = optim.SGD([p], lr=1.0)
    assert scaler.scale("anything") == "anything"
    assert not scaler.is_enabled()
    scaler.unscale_(opt, [np.ones(1)])
    scaler.step(opt, [np.ones(1)])
    assert scaler.step(opt, closure=lambda: (0.25, [np.ones(1)])) == 0.25
    scaler.update()
    assert (p[0], scaler.get_scale(), scaler.state_dict()) == (-2.0, 1.0, {})
    scaler.load_state_dict({})


def test_wrong_orders():
    p = np.zeros(1)
    opt, g = optim.SGD([p], lr=1.0), [np.ones(1)]
    fresh = fo.GradScaler()
    for call in (lambda: fresh.step(opt, g), lambda: fresh.unscale_(opt, g), fresh.update):
        with pytest.raises(RuntimeError, match="no loss was scaled"):
            call()
    scaler = begun()
    with pytest.raises(RuntimeError, match="update: no gradients were checked"):
        scaler.update()
    scaler.unscale_(opt, g)
    with pytest.raises(
        RuntimeError, match=r"unscale_: already called for this optimizer since the last update"
    ):
        scaler.unscale_(opt, g)
    with pytest.raises(RuntimeError, match="can only be pickled right after update"):
        pickle.dumps(scaler)
    scaler.step(opt, g)
    with pytest.raises(RuntimeError, match=r"step: already called for this optimizer since the last update"):
        scaler.step(opt, g)
    with pytest.raises(RuntimeError, match=r"unscale_: called after step"):
        scaler.unscale_(opt, g)
    scaler.update()
    with pytest.raises(RuntimeError, match="closures are not supported"):
        scaler.step(opt, closure=lambda: (0.0, g))
    with pytest.raises(RuntimeError, match="closures are not supported"):
        scaler.step(optim.LBFGS([p]), g)
    with pytest.raises(TypeError, match="optimizer is list, expected a fastopt optimizer"):
        scaler.step([p], g)
    assert p[0] == -(2.0**-16)
    assert pickle.loads(pickle.dumps(scaler)).state_dict() == scaler.state_dict()


def test_a_refused_step_may_be_repeated():
    p = np.zeros(2)
    opt, scaler = optim.SGD([p], lr=1.0), begun(init_scale=2.0)
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(3,\), params\[0\] has shape \(2,\)"):
        scaler.step(opt, [np.ones(3)])
    assert scaler.step(opt, [np.ones(2)])
    np.testing.assert_array_equal(p, -0.5)
    frozen = np.ones(2)
    frozen.flags.writeable = False
    scaler.update()
    with pytest.raises(ValueError, match=r"unscale_: grads\[0\] is read-only"):
        scaler.unscale_(opt, [frozen])
    half = optim.SGD([np.zeros(2, np.float16)])
    with pytest.raises(
        ValueError, match=r"unscale_: grads\[0\] is float16, which unscaled gradients underflow"
    ):
        scaler.unscale_(half, [np.ones(2, np.float16)])
    assert scaler.step(opt, [frozen])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"init_scale": 0.0}, ValueError, r"GradScaler: init_scale must be in \(0, inf\), got 0.0"),
        ({"init_scale": math.inf}, ValueError, r"init_scale must be in \(0, inf\), got inf"),
        ({"growth_factor": 1.0}, ValueError, r"growth_factor must be in \(1, inf\), got 1.0"),
        ({"backoff_factor": 1.0}, ValueError, r"backoff_factor must be in \(0, 1\), got 1.0"),
        ({"growth_interval": 0}, ValueError, r"growth_interval must be in \[1, inf\), got 0"),
        ({"growth_interval": "often"}, TypeError, r"growth_interval must be a number, got 'often'"),
        ({"device": 2.0**16}, TypeError, r"device must be a name or None, got 65536.0"),
    ],
)
def test_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        fo.GradScaler(**settings)


def test_setters_and_state_that_are_refused():
    scaler = begun()
    for key in ("growth_factor", "backoff_factor", "growth_interval"):
        value = {"growth_factor": 4.0, "backoff_factor": 0.125, "growth_interval": 7}[key]
        getattr(scaler, f"set_{key}")(value)
        assert getattr(scaler, f"get_{key}")() == value
        with pytest.raises(ValueError, match=f"set_{key}: {key} must be in"):
            getattr(scaler, f"set_{key}")(-1)
    scaler.update(32.0)
    assert scaler.get_scale() == 32.0
    with pytest.raises(ValueError, match=r"update: new_scale must be in \(0, inf\), got -1"):
        scaler.update(-1)
    state = scaler.state_dict()
    with pytest.raises(RuntimeError, match="state_dict is empty"):
        scaler.load_state_dict({})
    with pytest.raises(ValueError, match="state_dict has no '_growth_tracker'"):
        scaler.load_state_dict({k: v for k, v in state.items() if k != "_growth_tracker"})
    with pytest.raises(ValueError, match=r"load_state_dict: backoff_factor must be in \(0, 1\), got 2"):
        scaler.load_state_dict({**state, "scale": 1.0, "backoff_factor": 2})
    assert scaler.state_dict() == state


def test_an_optimizer_without_a_native_rule():
    """One that steps by itself gets unscaled copies."""

    class Plain(optim.SGD):
        def step(self, grads=None, closure=None):
            for p, g in zip(self.param_groups[0]["params"], grads, strict=True):
                p -= self.param_groups[0]["lr"] * g

    p = np.zeros((2, 3), np.float32, order="F")
    g = np.arange(6, dtype=np.float32).reshape(2, 3)
    kept = g.copy()
    opt, scaler = Plain([p], lr=1.0), begun(init_scale=2.0)
    assert scaler.step(opt, [g])
    np.testing.assert_array_equal(p, -kept / 2)
    np.testing.assert_array_equal(g, kept)
    scaler.update()
    g[1, 1] = math.nan
    assert not scaler.step(opt, [g])
    np.testing.assert_array_equal(p, -kept / 2)
