"""fo.minimize: every method, SciPy's arguments and results, and that nothing of the caller's is changed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from fastopt import optim
from fastopt._minimize import result as results

scipy = pytest.importorskip("scipy.optimize")

CLASSES = {
    name.lower(): cls
    for name, cls in vars(optim).items()
    if isinstance(cls, type)
    and issubclass(cls, optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
}
RULES = sorted(CLASSES)
TARGET = np.arange(6.0).reshape(2, 3) - 2.5
START = np.array([-1.2, 1.0])


def bowl(x):
    """A quadratic around TARGET, and its gradient, in the dtype of x."""
    r = x - TARGET.astype(x.dtype)
    return float(np.sum(r * r)), 2 * r


def settings(method):
    """Options that end within reason for every rule."""
    options = {"lr": 1.0 if method == "adadelta" else 0.05}
    return options | ({"weight_decay": 0.0} if method == "adamw" else {})


@pytest.mark.parametrize("method", [*RULES, "lbfgs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_method_descends_in_the_dtype_of_x0(method, dtype):
    x0 = np.zeros((2, 3), dtype)
    options = {"maxiter": 400} | ({} if method == "lbfgs" else settings(method))
    r = fo.minimize(bowl, x0, method=method, jac=True, options=options)
    assert r.x.dtype == dtype
    assert r.jac.dtype == dtype
    assert r.x.shape == x0.shape
    np.testing.assert_array_equal(x0, 0.0)
    assert r.fun == bowl(r.x)[0]
    np.testing.assert_array_equal(r.jac, bowl(r.x)[1])
    assert r.fun < 0.5 * bowl(x0)[0]
    assert r.success == (np.abs(r.jac).max() <= 1e-5) == (r.status == 0)
    assert r.nfev == r.njev
    if method != "lbfgs":
        assert r.nfev == r.nit + 1 + hasattr(CLASSES[method], "eval")


@pytest.mark.parametrize("method", RULES)
def test_an_optimizer_steps_as_by_hand(method):
    x = np.zeros((2, 3))
    opt = CLASSES[method]([x], **settings(method))
    for _ in range(7):
        opt.step([bowl(x)[1]])
    averages = hasattr(opt, "eval")
    if averages:
        opt.eval()
    r = fo.minimize(
        bowl, np.zeros((2, 3)), method=method, jac=True, options={"maxiter": 7, **settings(method)}
    )
    np.testing.assert_array_equal(r.x, x)
    assert (r.nit, r.nfev, r.status, r.success) == (7, 8 + averages, 1, False)
    assert "maxiter" in r.message


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("how", ["callable", "both", "2-point", "3-point", "none"])
def test_ways_to_a_gradient(method, how):
    calls = {"fun": 0, "jac": 0}

    def fun(x, a, b):
        calls["fun"] += 1
        return a * np.sum((x - b) ** 2)

    def jac(x, a, b):
        calls["jac"] += 1
        return 2 * a * (x - b)

    given = {"callable": jac, "both": True, "none": None}.get(how, how)
    function = (lambda x, a, b: (fun(x, a, b), 2 * a * (x - b))) if how == "both" else fun
    r = fo.minimize(
        function,
        [0.0, 5.0],
        args=(2.0, 3.0),
        method=method,
        jac=given,
        options={} if method == "lbfgs" else {"lr": 0.1},
    )
    assert r.success, r.message
    np.testing.assert_allclose(r.x, 3.0, atol=1e-4)
    assert r.nfev == calls["fun"]
    assert r.njev == (calls["jac"] or r.njev)
    assert r.nfev == r.njev * {"2-point": 3, "none": 3, "3-point": 5}.get(how, 1)


def test_args_need_no_tuple():
    r = fo.minimize(lambda x, c: (float((x - c) @ (x - c)), 2 * (x - c)), np.zeros(2), args=4.0, jac=True)
    np.testing.assert_allclose(r.x, 4.0)


def test_differences_in_float32_with_steps_and_shapes():
    r = fo.minimize(
        lambda x: np.sum((x - TARGET.astype(np.float32)) ** 2),
        np.zeros((2, 3), np.float32),
        jac="3-point",
        options={"finite_diff_rel_step": 1e-2},
    )
    assert r.x.dtype == np.float32
    np.testing.assert_allclose(r.x, TARGET, atol=1e-3)
    r = fo.minimize(lambda x: np.sum((x - 1.0) ** 2), np.zeros(2), options={"eps": 1e-6})
    np.testing.assert_allclose(r.x, 1.0, atol=1e-5)


def test_without_scipy():
    code = """
