"""Outputs that go past the caches hold what those that do not hold, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cases import ACTIVATIONS, LOSSES
from fastopt import _core, _ops
from same_bits import check_levels, check_threads

#: Around a line of 16 floats, the blocks of 256 (a short bias), 512 and 1024 elements, and a chunk of 8192.
LENGTHS = [0, 1, 15, 16, 17, 47, 64, 255, 511, 512, 513, 1023, 1024, 1025, 1040, 8191, 8192, 8209, 40_000]
#: Rows are taken 16 at a time up to 32 columns; longer ones end within a vector, a line or a block.
COLUMNS = [1, 5, 32, 33, 47, 48, 64, 100, 511, 512, 513, 1000, 1024, 1030, 4097]


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    before = _core.stream_bytes()
    yield
    _core.set_stream_bytes(before)


def test_only_large_outputs_are_streamed() -> None:
    assert _core.stream_bytes() == 32 << 20


def placed(shape: Any, dtype: np.dtype, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """An output `offset` elements after the begin of a cache line, and the memory around it."""
    size = int(np.prod(shape))
    memory = np.full(size + 100, 7, dtype)
    begin = (-memory.ctypes.data // dtype.itemsize) % 64 + offset
    return memory[begin : begin + size].reshape(shape), memory


def check(run: Callable[[np.ndarray], Any], shape: Any, dtype: np.dtype) -> None:
    """Hold run(out) with everything streamed to the same without, and to its own output."""
    _core.set_stream_bytes(1 << 60)
    want, _ = placed(shape, dtype, 0)
    value = run(want)
    _core.set_stream_bytes(0)
    for offset in (0, 1, 4, 13):
        out, memory = placed(shape, dtype, offset)
        np.testing.assert_array_equal(run(out), value)
        np.testing.assert_array_equal(out, want)
        assert (memory == 7).sum() >= 100
        out[...] = 7
        assert (memory == 7).all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(isa: str, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in LENGTHS:
        x, dy = 3 * rng.standard_normal(n).astype(dtype), rng.standard_normal(n).astype(dtype)
        y = _ops.activation(name, x)
        check(lambda out: _ops.activation(name, x, out=out) is out, n, dtype)  # noqa: B023
        check(lambda out: _ops.activation_grad(name, dy, x, y, out=out) is out, n, dtype)  # noqa: B023


@pytest.mark.parametrize("columns", [1, 3, 63, 64, 65, 300, 1500])
def test_bias(isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator) -> None:
    z = rng.standard_normal((1 + 20_000 // columns, columns)).astype(dtype)
    bias = rng.standard_normal(columns).astype(dtype)
    for name in (None, "relu", "gelu"):
        check(lambda out: _ops.bias_activation(z, bias, name, out=out) is out, z.shape, dtype)  # noqa: B023


def test_half_precision(isa: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(9001).astype(np.float16)
    check(lambda out: _ops.activation("tanh", x, out=out) is out, x.shape, x.dtype)


@pytest.mark.parametrize("columns", COLUMNS)
def test_softmax(isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator) -> None:
    x = 4 * rng.standard_normal((35, columns)).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    for f, g in ((_ops.softmax, _ops.softmax_grad), (_ops.log_softmax, _ops.log_softmax_grad)):
        y = f(x)
        check(lambda out: f(x, out=out) is out, x.shape, dtype)  # noqa: B023
        check(lambda out: g(dy, y, out=out) is out, x.shape, dtype)  # noqa: B023


@pytest.mark.parametrize("columns", COLUMNS)
def test_cross_entropy(isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator) -> None:
    x = 4 * rng.standard_normal((35, columns)).astype(dtype)
    classes = rng.integers(0, columns, 35)
    classes[::9] = -100
    classes[-1] = columns - 1
    shares = rng.uniform(0, 1, x.shape).astype(dtype)
    weight = rng.uniform(0, 1, columns).astype(dtype)
    for target in (classes, shares):
        for options in ({}, {"label_smoothing": 0.1}, {"weight": weight}, {"reduction": "none"}):

            def run(out: np.ndarray) -> np.ndarray:
                return _ops.cross_entropy(x, target, grad_out=out, **options)[0]  # noqa: B023

            check(run, x.shape, dtype)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses(isa: str, dtype: np.dtype, name: str, rng: np.random.Generator) -> None:
    for n in LENGTHS:
        x, t = rng.uniform(0.1, 0.9, (2, n)).astype(dtype)
        for reduction in ("sum", "none"):
            check(
                lambda out: _ops.loss(name, x, t, reduction=reduction, grad_out=out)[0],  # noqa: B023
                n,
                dtype,
            )


def test_in_place(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    _core.set_stream_bytes(0)
    x = rng.standard_normal((20, 700)).astype(dtype)
    target = rng.integers(0, 700, 20)
    calls: list[Callable[..., Any]] = [
        lambda x, out=None: _ops.activation("gelu", x, out=out),
        lambda x, out=None: _ops.activation_grad("silu", x, x, out=out),
        lambda x, out=None: _ops.softmax(x, out=out),
        lambda x, out=None: _ops.log_softmax(x, out=out),
        lambda x, out=None: _ops.softmax_grad(x, x, out=out),
        lambda x, out=None: _ops.log_softmax_grad(x, x, out=out),
        lambda x, out=None: _ops.cross_entropy(x, target, grad=True, grad_out=out)[1],
        lambda x, out=None: _ops.loss("mse", x, 2 * x, grad=True, grad_out=out)[1],
    ]
    for call in calls:
        want, own = call(x), x.copy()
        assert call(own, out=own) is own
        np.testing.assert_array_equal(own, want)


def everything(dtype: np.dtype) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 333)).astype(dtype)
    target = rng.integers(0, 333, 300)
    results: dict[str, Any] = {name: _ops.activation(name, x) for name in ACTIVATIONS}
    results["softmax"], results["log_softmax"] = _ops.softmax(x), _ops.log_softmax(x)
    results["loss"], results["grad"] = _ops.cross_entropy(x, target, grad=True)
    results["mse"], results["mse_grad"] = _ops.loss("mse", x, x + 1, grad=True)
    return results


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str, dtype: np.dtype) -> None:
    _core.set_stream_bytes(0)
    check_threads(threads, lambda: everything(dtype))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    _core.set_stream_bytes(0)
    check_levels(lambda: everything(dtype))
