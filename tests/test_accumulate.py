"""Gradient accumulation: the mean or sum of several calls makes one update."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from fastopt import optim
from optim_tools import ROWS, make, refuse, snapshot

SHAPES = ((1,), (), (0,), (33,), (40, 27))


def problem(dtype, steps=6, seed=0):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    return params, [[np.asarray(rng.standard_normal(s), dtype) for s in SHAPES] for _ in range(steps)]


def total(steps, dtype):
    """The sums of each parameter's gradients, added one by one."""
    sums = [g.astype(dtype) for g in steps[0]]
    for grads in steps[1:]:
        sums = [np.asarray(a + g.astype(dtype)) for a, g in zip(sums, grads, strict=True)]
    return sums


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_an_update_is_that_of_the_mean(name, row, reduction):
    """Four and one are powers of two: the mean is exact, so the bits are those of a step with it."""
    start, steps = problem("float32", 8)
    options = OPTIMIZERS[name]["options"][row]
    params, expected = [p.copy() for p in start], [p.copy() for p in start]
    kept = copy.deepcopy(steps)
    opt = make(name, params, {**options, "accumulate": 4, "accumulate_reduction": reduction})
    plain = make(name, expected, options)
    for t, grads in enumerate(steps):
        assert opt.accumulated == t % 4
        opt.step(grads)
        if t % 4 == 3:
            factor = np.float32(0.25 if reduction == "mean" else 1)
            plain.step([np.asarray(g * factor) for g in total(steps[t - 3 : t + 1], np.float32)])
            assert opt.grad_norm == plain.grad_norm
        for p, q in zip(params, expected, strict=True):
            np.testing.assert_array_equal(p, q)
    assert opt.accumulated == 0
    for grads, before in zip(steps, kept, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(grads, before, strict=True))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    """The sum of half-precision gradients is float32, rounded once."""
    start, steps = problem(dtype, 4)
    params, expected = [p.copy() for p in start], [p.copy() for p in start]
    opt, plain = optim.Adam(params, lr=0.1, accumulate=4), optim.Adam(expected, lr=0.1)
    wide = np.float64 if dtype == "float64" else np.float32
    for grads in steps:
        opt.step(grads)
    plain.step(
        [np.asarray(g * wide(0.25)).astype(p.dtype) for g, p in zip(total(steps, wide), start, strict=True)]
    )
    for p, q in zip(params, expected, strict=True):
        np.testing.assert_array_equal(p, q)


def test_any_number_of_calls():
    start, steps = problem("float32", 6)
    params = [p.copy() for p in start]
    opt = optim.SGD(params, lr=1.0, accumulate=3)
    for grads in steps[:3]:
        opt.step(grads)
    for p, q, g in zip(params, start, total(steps[:3], np.float64), strict=True):
        np.testing.assert_allclose(p, q - g / 3, rtol=1e-5, atol=1e-6)


def test_missing_gradients_count_as_zeros():
    p, q, r = np.zeros(3), np.zeros(2), np.zeros(2)
    opt = optim.SGD([p, q, r], lr=1.0, momentum=0.9, accumulate=2)
    opt.step([np.full(3, 4.0), None, None])
    opt.step([None, np.full(2, 6.0), None])
    np.testing.assert_array_equal(p, -2.0)
    np.testing.assert_array_equal(q, -3.0)
    np.testing.assert_array_equal(r, 0.0)
    assert opt.state.keys() == {0, 1}
    opt.step([None, None, None])
    opt.step([np.full(3, 2.0), None, None])
    np.testing.assert_array_equal(p, -2.0 - (0.9 * 2 + 1))
    np.testing.assert_array_equal(q, -3.0)  # nothing waits of the update before


