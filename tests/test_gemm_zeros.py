"""Products that leave out what is zero for a whole tile: the same bits, infinities and NaNs as without.

Every fourth row or column of `crowded` operands is full, so that no tile of theirs may leave anything out; each other
row or column of the product must have the bits that it has where tiles may.
"""

from __future__ import annotations

import numpy as np
import pytest

from fastopt import _products
from test_gemm import FORM_IDS, FORMS, check_product, inside, integers, normal

SHAPES = [(12, 32, 32), (64, 96, 784), (200, 100, 784), (25, 33, 513), (300, 65, 130), (7, 47, 40)]


def empty_parts(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros in most columns of x, others for some of its rows, as images have; some of them negative."""
    rows, columns = x.shape
    x = x * (rng.random(columns) < 0.4)
    for begin in range(0, rows, 16):
        x[begin : begin + 16] *= rng.random(columns) < 0.5
    return x


def crowded(x: np.ndarray, axis: int) -> np.ndarray:
    """Put a full row, or column, before every third."""
    count = x.shape[axis]
    full = np.ones_like(np.take(x, [0], axis))
    parts = [p for i in range(0, count, 3) for p in (full, np.take(x, range(i, min(i + 3, count)), axis))]
    return np.ascontiguousarray(np.concatenate(parts, axis))


def of_crowded(c: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Return the rows, or columns, of a crowded operand's product that are not of full ones."""
    return np.take(c, [i + i // 3 + 1 for i in range(count)], axis)


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = np.full((x.shape[0], y.shape[1]), np.nan, x.dtype)
    _products.gemm(x, y, out)
    return out


def assert_bits(x: np.ndarray, y: np.ndarray) -> None:
    bits = np.uint32 if x.dtype == np.float32 else np.uint64
    np.testing.assert_array_equal(x.view(bits), y.view(bits))


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


@pytest.mark.parametrize(("left", "right"), FORMS, ids=FORM_IDS)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_empty_parts_of_either_operand(
    isa: str, dtype: np.dtype, left: bool, right: bool, beta: float, rng: np.random.Generator
) -> None:
    for m, n, k in SHAPES:
        x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
        check_product(inside(empty_parts(x, rng), left), inside(y, right), beta=beta)
        check_product(inside(x, left), inside(empty_parts(y.T, rng).T, right), beta=beta)
        check_product(inside(0 * x, left), inside(y, right), beta=beta)
        check_product(inside(x, left), inside(0 * y, right), beta=beta)


@pytest.mark.parametrize("scale", [1.0, 1e-23], ids=["normal", "underflow"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leaving_out_changes_no_bit(
    isa: str, shape: tuple[int, int, int], scale: float, rng: np.random.Generator
) -> None:
    m, n, k = shape
    scale = np.float32(scale)
    x = empty_parts(normal(rng, (m, k), np.dtype("f4")) * scale, rng)
    w = normal(rng, (n, k), np.dtype("f4")) * scale
    # As in a layer's product with images: rows of one operand, the other lies across.
    assert_bits(product(x, w.T), of_crowded(product(crowded(x, 0), w.T), 0, m))
    # As in the gradient of its weight: columns of one operand.
    g = normal(rng, (m, n), np.dtype("f4")) * scale
    assert_bits(product(g.T, x), of_crowded(product(g.T, crowded(x, 1)), 1, k))


def test_underflow_leaves_no_negative_zero(isa: str) -> None:
    x = np.zeros((24, 64), np.float32)
    x[:, 3] = -1e-30
    y = np.full((64, 32), 1e-30, np.float32)
    assert not np.signbit(product(x, y)).any()
    assert not np.signbit(product(x, np.ascontiguousarray(y.T).T)).any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("left", "right"), FORMS, ids=FORM_IDS)
def test_what_is_not_finite_is_not_left_out(
    isa: str, dtype: np.dtype, bad: float, left: bool, right: bool, rng: np.random.Generator
) -> None:
    m, n, k = 64, 96, 100
    x, y = np.zeros((m, k), dtype), normal(rng, (k, n), dtype)
    x[:, 7] = 1.0
    y[50, 40] = bad
    got = np.full((m, n), 5.0, dtype)
    _products.gemm(inside(x, left, fill=0.0), inside(y, right, fill=0.0), got)
    assert np.isnan(got[:, 40]).all()
    np.testing.assert_array_equal(np.delete(got, 40, 1), np.delete(np.tile(y[7], (m, 1)), 40, 1))
    got = np.full((n, m), 5.0, dtype)
    _products.gemm(inside(y.T, left, fill=0.0), inside(x.T, right, fill=0.0), got)
    assert np.isnan(got[40]).all()
    np.testing.assert_array_equal(np.delete(got, 40, 0), np.delete(np.tile(y[7][:, None], (1, m)), 40, 0))
