"""The gemm driver: sizes, tails, strides, epilogues and instruction sets, against float64.

Matrices of small integers have products that are exact in float32, whatever the order of the sums: there the
results must be equal, and a wrong or a stray element shows. Accuracy has tests of its own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from fastopt import _products
from fastopt._products import Dropout
from same_bits import assert_same_bits, check_levels
from test_ops import views

SIZES = [0, 1, 2, 3, 5, 7, 8, 11, 12, 13, 16, 17, 31, 32, 33, 64, 65, 100, 257, 300, 513]
#: Sizes at which blocks of k, rows and columns begin and end.
DEPTHS = [*range(81), *range(126, 131), *range(254, 259), *range(510, 515), 1023, 1024, 1025, 1537]
BLOCK_ROWS = [251, 252, 253, 255, 256, 257, 263, 264, 265, 503, 504, 505, 520]
BLOCK_COLUMNS = [511, 512, 513, 527, 1023, 1024, 1025, 1055, 1056, 1057, 2047, 2049]
#: x @ y, x @ y.T, x.T @ y, x.T @ y.T: whether each operand lies transposed in memory.
FORMS = list(itertools.product([False, True], repeat=2))
FORM_IDS = ["nn", "nt", "tn", "tt"]
CANARY = 1234567.0

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")


@pytest.fixture(params=["float32", "float64", "bf16"])
def kind(request: pytest.FixtureRequest) -> tuple[np.dtype, bool]:
    """The dtype, and whether operands are rounded to bfloat16, which changes no small integer."""
    return np.dtype("float32" if request.param == "bf16" else request.param), request.param == "bf16"


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.integers(-8, 9, shape).astype(dtype)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def exact(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ y.astype(np.float64)


def inside(values: np.ndarray, transposed: bool = False, fill: float = np.nan) -> np.ndarray:
    """A copy of a matrix that lies, transposed or not, at an odd place in a larger array of `fill`."""
    if transposed:
        return inside(values.T, False, fill).T
    rows, columns = values.shape
    around = np.full((rows + 3, columns + 5), fill, values.dtype)
    view = around[2 : rows + 2, 1 : columns + 1]
    view[...] = values
    return view


def check_product(
    x: np.ndarray, y: np.ndarray, bf16: bool = False, beta: float = 0.0, transposed: bool = False
) -> None:
    """Hold `gemm` to the exact product of integers, and to leaving all around its output alone."""
    before = np.full((x.shape[0], y.shape[1]), np.nan if beta == 0 else 3.0, x.dtype)
    out = inside(before, transposed, CANARY)
    assert _products.gemm(x, y, out, beta=beta, bf16=bf16) is out
    np.testing.assert_array_equal(out, exact(x, y) + (3.0 * beta if beta else 0.0))
    around = out.base
    assert np.count_nonzero(around == CANARY) == around.size - out.size


def forms(
    rng: np.random.Generator, m: int, n: int, k: int, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Operands of small integers in all four transpose forms, surrounded by NaN."""
    x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
    for left, right in FORMS:
        yield inside(x, left), inside(y, right)


# --------------------------------------------------------------------------------------------- sizes, tails


def test_all_pairs_of_sizes(isa: str, kind: tuple[np.dtype, bool], rng: np.random.Generator) -> None:
    dtype, bf16 = kind
    for i, m in enumerate(SIZES):
        for j, n in enumerate(SIZES):
            k = SIZES[(5 * i + 8 * j) % len(SIZES)]
            if m * n * k <= 3e6:
                left, right = FORMS[(i + j) % 4]
                x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
                check_product(inside(x, left), inside(y, right), bf16)


@pytest.mark.parametrize("swap", [False, True], ids=["m", "n"])
def test_all_pairs_with_depth(
    isa: str, kind: tuple[np.dtype, bool], swap: bool, rng: np.random.Generator
) -> None:
    dtype, bf16 = kind
    for i, size in enumerate(SIZES):
        for j, k in enumerate(SIZES):
            other = SIZES[(3 * i + 5 * j + 1) % 15]
            m, n = (other, size) if swap else (size, other)
            if m * n * k <= 3e6:
                left, right = FORMS[(i + 3 * j) % 4]
                x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
                check_product(inside(x, left), inside(y, right), bf16)


