"""fastopt._ops: cross-entropy and negative log-likelihood, against tests/reference.py."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest

import reference as ref
from cases import CROSS_ENTROPY
from fastopt import _ops
from same_bits import check_levels, check_threads
from with_torch import tolerance, torch_grad

REDUCTIONS = ["none", "mean", "sum"]
NAN = float("nan")


def class_case(
    options: dict, kind: str, shape: tuple, dtype: np.dtype, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Logits, targets and arguments of a row of CROSS_ENTROPY."""
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows = shape[:0] if len(shape) == 1 else shape[:1] + shape[2:]
    arguments = dict(options)
    if "weight" in options:
        arguments["weight"] = rng.uniform(0.1, 2, classes).astype(dtype)
    if kind == "classes":
        return x, rng.integers(0, classes, rows), arguments
    arguments.pop("ignore_index", None)
    t = rng.uniform(0, 1, shape)
    t[rng.uniform(size=shape) < 0.2] = 0
    return x, (t / max(t.sum() / max(np.prod(rows), 1), 1e-3)).astype(dtype), arguments


def check_classes(x: np.ndarray, t: np.ndarray, arguments: dict, function: Any = _ops.cross_entropy) -> None:
    log_probabilities = function is _ops.nll
    wide = {k: ref.wide(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    wide_t = t if t.dtype.kind in "iu" else ref.wide(t)
    loss, grad = function(x, t, grad=True, **arguments)
    plain, plain_grad = ref.cross_entropy(x, t, log_probabilities=log_probabilities, **arguments)
    exact, exact_grad = ref.cross_entropy(ref.wide(x), wide_t, log_probabilities=log_probabilities, **wide)
    unit = float(np.abs(exact).max(initial=1)) if np.isfinite(exact).all() else 1.0
    ref.assert_accurate(loss, plain, exact, unit)
    rows = max(x.shape[0], 1) if x.ndim > 1 and arguments.get("reduction", "mean") == "mean" else 1
    ref.assert_accurate(grad, plain_grad, exact_grad, unit=float(np.abs(exact_grad).max(initial=1 / rows)))
    np.testing.assert_array_equal(function(x, t, **arguments)[0], loss)
    kept = x.copy()
    given = function(kept, t, grad_out=kept, **arguments)
    assert given[1] is kept
    np.testing.assert_array_equal(given[0], loss)
    np.testing.assert_array_equal(kept, grad)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("columns", [1, 2, 10, 32, 33, 100, 512, 1000, 5003])
def test_cross_entropy(isa: str, dtype: np.dtype, columns: int, kind: str, rng: np.random.Generator) -> None:
    for options in CROSS_ENTROPY:
        if options.get("ignore_index", 0) >= columns:
            continue
        for rows in (1, 16, 37) if columns < 1000 else (3,):
            for reduction in REDUCTIONS:
                x, t, arguments = class_case(options, kind, (rows, columns), dtype, rng)
                if rows == 1 and options.get("ignore_index") == 0:
                    t[...] = min(1, columns - 1)
                check_classes(x, t, {**arguments, "reduction": reduction})


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (4, 7, 3), (2, 5, 3, 4), (0, 4), (3, 4, 0)])
def test_shapes(dtype: np.dtype, shape: tuple, kind: str, rng: np.random.Generator) -> None:
    for options in CROSS_ENTROPY[:4]:
        for reduction in REDUCTIONS:
            x, t, arguments = class_case(options, kind, shape, dtype, rng)
            check_classes(x, t, {**arguments, "reduction": reduction})


def test_every_integer_dtype_of_classes(rng: np.random.Generator) -> None:
    x = rng.standard_normal((9, 5))
    t = rng.integers(0, 5, 9)
    want = _ops.cross_entropy(x, t)[0]
    for kind in "bBhHiIlLqQ":
        assert _ops.cross_entropy(x, t.astype(kind))[0] == want
    assert _ops.cross_entropy(x, np.repeat(t, 2)[::2])[0] == want