import sys
sys.modules["scipy"] = None
import fastopt as fo
import numpy as np
r = fo.minimize(lambda x: (float(x @ x), 2 * x), np.ones(3), jac=True)
assert r.success and r["fun"] == r.fun == 0.0 and type(r).__name__ == "PlainResult", r
assert "message: 'converged" in repr(r) and "nfev" in dir(r)
r.extra = 1
assert r["extra"] == 1
del r.extra
assert not hasattr(r, "extra")
try:
    fo.minimize(lambda x: float(x @ x), np.ones(3))
except ImportError as error:
    assert "finite differences need SciPy; install it or give jac" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_result_is_scipys():
    r = fo.minimize(bowl, np.zeros((2, 3)), jac=True)
    assert type(r) is scipy.OptimizeResult
    wanted = scipy.minimize(lambda x: (x @ x, 2 * x), np.ones(2), jac=True, method="L-BFGS-B")
    assert r.keys() == wanted.keys() - {"hess_inv"}


@pytest.mark.parametrize("method", ["lbfgs", "adam", "LBFGS", None])
def test_names_of_methods(method):
    assert fo.minimize(bowl, np.zeros((2, 3)), method=method, jac=True, options={"maxiter": 1}).nit == 1


# Bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "sgd", "adam", "rprop"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_are_kept_at_every_evaluation(method, dtype):
    low, high = np.array([[-1, -9, -np.inf], [0, 0, 2.0]]), np.array([[9, 0, np.inf], [0.25, 1, 9]])

    def fun(x):
        assert (x >= low).all()
        assert (x <= high).all()
        return bowl(x)

    given = scipy.Bounds(low, high)
    x0 = np.full((2, 3), 5.0, dtype)
    r = fo.minimize(
        fun, x0, method=method, jac=True, bounds=given, options={} if method == "lbfgs" else settings(method)
    )
    assert r.success, r.message
    np.testing.assert_allclose(r.x, np.clip(TARGET, low, high), atol=1e-4)
    np.testing.assert_array_equal(x0, 5.0)