def test_every_tail_of_columns(isa: str, kind: tuple[np.dtype, bool], rng: np.random.Generator) -> None:
    dtype, bf16 = kind
    for n in range(1, 131):
        for x, y in forms(rng, *((13, n, 9) if n % 2 else (26, n, 11)), dtype):
            check_product(x, y, bf16)


def test_every_tail_of_rows(isa: str, kind: tuple[np.dtype, bool], rng: np.random.Generator) -> None:
    dtype, bf16 = kind
    for m in range(1, 62):
        for n, k in ((33, 10), (70, 7)):
            for x, y in forms(rng, m, n, k, dtype):
                check_product(x, y, bf16)


def test_every_tail_of_depth(isa: str, kind: tuple[np.dtype, bool], rng: np.random.Generator) -> None:
    dtype, bf16 = kind
    for k in DEPTHS:
        for m, n in ((1, 9), (5, 35), (17, 16)):
            for x, y in forms(rng, m, n, k, dtype):
                check_product(x, y, bf16)


def test_few_rows_or_columns(isa: str, kind: tuple[np.dtype, bool], rng: np.random.Generator) -> None:
    dtype, bf16 = kind
    for few, many, k in itertools.product(
        (1, 2, 3, 4, 5, 15, 16, 17), (1, 7, 8, 9, 63, 65), (15, 64, 77, 600)
    ):
        for m, n in ((few, many), (many, few)):
            for x, y in forms(rng, m, n, k, dtype):
                check_product(x, y, bf16)


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_ends_of_blocks(
    isa: str, kind: tuple[np.dtype, bool], form: tuple[bool, bool], rng: np.random.Generator
) -> None:
    dtype, bf16 = kind
    for m, n, k in (
        *((m, 37, 19) for m in BLOCK_ROWS),
        *((14, n, 23) for n in BLOCK_COLUMNS),
        (300, 1100, 5), (270, 530, 260), (13, 1060, 520), (600, 33, 515), (253, 257, 1030),
    ):  # fmt: skip
        x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
        check_product(inside(x, form[0]), inside(y, form[1]), bf16)


