"""csrc/math.hpp: the errors its comments state, and the edges of each function."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import reference
from fastopt import _core
from native.build import run_check

ROOT = Path(__file__).parents[1]
INF, NAN = np.inf, np.nan
F32, F64 = np.finfo(np.float32), np.finfo(np.float64)

#: Largest error in ULP as math.hpp states it, with and without fused multiply-adds, for float and double.
LIMITS = {
    "exp": (1.0, 1.0),
    "exp_nonpositive": (1.05, 1.05),
    "exp_term": (4.6, 1.05),
    "expm1": (1.35, 1.35),
    "log": (0.9, 0.95),
    "log1p": (0.9, 0.95),
    "tanh": (2.55, 2.55),
    "erf": (1.05, 1.35),
    "sigmoid": (2.45, 2.45),
    "sqrt": (0.5, 0.5),
}
NAMES = sorted(LIMITS)


#: What a function takes, where that is not every number.
DOMAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp_nonpositive": lambda x: -np.abs(x),
    "exp_term": lambda x: -np.minimum(np.abs(x), x.dtype.type(87)),
}

ORACLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "exp_nonpositive": np.exp,
    "exp_term": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": reference.erf,
    "sigmoid": reference.sigmoid,
    "sqrt": np.sqrt,
}


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units of the last place of want, a wider array; inf for a wrong NaN or sign of zero.

    What is too large for the format must give inf, what rounds to 0 must give 0, or the neighbours of these.
    """
    info = np.finfo(got.dtype)
    rounded = want.astype(got.dtype)
    exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp)
    error = np.abs(got.astype(want.dtype) - want) / np.ldexp(want.dtype.type(1), exponent - info.nmant)
    at_end = np.isinf(rounded) | np.isinf(got) | (rounded == 0)
    same = (got == rounded) & (np.signbit(got) == np.signbit(rounded))
    beside = np.where(rounded == 0, np.abs(got) == info.smallest_subnormal, got == np.nextafter(rounded, 0))
    error = np.where(at_end, np.where(same, 0.0, np.where(beside, 1.0, INF)), error)
    return np.where(np.isnan(want), np.where(np.isnan(got), 0.0, INF), np.where(np.isnan(got), INF, error))


def worst(name: str, x: np.ndarray, wide: type) -> tuple[float, float]:
    """Largest error of _core.math on x, and the input it is at."""
    x = DOMAIN.get(name, lambda x: x)(x)
    with np.errstate(all="ignore"):
        error = ulps(_core.math(name, x), ORACLE[name](x.astype(wide)))
    at = int(np.argmax(error))
    return float(error[at]), float(x[at])


def around(values: list[float], dtype: np.dtype, steps: int = 300) -> np.ndarray:
    """All numbers within `steps` representable ones of each value, of both signs; infinities; NaN."""
    info = np.finfo(dtype)
    integer = np.dtype(f"i{dtype.itemsize}")
    bits = np.array([v for v in values if v <= float(info.max)], dtype).view(integer)
    near = bits[:, None] + np.arange(-steps, steps + 1, dtype=integer)
    x = np.clip(near, 0, np.array(info.max).view(integer)).ravel().view(dtype)
    return np.concatenate([x, -x, np.array([INF, -INF, NAN], dtype)])


#: Where something changes: ends of the format, thresholds and splits of math.hpp, odd multiples of ln(2) / 2.
CORNERS = [
    *(0.0, float(F32.tiny), float(F64.tiny), float(F32.max), float(F64.max), 1e-30, 1e-8, 2**-24, 2**-53),
    *(0.25, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0, 5.9, 6.0, 9.0, 10.0, 18.0, 19.0, 20.0, 36.7, 37.4, 40.0),
    *(87.33655, 88.72284, 89.0, 103.97208, 104.0, 708.3964, 709.7827, 710.0, 745.13322, 746.0, 1e4, 1e30),
    *(np.log(2) * (k + 0.5) for k in range(24)),
]


