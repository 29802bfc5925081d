"""The common case of linear layers: the bits of the general one, and nothing done where that must decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt.functional as F
from fastopt import _core, _products
from test_gemm import CANARY, normal, read_only
from test_linear import layer, nans

SHAPES = [(1, 1, 1), (3, 5, 40), (64, 10, 256), (26, 65, 600), (4, 9, 0), (0, 3, 4)]


@pytest.mark.parametrize("name", [None, "relu", "sigmoid", "gelu"])
@pytest.mark.parametrize("with_out", [True, False])
def test_bits_of_the_general_call(
    isa: str, dtype: np.dtype, name: str | None, with_out: bool, rng: np.random.Generator
) -> None:
    for m, n, k in SHAPES:
        x, w, b = layer(rng, m, n, k, dtype)
        out = nans((m, n), dtype) if with_out else None
        y = _core.linear_plain(x, w, b, name, out)
        assert y is not None
        assert y is out or not with_out
        np.testing.assert_array_equal(y, _products.linear(x, w, b, name))
        np.testing.assert_array_equal(
            _core.linear_plain(x, w, None, name, None), _products.linear(x, w, None, name)
        )

        dy, z = normal(rng, (m, n), dtype), _products.linear(x, w, b)
        outs: tuple[Any, ...] = (nans(x.shape, dtype), nans(w.shape, dtype), nans(b.shape, dtype), None)
        outs = outs if with_out else (None,) * 4
        gradients = _core.linear_backward_plain(dy, x, w, name, z, y, *outs)
        assert gradients is not None
        assert not with_out or all(g is a for g, a in zip(gradients, outs, strict=False))
        for g, expected in zip(gradients, _products.linear_backward(dy, x, w, name, (), z, y), strict=True):
            np.testing.assert_array_equal(g, expected)


def test_gradient_by_z_in_a_work_space(dtype: np.dtype, rng: np.random.Generator) -> None:
    x, w, _ = layer(rng, 7, 5, 9, dtype)
    dy, y, dz = normal(rng, (7, 5), dtype), normal(rng, (7, 5), dtype), nans((7, 5), dtype)
    assert F.linear_backward(dy, x, w, activation="relu", y=y, dz=dz)[0] is not None
    np.testing.assert_array_equal(dz, np.where(y > 0, dy, 0))


def _arguments() -> dict[str, Any]:
    x, w, b = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), np.ones(2, np.float32)
    return {
        "input": x,
        "weight": w,
        "bias": b,
        "activation": "relu",
        "out": np.full((3, 2), CANARY, np.float32),
    }


NOT_PLAIN = {
    "list": {"input": [[1.0] * 4] * 3},
    "subclass": {"input": np.ones((3, 4), np.float32).view(np.recarray)},
    "dtype": {"weight": np.ones((2, 4))},
    "half": {name: np.ones(shape, np.float16) for name, shape in (("input", (3, 4)), ("weight", (2, 4)))},
    "byte order": {"input": np.ones((3, 4), ">f4")},
    "axes": {"input": np.ones((3, 1, 4), np.float32)},
    "width": {"input": np.ones((3, 5), np.float32)},
    "strides": {"input": np.ones((4, 3), np.float32).T},
    "alignment": {"input": np.ones(49, np.uint8)[1:].view(np.float32).reshape(3, 4)},
    "bias shape": {"bias": np.ones(3, np.float32)},
    "bias axes": {"bias": np.ones((1, 2), np.float32)},
    "out shape": {"out": np.full((2, 3), CANARY, np.float32)},
    "out dtype": {"out": np.full((3, 2), CANARY)},
    "read-only out": {"out": read_only(np.full((3, 2), CANARY, np.float32))},
    "parameters": {"activation": "leaky_relu"},
    "unknown": {"activation": "rel"},
    "no name": {"activation": 3},
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_nothing_is_done_where_the_general_call_decides(case: str) -> None:
    arguments = _arguments() | NOT_PLAIN[case]
    assert _core.linear_plain(**arguments) is None
    assert (arguments["out"] == arguments["out"].dtype.type(CANARY)).all()


def test_overlapping_arrays_are_not_plain() -> None:
    square = np.ones((4, 4), np.float32)
    assert _core.linear_plain(square, np.ones((4, 4), np.float32), None, None, square) is None
    w = np.ones((4, 4), np.float32)
    assert (
        _core.linear_backward_plain(square, square.copy(), w, None, None, None, square, None, None, None)
        is None
    )
    assert _core.linear_backward_plain(square, w.copy(), w, None, None, None, w, None, None, None) is None
    assert (square == 1).all()
    assert (w == 1).all()


def test_backward_without_what_its_activation_reads_is_not_plain() -> None:
    x, w, dy = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), np.ones((3, 2), np.float32)
    for name in ("relu", "gelu"):
        assert _core.linear_backward_plain(dy, x, w, name, None, None, None, None, None, None) is None
    assert _core.linear_backward_plain(dy[:2], x, w, None, None, None, None, None, None, None) is None
    assert _core.linear_backward_plain(dy, x, w, None, None, None, None, None, None, dy) is None
