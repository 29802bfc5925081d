"""L-BFGS and fo.minimize of arrays on a device: the host's path, and how often they wait. See gpu_tools for where."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt as fo
import host_gpu
from cases import OPTIMIZERS
from fastopt import _device, optim
from gpu_tools import cp, kind

__all__ = ["cp", "kind"]

ROWS = range(len(OPTIMIZERS["LBFGS"]["options"]))
START = np.tile([-1.2, 1.0], 4)


def rosenbrock(x):
    """Value and gradient, of any library's arrays, in the dtype of x; the value stays on the device."""
    a, b = 1 - x[:-1], x[1:] - x[:-1] ** 2
    g = x * 0
    g[:-1] = -2 * a - 400 * x[:-1] * b
    g[1:] += 200 * b
    return (100 * b * b + a * a).sum(), g


def bowl(w, b):
    """Value and gradients of a quadratic of two parameters."""
    return ((w - 2) ** 2).sum() + 3 * ((b + 1) ** 2).sum(), [2 * (w - 2), 6 * (b + 1)]


def on_host(x):
    return x.get() if hasattr(x, "get") else x.detach().cpu().numpy() if hasattr(x, "detach") else x


@pytest.fixture
def waits(cp, monkeypatch):
    """How often a number or an array was read from the device."""
    counted = []
    read = _device.CupyLibrary.to_host

    def to_host(self, x):
        counted.append(x.size)
        return read(self, x)

    monkeypatch.setattr(_device.CupyLibrary, "to_host", to_host)
    if "host_cupy" in cp.__name__:

        def refused(self):
            raise AssertionError("a number was read on its own")

        monkeypatch.setattr(cp.ndarray, "__float__", refused)
        monkeypatch.setattr(cp.ndarray, "__bool__", refused)
        monkeypatch.setattr(cp.ndarray, "item", refused)
    return counted


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lbfgs_steps_as_on_the_host(cp, row, dtype):
    options = OPTIMIZERS["LBFGS"]["options"][row]
    w = np.random.default_rng(row).standard_normal((3, 5)).astype(dtype)
    b = np.zeros(3, dtype)
    there = [cp.asarray(w), cp.asarray(b)]
    host, device = optim.LBFGS([w, b], **options), optim.LBFGS(there, **options)
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    for _ in range(3):
        expected = host.step(lambda: bowl(w, b))
        loss = device.step(lambda: bowl(*there))
        np.testing.assert_allclose(on_host(loss), expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(there, (w, b), strict=True):
        assert isinstance(ours, cp.ndarray)
        np.testing.assert_allclose(on_host(ours), theirs, rtol=tolerance, atol=tolerance)
    assert device.state[0].keys() == host.state[0].keys()
    for key in ("n_iter", "func_evals"):
        assert device.state[0][key] == host.state[0][key]
    assert isinstance(device.state[0]["d"], cp.ndarray)
    assert all(isinstance(a, cp.ndarray) for a in device.state[0]["old_dirs"])


def test_lbfgs_state_goes_to_and_from_the_device(cp):
    x, there = START.copy(), cp.asarray(START)
    options = {"line_search_fn": "strong_wolfe", "max_iter": 4}
    host, device = optim.LBFGS([x], **options), optim.LBFGS([there], **options)
    host.step(lambda: (lambda v, g: (v, [g]))(*rosenbrock(x)))
    there[...] = cp.asarray(x)
    device.load_state_dict(host.state_dict())
    assert isinstance(device.state[0]["old_stps"][0], cp.ndarray)
    for opt, y in ((host, x), (device, there)):
        opt.step(lambda y=y: (lambda v, g: (v, [g]))(*rosenbrock(y)))
    np.testing.assert_allclose(on_host(there), x, rtol=1e-10)
    fresh = optim.LBFGS([x], **options)
    state = device.state_dict()
    state["state"][0] = {
        k: [on_host(a) for a in v]
        if k in ("old_dirs", "old_stps")
        else on_host(v)
        if hasattr(v, "get")
        else v
        for k, v in state["state"][0].items()
    }
    fresh.load_state_dict(state)
    np.testing.assert_array_equal(fresh.state[0]["d"], on_host(device.state[0]["d"]))


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_lbfgs_waits_twice_an_iteration(cp, waits, line_search_fn):
    there = cp.asarray(START)
    opt = optim.LBFGS(
        [there], lr=1.0 if line_search_fn else 1e-3, line_search_fn=line_search_fn, max_iter=8, max_eval=99
    )
    opt.step(lambda: (lambda v, g: (v, [g]))(*rosenbrock(there)))
    entry = opt.state[0]
    assert entry["n_iter"] == 8
    searched = entry["func_evals"] if line_search_fn else 0
    assert len(waits) <= 2 * entry["n_iter"] + searched
    assert max(waits) <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["lbfgs", "adam", "sgd"])