def test_half_and_single_precision_together():
    p, q = np.zeros(5, np.float16), np.zeros(5, np.float32)
    opt = optim.SGD({"p": p, "q": q}, lr=1.0, accumulate=2)
    half, single = np.full(5, 3e4, np.float16), np.ones(5, np.float32)
    opt.step({"p": half, "q": single})
    before = snapshot(opt)
    with pytest.raises(TypeError, match=r"grads\['q'\] is float16, params\['q'\] is float32"):
        opt.step({"p": half, "q": half})
    opt.step({"p": None, "q": single})
    np.testing.assert_array_equal(p, -1.5e4)
    np.testing.assert_array_equal(q, -1.0)
    assert before[0][0][0] == 0.0
    for _ in range(2):  # their sum is no float16, their mean is
        opt.step({"p": half, "q": single})
    np.testing.assert_array_equal(p, np.float16(-4.5e4))


@pytest.mark.parametrize("layout", ["F", "strided"])
def test_layouts(layout):
    memory = np.zeros((8, 6), order="F")
    p = memory if layout == "F" else memory[::2, ::3]
    g = np.arange(p.size, dtype=float).reshape(p.shape)
    opt = optim.SGD([p], lr=1.0, accumulate=2)
    opt.step([g])
    saved = opt.state_dict()
    np.testing.assert_array_equal(saved["accumulated"]["sums"][0], g)
    opt.step([g])
    np.testing.assert_array_equal(p, -g)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_partial_sum_is_saved(dtype):
    start, steps = problem(dtype, 3)
    params, others = [p.copy() for p in start], [p.copy() for p in start]
    opt = optim.AdamW(params, accumulate=3)
    opt.step(steps[0])
    opt.step([None, *steps[1][1:]])
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    assert saved["accumulated"]["count"] == 2
    assert {a.dtype for a in saved["accumulated"]["sums"].values()} == {np.dtype(np.float32)}
    other = optim.AdamW(others, accumulate=3)
    other.step(steps[2])  # is dropped
    other.load_state_dict(saved)
    assert other.accumulated == 2
    clone = pickle.loads(pickle.dumps(opt))
    for each in (opt, other, clone):
        each.step(steps[2])
    assert "accumulated" not in opt.state_dict()
    for p, q, r in zip(params, others, clone.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(p, q)
        np.testing.assert_array_equal(p, r)
    other.step(steps[0])
    other.load_state_dict(opt.state_dict())
    assert other.accumulated == 0
    for change, message in [
        (
            {"sums": {0: np.zeros(2, dtype)}},
            r"accumulated\['sums'\]\[0\] has shape \(2,\), params\[0\] has shape \(1,\)",
        ),
        ({"sums": {9: np.zeros(2, dtype)}}, r"accumulated\['sums'\]\[9\] belongs to none of 5 parameters"),
    ]:
        bad = {**saved, "accumulated": {**saved["accumulated"], **change}}
        refuse(other, lambda bad=bad: other.load_state_dict(bad), message)
    refuse(
        other,
        lambda: other.load_state_dict({**saved, "accumulated": 3}),
        "must be a dict with 'count' and 'sums'",
    )


def test_max_norm_is_of_the_mean():
    p = np.zeros(4)
    opt = optim.SGD([p], lr=1.0, max_norm=1.0, accumulate=2)
    opt.step([np.full(4, 1.0)])
    assert opt.grad_norm is None
    opt.step([np.full(4, 3.0)])
    assert opt.grad_norm == 4.0
    np.testing.assert_allclose(p, -0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_with_a_scaler(dtype):
    """The scale changes between the calls, and a batch that is not finite is left out alone."""
    p = np.zeros(3, dtype)
    opt, scaler = optim.SGD([p], lr=1.0, accumulate=2, max_norm=100.0), fo.GradScaler(init_scale=8.0)
    scaler.get_scale()
    tiny = 2.0**-26  # no float16
    assert scaler.step(opt, [np.full(3, 8 * tiny, dtype)])
    scaler.update()
    assert opt.accumulated == 1
    broken = np.array([1.0, math.nan, 2.0], dtype)
    assert not scaler.step(opt, [broken])
    scaler.update()
    assert (opt.accumulated, scaler.get_scale()) == (1, 4.0)
    assert scaler.step(opt, [np.full(3, 4 * tiny, dtype)])
    assert opt.accumulated == 0
    assert opt.grad_norm == pytest.approx(tiny * math.sqrt(3))
    np.testing.assert_allclose(p.astype(float), -tiny if dtype == "float32" else 0.0)


def test_what_was_not_finite_does_not_stay():
    p = np.zeros(2)
    opt = optim.SGD([p], lr=1.0, accumulate=2)
    for _ in range(2):
        opt.step([np.array([math.inf, 1.0])])
    p[:] = 0.0
    for _ in range(2):
        opt.step([np.ones(2)])
    np.testing.assert_array_equal(p, -1.0)


def test_tensors_and_closures():
    w = fo.tensor([1.0, -2.0], requires_grad=True)
    opt = optim.SGD([w], lr=0.5, accumulate=2)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert float(opt.step(closure).item()) == 5.0
    np.testing.assert_array_equal(w.numpy(), [1.0, -2.0])
    opt.step(closure)
    np.testing.assert_array_equal(w.numpy(), [0.0, 0.0])


def test_a_number_that_changes():
    p = np.zeros(1)
    opt = optim.SGD([p], lr=1.0, accumulate=4)
    opt.step([np.ones(1)])
    opt.step([np.ones(1)])
    opt.accumulate = 1
    opt.step([np.full(1, 4.0)])
    assert (p[0], opt.accumulated) == (-2.0, 0)
    opt.step([np.ones(1)])
    assert p[0] == -3.0


def test_a_group_that_is_added_between():
    p, q = np.zeros(2), np.zeros(3)
    opt = optim.SGD([p], lr=1.0, accumulate=2)
    opt.step([np.full(2, 2.0)])
    opt.add_param_group({"params": [q]})
    opt.step([[np.full(2, 4.0)], [np.full(3, 4.0)]])
    np.testing.assert_array_equal(p, -3.0)
    np.testing.assert_array_equal(q, -2.0)


@pytest.mark.parametrize("frozen", [False, True])
def test_compiled(frozen):
    """The gradients are computed natively, one step after the other."""

    def model():
        fo.manual_seed(3)
        made = fo.nn.Sequential(fo.nn.Linear(5, 7), fo.nn.ReLU(), fo.nn.Linear(7, 2))
        made.parameters().__iter__().__next__().requires_grad = not frozen
        return made

    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((24, 5)).astype(np.float32), rng.standard_normal((24, 2)).astype(np.float32)
    ours, theirs, loss_fn = model(), model(), fo.nn.MSELoss()
    a = optim.Adam(ours.parameters(), lr=0.1, accumulate=3, max_norm=1.0)
    b = optim.Adam(theirs.parameters(), lr=0.1, accumulate=3, max_norm=1.0)
    step = fo.compile(ours, loss_fn, a)
    losses = [*step.run(x[:16], y[:16], batch_size=4), step(x[16:20], y[16:20]), step(x[20:], y[20:])]
    for t in range(6):
        b.zero_grad()
        loss = loss_fn(theirs(fo.tensor(x[4 * t : 4 * t + 4])), y[4 * t : 4 * t + 4])
        loss.backward()
        b.step()
        assert losses[t] == pytest.approx(float(loss.item()), rel=1e-5)
    assert a.accumulated == b.accumulated == 0
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ValueError, match="fuse_update is True, but accumulate needs all gradients before an update"
    ):
        fo.compile(ours, loss_fn, a, fuse_update=True)
    a.accumulate, a.max_norm = 1, None  # from now on one native call
    step(x[:4], y[:4])
    assert a.state[3]["step"] == 3


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_numbers_that_are_refused(value):
    with pytest.raises(ValueError, match=f"Adam: accumulate must be an integer of at least 1, got {value!r}"):
        optim.Adam([np.zeros(1)], accumulate=value)
    opt = optim.Adam([np.zeros(1)])
    refuse(opt, lambda: setattr(opt, "accumulate", value), "accumulate must be an integer")
    with pytest.raises(ValueError, match="accumulate_reduction must be 'mean' or 'sum', got 'max'"):
        optim.Adam([np.zeros(1)], accumulate_reduction="max")
