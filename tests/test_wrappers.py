"""Lookahead and SAM: float64 references, optax, every kind of parameter, and what works through them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt import optim

rng = np.random.default_rng(5)
CURVE = rng.uniform(0.5, 4.0, (3, 4))


def start(dtype=np.float64):
    r = np.random.default_rng(1)
    return [r.standard_normal((3, 4)).astype(dtype), r.standard_normal(5).astype(dtype)]


def gradients(params):
    """Of the sum of CURVE * (p - 1)^4 / 4 and the sum of log(cosh(p))."""
    w, b = params
    return [CURVE.astype(w.dtype) * (w - 1) ** 3, np.tanh(b)]


def loss_of(params):
    w, b = params
    return float(np.sum(CURVE * (w - 1) ** 4) / 4 + np.sum(np.log(np.cosh(b))))


def lookahead_reference(params, k, alpha, lr, steps):
    slow = [p.copy() for p in params]
    for t in range(1, steps + 1):
        for p, g in zip(params, gradients(params), strict=True):
            p -= p.dtype.type(lr) * g
        if t % k == 0:
            for p, s in zip(params, slow, strict=True):
                s += p.dtype.type(alpha) * (p - s)
                p[...] = s
    return params


def sam_reference(params, rho, adaptive, lr, steps):
    for _ in range(steps):
        grads = gradients(params)
        norm = np.sqrt(
            sum(np.sum((p * g if adaptive else g) ** 2) for p, g in zip(params, grads, strict=True))
        )
        there = [
            p + p.dtype.type(rho) / (norm + p.dtype.type(1e-12)) * (p * p * g if adaptive else g)
            for p, g in zip(params, grads, strict=True)
        ]
        for p, g in zip(params, gradients(there), strict=True):
            p -= p.dtype.type(lr) * g
    return params


def assert_as_accurate(ours, reference, *arguments):
    dtype = ours[0].dtype
    exact = reference(start(np.longdouble if dtype == np.float64 else np.float64), *arguments)
    plain = reference(start(dtype), *arguments)
    for a, e, p in zip(ours, exact, plain, strict=True):
        allowed = 2 * np.abs(p - e).max() + 4 * np.finfo(dtype).eps * np.abs(e).max()
        assert np.abs(a - e).max() <= allowed


# Lookahead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (1, 0.25), (3, 1.0), (2, 0.0)])
@pytest.mark.parametrize("steps", [1, 12])
def test_lookahead_matches_the_reference(k, alpha, steps, dtype):
    params = start(dtype)
    opt = optim.Lookahead(optim.SGD(params, lr=0.05), k, alpha)
    for _ in range(steps):
        opt.step(gradients(params))
    assert_as_accurate(params, lookahead_reference, k, alpha, 0.05, steps)


def test_alpha_of_one_is_the_optimizer_alone():
    ours, plain = start(), start()
    opt, alone = optim.Lookahead(optim.Adam(ours, lr=0.1), 2, 1.0), optim.Adam(plain, lr=0.1)
    for _ in range(6):
        opt.step(gradients(ours))
        alone.step(gradients(plain))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 3])
def test_lookahead_matches_optax(k):
    optax = pytest.importorskip("optax")
    ours = start(np.float32)
    opt = optim.Lookahead(optim.Adam(ours, lr=0.1), k, 0.3)
    theirs = optax.lookahead(optax.adam(0.1), k, 0.3)
    params = optax.LookaheadParams.init_synced(start(np.float32))
    state = theirs.init(params)
    for _ in range(7):
        opt.step(gradients(ours))
        fast = [np.asarray(p) for p in params.fast]
        updates, state = theirs.update(gradients(fast), state, params)
        params = optax.apply_updates(params, updates)
        for a, b in zip(ours, params.fast, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_lookahead_of_lbfgs_and_closures():
    params = start()

    def closure():
        return loss_of(params), gradients(params)

    first = loss_of(params)
    opt = optim.Lookahead(optim.LBFGS(params, line_search_fn="strong_wolfe"), k=1, alpha=0.9)
    assert opt.step(closure) == first
    for _ in range(5):
        opt.step(closure)
    assert loss_of(params) < 1e-3 * first


def test_a_group_that_is_added_has_slow_weights_of_its_own():
    params, late = start(), np.ones(2)
    opt = optim.Lookahead(optim.SGD(params, lr=0.1), k=2, alpha=0.5)
    opt.step(gradients(params))
    opt.add_param_group({"params": [late], "lr": 0.2})
    late_before = late.copy()
    opt.step([gradients(params), [np.ones(2)]])
    np.testing.assert_allclose(late, late_before - 0.5 * 0.2)
    assert [g["lr"] for g in opt.param_groups] == [0.1, 0.2]


# SAM ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 0.7])
@pytest.mark.parametrize("steps", [1, 12])
def test_sam_matches_the_reference(adaptive, rho, steps, dtype):
    params = start(dtype)
    opt = optim.SAM(optim.SGD(params, lr=0.05), rho, adaptive)
    for step in range(steps):
        if step % 2:
            opt.step(lambda: (loss_of(params), gradients(params)))
        else:
            opt.first_step(gradients(params))
            opt.second_step(gradients(params))
    assert_as_accurate(params, sam_reference, rho, adaptive, 0.05, steps)


@pytest.mark.peers
def test_sam_matches_optax():
    optax = pytest.importorskip("optax")
    ours, theirs = start(np.float32), start(np.float32)
    opt = optim.SAM(optim.SGD(ours, lr=0.05, momentum=0.9), rho=0.1)
    peer = optax.contrib.sam(
        optax.sgd(0.05, momentum=0.9),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        reset_state=True,
    )
    state = peer.init(theirs)
    for _ in range(8):
        opt.step(lambda: (0.0, gradients(ours)))
        for _ in range(2):  # there and back
            updates, state = peer.update(gradients([np.asarray(p) for p in theirs]), state, theirs)
            theirs = optax.apply_updates(theirs, updates)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_sam_goes_up_and_comes_back_bit_for_bit():
    params = start(np.float32)
    before = [p.copy() for p in params]
    opt = optim.SAM(optim.SGD(params, lr=0.0), rho=0.3)
    first = loss_of(params)
    opt.first_step(gradients(params))
    assert loss_of(params) > first
    moved = np.sqrt(sum(np.sum((p - b).astype(np.float64) ** 2) for p, b in zip(params, before, strict=True)))
    assert moved == pytest.approx(0.3, rel=1e-5)
    opt.second_step(gradients(params))
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p, b)


def test_a_gradient_of_zero_moves_nothing():
    x = np.ones(3)
    opt = optim.SAM(optim.SGD([x], lr=0.1))
    assert opt.step(lambda: (1.0, [np.zeros(3)])) == 1.0
    np.testing.assert_array_equal(x, 1.0)


def test_parameters_without_gradients_stay():
    a, b = np.ones(3), np.ones(2)
    opt = optim.SAM(optim.SGD([a, b], lr=0.1), rho=0.5)
    opt.first_step([np.ones(3), None])
    np.testing.assert_array_equal(b, 1.0)
    opt.second_step([np.ones(3), None])
    np.testing.assert_array_equal(b, 1.0)
    np.testing.assert_allclose(a, 0.9)


def test_a_closure_that_fails_brings_the_parameters_back():
    params, calls = start(), []
    before = [p.copy() for p in params]
    opt = optim.SAM(optim.SGD(params, lr=0.1))

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("no data")
        return 0.0, gradients(params)

    with pytest.raises(KeyError):
        opt.step(closure)
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p, b)
    opt.step(closure)


# Both ---------------------------------------------------------------------------------------------------

WRAPPERS = {
    "lookahead": lambda opt: optim.Lookahead(opt, 2, 0.4),
    "sam": lambda opt: optim.SAM(opt, 0.2),
    "both": lambda opt: optim.Lookahead(optim.SAM(opt, 0.2), 2, 0.4),
    "other way round": lambda opt: optim.SAM(optim.Lookahead(opt, 2, 0.4), 0.2),
}


def run(opt, params, steps):
    """Steps by a closure where SAM needs one."""
    for _ in range(steps):
        if "SAM" in repr(opt):
            opt.step(lambda: (loss_of(params), gradients(params)))
        else:
            opt.step(gradients(params))


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy", "checkpoint"])
def test_resume_is_bit_identical(wrap, how, tmp_path):
    params = start(np.float32)
    opt = WRAPPERS[wrap](optim.AdamW(params, lr=0.05))
    run(opt, params, 3)
    if how in ("pickle", "deepcopy"):
        other = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        copies = [p for group in other.param_groups for p in group["params"]]
    else:
        copies = [p.copy() for p in params]
        other = WRAPPERS[wrap](optim.AdamW(copies, lr=1.0))
        if how == "state_dict":
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
        else:
            fo.checkpoint.save(tmp_path / "c.safetensors", optimizer=opt)
            fo.checkpoint.load(tmp_path / "c.safetensors", optimizer=other)
    run(opt, params, 4)
    run(other, copies, 4)
    for a, b in zip(params, copies, strict=True):
        assert a is not b
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_schedules_and_groups_work_through_them(wrap):
    params = start()
    inner = optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1)
    opt = WRAPPERS[wrap](inner)
    schedule = optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    run(opt, params, 1)
    schedule.step()
    assert [g["lr"] for g in inner.param_groups] == [0.05, 0.25]
    assert opt.param_groups is inner.param_groups
    assert opt.defaults is inner.defaults
    assert opt.state is not None
    assert type(inner).__name__ in repr(opt)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_tensors_train_through_them(wrap):
    fo.manual_seed(0)
    x, y = fo.randn(64, 3), fo.randn(64, 1)
    model = fo.nn.Sequential(fo.nn.Linear(3, 16), fo.nn.Tanh(), fo.nn.Linear(16, 1))
    opt = WRAPPERS[wrap](optim.Adam(model.parameters(), lr=0.02))
    loss_fn = fo.nn.MSELoss()

    def closure():
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(60):
        opt.step(closure)
    assert closure().item() < 0.8 * first


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_any_layout_and_dtype(wrap):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    memory = np.zeros((3, 8), np.float32)
    view, small = memory[::-2, 1::3].T, np.full(3, 2.0, ml_dtypes.bfloat16)
    view[...] = 3.0
    opt = WRAPPERS[wrap](optim.SGD([view, small], lr=0.3))

    def closure():
        return 0.0, [view - 1, (small - 1).astype(small.dtype)]

    for _ in range(60):
        opt.step(closure)
    np.testing.assert_allclose(view, 1.0, atol=0.1)
    np.testing.assert_allclose(small.astype(np.float32), 1.0, atol=0.1)
    untouched = np.ones_like(memory, bool)
    untouched[::-2, 1::3] = False
    np.testing.assert_array_equal(memory[untouched], 0.0)


def test_errors():
    params = start()
    before = [p.copy() for p in params]
    sgd = optim.SGD(params, lr=0.1)
    sam, look = optim.SAM(sgd), optim.Lookahead(sgd)
    state = look.state_dict()
    broken = {**state, "lookahead": {**state["lookahead"], "slow": [np.ones(2), np.ones(5)]}}
    for call, error, message in [
        (
            lambda: optim.Lookahead(params),
            TypeError,
            "Lookahead: optimizer is list, expected a fastopt optimizer",
        ),
        (lambda: optim.SAM(3), TypeError, "SAM: optimizer is int"),
        (lambda: optim.Lookahead(sgd, 0), ValueError, "k must be an integer of at least 1, got 0"),
        (lambda: optim.Lookahead(sgd, 2.5), ValueError, "k must be an integer of at least 1, got 2.5"),
        (lambda: optim.Lookahead(sgd, 2, 1.5), ValueError, r"alpha must be in \[0, 1\], got 1.5"),
        (lambda: optim.Lookahead(sgd, 2, "x"), TypeError, "alpha must be a number, got 'x'"),
        (lambda: optim.SAM(sgd, 0.0), ValueError, r"rho must be in \(0, inf\), got 0.0"),
        (lambda: sam.step(gradients(params)), TypeError, "SAM: step needs a closure, got list"),
        (lambda: sam.second_step(gradients(params)), RuntimeError, "second_step: first_step comes before"),
        (lambda: sam.first_step([np.ones(2), np.ones(5)]), ValueError, r"grads\[0\] has shape \(2,\)"),
        (lambda: sam.step(lambda: 1.0), TypeError, r"plain arrays need \(loss, grads\)"),
        (lambda: look.load_state_dict(sgd.state_dict()), TypeError, "expected a dict with 'lookahead'"),
        (lambda: look.load_state_dict(broken), ValueError, r"slow has shapes \[\(2,\), \(5,\)\]"),
        (lambda: look.nothing, AttributeError, "nothing"),
    ]:
        with pytest.raises(error, match=message):
            call()
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p, b)
    sam.first_step(gradients(params))
    with pytest.raises(RuntimeError, match="first_step: the parameters are moved already"):
        sam.first_step(gradients(params))
    with pytest.raises(RuntimeError, match="state_dict: the parameters are moved"):
        sam.state_dict()
    with pytest.raises(ValueError, match=r"grads has 3 entries"):
        sam.second_step([1, 2, 3])
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p, b)