@pytest.mark.parametrize("columns", [3, 40])
def test_ignored_rows_count_nothing(
    isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((8, columns)).astype(dtype)
    t = rng.integers(0, columns, 8)
    t[[1, 5]] = -100
    spoilt = x.copy()
    spoilt[[1, 5]] = np.nan
    keep = t >= 0
    for smoothing in (0.0, 0.1):
        for reduction in ("mean", "sum"):
            loss, grad = _ops.cross_entropy(spoilt, t, None, -100, smoothing, reduction, grad=True)
            want, want_grad = _ops.cross_entropy(
                x[keep], t[keep], None, -100, smoothing, reduction, grad=True
            )
            np.testing.assert_allclose(loss, want, rtol=1e-6)
            np.testing.assert_allclose(grad[keep], want_grad, rtol=1e-6, atol=1e-9)
            assert not grad[~keep].any()
    loss, grad = _ops.cross_entropy(x, np.full(8, -100), grad=True)
    assert math.isnan(loss)
    assert not grad.any()
    assert not _ops.cross_entropy(spoilt, t, reduction="none")[0][~keep].any()


@pytest.mark.parametrize("columns", [4, 50, 700])
def test_extreme_logits(isa: str, dtype: np.dtype, columns: int) -> None:
    x = np.zeros((5, columns), dtype)
    x[0, 0] = 1e4  # sure and right
    x[1, 1] = 1e4  # sure and wrong
    x[2, 1:] = -np.inf  # all else masked
    x[3, 0] = -np.inf  # the class itself masked
    x[4, 2] = np.nan
    value, grad = _ops.cross_entropy(x, np.zeros(5, np.int64), reduction="none", grad=True)
    np.testing.assert_array_equal(value, [0, 1e4, 0, np.inf, np.nan])
    np.testing.assert_array_equal(grad[0], np.zeros(columns))
    np.testing.assert_array_equal(grad[1], [-1, 1, *[0] * (columns - 2)])
    np.testing.assert_array_equal(grad[2], np.zeros(columns))
    np.testing.assert_allclose(grad[3], [-1, *[1 / (columns - 1)] * (columns - 1)], rtol=1e-6)
    assert np.isnan(grad[4]).all()
    q = np.zeros((5, columns), dtype)
    q[:, 0] = 1
    np.testing.assert_array_equal(_ops.cross_entropy(x, q, reduction="none")[0], value)


def test_gradient_of_cross_entropy_is_the_difference_quotient(isa: str, rng: np.random.Generator) -> None:
    h = 1e-5
    for columns in (4, 40):
        for kind in ("classes", "probabilities"):
            for options in CROSS_ENTROPY:
                x, t, arguments = class_case(options, kind, (3, columns), np.dtype(np.float64), rng)
                grad = _ops.cross_entropy(x, t, grad=True, **arguments)[1]
                quotient = np.empty_like(x)
                for i in np.ndindex(x.shape):
                    step = np.zeros_like(x)
                    step[i] = h
                    above, below = (_ops.cross_entropy(x + s, t, **arguments)[0] for s in (step, -step))
                    quotient[i] = (above - below) / (2 * h)
                np.testing.assert_allclose(grad, quotient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (37, 10), (4, 7, 3), (17, 600)])
def test_nll(isa: str, dtype: np.dtype, shape: tuple, rng: np.random.Generator) -> None:
    for options in ({}, {"weight": True}, {"weight": True, "ignore_index": 1}):
        for reduction in REDUCTIONS:
            x, t, arguments = class_case(options, "classes", shape, dtype, rng)
            check_classes(
                ref.log_softmax(x, 0 if x.ndim == 1 else 1),
                t,
                {**arguments, "reduction": reduction},
                _ops.nll,
            )


def test_the_mean_of_nothing_is_nan(dtype: np.dtype) -> None:
    loss, grad = _ops.cross_entropy(np.zeros((0, 3), dtype), np.zeros(0, np.int64), grad=True)
    assert math.isnan(loss)
    assert grad is not None
    assert grad.shape == (0, 3)


# ------------------------------------------------------------------------ threads, instruction sets, layouts