def limit(name: str, isa: str) -> float:
    return LIMITS[name][isa == "v2"]


@pytest.mark.parametrize("name", NAMES)
def test_float32_error(isa: str, name: str) -> None:
    """Every 1021st of all 2^32 bit patterns, and all numbers around the corners."""
    patterns = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for x in (patterns, around(CORNERS, np.dtype(np.float32))):
        error, at = worst(name, x, np.float64)
        assert error <= limit(name, isa), f"{error} ULP at {at.hex()}"


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double wider than double")
@pytest.mark.parametrize("name", NAMES)
def test_float64_error(isa: str, name: str, rng: np.random.Generator) -> None:
    """Random bit patterns, the ranges where the functions do something, and numbers around the corners."""
    n = 60_000
    patterns = rng.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)
    ranges = [rng.uniform(-r, r, n) for r in (0.1, 1, 2, 7, 40, 750)]
    for x in (patterns, np.concatenate(ranges), around(CORNERS, np.dtype(np.float64), 50)):
        error, at = worst(name, x, np.longdouble)
        assert error <= limit(name, isa), f"{error} ULP at {at.hex()}"


EXACT = [
    ("exp", [0.0, -0.0, -INF, INF, NAN], [1.0, 1.0, 0.0, INF, NAN]),
    ("exp_nonpositive", [0.0, -0.0, -INF, -1e4, NAN], [1.0, 1.0, 0.0, 0.0, NAN]),
    ("exp_term", [0.0, -0.0, -INF, -1e4, NAN], [1.0, 1.0, 0.0, 0.0, NAN]),
    ("expm1", [0.0, -0.0, -INF, INF, NAN, -1e4, 1e4], [0.0, -0.0, -1.0, INF, NAN, -1.0, INF]),
    ("log", [0.0, -0.0, 1.0, -1.0, -INF, INF, NAN], [-INF, -INF, 0.0, NAN, NAN, INF, NAN]),
    ("log1p", [0.0, -0.0, -1.0, -1.5, -INF, INF, NAN], [0.0, -0.0, -INF, NAN, NAN, INF, NAN]),
    ("tanh", [0.0, -0.0, 25.0, -25.0, INF, -INF, NAN], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, NAN]),
    ("erf", [0.0, -0.0, 7.0, -7.0, INF, -INF, NAN], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0, NAN]),
    ("sigmoid", [0.0, -0.0, 50.0, -1e4, INF, -INF, NAN], [0.5, 0.5, 1.0, 0.0, 1.0, 0.0, NAN]),
    ("normal_cdf", [0.0, -0.0, 10.0, -10.0, 1e30, -1e30, INF, -INF], [0.5, 0.5, 1, 0, 1, 0, 1, 0]),
    ("sqrt", [0.0, -0.0, 4.0, -1.0, INF, NAN], [0.0, -0.0, 2.0, NAN, INF, NAN]),
]


@pytest.mark.parametrize(("name", "x", "want"), EXACT, ids=[row[0] for row in EXACT])
def test_exact_values(isa: str, dtype: np.dtype, name: str, x: list[float], want: list[float]) -> None:
    # repeated, so that both the vector body and the scalar tail of a loop see each value
    got = _core.math(name, np.tile(np.array(x, dtype), 9))
    expected = np.tile(np.array(want, dtype), 9)
    np.testing.assert_array_equal(got, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[known]), np.signbit(expected[known]))


def test_float32_normal_cdf_error(isa: str) -> None:
    """Every 1021st float that is a number, and all around the end of the quotient."""
    patterns = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([patterns, around([1.0, 2.7, 5.0, 5.4, 5.5, 5.6], np.dtype(np.float32), 3000)])
    x = x[~np.isnan(x)]
    y = _core.math("normal_cdf", x)
    assert y.min() == 0
    assert y.max() == 1
    error = np.abs(y - reference.normal_cdf(x.astype(np.float64))).max()
    assert error <= (7e-8 if isa == "v2" else 1.8e-7)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double wider than double")