def test_strides_of_whole_pages(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Rows a power of two apart are packed where others are not."""
    memory = integers(rng, (70, 1024), dtype)
    for m, n, k in itertools.product((1, 16, 17, 25, 40), (31, 64, 70), (31, 64)):
        x, y = memory[:m, :k], memory[:k, 100 : 100 + n]
        check_product(x, y)
        check_product(memory[:k, :m].T, y)
        check_product(x, memory[:n, 300 : 300 + k].T)


# ------------------------------------------------------------------------------------------------- layouts


def spaced(a: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A copy of `a` in every `rows`-th row and `columns`-th column of an array of NaN, backwards if negative."""
    around = np.full((a.shape[0] * abs(rows) + 2, a.shape[1] * abs(columns) + 3), np.nan, a.dtype)
    view = around[1:-1, 2:-1][:: abs(rows), :: abs(columns)][:: np.sign(rows), :: np.sign(columns)]
    view[...] = a
    return view


#: Each makes of a matrix a view of its shape in another layout; the broadcast ones change its values.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dense": lambda a: a,
    "transposed": lambda a: inside(a, True),
    "odd offset": inside,
    "every other row": lambda a: spaced(a, 2, 1),
    "every other column": lambda a: spaced(a, 1, 2),
    "every third of both, transposed": lambda a: spaced(a.T, 3, 3).T,
    "rows backwards": lambda a: spaced(a, -1, 1),
    "columns backwards": lambda a: spaced(a, 1, -1),
    "all backwards and apart": lambda a: spaced(a, -2, -3),
    "one row for all": lambda a: np.broadcast_to(a[:1], a.shape) if len(a) else a,
    "one column for all": lambda a: np.broadcast_to(a[:, :1], a.shape) if a.shape[1] else a,
    "one element for all": lambda a: np.broadcast_to(a[:1, :1], a.shape) if a.size else a,
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_operands_of_any_strides(isa: str, left: str, right: str, rng: np.random.Generator) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        for m, n, k in ((1, 1, 1), (3, 20, 70), (13, 33, 17), (30, 70, 5), (50, 1, 40)):
            x = LAYOUTS[left](integers(rng, (m, k), dtype))
            y = LAYOUTS[right](integers(rng, (k, n), dtype))
            check_product(x, y, transposed=bool(n % 2))


def test_windows_that_overlap_are_operands(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    series = integers(rng, (200,), dtype)
    windows = np.lib.stride_tricks.sliding_window_view(series, 37)
    check_product(windows, integers(rng, (37, 20), dtype))
    check_product(integers(rng, (9, 164), dtype), windows)
    check_product(windows[::3, ::-2], windows[:19, ::5])


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("transposed", [False, True])
def test_beta_and_transposed_outputs(
    isa: str, kind: tuple[np.dtype, bool], beta: float, transposed: bool, rng: np.random.Generator
) -> None:
    for m, n, k in (
        (1, 1, 0),
        (5, 3, 0),
        (1, 40, 7),
        (40, 1, 7),
        (3, 65, 33),
        (20, 31, 600),
        (300, 20, 1100),
    ):
        for x, y in forms(rng, m, n, k, kind[0]):
            check_product(x, y, kind[1], beta, transposed)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_outputs_of_any_strides(isa: str, dtype: np.dtype, beta: float, rng: np.random.Generator) -> None:
    for m, n, k in ((1, 1, 3), (1, 20, 5), (20, 1, 5), (7, 35, 20), (30, 18, 2)):
        x, y = integers(rng, (m, k), dtype), integers(rng, (k, n), dtype)
        for rows, columns in itertools.product((1, 2, -1, -2), (1, 3, -1)):
            for turned in (False, True):
                out = spaced(np.ones((n, m), dtype), rows, columns).T if turned else spaced(
                    np.ones((m, n), dtype), rows, columns
                )  # fmt: skip
                around, nans = out.base, np.count_nonzero(np.isnan(out.base))
                assert _products.gemm(x, y, out, beta=beta) is out
                np.testing.assert_array_equal(out, exact(x, y) + beta)
                assert np.count_nonzero(np.isnan(around)) == nans


@given(data=st.data())
def test_any_shapes_and_strides(data: st.DataObject) -> None:
    m, n, k = (data.draw(st.integers(0, 70)) for _ in "mnk")
    dtype = np.dtype(data.draw(st.sampled_from(["float32", "float64"])))
    x, y, out = (data.draw(views(shape, dtype)) for shape in ((m, k), (k, n), (m, n)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for a in (x, y, out):
        a[...] = rng.integers(-8, 9, a.shape)
    beta = data.draw(st.sampled_from([0.0, 1.0]))
    want = exact(x, y) + beta * out
    assert _products.gemm(x, y, out, beta=beta) is out
    np.testing.assert_array_equal(out, want)


GUARDED = """
import ctypes, itertools, mmap, sys
import numpy as np
from fastopt import _core, _products

PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(shape, dtype, at_end):
    "An array that ends, or starts, where memory that may not be touched begins, or ends."
    size = int(np.prod(shape)) * dtype.itemsize
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for edge in (first, first + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(edge), PAGE, 0) == 0
    kept.append(memory)
    place = PAGE + (room - size if at_end else 0)
    return np.frombuffer(memory, dtype, size // dtype.itemsize, place).reshape(shape)

rng = np.random.default_rng(0)
sizes = [(1, 9, 70), (3, 33, 17), (13, 47, 9), (16, 5, 64), (17, 70, 33), (30, 17, 600), (260, 1030, 3)]
for isa, name, (m, n, k), at_end, left, right, bf16 in itertools.product(
    _core.isas(), ("float32", "float64"), sizes, (False, True), (False, True), (False, True), (False, True)
):
    if bf16 and name == "float64":
        continue
    _core.set_isa(isa)
    dtype = np.dtype(name)
    x = guarded((k, m) if left else (m, k), dtype, at_end)
    y = guarded((n, k) if right else (k, n), dtype, at_end)
    out, bias = guarded((m, n), dtype, at_end), guarded((n,), dtype, at_end)
    for a in (x, y, bias):
        a[...] = rng.integers(-8, 9, a.shape)
    x, y = x.T if left else x, y.T if right else y
    _products.gemm(x, y, out, bf16=bf16)
    assert (out == x @ y).all()
    _products.linear(x, y.T, bias, "relu", out=out, dropout=_products.Dropout(0.5, 1, 2), bf16=bf16)
"""


def test_no_byte_beyond_an_array_is_touched() -> None:
    """Every operand and output ends at, then starts behind, a page without access."""
    if sys.platform != "linux":
        pytest.skip("needs mprotect")
    path = os.pathsep.join([str(Path(_products.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", GUARDED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


# ------------------------------------------------------------------------------------------------ accuracy


def check_accuracy(x: np.ndarray, y: np.ndarray) -> None:
    wide = ref.wide(x), ref.wide(y)
    unit = np.abs(wide[0]) @ np.abs(wide[1])
    ref.assert_accurate(_products.gemm(x, y), x @ y, wide[0] @ wide[1], unit, ulps=1.0)


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_accuracy(isa: str, dtype: np.dtype, form: tuple[bool, bool], rng: np.random.Generator) -> None:
    for m, n, k in ((1, 40, 784), (16, 30, 300), (33, 65, 100), (64, 10, 256), (40, 50, 1030), (9, 20, 5000)):
        check_accuracy(
            inside(normal(rng, (m, k), dtype), form[0]), inside(normal(rng, (k, n), dtype), form[1])
        )


@pytest.mark.parametrize("form", FORMS, ids=FORM_IDS)
def test_accuracy_of_long_sums_of_one_sign(
    isa: str, dtype: np.dtype, form: tuple[bool, bool], rng: np.random.Generator
) -> None:
    for m in (5, 20):
        x, y = rng.uniform(0, 1, (m, 5000)).astype(dtype), rng.uniform(0, 1, (5000, 30)).astype(dtype)
        check_accuracy(inside(x, form[0]), inside(y, form[1]))


def test_bfloat16_operands(isa: str, rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for m, n, k in ((1, 9, 40), (5, 33, 300), (17, 64, 31), (40, 50, 1030), (9, 20, 5001)):
        x, y = normal(rng, (m, k), np.dtype("f4")), normal(rng, (k, n), np.dtype("f4"))
        rounded = [a.astype(bfloat16).astype(np.float32) for a in (x, y)]
        unit = np.abs(exact(*(np.abs(a) for a in rounded)))
        for left, right in FORMS:
            got = _products.gemm(inside(x, left), inside(y, right), bf16=True)
            ref.assert_accurate(got, rounded[0] @ rounded[1], exact(*rounded), unit, ulps=1.0)
            assert not np.array_equal(got, _products.gemm(x, y))


def test_rounding_to_bfloat16_is_to_nearest_even(isa: str) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    bits = np.arange(0, 2**32, 2**32 // 4099, dtype=np.uint64).astype(np.uint32)
    halves = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16) + 0x8000
    x = np.concatenate([bits, halves, halves + 1, halves - 1]).view(np.float32)
    x = x[~((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny))]  # hardware may take subnormals for 0
    with np.errstate(invalid="ignore"):
        want = x.astype(bfloat16).astype(np.float32)
    for columns in (1, 40):
        got = _products.gemm(x[:, None], np.ones((1, columns), np.float32), bf16=True)
        np.testing.assert_array_equal(got, np.repeat(want[:, None], columns, 1))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_go_where_they_belong(
    isa: str, kind: tuple[np.dtype, bool], special: float, rng: np.random.Generator
) -> None:
    dtype, bf16 = kind
    for m, n, k in ((3, 20, 70), (14, 35, 9), (30, 70, 20)):
        x, y = (rng.integers(1, 9, shape).astype(dtype) for shape in ((m, k), (k, n)))
        y[k // 2, n // 2] = 0.0
        for i, p in ((0, 0), (m - 1, k - 1), (m // 2, k // 2)):
            spoilt = x.copy()
            spoilt[i, p] = special
            for left, right in FORMS:
                got = _products.gemm(inside(spoilt, left), inside(y, right), bf16=bf16)
                np.testing.assert_array_equal(got, exact(spoilt, y))
                turned = _products.gemm(inside(y.T, right), inside(spoilt.T, left), bf16=bf16)
                np.testing.assert_array_equal(turned, exact(spoilt, y).T)


# ---------------------------------------------------------------------------------------- threads and levels

BITS = [
    (1, 300, 784), (5, 700, 600), (16, 100, 1100), (17, 260, 300), (64, 256, 784), (600, 40, 300), (900, 9, 90),
    (30, 1100, 40), (257, 300, 513),
]  # fmt: skip


def products(dtype: np.dtype, bf16: bool = False) -> dict[str, Any]:
    """Results of every form, of products large enough to be cut for several threads."""
    rng = np.random.default_rng(5)
    results: dict[str, Any] = {}
    for m, n, k in BITS:
        x, y, bias = (normal(rng, shape, dtype) for shape in ((m, k), (k, n), (n,)))
        dy = normal(rng, (m, n), dtype)
        for (left, right), name in zip(FORMS, FORM_IDS, strict=True):
            results[f"{m}x{n}x{k} {name}"] = _products.gemm(inside(x, left), inside(y, right), bf16=bf16)
        w = np.ascontiguousarray(y.T)
        mask = Dropout(0.3, 1, 2)
        results[f"{m}x{n}x{k} linear"] = _products.linear(x, w, bias, "gelu", dropout=mask, bf16=bf16)
        backward = _products.linear_backward(dy, x, w, "tanh", (), None, dy, dropout=mask, bf16=bf16)
        results.update({f"{m}x{n}x{k} d{i}": g for i, g in enumerate(backward)})
    results["stack"] = _products.matmul(*(normal(rng, (7, 90, 90), dtype) for _ in "xy"))
    return results


def test_results_do_not_depend_on_the_number_of_threads(
    isa: str, kind: tuple[np.dtype, bool], threads
) -> None:
    threads(1)
    alone = products(*kind)
    for n in (2, 3, 5):
        threads(n)
        assert_same_bits(alone, products(*kind))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    check_levels(lambda: products(dtype))


# ----------------------------------------------------------------------------------- stacks, vectors, dtypes


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)), ((0,), (0,)), ((3,), (3, 4)), ((2, 3), (3,)), ((1, 1), (1, 1)), ((0, 3), (3, 2)),
        ((2, 0), (0, 3)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (3,)), ((2, 3), (5, 3, 4)), ((3,), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (6, 3, 4)), ((4, 1, 7, 9), (1, 5, 9, 8)), ((0, 2, 3), (3, 4)),
        ((0, 2, 3), (0, 3, 4)), ((5, 2, 0), (5, 0, 4)), ((5, 3), (4, 3, 0)), ((40, 17, 33), (40, 33, 20)),
    ],
    ids=str,
)  # fmt: skip
def test_matmul_of_any_axes(
    isa: str, dtype: np.dtype, left: tuple, right: tuple, rng: np.random.Generator
) -> None:
    x, y = integers(rng, left, dtype), integers(rng, right, dtype)
    want = np.asarray(x @ y)
    got = _products.matmul(x, y)
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)
    flipped = _products.matmul(x[..., ::-1], y[..., ::-1, :] if y.ndim > 1 else y[::-1])
    np.testing.assert_array_equal(flipped, want)
    across = [np.asfortranarray(a) for a in (x, y)]
    np.testing.assert_array_equal(_products.matmul(*across), want)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (4, 3)), ((3,), (4,)), ((2, 2, 3), (3, 3, 4)), ((2, 3), ()), ((5, 2, 3), (4, 2))],
    ids=str,
)
def test_matmul_refuses_shapes_that_do_not_fit(left: tuple, right: tuple) -> None:
    with pytest.raises(ValueError, match="matmul"):
        _products.matmul(np.ones(left), np.ones(right))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32_and_rounded_once(
    isa: str, name: str, rng: np.random.Generator
) -> None:
    half = np.dtype(np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    x, y = (rng.standard_normal(shape).astype(half) for shape in ((9, 600), (600, 33)))
    got = _products.matmul(x, y)
    assert got.dtype == half
    want = _products.matmul(x.astype(np.float32), y.astype(np.float32)).astype(half)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got.astype(float), exact(x, y), rtol=2.0**-7, atol=1e-4)


def test_other_dtypes_are_numpys() -> None:
    x = np.arange(6).reshape(2, 3)
    for a in (x, x > 2, x.astype(">f4"), x.astype(np.uint8), x.astype(np.longdouble)):
        got = _products.matmul(a, a.T)
        assert got.dtype == (a @ a.T).dtype
        np.testing.assert_array_equal(got, a @ a.T)


# ------------------------------------------------------------------------------------------------- refusals


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


X, Y = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, Y.T), {}, ValueError, r"y has shape \(5, 4\), x has shape \(3, 4\)"),
        ((X, Y[0]), {}, ValueError, r"y has shape \(5,\), x has shape \(3, 4\)"),
        ((X, Y.astype(float)), {}, TypeError, "y is float64, x is float32"),
        ((X.astype(int), Y.astype(int)), {}, TypeError, "x is int64, expected float32"),
        ((X.astype(np.float16), Y), {}, TypeError, "x is float16, expected float32 or float64"),
        (([1.0], Y), {}, TypeError, "x is list, expected a NumPy array"),
        (
            (X.astype(float), Y.astype(float)),
            {"bf16": True},
            ValueError,
            "x is float64, a product in bfloat16",
        ),
        (
            (X, Y, np.ones((5, 3), np.float32)),
            {},
            ValueError,
            r"out has shape \(5, 3\), expected shape \(3, 5\)",
        ),
        (
            (X, Y, np.ones((3, 10), np.float32)[:, ::2][:2]),
            {},
            ValueError,
            r"out has shape \(2, 5\), expected",
        ),
        ((X, Y, np.ones((3, 5))), {}, TypeError, "out is float64, x is float32"),
        ((X, Y, read_only(np.ones((3, 5), np.float32))), {}, ValueError, "out is read-only"),
        ((X, Y, read_only(np.ones((3, 9), np.float32))[:, :5]), {}, ValueError, "out is read-only"),
    ],
)
def test_refused_products(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    before = [np.array(a) for a in arguments]
    with pytest.raises(error, match=f"^matmul: {message}"):
        _products.gemm(*arguments, **options)
    for a, b in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_outputs_that_share_memory_with_operands(isa: str, rng: np.random.Generator) -> None:
    memory = integers(rng, (20, 20), np.dtype(np.float64))
    before = memory.copy()
    x, y = memory[:4, :4], memory[4:8, :4]
    for out in (x, y, x.T, memory[1:5, 2:6], memory[3:7, 3:7], memory[:4, 3:7], memory[7:3:-1, :4]):
        with pytest.raises(ValueError, match=r"matmul: out overlaps [xy] in memory; pass a copy"):
            _products.gemm(x, y, out)
    with pytest.raises(ValueError, match="matmul: out overlaps itself in memory"):
        _products.gemm(x, y, np.lib.stride_tricks.as_strided(np.zeros(9), (4, 4), (8, 8)))
    np.testing.assert_array_equal(memory, before)
    # Beside each other in the rows or in the columns of one array they are apart.
    want = exact(x, y)
    for out in (memory[:4, 4:8], memory[:4, 16:], memory[1:5, 5:9], memory[11:7:-1, :4], memory[4:8, 4:8].T):
        _products.gemm(x, y, out)
        np.testing.assert_array_equal(out, want)
        memory[...] = before
    columns = memory.T
    _products.gemm(columns[:4, :4], columns[8:12, :4], columns[4:8, :4])
    np.testing.assert_array_equal(columns[4:8, :4], exact(before.T[:4, :4], before.T[8:12, :4]))


def test_operands_off_their_alignment_are_copied() -> None:
    memory = np.zeros(4 * 12 + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)
    memory[...] = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(_products.gemm(memory, Y), memory @ Y)
    out = np.zeros(4 * 15 + 1, np.uint8)[1:].view(np.float32).reshape(3, 5)
    assert _products.gemm(X, Y, out) is out
    np.testing.assert_array_equal(out, np.full((3, 5), 4.0))