def everything(dtype: np.dtype) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    results: dict[str, Any] = {}
    for columns in (10, 101):
        for kind in ("classes", "probabilities"):
            x, t, arguments = class_case(CROSS_ENTROPY[3], kind, (60000 // columns, columns), dtype, rng)
            key = f"{kind}{columns}"
            results[key], results[f"{key}_grad"] = _ops.cross_entropy(x, t, grad=True, **arguments)
    return results


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str, dtype: np.dtype) -> None:
    check_threads(threads, lambda: everything(dtype))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    check_levels(lambda: everything(dtype))


def test_gradient_of_more_axes_into_any_layout(rng: np.random.Generator) -> None:
    x, t = rng.standard_normal((4, 7, 3)), rng.integers(0, 7, (4, 3))
    grad = _ops.cross_entropy(x, t, grad=True)[1]
    assert grad.flags.c_contiguous
    for out in (np.zeros((4, 7, 3)), np.zeros((3, 7, 4)).T, np.zeros((8, 7, 3))[::2]):
        assert _ops.cross_entropy(x, t, grad_out=out)[1] is out
        np.testing.assert_array_equal(out, grad)


# -------------------------------------------------------------------------------------------------- refused


F32 = np.float32
X = np.full((2, 3), 0.5, F32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": np.array([0, 3])}, ValueError, r"target\[1\] is 3, input has 3 classes"),
        ({"target": np.array([-1, 0])}, ValueError, r"target\[0\] is -1, input has 3 classes"),
        (
            {"target": np.array([0, 1, 2])},
            ValueError,
            r"target has shape \(3,\), input has shape \(2, 3\): expected classes",
        ),
        (
            {"target": np.ones((2, 3), int)},
            ValueError,
            r"target has shape \(2, 3\), .*: expected classes of shape \(2,\)",
        ),
        (
            {"target": np.ones(2, F32)},
            ValueError,
            r"target has shape \(2,\), .*: expected probabilities of shape \(2, 3\)",
        ),
        (
            {"target": np.ones((2, 3))},
            TypeError,
            "target is float64, expected integers, or float32 probabilities",
        ),
        ({"target": np.ones(2, bool)}, TypeError, "target is bool, expected integers"),
        ({"target": [0, 1]}, TypeError, "target is list, expected a NumPy array"),
        (
            {"target": X, "ignore_index": 1},
            ValueError,
            "ignore_index is 1, target has probabilities and not classes",
        ),
        ({"logits": np.ones((2, 3), int)}, TypeError, "input is int64, expected float32"),
        ({"logits": np.ones((), F32), "target": np.array(0)}, ValueError, r"input has shape \(\), expected"),
        ({"weight": np.ones(2, F32)}, ValueError, r"weight has shape \(2,\), input has 3 classes"),
        ({"weight": np.ones(3)}, TypeError, "weight is float64, input is float32"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1\.5"),
        ({"label_smoothing": NAN}, ValueError, r"label_smoothing must be in \[0, 1\], got nan"),
        ({"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum, got 'max'"),
        ({"target": X, "grad_out": X}, ValueError, "grad_out overlaps target in memory; pass a copy"),
    ],
)
def test_refused_class_losses(arguments: dict, error: type[Exception], message: str) -> None:
    logits, out = np.full((2, 3), 0.25, F32), np.full((2, 3), 7, F32)
    with pytest.raises(error, match=rf"^cross_entropy: {message}"):
        _ops.cross_entropy(**{"logits": logits, "target": np.array([0, 1]), "grad_out": out, **arguments})
    assert (out == 7).all()
    assert (X == 0.5).all()


def test_classes_in_the_memory_of_the_gradient_are_refused() -> None:
    memory = np.zeros(64, np.int64)
    before = memory.copy()
    grad = memory[5:35].view(np.float64).reshape(10, 3)
    with pytest.raises(ValueError, match=r"^cross_entropy: grad_out overlaps target in memory; pass a copy"):
        _ops.cross_entropy(np.zeros((10, 3)), memory[30:40], grad_out=grad)
    np.testing.assert_array_equal(memory, before)


def test_misaligned_classes(rng: np.random.Generator) -> None:
    x, t = rng.standard_normal((4, 3)), np.array([2, 0, 1, 1])
    odd = np.zeros(4 * 8 + 1, np.uint8)[1:].view(np.int64)
    odd[...] = t
    assert _ops.cross_entropy(x, odd)[0] == _ops.cross_entropy(x, t)[0]


def test_a_wrong_class_is_named_in_its_own_shape() -> None:
    x, t = np.zeros((2, 5, 3, 4), F32), np.zeros((2, 3, 4), np.int32)
    t[1, 2, 3] = 5
    with pytest.raises(ValueError, match=r"^cross_entropy: target\[1, 2, 3\] is 5, input has 5 classes"):
        _ops.cross_entropy(x, t)
    with pytest.raises(ValueError, match=r"^nll: target is 9, input has 5 classes"):
        _ops.nll(np.zeros(5), np.array(9))
    with pytest.raises(TypeError, match=r"^nll: target is float32, expected integers"):
        _ops.nll(x, x)


# ------------------------------------------------------------------------------------------------- torch


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(7,), (40, 7), (40, 70), (4, 7, 3)])
def test_cross_entropy_is_torchs(dtype: np.dtype, shape: tuple, kind: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for options in CROSS_ENTROPY:
        for reduction in REDUCTIONS:
            x, t, arguments = class_case(options, kind, shape, dtype, rng)
            theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
            theirs |= {"target": torch.tensor(t), "reduction": reduction}
            loss, grad = torch_grad(torch, x, functools.partial(torch.nn.functional.cross_entropy, **theirs))
            got = _ops.cross_entropy(x, t, reduction=reduction, grad=True, **arguments)
            np.testing.assert_allclose(got[0], loss, **tolerance(dtype))
            np.testing.assert_allclose(got[1], grad, **tolerance(dtype))
