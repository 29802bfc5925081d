"""L-BFGS: against torch and SciPy's minimum, plain arrays and Tensors, its state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import optim
from fastopt.optim.line_search import Point, strong_wolfe

ROWS = range(len(OPTIMIZERS["LBFGS"]["options"]))


def least_squares(dtype, n=12, seed=0):
    """A smooth convex problem of two parameters: its value and gradients."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((30, n)).astype(dtype)
    y = rng.standard_normal(30).astype(dtype)
    w, b = rng.standard_normal((n, 1)).astype(dtype), np.zeros(1, dtype)

    def evaluate():
        r = a @ w[:, 0] + b[0] - y
        s = np.tanh(r)
        loss = np.sum(np.log(np.cosh(r))) + 0.05 * np.sum(w * w)
        return float(loss), [(a.T @ s)[:, None] + dtype(0.1) * w, np.array([s.sum()], dtype)]

    return (w, b), evaluate, (a, y)


def rosenbrock(x):
    a, b = x[::2], x[1::2]
    g = np.empty_like(x)
    g[::2] = -2 * (1 - a) - 400 * a * (b - a * a)
    g[1::2] = 200 * (b - a * a)
    return float(np.sum((1 - a) ** 2 + 100 * (b - a * a) ** 2)), [g]


@pytest.mark.parametrize("row", ROWS)
def test_finds_the_minimum(row):
    (w, b), evaluate, _ = least_squares(np.float64)
    opt = optim.LBFGS({"w": w, "b": b}, **OPTIMIZERS["LBFGS"]["options"][row])
    for _ in range(60):
        opt.step(lambda: (lambda loss, g: (loss, {"w": g[0], "b": g[1]}))(*evaluate()))
    scipy = pytest.importorskip("scipy.optimize")
    (v, c), again, _ = least_squares(np.float64)

    def f(x):
        v[:, 0], c[0] = x[:-1], x[-1]
        loss, (gw, gb) = again()
        return loss, np.concatenate([gw[:, 0], gb])

    best = scipy.minimize(f, np.zeros(13), jac=True, method="BFGS", options={"gtol": 1e-9})
    tolerance = 2e-2 if row == 3 else 3e-5  # the root of tolerance_change; that row stops early
    np.testing.assert_allclose(np.append(w, b), best.x, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rosenbrock_with_line_search(dtype):
    x = np.tile(np.array([-1.2, 1.0], dtype), 5)
    opt = optim.LBFGS([x], line_search_fn="strong_wolfe", max_iter=100, tolerance_change=0.0)
    loss = opt.step(lambda: rosenbrock(x))
    assert loss == pytest.approx(5 * 24.2, rel=1e-6)  # the loss before the first change
    np.testing.assert_allclose(x, 1.0, atol=1e-3 if dtype == np.float32 else 1e-7)


@pytest.mark.peers
@pytest.mark.parametrize("row", ROWS)
def test_matches_torch(row):
    torch = pytest.importorskip("torch")
    (w, b), evaluate, (a, y) = least_squares(np.float64)
    tw, tb = torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True)
    ta, ty = torch.tensor(a), torch.tensor(y)
    options = OPTIMIZERS["LBFGS"]["options"][row]
    opt, theirs = optim.LBFGS([w, b], **options), torch.optim.LBFGS([tw, tb], **options)
    calls = [0, 0]

    def ours():
        calls[0] += 1
        return evaluate()

    def closure():
        calls[1] += 1
        theirs.zero_grad()
        r = ta @ tw[:, 0] + tb[0] - ty
        loss = torch.log(torch.cosh(r)).sum() + 0.05 * (tw * tw).sum()
        loss.backward()
        return loss

    for step in range(4):
        loss, their_loss = opt.step(ours), theirs.step(closure)
        assert loss == pytest.approx(float(their_loss.detach()), rel=1e-9)
        np.testing.assert_allclose(w, tw.detach(), rtol=1e-6, atol=1e-9, err_msg=f"step {step}")
        assert calls[0] == calls[1]

    mine, peer = opt.state_dict(), theirs.state_dict()
    assert mine["state"][0].keys() == peer["state"][0].keys()
    torch_keys = peer["param_groups"][0].keys()
    assert torch_keys == mine["param_groups"][0].keys()
    for key in ("n_iter", "func_evals"):
        assert mine["state"][0][key] == peer["state"][0][key]
    for key in ("old_dirs", "old_stps", "ro"):
        assert len(mine["state"][0][key]) == len(peer["state"][0][key])

    # Each goes on from the other's state.
    w2, b2 = w.copy(), b.copy()
    heir = optim.LBFGS([w2, b2])
    heir.load_state_dict(
        {
            "state": {0: {k: plain(torch, v) for k, v in peer["state"][0].items()}},
            "param_groups": peer["param_groups"],
        }
    )
    assert heir.state[0].keys() == mine["state"][0].keys()
    for key in ("d", "prev_flat_grad"):
        np.testing.assert_allclose(heir.state[0][key], mine["state"][0][key], rtol=1e-4, atol=1e-9)
    theirs.load_state_dict(
        {
            "state": {0: {k: tensors(torch, v) for k, v in mine["state"][0].items()}},
            "param_groups": mine["param_groups"],
        }
    )
    theirs.step(closure)
    opt.step(ours)
    np.testing.assert_allclose(w, tw.detach(), rtol=1e-6, atol=1e-8)