def test_minimize_finds_what_it_finds_on_the_host(cp, method, dtype):
    x0 = START.astype(dtype)
    there = cp.asarray(x0)
    options = {} if method == "lbfgs" else {"lr": 1e-3, "maxiter": 50}
    host = fo.minimize(rosenbrock, x0, method=method, jac=True, options=options)
    path = []
    device = fo.minimize(rosenbrock, there, method=method, jac=True, options=options, callback=path.append)
    assert isinstance(device.x, cp.ndarray)
    assert isinstance(device.jac, cp.ndarray)
    assert device.x.dtype == dtype
    assert type(device.fun) is float
    np.testing.assert_array_equal(on_host(there), x0)
    tolerance = 2e-3 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(on_host(device.x), host.x, atol=tolerance)
    if method == "lbfgs":
        assert device.success
        np.testing.assert_allclose(on_host(device.x), 1.0, atol=tolerance)
        assert abs(device.nfev - host.nfev) <= 0.2 * host.nfev
    assert len(path) == device.nit
    np.testing.assert_array_equal(on_host(path[-1]), on_host(device.x))
    assert isinstance(path[0], cp.ndarray)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_minimize_waits_once_an_evaluation_and_once_an_iteration(cp, waits, method):
    options = {"maxiter": 12} | ({} if method == "lbfgs" else {"lr": 0.01})
    r = fo.minimize(rosenbrock, cp.asarray(START), method=method, jac=True, options=options)
    assert r.nit == 12
    assert len(waits) == r.nfev + (r.nit if method == "lbfgs" else 0)
    assert max(waits) <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lbfgs_within_bounds_on_a_device(cp, waits, dtype):
    x0, bounds = START.astype(dtype), [(-2.0, 0.8), (None, 0.5)] * (START.size // 2)
    host = fo.minimize(rosenbrock, x0, jac=True, bounds=bounds)
    device = fo.minimize(rosenbrock, cp.asarray(x0), jac=True, bounds=bounds)
    assert device.success
    assert isinstance(device.x, cp.ndarray)
    tolerance = 2e-3 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(on_host(device.x), host.x, atol=tolerance)
    assert abs(device.nfev - host.nfev) <= 0.2 * host.nfev
    assert len(waits) <= device.nfev + 3 * (device.nit + 2)
    assert max(waits) <= 3 * 10


def test_bounds_and_shapes_on_a_device(cp):
    low, high = np.array([[-1.0, 0.5]]), np.array([[0.25, np.inf]])

    def fun(x):
        return ((x - 1) ** 2 + (x < cp.asarray(low)) * 1e6).sum(), 2 * (x - 1)

    r = fo.minimize(
        fun,
        cp.zeros((1, 2)),
        method="sgd",
        jac=True,
        bounds=list(zip(low.ravel(), high.ravel(), strict=True)),
        options={"lr": 0.2},
    )
    assert r.success
    np.testing.assert_allclose(on_host(r.x), [[0.25, 1.0]], atol=1e-5)
    r = fo.minimize(
        lambda x: fun(x)[0],
        cp.zeros((1, 2)),
        jac=lambda x: 2 * (x - 1),
        options={"xtol": 1e-3, "gtol": 0.0},
    )
    np.testing.assert_allclose(on_host(r.x), 1.0, atol=1e-2)


def test_refusals_on_a_device(cp):
    x0 = cp.ones(2)
    with pytest.raises(TypeError, match="differences are for arrays on the host; give jac"):
        fo.minimize(lambda x: (x * x).sum(), x0)
    with pytest.raises(TypeError, match="jac returned an array on the host, x0 is on a CUDA device"):
        fo.minimize(lambda x: (1.0, np.ones(2)), x0, jac=True)
    np.testing.assert_array_equal(on_host(x0), 1.0)


def test_values_that_are_not_finite_on_a_device(cp):
    for method in ("lbfgs", "adam"):
        r = fo.minimize(lambda x: ((x * x).sum() * np.nan, x), cp.ones(2), method=method, jac=True)
        assert (r.status, r.success) == (3, False)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_torch_tensors(cp, kind, method):
    pytest.importorskip("torch")
    x0 = host_gpu.torch_tensor(kind, START.copy())
    options = {"maxiter": 30} | ({} if method == "lbfgs" else {"lr": 0.01})
    device = fo.minimize(rosenbrock, x0, method=method, jac=True, options=options)
    host = fo.minimize(rosenbrock, START, method=method, jac=True, options=options)
    assert type(device.x) is type(x0)
    np.testing.assert_allclose(on_host(device.x), host.x, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(on_host(x0), START)
    assert device.nfev == host.nfev


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_lbfgs_of_torch_tensors(cp, kind, line_search_fn):
    pytest.importorskip("torch")
    both = np.random.default_rng(0).standard_normal(18)
    w, b = both[:15].reshape(3, 5), both[15:]
    tensor = host_gpu.torch_tensor(kind, both.copy())
    there = [tensor[:15].reshape(3, 5), tensor[15:]]
    options = {
        "lr": 0.1 if line_search_fn is None else 1.0,
        "line_search_fn": line_search_fn,
        "max_iter": 4,  # a fixed rate makes pairs so alike that rounding grows
    }
    host, device = optim.LBFGS([w, b], **options), optim.LBFGS(there, **options)
    for _ in range(2):
        host.step(lambda: bowl(w, b))
        device.step(lambda: bowl(*there))
    np.testing.assert_allclose(on_host(there[0]), w, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(on_host(there[1]), b, rtol=1e-9, atol=1e-9)
    assert "TorchArray" not in {type(v).__name__ for v in device.state[0].values()}
    assert device.state_dict()["state"][0]["d"].shape == (18,)


@pytest.mark.parametrize("adaptive", [False, True])
def test_wrappers_step_as_on_the_host(cp, adaptive):
    w = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)
    b = np.ones(3, np.float32)
    there = [cp.asarray(w), cp.asarray(b)]
    for params in ([w, b], there):
        opt = optim.Lookahead(optim.SAM(optim.Adam(params, lr=0.1), 0.3, adaptive), 2, 0.4)
        for _ in range(5):
            opt.step(lambda params=params: bowl(*params))
    for ours, theirs in zip(there, (w, b), strict=True):
        assert isinstance(ours, cp.ndarray)
        np.testing.assert_allclose(on_host(ours), theirs, rtol=1e-5, atol=1e-6)
    state = opt.state_dict()
    assert isinstance(state["lookahead"]["slow"][0], cp.ndarray)
    copies = [a.copy() for a in there]
    heir = optim.Lookahead(optim.SAM(optim.Adam(copies, lr=1.0), 0.1))
    heir.load_state_dict(state)
    for o, params in ((opt, there), (heir, copies)):
        for _ in range(2):
            o.step(lambda params=params: bowl(*params))
    np.testing.assert_array_equal(on_host(there[0]), on_host(copies[0]))


def test_wrappers_wait_for_nothing(cp, waits):
    x = cp.asarray(START)
    opt = optim.Lookahead(optim.SAM(optim.SGD([x], lr=1e-3)), 1)
    for _ in range(3):
        opt.step(lambda: (lambda v, g: (v, [g]))(*rosenbrock(x)))
    assert not waits


@pytest.mark.parametrize("adaptive", [False, True])
def test_wrappers_of_torch_tensors(cp, kind, adaptive):
    pytest.importorskip("torch")
    x = START.copy()
    there = host_gpu.torch_tensor(kind, x.copy())
    for p in (x, there):
        opt = optim.Lookahead(optim.SAM(optim.SGD([p], lr=1e-3), 0.3, adaptive), 2, 0.4)
        for _ in range(5):
            opt.step(lambda p=p: (lambda v, g: (v, [g]))(*rosenbrock(p)))
    np.testing.assert_allclose(on_host(there), x, rtol=1e-9)
