"""fastopt._ops: losses and their gradients, against tests/reference.py."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from cases import CROSS_ENTROPY, LOSS_ERRORS, LOSSES
from fastopt import _core, _ops

NAMES = sorted(LOSSES)
ROWS = [
    pytest.param(name, params, id=f"{name}{list(params)}") for name in NAMES for params in LOSSES[name][0]
]
REDUCTIONS = ["none", "mean", "sum"]
NAN, INF = float("nan"), float("inf")


def pair(name: str, shape: Any, dtype: np.dtype, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Input and target as the loss wants them."""
    kind = LOSSES[name][1]
    x = 2 * rng.standard_normal(shape)
    if name == "bce":
        x = rng.uniform(0, 1, shape)
    if name.startswith("kl_div"):
        x = -np.abs(x)
    t = rng.standard_normal(shape) if kind == "number" else rng.uniform(0, 1, shape)
    if kind == "probability":
        t = np.where(rng.uniform(size=shape) < 0.3, np.round(t), t)  # exact zeros and ones among them
    if kind == "log_probability":
        t = np.log(t)
    return x.astype(dtype), t.astype(dtype)


def check(
    name: str, x: np.ndarray, t: np.ndarray, params: tuple, weight: np.ndarray | None, reduction: str
) -> None:
    """Value and gradient against the reference, and the same value without the gradient."""
    loss, grad = _ops.loss(name, x, t, params, weight, reduction, grad=True)
    plain, plain_grad = ref.loss(name, x, t, params, weight, reduction)
    wide = [None if a is None else ref.wide(a) for a in (x, t, weight)]
    exact, exact_grad = ref.loss(name, wide[0], wide[1], params, wide[2], reduction)
    unit = 1.0 if reduction != "sum" else max(1.0, float(np.abs(exact)))
    ref.assert_accurate(loss, plain, exact, unit)
    ref.assert_accurate(grad, plain_grad, exact_grad, unit=float(np.abs(exact_grad).max(initial=1e-30)))
    alone, nothing = _ops.loss(name, x, t, params, weight, reduction)
    assert nothing is None
    np.testing.assert_array_equal(alone, loss)


# -------------------------------------------------------------------------------------- losses of elements


def test_the_table_has_every_loss_with_its_defaults_first(rng: np.random.Generator) -> None:
    assert set(_core.losses()) == set(LOSSES) == set(ref.LOSSES)
    for name, (rows, _) in LOSSES.items():
        x, t = pair(name, 20, np.dtype(np.float64), rng)
        assert all(len(row) == len(_core.losses()[name][0]) for row in rows)
        np.testing.assert_array_equal(_ops.loss(name, x, t)[0], _ops.loss(name, x, t, rows[0])[0])


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient(
    isa: str, dtype: np.dtype, size: int, name: str, rng: np.random.Generator
) -> None:
    x, t = pair(name, size, dtype, rng)
    weight = rng.uniform(0, 2, size).astype(dtype)
    for params in LOSSES[name][0]:
        for reduction in REDUCTIONS:
            for w in (None, weight):
                check(name, x, t, params, w, reduction)