def test_bounds_as_pairs_and_numbers():
    def fun(x):
        return float((x - 3) @ (x - 3)), 2 * (x - 3)

    pairs = [(None, 1.0), (4.0, None), (None, None)]
    r = fo.minimize(fun, np.zeros(3), method="sgd", jac=True, bounds=pairs, options={"lr": 0.1})
    np.testing.assert_allclose(r.x, [1.0, 4.0, 3.0], atol=1e-5)
    r = fo.minimize(fun, np.zeros(3), method="sgd", jac=True, bounds=scipy.Bounds(0, 2), options={"lr": 0.1})
    np.testing.assert_array_equal(r.x, 2.0)
    r = fo.minimize(
        lambda x: np.log(x).sum() ** 2, [0.5, 2.5], method="adam", bounds=[(1e-9, 0.6), (2.0, 3.0)]
    )
    assert (r.x >= [0.0, 2.0]).all()  # differences stayed inside, where the logarithm is defined


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lbfgs_within_bounds_ends_where_the_conditions_of_optimality_hold(dtype):
    rng = np.random.default_rng(5)
    a = rng.standard_normal((40, 30)).astype(dtype)
    hessian = a.T @ a / dtype(40) + np.eye(30, dtype=dtype) * dtype(0.05)
    slope = rng.standard_normal(30).astype(dtype)
    low, high = np.full(30, -0.4, dtype), np.full(30, np.inf, dtype)
    high[::3] = 0.25
    low[4] = high[4] = 0.125  # a fixed element

    def fun(x):
        return float(x @ hessian @ x / 2 + slope @ x), hessian @ x + slope

    gtol = 1e-7 if dtype == np.float64 else 1e-4
    options = {"ftol": 0.0, "gtol": gtol}
    r = fo.minimize(fun, np.zeros(30, dtype), jac=True, bounds=scipy.Bounds(low, high), options=options)
    assert r.success, r.message
    assert r.x.dtype == r.jac.dtype == dtype
    inside = (r.x > low) & (r.x < high)
    assert 5 < inside.sum() < 25
    np.testing.assert_allclose(r.jac[inside], 0.0, atol=2 * gtol)
    assert (r.jac[(r.x == low) & (low < high)] >= 0.0).all()
    assert (r.jac[(r.x == high) & (low < high)] <= 0.0).all()
    wanted = scipy.minimize(
        lambda x: tuple(np.float64(v) for v in fun(x.astype(dtype))),
        np.zeros(30),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.Bounds(low.astype(float), high.astype(float)),
    )
    np.testing.assert_allclose(r.fun, wanted.fun, rtol=2e-6)
    np.testing.assert_allclose(r.x, wanted.x, atol=2e-3)


def test_lbfgs_within_bounds_that_do_not_bind_steps_as_without():
    free = fo.minimize(scipy.rosen, START, jac=scipy.rosen_der)
    within = fo.minimize(scipy.rosen, START, jac=scipy.rosen_der, bounds=[(-50, 50)] * 2)
    assert (within.nfev, within.nit) == (free.nfev, free.nit)
    np.testing.assert_allclose(within.x, free.x, rtol=1e-6)


def test_lbfgs_starts_where_the_bounds_let_it():
    r = fo.minimize(scipy.rosen, [1.0, 7.0], jac=scipy.rosen_der, bounds=[(2, 3), (-3, -2)])
    np.testing.assert_array_equal(r.x, [2.0, -2.0])  # both are held
    assert (r.success, r.nit, r.nfev) == (True, 0, 1)
    np.testing.assert_array_equal(r.jac, scipy.rosen_der(r.x))
    stuck = fo.minimize(lambda x: (float(x @ x), -2 * x), np.ones(2), jac=True, bounds=[(-3, 3)] * 2)
    assert (stuck.status, stuck.success) == (2, False)
    ended = fo.minimize(
        scipy.rosen,
        START,
        jac=scipy.rosen_der,
        bounds=[(-2, 0.5)] * 2,
        options={"xtol": 0.1, "ftol": 0.0, "gtol": 0.0},
    )
    assert ended.success
    assert "xtol" in ended.message


# Stopping, callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "sgd"])
def test_tolerances(method):
    lr = {} if method == "lbfgs" else {"lr": 0.1}
    runs = {}
    for key, message in (("gtol", "exceeds gtol"), ("ftol", "than ftol"), ("xtol", "than xtol")):
        quiet = {"gtol": 0.0, "ftol": 0.0} if method == "lbfgs" else {"gtol": 0.0}
        runs[key] = r = fo.minimize(
            lambda x: (float(np.sum(x**4)), 4 * x**3),
            np.array([1.0, 0.5]),
            method=method,
            jac=True,
            options={**quiet, **lr, key: 1e-3},
        )
        assert r.success
        assert message in r.message
    assert np.abs(runs["gtol"].jac).max() <= 1e-3
    tight = fo.minimize(bowl, np.zeros((2, 3)), jac=True, method=method, tol=1e-3, options=lr)
    assert 1e-9 < np.abs(tight.jac).max() <= 1e-3 or method == "lbfgs"