def plain(torch, x):
    if isinstance(x, torch.Tensor):
        return x.detach().numpy().copy()
    return [plain(torch, v) for v in x] if isinstance(x, list) else x


def tensors(torch, x):
    if isinstance(x, np.ndarray):
        return torch.tensor(x)
    if isinstance(x, list):
        return [
            tensors(torch, v) if not isinstance(v, float) else torch.tensor(v, dtype=torch.float64) for v in x
        ]
    return x


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("how", ["state_dict", "pickle"])
def test_resume_is_bit_identical(row, how):
    options = OPTIMIZERS["LBFGS"]["options"][row]
    x = np.array([-1.2, 1.0, 0.3, 2.0], np.float32)
    opt = optim.LBFGS([x], **{**options, "max_iter": 3})
    for _ in range(2):
        opt.step(lambda: rosenbrock(x))
    y = x.copy()
    if how == "pickle":
        opt2 = pickle.loads(pickle.dumps(opt))
        y = opt2.param_groups[0]["params"][0]
    else:
        opt2 = optim.LBFGS([y])
        opt2.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    for _ in range(3):
        opt.step(lambda: rosenbrock(x))
        opt2.step(lambda: rosenbrock(y))
    np.testing.assert_array_equal(x, y)


def test_tensors_and_missing_gradients():
    tensor = pytest.importorskip("fastopt.tensor").Tensor
    x = tensor(np.array([3.0, -2.0]), requires_grad=True)
    unused = tensor(np.array([7.0]), requires_grad=True)
    opt = optim.LBFGS([x, unused], line_search_fn="strong_wolfe")

    def closure():
        opt.zero_grad()
        loss = ((x - tensor(np.array([1.0, 5.0]))) ** 2 * tensor(np.array([1.0, 30.0]))).sum()
        loss.backward()
        return loss

    first = opt.step(closure)
    assert float(first) == 4 + 30 * 49
    np.testing.assert_allclose(x.data, [1.0, 5.0], atol=1e-6)
    assert unused.data[0] == 7.0


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_any_layout_and_dtype(line_search_fn):
    memory = np.zeros((3, 8), np.float32)
    view = memory[::-2, 1::3].T
    view[...] = np.arange(6).reshape(3, 2)
    small = np.full(2, 4.0, np.float16)
    opt = optim.LBFGS([view, small], lr=0.4, line_search_fn=line_search_fn)
    start = memory.copy()

    def closure():
        s = small.astype(np.float32)
        loss = np.sum((view - 2) ** 2) + np.sum((s - 1) ** 2)
        return float(loss), [2 * (view - 2), (2 * (s - 1)).astype(np.float16)]

    for _ in range(3):
        opt.step(closure)
    np.testing.assert_allclose(view, 2.0, atol=1e-3)
    np.testing.assert_allclose(small, 1.0, atol=5e-3)
    untouched = np.ones_like(memory, bool)
    untouched[::-2, 1::3] = False
    np.testing.assert_array_equal(memory[untouched], start[untouched])


def test_a_closure_that_fails_leaves_the_weights():
    x = np.array([-1.2, 1.0])
    opt = optim.LBFGS([x], line_search_fn="strong_wolfe")
    calls = []

    def closure():
        calls.append(x.copy())
        if len(calls) == 3:
            raise KeyError("no data")
        return rosenbrock(x)

    with pytest.raises(KeyError):
        opt.step(closure)
    assert len(calls) == 3
    np.testing.assert_array_equal(x, [-1.2, 1.0])


