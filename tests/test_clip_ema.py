"""Clipping functions and the stand-alone average of weights."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from fastopt import optim

SHAPES = [(3, 4), (), (0,), (257,), (2, 3, 5)]


def arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [np.asarray(3 * rng.standard_normal(s), dtype) for s in SHAPES]


def exact_norm(gs, order):
    flat = np.concatenate([np.asarray(g, np.float64).ravel() for g in gs])
    return float(np.linalg.norm(flat, order)) if flat.size else 0.0


def dtypes():
    return ["float32", "float64", "float16", "bfloat16"]


def as_dtype(name):
    return pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("name", dtypes())
def test_clip_grad_norm(name, order):
    gs = arrays(as_dtype(name))
    before = [g.copy() for g in gs]
    norm = exact_norm(gs, order)
    assert optim.get_total_norm(gs, order) == pytest.approx(norm, rel=1e-6)
    assert optim.clip_grad_norm_(gs, 2.5, order) == pytest.approx(norm, rel=1e-6)
    factor = 2.5 / (norm + 1e-6)
    for g, b in zip(gs, before, strict=True):
        assert g.dtype == b.dtype
        expected = b.astype(np.float64) * factor
        eps = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[name]
        np.testing.assert_allclose(g.astype(np.float64), expected, rtol=eps, atol=1e-7)


def test_small_gradients_are_left_alone():
    gs = arrays(np.float32)
    before = [g.copy() for g in gs]
    norm = optim.clip_grad_norm_(gs, 1e4)
    assert norm == pytest.approx(exact_norm(before, 2.0), rel=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(gs, before, strict=True))


@pytest.mark.parametrize("name", dtypes())
def test_clip_grad_value(name):
    gs = arrays(as_dtype(name))
    before = [g.astype(np.float64) for g in gs]
    optim.clip_grad_value_(iter(gs), 0.5)
    for g, b in zip(gs, before, strict=True):
        np.testing.assert_array_equal(g.astype(np.float64), np.clip(b, -0.5, 0.5))


def test_a_single_array_and_any_layout():
    g = np.array([[3.0, 0.0], [0.0, 4.0]])
    memory = np.zeros((4, 2))
    view = memory[::-2]
    view[...] = g
    assert optim.clip_grad_norm_(view, 1.0) == 5.0
    np.testing.assert_allclose(view, g / 5, rtol=1e-6)
    assert memory[0::2].sum() == 0
    optim.clip_grad_value_(view.T, 0.7)
    np.testing.assert_allclose(view, [[0.6, 0], [0, 0.7]], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_norm(bad):
    gs = [np.array([1.0, bad]), np.array([2.0])]
    before = [g.copy() for g in gs]
    with pytest.raises(RuntimeError, match=r"clip_grad_norm_: the norm of order 2.0 is (nan|inf)"):
        optim.clip_grad_norm_(gs, 1.0, error_if_nonfinite=True)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(gs, before, strict=True))
    with pytest.raises(RuntimeError, match=r"get_total_norm: the norm of order inf"):
        optim.get_total_norm(gs, math.inf, error_if_nonfinite=True)
    with np.errstate(invalid="ignore"):
        norm = optim.clip_grad_norm_(gs, 1.0)
    assert not math.isfinite(norm)
    assert np.isnan(gs[0][1])
    assert np.isnan(gs[1][0]) if math.isnan(bad) else gs[1][0] == 0.0


def test_clip_errors_change_nothing():
    g = np.ones(3)
    frozen = np.ones(3)
    frozen.flags.writeable = False
    for call, error, message in [
        (lambda: optim.clip_grad_norm_([g], -1.0), ValueError, r"max_norm must be in \[0, inf\], got -1.0"),
        (
            lambda: optim.clip_grad_norm_([g], math.nan),
            ValueError,
            r"max_norm must be in \[0, inf\], got nan",
        ),
        (
            lambda: optim.clip_grad_norm_([g], 1.0, 0.0),
            ValueError,
            r"norm_type must be in \(0, inf\], got 0.0",
        ),
        (lambda: optim.clip_grad_norm_([g, frozen], 1.0), ValueError, r"parameters\[1\] is read-only"),
        (
            lambda: optim.clip_grad_value_([g, "x"], 0.1),
            TypeError,
            r"parameters\[1\] is str, expected an array",
        ),
        (lambda: optim.clip_grad_value_(g, -0.1), ValueError, r"clip_value must be in \[0, inf\], got -0.1"),
        (lambda: optim.get_total_norm([None]), TypeError, r"tensors\[0\] is NoneType, expected an array"),
    ]:
        with pytest.raises(error, match=message):
            call()
    np.testing.assert_array_equal(g, 1.0)
    assert optim.get_total_norm([frozen, frozen]) == pytest.approx(math.sqrt(6))
    assert optim.get_total_norm([]) == 0.0


def test_tensors():
    tensor = pytest.importorskip("fastopt.tensor").Tensor
    a, b = (tensor(np.ones(n, np.float32), requires_grad=True) for n in (4, 2))
    (3 * a).sum().backward()
    assert optim.clip_grad_norm_([a, b], 3.0) == 6.0
    np.testing.assert_allclose(a.grad.data, 1.5, rtol=1e-6)
    optim.clip_grad_value_(a, 0.25)
    np.testing.assert_array_equal(a.grad.data, 0.25)
    assert optim.get_total_norm([a]) == 2.0


@pytest.mark.peers
@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_clip_matches_torch(order):
    torch = pytest.importorskip("torch")
    gs = [g for g in arrays(np.float32) if g.size]  # torch has no largest element of none
    params = [torch.zeros(g.shape) for g in gs]
    for p, g in zip(params, gs, strict=True):
        p.grad = torch.tensor(g)
    theirs = torch.nn.utils.clip_grad_norm_(params, 2.0, order)
    assert optim.clip_grad_norm_(gs, 2.0, order) == pytest.approx(float(theirs), rel=1e-6)
    for p, g in zip(params, gs, strict=True):
        np.testing.assert_allclose(g, p.grad.numpy(), rtol=1e-6)
    # torch's own tensors are clipped in place too.
    optim.clip_grad_norm_(params, 0.05)
    assert float(torch.nn.utils.get_total_norm([p.grad for p in params])) == pytest.approx(0.05, rel=1e-4)


def test_fused_clipping_is_clipping_before_the_step():
    gs, more = arrays(np.float64), arrays(np.float64, 1)
    a, b = [g.copy() for g in more], [g.copy() for g in more]
    fused = optim.SGD(a, lr=0.1, max_norm=2.0, clip_value=0.3)
    plain = optim.SGD(b, lr=0.1)
    fused.step([g.copy() for g in gs])
    norm = optim.clip_grad_norm_(gs, 2.0)
    optim.clip_grad_value_(gs, 0.3)
    plain.step(gs)
    assert fused.grad_norm == pytest.approx(norm, rel=1e-14)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


# ------------------------------------------------------------------------------------------- WeightAverage


def test_weight_average():
    w = {"a": np.zeros(3, np.float32), "b": [np.ones(2)]}
    average = optim.WeightAverage(w, decay=0.75)
    w["a"] += 1
    average.update()
    w["b"][0] -= 2
    average.update()
    np.testing.assert_array_equal(average.averages[0], 0.75 * 0.25 + 0.25)
    np.testing.assert_array_equal(average.averages[1], 0.75 * 1 + 0.25 * -1)
    with average.swap():
        np.testing.assert_array_equal(w["a"], 0.4375)
    np.testing.assert_array_equal(w["a"], 1.0)
    np.testing.assert_array_equal(w["b"][0], -1.0)

    other = optim.WeightAverage({"a": np.zeros(3, np.float32), "b": [np.ones(2)]})
    other.load_state_dict(pickle.loads(pickle.dumps(average.state_dict())))
    np.testing.assert_array_equal(other.averages[0], 0.4375)
    assert (other.decay, other.updates) == (0.75, 2)
    other.load_state_dict({**average.state_dict(), "averages": [(1.0, 2.0, 3.0), [np.float32(4), 5]]})
    np.testing.assert_array_equal(other.averages[0], [1, 2, 3])
    np.testing.assert_array_equal(other.averages[1], [4, 5])
    with pytest.raises(
        ValueError, match=r"averages have shapes \[\(3,\), \(2,\)\], the parameters have \[\(3,\)\]"
    ):
        optim.WeightAverage([np.zeros(3)]).load_state_dict(average.state_dict())


def test_low_precision_weights_have_a_float32_average():
    w = np.full(2, 1.0, as_dtype("bfloat16"))
    average = optim.WeightAverage([w], decay=0.999)
    w[:] = 2.0
    for _ in range(10):
        average.update()
    np.testing.assert_allclose(average.averages[0], 2 - 0.999**10, rtol=1e-6)


def test_average_agrees_with_the_fused_one():
    p, q = np.ones(50), np.ones(50)
    fused = optim.Adam([p], ema_decay=0.9)
    plain = optim.Adam([q])
    average = optim.WeightAverage([q], decay=0.9)
    for t in range(20):
        g = np.cos(np.arange(50) + t)
        fused.step([g])
        plain.step([g])
        average.update()
    np.testing.assert_allclose(fused.state[0]["ema"], average.averages[0], rtol=1e-13)


def test_average_errors():
    for call, message in [
        (lambda: optim.WeightAverage([np.ones(1)], decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: optim.WeightAverage([np.ones(1)], decay=math.nan), r"decay must be in \[0, 1\), got nan"),
        (lambda: optim.WeightAverage([np.ones(1, int)]), r"params\[0\] is int64"),
    ]:
        with pytest.raises((ValueError, TypeError), match="WeightAverage: " + message):
            call()
