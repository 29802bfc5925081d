"""fastopt._ops: losses and their gradients, against tests/reference.py."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from cases import LOSS_ERRORS, LOSSES
from fastopt import _core, _ops
from same_bits import check_levels, check_threads
from with_torch import tolerance, torch_grad

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
    return np.asarray(x, dtype), np.asarray(t, dtype)


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


# ------------------------------------------------------------------------ threads, instruction sets, layouts


def everything(dtype: np.dtype) -> dict[str, Any]:
    rng = np.random.default_rng(6)
    results: dict[str, Any] = {}
    for name in NAMES:
        x, t = pair(name, (701, 101), dtype, rng)
        w = rng.uniform(0, 1, x.shape).astype(dtype)
        results[name], results[name + "_grad"] = _ops.loss(name, x, t, weight=w, grad=True)
    return results


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str, dtype: np.dtype) -> None:
    check_threads(threads, lambda: everything(dtype))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    check_levels(lambda: everything(dtype))


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
        part = full[(..., *cut)][(..., *(slice(0, n) for n in shape))]
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


# ------------------------------------------------------------------------------------------------- torch

NOT_TORCHS = ("quantile", "sigmoid_focal")


@pytest.mark.peers
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "params"), [row for row in ROWS if row.values[0] not in NOT_TORCHS])
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
        "poisson_nll": functional.poisson_nll_loss,
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
        warns = name.startswith("kl_div") and reduction == "mean"  # torch advises "batchmean"
        with pytest.warns() if warns else contextlib.nullcontext():
            loss, grad = torch_grad(torch, x, functools.partial(calls[name], target=target, **options))
        got = _ops.loss(name, x, t, params, weight, reduction, grad=True)
        np.testing.assert_allclose(got[0], loss, **tolerance(dtype))
        np.testing.assert_allclose(got[1], grad, **tolerance(dtype))