def test_at_the_minimum_nothing_moves():
    x = np.ones(4)
    opt = optim.LBFGS([x])
    assert opt.step(lambda: rosenbrock(x)) == 0.0
    np.testing.assert_array_equal(x, 1.0)
    assert opt.state[0] == {"func_evals": 1, "n_iter": 0}
    empty = np.ones(0)
    assert optim.LBFGS([empty]).step(lambda: (2.0, [empty])) == 2.0


def test_errors():
    x = np.array([-1.2, 1.0])
    opt = optim.LBFGS([x])
    for call, error, message in [
        (lambda: opt.step([x]), TypeError, "LBFGS: step needs a closure, got list"),
        (
            lambda: opt.step(lambda: 1.0),
            TypeError,
            r"closure returned float, plain arrays need \(loss, grads\)",
        ),
        (
            lambda: opt.step(lambda: (1.0, [np.ones(3)])),
            ValueError,
            r"grads\[0\] has shape \(3,\), params\[0\] has",
        ),
        (lambda: opt.step(lambda: (1.0, [np.ones(2, np.float32)])), TypeError, r"grads\[0\] is float32"),
        (lambda: opt.step(lambda: (1.0, [x, x])), ValueError, r"grads has 2 entries, params has 1"),
        (lambda: opt.add_param_group({"params": [np.ones(1)]}), ValueError, "L-BFGS works on one"),
        (lambda: optim.LBFGS([{"params": [x]}, {"params": [np.ones(1)]}]), ValueError, "L-BFGS works on one"),
    ]:
        with pytest.raises(error, match=message):
            call()
    np.testing.assert_array_equal(x, [-1.2, 1.0])
    opt.step(lambda: rosenbrock(x))
    good, before = opt.state_dict(), copy.deepcopy(opt.state)
    bad = copy.deepcopy(good)
    bad["state"][0]["old_dirs"][0] = np.ones(5)
    with pytest.raises(
        ValueError, match=r"\['old_dirs'\]\[0\] has shape \(5,\), the parameters have 2 elements"
    ):
        opt.load_state_dict(bad)
    assert before[0]["n_iter"] == opt.state[0]["n_iter"]
    np.testing.assert_array_equal(opt.state[0]["d"], before[0]["d"])


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize(
    "phi",
    [
        lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2),
        lambda t: ((t - 0.8) ** 4 - 0.5 * t, 4 * (t - 0.8) ** 3 - 0.5),
        lambda t: (np.cos(t) - 0.02 * t - 1, -np.sin(t) - 0.02 if t else -0.3),
    ],
)
def test_line_search_meets_the_conditions(phi, t):
    f0, slope = phi(0.0)
    start = Point(0.0, f0, np.zeros(1), slope)
    point, evals = strong_wolfe(
        lambda t: Point(t, phi(t)[0], np.zeros(1), phi(t)[1]), start, t, 1.0, 1e-9, 25
    )
    assert point.loss <= f0 + 1e-4 * point.t * slope
    assert abs(point.slope) <= 0.9 * abs(slope)
    assert 1 <= evals <= 26


@pytest.mark.parametrize("wall", [np.nan, np.inf])
def test_line_search_comes_back_from_where_the_loss_is_not_finite(wall):
    x = np.array([0.5])

    def closure():
        if x[0] > 3.0:
            return wall, [np.full(1, wall)]
        return float((x[0] - 2.9) ** 2), [2 * (x - 2.9)]

    opt = optim.LBFGS([x], lr=100.0, line_search_fn="strong_wolfe")
    for _ in range(3):
        opt.step(closure)
    np.testing.assert_allclose(x, 2.9, atol=1e-4)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_a_rate_of_zero_moves_nothing(line_search_fn):
    x = np.array([3.0, -1.0])
    opt = optim.LBFGS([x], lr=0.0, line_search_fn=line_search_fn)
    opt.step(lambda: (float(x @ x), [2 * x]))
    np.testing.assert_array_equal(x, [3.0, -1.0])
    opt.param_groups[0]["lr"] = 0.25
    opt.step(lambda: (float(x @ x), [2 * x]))
    np.testing.assert_allclose(x, 0.0, atol=1e-2)


def test_line_search_without_descent_stays():
    start = Point(0.0, 0.0, np.zeros(1), -1.0)  # the slope promises what the function does not keep
    point, evals = strong_wolfe(lambda t: Point(t, t, np.zeros(1), 1.0), start, 1.0, 1.0, 1e-9, 8)
    assert point is start
    assert evals == 9