def test_batchmean_divides_by_the_first_axis(isa: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    for name in ("kl_div", "kl_div_log"):
        x, t = pair(name, (5, 7), dtype, rng)
        check(name, x, t, (), None, "batchmean")


@pytest.mark.parametrize("shape", [(7,), (6, 1), (1, 7), ()])
def test_weights_and_pos_weights_broadcast(
    isa: str, dtype: np.dtype, shape: tuple, rng: np.random.Generator
) -> None:
    w = rng.uniform(0.1, 2, shape).astype(dtype)
    for name in NAMES:
        x, t = pair(name, (6, 7), dtype, rng)
        for reduction in REDUCTIONS:
            got = _ops.loss(name, x, t, weight=w, reduction=reduction, grad=True)
            want = _ops.loss(
                name, x, t, weight=np.broadcast_to(w, (6, 7)).copy(), reduction=reduction, grad=True
            )
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
    x, t = pair("bce_with_logits", (6, 7), dtype, rng)
    for weight in (None, w):
        got, grad = _ops.loss("bce_with_logits", x, t, (w,), weight, "mean", grad=True)
        plain = ref.loss("bce_with_logits", x, t, (w,), weight)
        exact = ref.loss(
            "bce_with_logits",
            ref.wide(x),
            ref.wide(t),
            (ref.wide(w),),
            None if weight is None else ref.wide(w),
        )
        ref.assert_accurate(got, plain[0], exact[0])
        ref.assert_accurate(grad, plain[1], exact[1], unit=0.01)


def test_integer_targets_are_converted(dtype: np.dtype) -> None:
    x = np.array([0.6, 0.4], dtype)
    loss, grad = _ops.loss("smooth_l1", x, np.array([0, 3]), grad=True)
    np.testing.assert_allclose(loss, 1.14, rtol=1e-6)
    np.testing.assert_allclose(grad, [0.3, -0.5], rtol=1e-6)
    assert _ops.loss("bce", x, np.array([True, False]))[0] == _ops.loss("bce", x, np.array([1, 0], dtype))[0]


SPECIAL: list[tuple[str, tuple, list[float], list[float], list[float], list[float]]] = [
    # name, params, input, target, value, gradient
    ("mse", (), [NAN, INF, 1e30], [0, 0, 0], [NAN, INF, INF], [NAN, INF, 2e30]),
    ("l1", (), [INF, -INF, 2, 2], [0, 0, 2, 3], [INF, INF, 0, 1], [1, -1, 0, -1]),
    ("smooth_l1", (0.0,), [2, 1, 3], [2, 2, 2], [0, 1, 1], [0, -1, 1]),
    ("smooth_l1", (1.0,), [INF, 3, 1], [0, 2, 0], [INF, 0.5, 0.5], [1, 1, 1]),
    ("huber", (2.0,), [INF, -INF, 2, 5], [0, 0, 0, 0], [INF, INF, 2, 8], [2, -2, 2, 2]),
    ("huber", (2.0,), [NAN], [0], [NAN], [NAN]),
    ("bce", (), [0, 1, 0, 1], [1, 0, 0, 1], [100, 100, 0, 0], [-1e12, 1e12, 0, 0]),
    ("bce_with_logits", (1.0,), [1e4, -1e4, 1e4, -1e4], [1, 0, 0, 1], [0, 0, 1e4, 1e4], [0, 0, 1, -1]),
    ("bce_with_logits", (3.0,), [-1e4, 1e4], [1, 1], [3e4, 0], [-3, 0]),
    ("bce_with_logits", (1.0,), [NAN, 0], [1, 0.5], [NAN, math.log(2)], [NAN, 0]),
    ("kl_div", (), [-1, -INF, -2, NAN], [0, 0, 1, 1], [0, 0, 2, NAN], [0, 0, -1, -1]),
    ("kl_div_log", (), [-1, -INF, -2], [-INF, -INF, 0], [0, 0, 2], [0, 0, -1]),
]


@pytest.mark.parametrize(("name", "params", "x", "t", "value", "grad"), SPECIAL)
def test_special_values(
    isa: str, dtype: np.dtype, name: str, params: tuple, x: list, t: list, value: list, grad: list
) -> None:
    got, got_grad = _ops.loss(
        name, np.array(x, dtype), np.array(t, dtype), params, reduction="none", grad=True
    )
    overflows = dtype == np.float32
    want = np.array(value, dtype)
    if name == "mse" and not overflows:
        want[2] = 1e60
    np.testing.assert_allclose(got, want, rtol=2e-7)
    np.testing.assert_allclose(got_grad, np.array(grad, dtype), rtol=2e-7)


@pytest.mark.parametrize(("name", "params"), ROWS)
def test_gradient_is_the_difference_quotient(
    isa: str, name: str, params: tuple, rng: np.random.Generator
) -> None:
    x, t = pair(name, 200, np.dtype(np.float64), rng)
    if name == "bce":
        x = 0.01 + 0.98 * x
    h = 1e-6
    for edge in (0.0, *params):  # away from the kinks
        keep = np.abs(np.abs(x - t) - edge) > 1e-3
        x, t = x[keep], t[keep]
    above, below = (_ops.loss(name, x + step, t, params, reduction="none")[0] for step in (h, -h))
    grad = _ops.loss(name, x, t, params, reduction="sum", grad=True)[1]
    np.testing.assert_allclose(grad, (above - below) / (2 * h), rtol=1e-6, atol=1e-7)


def test_sums_beyond_float32_are_infinite_and_means_are_not() -> None:
    x, t = np.full(1000, 1.5e19, np.float32), np.zeros(1000, np.float32)
    assert _ops.loss("mse", x, t, reduction="sum")[0] == np.inf
    np.testing.assert_allclose(_ops.loss("mse", x, t)[0], np.float32(1.5e19) ** 2)


def test_the_mean_of_nothing_is_nan(dtype: np.dtype) -> None:
    empty = np.zeros((0, 3), dtype)
    for name in NAMES:
        loss, grad = _ops.loss(name, empty, empty, grad=True)
        assert math.isnan(loss)
        assert grad is not None
        assert grad.shape == (0, 3)
        assert _ops.loss(name, empty, empty, reduction="sum")[0] == 0
    assert math.isnan(_ops.cross_entropy(empty, np.zeros(0, np.int64))[0])


# ---------------------------------------------------------------------------------------- losses of classes


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
    least = 0.1 / max(t.shape[0] if x.ndim > 1 else 1, 1)  # one row's share of a mean
    ref.assert_accurate(grad, plain_grad, exact_grad, unit=float(np.abs(exact_grad).max(initial=least)))
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


# ------------------------------------------------------------------------ threads, instruction sets, layouts


def everything(dtype: np.dtype) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    results: dict[str, Any] = {}
    for name in NAMES:
        x, t = pair(name, (701, 101), dtype, rng)
        w = rng.uniform(0, 1, x.shape).astype(dtype)
        results[name], results[name + "_grad"] = _ops.loss(name, x, t, weight=w, grad=True)
    for columns in (10, 101):
        for kind in ("classes", "probabilities"):
            x, t, arguments = class_case(CROSS_ENTROPY[3], kind, (60000 // columns, columns), dtype, rng)
            results[f"{kind}{columns}"], results[f"{kind}{columns}_grad"] = _ops.cross_entropy(
                x, t, grad=True, **arguments
            )
    return results


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str, dtype: np.dtype) -> None:
    threads(1)
    alone = everything(dtype)
    for n in (2, 3):
        threads(n)
        assert_same_bits(alone, everything(dtype))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    levels = [level for level in _core.isas() if level != "v2"]
    if len(levels) < 2:
        pytest.skip("this CPU has one level with FMA")
    before, results = _core.isa(), []
    try:
        for level in levels:
            _core.set_isa(level)
            results.append(everything(dtype))
    finally:
        _core.set_isa(before)
    for other in results[1:]:
        assert_same_bits(results[0], other)


@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(st.integers(0, 7), max_size=3).map(tuple),
    order=st.permutations(range(3)),
    steps=st.tuples(*[st.sampled_from([1, 2, -1, -2])] * 3),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_layout_gives_what_a_dense_copy_gives(
    name: str, shape: tuple, order: list, steps: tuple, reduction: str
) -> None:
    rng = np.random.default_rng(0)
    axes = [axis for axis in order if axis < len(shape)]
    cut = tuple(slice(None, None, step) for step, _ in zip(steps, shape, strict=False))

    def view(a: np.ndarray) -> np.ndarray:
        full = np.zeros([2 * shape[axis] for axis in axes], a.dtype).transpose(np.argsort(axes))
        part = full[cut][tuple(slice(0, n) for n in shape)]
        part[...] = a
        return part

    x, t = pair(name, shape, np.dtype(np.float32), rng)
    w = rng.uniform(0, 1, shape).astype(np.float32)
    loss, grad = _ops.loss(name, x, t, weight=w, reduction=reduction, grad=True)
    out = view(np.zeros_like(x))
    got = _ops.loss(name, view(x), view(t), weight=view(w), reduction=reduction, grad_out=out)
    assert got[1] is out
    np.testing.assert_array_equal(got[0], loss)
    np.testing.assert_array_equal(out, grad)


def test_gradient_into_an_input(dtype: np.dtype, rng: np.random.Generator) -> None:
    for name in NAMES:
        for place in ("input", "target", "weight"):
            x, t = pair(name, 3000, dtype, rng)
            arrays = {"input": x, "target": t, "weight": rng.uniform(0, 1, 3000).astype(dtype)}
            loss, grad = _ops.loss(name, grad=True, **arrays)
            got = _ops.loss(name, grad_out=arrays[place], **arrays)
            assert got[1] is arrays[place]
            assert got[0] == loss
            np.testing.assert_array_equal(got[1], grad)


def test_gradient_of_more_axes_into_any_layout(rng: np.random.Generator) -> None:
    x, t = rng.standard_normal((4, 7, 3)), rng.integers(0, 7, (4, 3))
    grad = _ops.cross_entropy(x, t, grad=True)[1]
    assert grad.flags.c_contiguous
    for out in (np.zeros((4, 7, 3)), np.zeros((3, 7, 4)).T, np.zeros((8, 7, 3))[::2]):
        assert _ops.cross_entropy(x, t, grad_out=out)[1] is out
        np.testing.assert_array_equal(out, grad)


# -------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(("name", "arguments", "error", "message"), LOSS_ERRORS)
def test_refused_arguments(name: str, arguments: dict, error: type[Exception], message: str) -> None:
    x = np.full((2, 3), 0.5, np.float32)
    out = np.full_like(x, 7)
    with pytest.raises(error, match=message):
        _ops.loss(name, **{"input": x, "target": x, "grad_out": out, **arguments})
    assert (out == 7).all()


F32 = np.float32
X = np.full((2, 3), 0.5, F32)
MEMORY = np.full(12, 0.5, F32)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("mse", {"input": [1.0]}, TypeError, "mse: input is list, expected a NumPy array"),
        ("mse", {"input": X.astype(int)}, TypeError, "mse: input is int64, expected float32"),
        (
            "mse",
            {"input": X.astype(np.float16)},
            TypeError,
            "mse: input is float16, expected float32 or float64",
        ),
        ("mse", {"target": X.astype(float)}, TypeError, "mse: target is float64, input is float32"),
        ("mse", {"target": X[0]}, ValueError, r"mse: target has shape \(3,\), input has shape \(2, 3\)"),
        ("mse", {"target": X.T}, ValueError, r"mse: target has shape \(3, 2\), input has shape \(2, 3\)"),
        ("l1", {"weight": X.astype(float)}, TypeError, "l1: weight is float64, input is float32"),
        (
            "l1",
            {"weight": np.ones(2, F32)},
            ValueError,
            r"l1: weight has shape \(2,\), which does not broadcast to",
        ),
        (
            "l1",
            {"weight": np.ones((1, 2, 3), F32)},
            ValueError,
            r"l1: weight has shape \(1, 2, 3\), which does not",
        ),
        (
            "bce_with_logits",
            {"params": (np.ones(2, F32),)},
            ValueError,
            r"pos_weight has shape \(2,\), which does",
        ),
        ("bce_with_logits", {"params": (np.ones(3),)}, TypeError, "pos_weight is float64, input is float32"),
        ("mse", {"grad_out": X.astype(float)}, TypeError, "mse: grad_out is float64, input is float32"),
        (
            "mse",
            {"grad_out": X.T.copy()},
            ValueError,
            r"mse: grad_out has shape \(3, 2\), input has shape \(2, 3\)",
        ),
        (
            "mse",
            {"target": MEMORY[:6].reshape(2, 3), "grad_out": MEMORY[1:7].reshape(2, 3)},
            ValueError,
            "mse: grad_out overlaps target in memory but is not the same array; pass a copy",
        ),
        (
            "bce",
            {"input": X * 2.5},
            ValueError,
            r"bce: input\[0, 0\] is 1\.25, expected a probability in \[0, 1\]",
        ),
        (
            "bce",
            {"target": np.array([[0, 1, 0], [0, -1, 2]])},
            ValueError,
            r"bce: target\[1, 1\] is -1\.0, expected",
        ),
        ("bce", {"input": X * np.nan}, ValueError, r"bce: input\[0, 0\] is nan, expected"),
    ],
)
def test_refused_arrays(name: str, arguments: dict, error: type[Exception], message: str) -> None:
    MEMORY[:] = 0.5
    with pytest.raises(error, match=message):
        _ops.loss(name, **{"input": X, "target": X, **arguments})
    assert (MEMORY == 0.5).all()


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


