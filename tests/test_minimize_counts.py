"""L-BFGS of fo.minimize beside SciPy's L-BFGS-B: evaluations and accuracy on test functions, in both dtypes."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

import fastopt as fo

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import minimize as benchmark
from functions import BOUNDED, FREE, FUNCTIONS

BY_NAME = {f.name: f for f in FUNCTIONS}
#: What may be left of the start's excess over the least value.
LEFT = {"float64": 1e-7, "float32": 2e-6}


@cache
def counted(name: str, dtype: str, provider: str) -> benchmark.Count:
    return benchmark.count(BY_NAME[name], dtype, provider)


@pytest.mark.parametrize("name", BY_NAME)
def test_gradients_of_the_functions(name):
    f = BY_NAME[name]
    x = f.start + 0.1
    value, g = f.evaluate(x)
    error = optimize.check_grad(lambda x: f.evaluate(x)[0], lambda x: f.evaluate(x)[1], x)
    assert error <= 1e-4 * np.abs(g).max() + 1e-6
    small, g32 = f.evaluate(x.astype(np.float32))
    assert g32.dtype == small.dtype == np.float32
    assert small == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("dtype", benchmark.DTYPES)
@pytest.mark.parametrize("name", BY_NAME)
def test_the_minimum_is_scipys(name, dtype):
    ours, theirs = (counted(name, dtype, provider) for provider in benchmark.PROVIDERS)
    assert ours.left <= LEFT[dtype]
    assert theirs.left <= LEFT[dtype]
    assert ours.evaluations <= 1.3 * theirs.evaluations + 3
    assert ours.success


@pytest.mark.parametrize("functions", [FREE, BOUNDED], ids=["free", "bounded"])
@pytest.mark.parametrize("dtype", benchmark.DTYPES)
def test_evaluations_in_total(dtype, functions):
    ours, theirs = (
        sum(counted(f.name, dtype, provider).evaluations for f in functions)
        for provider in benchmark.PROVIDERS
    )
    assert ours <= 1.25 * theirs


def test_tight_tolerances_reach_the_precision_of_each_dtype():
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 2e-3)):
        for n in (2, 10, 100):
            x0 = np.tile([-1.2, 1.0], n)[:n].astype(dtype)
            r = fo.minimize(
                BY_NAME["Rosenbrock 2"].evaluate, x0, jac=True, options={"ftol": 0.0, "gtol": 0.0}
            )
            np.testing.assert_allclose(r.x, 1.0, atol=tolerance)
            assert r.status in (0, 2)
            assert r.nfev < 1200


def test_the_table_has_a_line_for_each_pair():
    counts = [counted("Booth", d, p) for d in benchmark.DTYPES for p in benchmark.PROVIDERS]
    lines = benchmark.table(counts).splitlines()
    assert len(lines) == 2 + 2 + 2
    assert lines[2].startswith("| Booth | float64 | 6 | 6 |")
    assert lines[-1].startswith("| total | float32 | 6 | 6 |")
