"""Products that leave out what is zero in two rows or four columns: the same bits, infinities and NaNs as without.

Every other row or column of `crowded` operands is full, so that no tile of theirs may leave anything out; each other
row or column of the product must have the bits that it has where tiles may.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import fastopt as fo
from fastopt import _products, nn
from program_tools import compiled, eager, error, seeded
from test_gemm import FORM_IDS, FORMS, check_product, inside, integers, normal

SHAPES = [
    (20, 32, 32),
    (64, 96, 784),
    (200, 100, 784),
    (25, 33, 513),
    (300, 65, 130),
    (7, 47, 40),
    (601, 150, 99),
]


def empty_parts(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros in most runs of columns of x, others for some of its rows, as images have; some of them negative."""
    rows, columns = x.shape
    x = x * np.repeat(rng.random(columns // 8 + 1) < 0.3, 8)[:columns]
    for begin in range(0, rows, 16):
        x[begin : begin + 16] *= rng.random(columns) < 0.5
    return x


def crowded(x: np.ndarray, axis: int) -> np.ndarray:
    """Put a full row, or column, before each one."""
    pairs = np.stack([np.ones_like(x), x], axis + 1)
    return pairs.reshape([2 * n if i == axis else n for i, n in enumerate(x.shape)])


def of_crowded(c: np.ndarray, axis: int) -> np.ndarray:
    """Return the rows, or columns, of a crowded operand's product that are not of full ones."""
    return c[1::2] if axis == 0 else c[:, 1::2]


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


@pytest.mark.parametrize("underflows", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leaving_out_changes_no_bit(
    isa: str, dtype: np.dtype, shape: tuple[int, int, int], underflows: bool, rng: np.random.Generator
) -> None:
    m, n, k = shape
    scale = dtype.type(float(np.finfo(dtype).tiny) ** 0.6 if underflows else 1.0)
    x = empty_parts(normal(rng, (m, k), dtype) * scale, rng)
    w = normal(rng, (n, k), dtype) * scale
    # As in a layer's product with images: rows of one operand, the other lies across.
    assert_bits(product(x, w.T), of_crowded(product(crowded(x, 0), w.T), 0))
    # As in the gradient of its weight: columns of one operand.
    g = normal(rng, (m, n), dtype) * scale
    assert_bits(product(g.T, x), of_crowded(product(g.T, crowded(x, 1)), 1))


@pytest.mark.parametrize("count", [2, 5])
def test_threads_change_no_bit(
    dtype: np.dtype, count: int, threads: Callable[[int], None], rng: np.random.Generator
) -> None:
    x = empty_parts(normal(rng, (200, 784), dtype), rng)
    w, g = normal(rng, (300, 784), dtype), normal(rng, (200, 300), dtype)
    threads(1)
    forward, backward = product(x, w.T), product(g.T, x)
    threads(count)
    assert_bits(product(x, w.T), forward)
    assert_bits(product(g.T, x), backward)


# The last row is too long for a task of whole rows, the one before has two blocks of k in its gradients.
@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((784, 100, 10), 200), ((784, 256, 10), 64), ((130, 70, 4), 600), ((3000, 90, 5), 40)],
)
def test_compiled_steps(
    dtype: np.dtype,
    sizes: tuple[int, int, int],
    batch: int,
    threads: Callable[[int], None],
    rng: np.random.Generator,
) -> None:
    width, hidden, classes = sizes
    pairs = [
        (empty_parts(normal(rng, (batch, width), dtype), rng), rng.integers(0, classes, batch))
        for _ in range(3)
    ]

    def trained(loop: Callable[..., list[float]], **options: bool) -> list[np.ndarray]:
        layers = nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        model = seeded(nn.Sequential(*layers), dtype)
        losses = loop(model, nn.CrossEntropyLoss(), fo.optim.Adam(model.parameters()), pairs, **options)
        return [np.array(losses, dtype), *[p.data for p in model.parameters()]]

    threads(1)
    once = trained(compiled, fuse_update=True)
    for count, fuse in ((1, False), (2, True), (2, False), (5, True)):
        threads(count)
        for a, b in zip(trained(compiled, fuse_update=fuse), once, strict=True):
            assert_bits(a, b)
    assert error(trained(eager), once) <= 8 * np.finfo(dtype).eps


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