def test_a_wrong_class_is_named_in_its_own_shape() -> None:
    x, t = np.zeros((2, 5, 3, 4), F32), np.zeros((2, 3, 4), np.int32)
    t[1, 2, 3] = 5
    with pytest.raises(ValueError, match=r"^cross_entropy: target\[1, 2, 3\] is 5, input has 5 classes"):
        _ops.cross_entropy(x, t)
    with pytest.raises(ValueError, match=r"^nll: target is 9, input has 5 classes"):
        _ops.nll(np.zeros(5), np.array(9))
    with pytest.raises(TypeError, match=r"^nll: target is float32, expected integers"):
        _ops.nll(x, x)


# ---------------------------------------------------------------------------------------------- tutorials


def test_tutorial_cases(shared: Path) -> None:
    kernels = {"BCELoss": "bce", "L1Loss": "l1", "MSELoss": "mse", "SmoothL1Loss": "smooth_l1"}
    done = 0
    for case in json.loads((shared / "data" / "tutorial_cases.json").read_text())["cases"]:
        if case["case"] != "CrossEntropyLoss" and case["case"] not in kernels:
            continue
        x, t = np.array(case["input"], F32), np.array(case["target"])
        t = t.astype(F32) if t.dtype == float else t
        if case["case"] == "CrossEntropyLoss":
            loss, grad = _ops.cross_entropy(x, t, grad=True, **case.get("options", {}))
        else:
            loss, grad = _ops.loss(kernels[case["case"]], x, t, grad=True, **case.get("options", {}))
        np.testing.assert_allclose(loss, case["loss"], rtol=1e-6)
        np.testing.assert_allclose(grad, case["grad"], rtol=1e-6, atol=1e-7)
        done += 1
    assert done >= 6