def test_limits_of_evaluations():
    r = fo.minimize(scipy.rosen, START, jac=scipy.rosen_der, options={"maxfun": 9})
    assert (r.status, r.success) == (1, False)
    assert "maxfun" in r.message
    assert 9 <= r.nfev < 9 + 21


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_callbacks(method):
    path, seen = [], []
    r = fo.minimize(bowl, np.zeros((2, 3)), method=method, jac=True, callback=path.append)
    assert len(path) == r.nit
    np.testing.assert_array_equal(path[-1], r.x)
    assert len({p.ctypes.data for p in path}) == len(path)

    def whole(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 2:
            raise StopIteration

    r = fo.minimize(scipy.rosen, START, method=method, jac=scipy.rosen_der, callback=whole)
    assert (r.nit, r.status, r.success) == (2, 99, False)
    assert "StopIteration" in r.message
    assert type(seen[0]) is scipy.OptimizeResult
    np.testing.assert_array_equal(seen[1].x, r.x)
    assert seen[1].fun == r.fun


def test_a_schedule_sets_every_rate():
    x, asked = np.array([1.0]), []

    def schedule(k):
        asked.append(k)
        return 0.4 / (1 + k)

    r = fo.minimize(
        lambda x: (float(x @ x), 2 * x), x, method="sgd", jac=True, options={"lr": schedule, "maxiter": 4}
    )
    assert sorted(set(asked)) == [0, 1, 2, 3]
    wanted = 1.0
    for k in range(4):
        wanted -= 0.4 / (1 + k) * 2 * wanted
    np.testing.assert_allclose(r.x, wanted, rtol=1e-15)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(method, bad):
    r = fo.minimize(lambda x: (bad, 2 * x), np.ones(3), method=method, jac=True)
    assert (r.success, r.status, r.nit) == (False, 3, 0)
    assert "not finite" in r.message
    r = fo.minimize(lambda x: (1.0, bad * x), np.ones(3), method=method, jac=True)
    assert (r.success, r.status) == (False, 3)
    np.testing.assert_array_equal(r.x, 1.0)


def test_lbfgs_comes_back_from_where_fun_is_not_finite():
    def fun(x):
        with np.errstate(all="ignore"):
            return float(np.sum(x - np.log(x))), 1 - 1 / x

    r = fo.minimize(fun, np.array([0.01, 4.0]), jac=True)
    assert r.success
    np.testing.assert_allclose(r.x, 1.0, atol=1e-4)


def test_a_wrong_gradient_is_told():
    r = fo.minimize(lambda x: (float(x @ x), -2 * x), np.ones(2), jac=True)
    assert (r.status, r.success) == (2, False)
    assert "jac is not the gradient" in r.message
    np.testing.assert_array_equal(r.x, 1.0)


def test_disp(capsys):
    fo.minimize(bowl, np.zeros((2, 3)), jac=True, options={"disp": True})
    assert "converged" in capsys.readouterr().out
    fo.minimize(bowl, np.zeros((2, 3)), jac=True)
    assert capsys.readouterr().out == ""


# What the function sees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_the_gradient_may_be_one_array_and_x_is_read_only(method):
    g = np.empty((2, 3))
    places = set()

    def fun(x):
        places.add(x.ctypes.data)
        with pytest.raises(ValueError, match="read-only"):
            x[0, 0] = 1.0
        np.subtract(x, TARGET, out=g)
        np.multiply(g, 2.0, out=g)
        return bowl(x)[0], g

    options = {"maxiter": 12}
    r = fo.minimize(fun, np.zeros((2, 3)), method=method, jac=True, options=options)
    other = fo.minimize(bowl, np.zeros((2, 3)), method=method, jac=True, options=options)
    np.testing.assert_array_equal(r.x, other.x)
    assert len(places) <= (2 if method == "lbfgs" else 1)
    assert r.jac is not g


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_arrays_of_any_layout(method):
    def fun(x):
        value, g = bowl(x)
        return value, np.asfortranarray(g)

    options = {"maxiter": 9}
    r = fo.minimize(fun, np.zeros((3, 2)).T, method=method, jac=True, options=options)
    other = fo.minimize(bowl, np.zeros((2, 3)), method=method, jac=True, options=options)
    np.testing.assert_array_equal(r.x, other.x)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_start_and_gradient_in_other_forms(method):
    def fun(x):
        return np.array([x @ x]), (2 * x).tolist()

    for x0 in ([1, 2], (1.0, 2.0), np.array([1, 2], np.int32), np.arange(1.0, 7.0)[::3]):
        before = np.array(x0)
        r = fo.minimize(fun, x0, method=method, jac=True, options={"maxiter": 3})
        assert r.x.dtype == np.float64
        assert type(r.fun) is float
        np.testing.assert_array_equal(x0, before)
    assert fo.minimize(lambda x: (x[0] ** 2, 2 * x), 3.0, method=method, jac=True).x.shape == (1,)
    wide = fo.minimize(
        lambda x: (np.float64(x @ x), 2.0 * x.astype(np.float64)),
        np.ones(2, np.float32),
        method=method,
        jac=True,
    )
    assert wide.x.dtype == np.float32
    t = fo.tensor([1.0, 2.0])
    assert fo.minimize(lambda x: (x @ x, 2 * x), t, method=method, jac=True).x.dtype == np.float32
    assert t.data[1] == 2.0


def test_torch_computes_the_gradient():
    torch = pytest.importorskip("torch")

    def fun(x):
        t = torch.tensor(x, requires_grad=True)
        loss = ((t - 2.0) ** 2).sum()
        loss.backward()
        return loss, t.grad

    r = fo.minimize(fun, torch.zeros(3, dtype=torch.float64), jac=True)
    np.testing.assert_allclose(r.x, 2.0)


# SciPy's custom methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "adam", "sgd"])
@pytest.mark.parametrize("jac", ["callable", True, None])
def test_as_a_method_of_scipy(method, jac):
    options = {} if method == "lbfgs" else {"lr": 0.1}
    fun = (
        (lambda x, c: (np.sum((x - c) ** 2), 2 * (x - c)))
        if jac is True
        else lambda x, c: np.sum((x - c) ** 2)
    )
    path = []
    r = scipy.minimize(
        fun,
        np.zeros(3, np.float32),
        args=(1.5,),
        method=fo.minimize_method(method, **options),
        jac=(lambda x, c: 2 * (x - c)) if jac == "callable" else jac,
        callback=path.append,
        tol=1e-2,
        options={"maxiter": 300},
    )
    assert r.success, r.message
    assert r.x.dtype == np.float32
    np.testing.assert_allclose(r.x, 1.5, atol=0.02)
    assert len(path) == r.nit


def test_bounds_options_and_callbacks_through_scipy():
    method = fo.minimize_method("adamw", weight_decay=0.0, lr=0.5, maxiter=7)
    keywords = {"method": method, "jac": scipy.rosen_der}
    r = scipy.minimize(scipy.rosen, START, bounds=[(-2, 0.5), (-2, 2)], **keywords)
    assert (r.nit, r.status) == (7, 1)
    assert r.x[0] <= 0.5
    r = scipy.minimize(scipy.rosen, START, options={"lr": 0.01, "maxiter": 5}, **keywords)
    same = fo.minimize(
        scipy.rosen,
        START,
        jac=scipy.rosen_der,
        method="adamw",
        options={"lr": 0.01, "maxiter": 5, "weight_decay": 0.0},
    )
    np.testing.assert_array_equal(r.x, same.x)

    def stop(intermediate_result):
        raise StopIteration

    assert scipy.minimize(scipy.rosen, START, callback=stop, **keywords).status == 99


# Errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"method": "newton"}, ValueError, "method is 'newton', expected one of lbfgs, .*adam"),
        ({"method": 3}, ValueError, "method is 3"),
        ({"fun": 3}, TypeError, "fun is int, expected a function"),
        ({"callback": 3}, TypeError, "callback is int"),
        ({"jac": "4-point"}, ValueError, "jac is '4-point'"),
        ({"jac": True, "fun": lambda x: 1.0}, TypeError, r"fun returned float, not \(f, g\)"),
        ({"jac": lambda x: np.ones(3)}, ValueError, r"jac returned an array of shape \(3,\), x0 has"),
        ({"jac": lambda x: 1j * x}, TypeError, "jac returned an array of complex128"),
        (
            {"fun": lambda x: (1.0, x)},
            TypeError,
            r"fun returned tuple, expected one number, or \(f, g\) with jac=True",
        ),
        ({"fun": lambda x: None}, TypeError, "fun returned NoneType"),
        ({"fun": lambda x: x}, ValueError, r"fun returned an array of shape \(2,\)"),
        ({"x0": np.ones(2, np.float16)}, TypeError, "x0 is float16"),
        ({"x0": np.ones(2, complex)}, TypeError, "x0 is complex128"),
        ({"hess": lambda x: x}, ValueError, "takes no hess"),
        ({"constraints": {"type": "eq"}}, ValueError, "takes no constraints"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds has 1 entries.*2 elements"),
        ({"method": "sgd", "bounds": [(0, 1)]}, ValueError, "bounds has 1 entries.*2 elements"),
        (
            {"method": "sgd", "bounds": [(0, 1), (2, 1)]},
            ValueError,
            r"bounds\[1\] has lower 2.0 above upper 1.0",
        ),
        ({"method": "sgd", "bounds": [(0, 1), (np.nan, 1)]}, ValueError, r"bounds\[1\] has lower nan"),
        ({"method": "sgd", "bounds": scipy.Bounds(np.zeros(3), 1)}, ValueError, r"bounds have shapes"),
        ({"options": {"lr": 1.0}}, TypeError, "no option 'lr', there are maxcor"),
        ({"method": "sgd", "options": {"betas": 1}}, TypeError, "no option 'betas', there are .*momentum"),
        ({"method": "sgd", "options": {"params": 1}}, TypeError, "no option 'params'"),
        ({"method": "sgd", "options": {"lr": -1.0}}, ValueError, r"SGD: lr must be in \[0, inf\)"),
        ({"options": {"maxls": 0}}, ValueError, "maxls must be at least 1, got 0"),
        ({"options": {"gtol": -1.0}}, ValueError, "gtol must be at least 0.0"),
        ({"options": {"ftol": np.nan}}, ValueError, "ftol must be at least 0.0, got nan"),
    ],
)
def test_errors(keywords, error, message):
    x0 = keywords.setdefault("x0", np.ones(2))
    before = x0.copy()
    keywords.setdefault("fun", lambda x: float(x @ x))
    if "jac" not in keywords and "fun" not in message:
        keywords["jac"] = lambda x: 2 * x
    with pytest.raises(error, match=message):
        fo.minimize(**keywords)
    np.testing.assert_array_equal(x0, before)


def test_names_are_checked_when_a_method_is_made():
    with pytest.raises(ValueError, match="method is 'newton'"):
        fo.minimize_method("newton")


def test_a_callback_without_a_signature():
    assert results.at_iteration(max)(np.ones(3), 1.0) is False


@pytest.mark.parametrize("bounds", [None, [(-1, 5)]])
def test_lbfgs_ends_where_the_slope_underflows(bounds: list[tuple[int, int]] | None) -> None:
    start = [1e-170] if bounds else [1.0]
    found = fo.minimize(
        lambda x: float((x**4).sum()), start, jac=lambda x: 4 * x**3, method="lbfgs", bounds=bounds,
        options={"gtol": 0.0, "ftol": 0.0},
    )  # fmt: skip
    assert abs(found.x[0]) < 1e-3
    assert np.isfinite(found.fun)