def test_float64_normal_cdf_error(isa: str, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-r, r, 20_000) for r in (0.1, 1, 3, 7, 40)])
    y = _core.math("normal_cdf", x)
    assert np.abs(y - reference.normal_cdf(x.astype(np.longdouble))).max() <= 1.3e-16


@pytest.mark.parametrize("name", ["exp_nonpositive", "exp_term", "sigmoid", "tanh"])
def test_a_nan_with_any_payload_stays_a_nan(isa: str, name: str) -> None:
    """Exponents are put together from bits: those of a NaN must not get there."""
    bits = np.arange(0x7F800001, 0x7F800001 + 4099, dtype=np.uint32)
    for x in (bits.view(np.float32), (bits | 0x80400000).view(np.float32)):
        assert np.isnan(_core.math(name, x)).all()


@pytest.mark.parametrize(
    ("dtype", "last_finite", "last_nonzero"),
    [
        ("f4", "0x1.62e42ep6", "-0x1.9fe368p6"),
        ("f8", "0x1.62e42fefa39efp9", "-0x1.74910d52d3051p9"),
    ],
)
def test_exp_overflows_and_underflows_at_the_right_number(
    isa: str, dtype: str, last_finite: str, last_nonzero: str
) -> None:
    high, low = np.array([float.fromhex(last_finite), float.fromhex(last_nonzero)], dtype)
    x = np.array([high, np.nextafter(high, 2 * high), low, np.nextafter(low, 2 * low)])
    y = _core.math("exp", x)
    assert np.isfinite(y[0])
    assert y[1:].tolist() == [INF, np.finfo(x.dtype).smallest_subnormal, 0.0]


@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh", "erf"])
def test_tiny_inputs_are_kept(isa: str, dtype: np.dtype, name: str) -> None:
    """Denormals and other inputs with f(x) = x c to rounding: c = 1, and 2 / sqrt(pi) for erf."""
    least = np.finfo(dtype).smallest_subnormal
    x = least * np.arange(-200, 201, dtype=dtype)
    c = 2 / np.sqrt(np.pi) if name == "erf" else 1.0
    np.testing.assert_allclose(_core.math(name, x) / least, x / least * c, rtol=0, atol=0 if c == 1 else 1)


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_to_the_bit(isa: str, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    x = rng.normal(0, 2, 4099).astype(dtype)
    np.testing.assert_array_equal(_core.math(name, -x), -_core.math(name, x))


@pytest.mark.parametrize("name", NAMES)
def test_a_value_does_not_depend_on_its_place(
    isa: str, dtype: np.dtype, name: str, rng: np.random.Generator
) -> None:
    """Vector body and tail give the same bits."""
    x = rng.uniform(0, 5, 67).astype(dtype)
    whole = _core.math(name, x)
    for begin in range(9):
        for end in (begin, begin + 1, 40, 67):
            np.testing.assert_array_equal(_core.math(name, x[begin:end].copy()), whole[begin:end])


@pytest.mark.parametrize("name", NAMES)
def test_levels_with_fma_agree_to_the_bit(dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    before = _core.isa()
    x = rng.normal(0, 10, 10_007).astype(dtype)
    results = {}
    try:
        for level in _core.isas():
            if level != "v2":
                _core.set_isa(level)
                results[level] = _core.math(name, x)
    finally:
        _core.set_isa(before)
    for level, result in results.items():
        np.testing.assert_array_equal(result, next(iter(results.values())), err_msg=level)


def test_words_without_a_python_name(isa: str, tmp_path: Path) -> None:
    """select, min, max, abs, sign, copysign, fma, is_finite, poly."""
    run_check("math", isa, tmp_path)


def test_coefficients_are_those_of_the_fit() -> None:
    pytest.importorskip("mpmath")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fit_math.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