# ------------------------------------------------------------------------------------------------- torch


def torch_grad(torch: Any, x: np.ndarray, function: Any) -> tuple[np.ndarray, np.ndarray]:
    t = torch.tensor(x, requires_grad=True)
    loss = function(t)
    loss.sum().backward()
    return loss.detach().numpy(), t.grad.numpy()


def tolerance(dtype: np.dtype) -> dict[str, float]:
    return {"rtol": 2e-5, "atol": 2e-6} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-14}


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "params"), ROWS)
def test_loss_is_torchs(
    dtype: np.dtype, name: str, params: tuple, reduction: str, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, t = pair(name, (40, 7), dtype, rng)
    target = torch.tensor(t)
    calls: dict[str, Any] = {
        "mse": functional.mse_loss,
        "l1": functional.l1_loss,
        "smooth_l1": functional.smooth_l1_loss,
        "huber": functional.huber_loss,
        "bce": functional.binary_cross_entropy,
        "bce_with_logits": functional.binary_cross_entropy_with_logits,
        "kl_div": functional.kl_div,
        "kl_div_log": functional.kl_div,
    }
    options: dict[str, Any] = {"reduction": reduction}
    if params:
        options[{"smooth_l1": "beta", "huber": "delta", "bce_with_logits": "pos_weight"}[name]] = (
            torch.tensor(params[0], dtype=target.dtype) if name == "bce_with_logits" else params[0]
        )
    if name == "kl_div_log":
        options["log_target"] = True
    weights: list[np.ndarray | None] = [None]
    if name in ("mse", "l1", "huber", "bce", "bce_with_logits"):
        weights.append(rng.uniform(0, 2, x.shape).astype(dtype))
    for weight in weights:
        if weight is not None:
            options["weight"] = torch.tensor(weight)
        with (
            np.errstate(all="ignore"),
            pytest.warns() if name.startswith("kl") and reduction == "mean" else contextlib.nullcontext(),
        ):
            loss, grad = torch_grad(torch, x, lambda v: calls[name](v, target, **options))
        got = _ops.loss(name, x, t, params, weight, reduction, grad=True)
        np.testing.assert_allclose(got[0], loss, **tolerance(dtype))
        np.testing.assert_allclose(got[1], grad, **tolerance(dtype))


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(7,), (40, 7), (40, 70), (4, 7, 3)])
def test_cross_entropy_is_torchs(dtype: np.dtype, shape: tuple, kind: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for options in CROSS_ENTROPY:
        for reduction in REDUCTIONS:
            x, t, arguments = class_case(options, kind, shape, dtype, rng)
            theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
            loss, grad = torch_grad(
                torch,
                x,
                lambda v: torch.nn.functional.cross_entropy(
                    v, torch.tensor(t), reduction=reduction, **theirs
                ),
            )
            got = _ops.cross_entropy(x, t, reduction=reduction, grad=True, **arguments)
            np.testing.assert_allclose(got[0], loss, **tolerance(dtype))
            np.testing.assert_allclose(got[1], grad, **tolerance(dtype))
