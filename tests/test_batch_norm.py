"""Batch normalisation: kernels, function and layer against tests/reference.py, finite differences and torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
import reference as ref
from cases import BATCH_NORM, BATCH_NORM_ERRORS, BATCH_NORM_SHAPES
from fastopt import _ops, checkpoint, functional, nn
from gradients import check_gradients
from same_bits import check_levels, check_threads
from with_torch import tolerance

ids = str


def drawn(shape: Any, dtype: Any, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


def numbers(channels: int, dtype: Any) -> list[np.ndarray]:
    """Weight, bias, running mean and running variance."""
    var = np.random.default_rng(4).uniform(0.5, 2, channels).astype(dtype)
    return [drawn(channels, dtype, 1), drawn(channels, dtype, 2), drawn(channels, dtype, 3), var]


def results(x: np.ndarray, dy: np.ndarray, training: bool, plain: bool = False) -> dict[str, np.ndarray]:
    """What the kernels make of it; `plain`: without weight and bias."""
    weight, bias, mean, var = numbers(x.shape[1], x.dtype)
    w, b = (None, None) if plain else (weight, bias)
    y, saved = _ops.batch_norm(x, w, b, mean, var, training, 0.25, 1e-3)
    dx, sums = _ops.batch_norm_grad(dy, x, saved, w, training)
    return {"y": y, "dx": dx, "dweight": sums[0], "dbias": sums[1], "mean": mean, "var": var}


def expected(
    x: np.ndarray, dy: np.ndarray, training: bool, plain: bool, widen: bool
) -> dict[str, np.ndarray]:
    given = [x, dy, *numbers(x.shape[1], x.dtype)]
    x, dy, weight, bias, mean, var = map(ref.wide, given) if widen else given
    w, b = (None, None) if plain else (weight, bias)
    found = ref.batch_norm(x, dy, w, b, None if training else (mean, var), 1e-3)
    part = x.dtype.type(0.25)
    for name, before in (("mean", mean), ("var", var)):
        found[name] = part * found[name] + (1 - part) * before if training else before
    return found


# ------------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("shape", BATCH_NORM_SHAPES, ids=ids)
def test_results_and_gradients(isa: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    x, dy = drawn(shape, dtype, 5, mean=3.0), drawn(shape, dtype, 6)
    for training, plain in ((True, False), (False, False), (True, True), (False, True)):
        ours = results(x, dy, training, plain)
        near, exact = (expected(x, dy, training, plain, widen) for widen in (False, True))
        for name in ours:
            unit = float(np.abs(exact[name]).max())
            if name == "dx":  # what is left of terms that cancel, of two rows nearly all
                unit = max(unit, float(np.abs(dy).max()))
            ref.assert_accurate(ours[name], near[name], exact[name], unit)


def test_variance_of_numbers_far_from_zero(isa: str, dtype: np.dtype) -> None:
    """The sums are of differences from a number of the column: nothing cancels that was there to begin with."""
    x = drawn((5000, 3), np.float64, 7) + np.array([1e3, -1e6, 0.0])
    x[0] += 50.0  # an outlier where each sum begins
    x = x.astype(dtype)
    _, saved = _ops.batch_norm(x, None, None, None, None, True, 0.0, 0.0)
    wide = ref.wide(x)
    eps = np.finfo(dtype).eps
    assert (np.abs(saved[0] - wide.mean(0)) <= 2 * eps * np.abs(wide).max(0)).all()
    np.testing.assert_allclose(saved[1], 1 / wide.std(0), rtol=1e4 * np.finfo(np.float64).eps + 2 * eps)
    np.testing.assert_allclose(saved[2], wide.var(0, ddof=1), rtol=1e4 * np.finfo(np.float64).eps + 2 * eps)


def test_the_same_bits_on_all_levels_and_for_any_number_of_threads(threads: Any, dtype: np.dtype) -> None:
    for shape in ((4097, 3), (300, 511), (2000, 64)):
        x, dy = drawn(shape, dtype, 5, mean=3.0), drawn(shape, dtype, 6)
        for training in (True, False):
            check_threads(threads, lambda x=x, dy=dy, t=training: results(x, dy, t))
            check_levels(lambda x=x, dy=dy, t=training: results(x, dy, t))


def test_large_results_are_streamed_with_the_same_bits(dtype: np.dtype) -> None:
    """Past the caches the lines are stored whole; the same rows as part of a smaller array say what is right."""
    n, channels = (1 << 25) // np.dtype(dtype).itemsize // 129, 129
    x, dy = drawn((n, channels), dtype, 5), drawn((n, channels), dtype, 6)
    weight, bias, mean, var = numbers(channels, dtype)
    y, saved = _ops.batch_norm(x, weight, bias, mean, var, False, 0.0, 1e-3)
    dx, _ = _ops.batch_norm_grad(dy, x, saved, weight, False)
    part = slice(n - 40, n)
    small, _ = _ops.batch_norm(x[part], weight, bias, mean, var, False, 0.0, 1e-3)
    np.testing.assert_array_equal(y[part], small)
    small_dx, _ = _ops.batch_norm_grad(dy[part], x[part], saved, weight, False)
    np.testing.assert_array_equal(dx[part], small_dx)


def test_a_nan_stays_in_its_channel(dtype: np.dtype) -> None:
    x, dy = drawn((40, 5), dtype, 1), drawn((40, 5), dtype, 2)
    x[7, 2] = np.nan
    x[3, 4] = np.inf
    found = results(x, dy, True)
    for name in ("y", "dx"):
        assert np.isnan(found[name][:, [2, 4]]).all()
        assert np.isfinite(found[name][:, [0, 1, 3]]).all()
    assert np.isnan(found["var"][[2, 4]]).all()


# ----------------------------------------------------------------------------------------------- function


def test_squares_that_overflow_are_an_infinite_variance(isa: str) -> None:
    x = drawn((5000, 3), np.float64, 7)
    x[:, 1] *= 1e200
    order = np.random.default_rng(8).permutation(5000)
    for rows in (x, x[::-1].copy(), x[order]):
        found = results(rows, np.ones_like(rows), training=True)
        np.testing.assert_array_equal(found["y"][:, 1], np.broadcast_to(numbers(3, np.float64)[1][1], 5000))
        assert np.isinf(found["var"][1])
        assert np.isfinite(found["mean"]).all()
        assert np.isfinite(found["y"]).all()
        np.testing.assert_array_equal(found["dx"][:, 1], 0.0)


@pytest.mark.parametrize("shape", [(5, 3), (2, 2), (3, 2, 4)], ids=ids)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...], training: bool) -> None:
    x = drawn(shape, np.float64, 1)
    weight, bias, mean, var = numbers(shape[1], np.float64)

    def f(x: Any, w: Any, b: Any) -> Any:
        return functional.batch_norm(x, mean.copy(), var.copy(), w, b, training, eps=0.1)

    check_gradients(f, x, weight, bias)


def test_only_wanted_gradients_are_there() -> None:
    x, w, b = (fo.tensor(drawn(s, np.float32)) for s in ((6, 3), 3, 3))
    for takers in ([x], [w], [b], [x, b], [w, b]):
        for t in (x, w, b):
            t.requires_grad_(any(t is taker for taker in takers))
            t.grad = None
        functional.batch_norm(x, None, None, w, b, True).sum().backward()
        for t in (x, w, b):
            assert (t.grad is not None) == any(t is taker for taker in takers)


def test_arrays_in_arrays_out_and_any_layout() -> None:
    x = drawn((6, 8), np.float32)
    y = functional.batch_norm(x, training=True)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(functional.batch_norm(np.asfortranarray(x), training=True), y)
    np.testing.assert_array_equal(
        functional.batch_norm(x[:, ::2], training=True),
        functional.batch_norm(x[:, ::2].copy(), training=True),
    )
    integers = np.arange(12).reshape(4, 3)
    assert functional.batch_norm(integers, training=True).dtype == np.float32
    assert functional.batch_norm(x, None, None, np.ones(8), training=True).dtype == np.float64


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32_and_rounded_once(name: str) -> None:
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name) if name == "bfloat16" else name)
    layer, twin = nn.BatchNorm1d(3).to(dtype), nn.BatchNorm1d(3)
    x = drawn((20, 3), np.float32, 1).astype(dtype)
    t, wide = fo.tensor(x, requires_grad=True), fo.tensor(x.astype(np.float32), requires_grad=True)
    y, expected_y = layer(t), twin(wide)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data, expected_y.data.astype(dtype))
    np.testing.assert_array_equal(layer.running_var.data, twin.running_var.data.astype(dtype))
    c = drawn((20, 3), np.float32, 2).astype(dtype)
    y.backward(c)
    expected_y.backward(c.astype(np.float32))
    assert t.grad.dtype == dtype
    np.testing.assert_array_equal(t.grad.data, wide.grad.data.astype(dtype))
    np.testing.assert_array_equal(layer.weight.grad.data, twin.weight.grad.data.astype(dtype))


@pytest.mark.parametrize(("changes", "error", "pattern"), BATCH_NORM_ERRORS)
def test_a_refused_call_has_changed_nothing(
    changes: dict[str, Any], error: type[Exception], pattern: str
) -> None:
    weight, bias, mean, var = numbers(3, np.float32)
    arguments: dict[str, Any] = {"input": drawn((4, 3), np.float32), "weight": weight, "bias": bias}
    arguments |= {"running_mean": mean, "running_var": var, "training": True}
    for name, value in changes.items():
        if isinstance(value, tuple):
            value = np.ones(value, np.float32)
        elif isinstance(value, str):
            value = np.ones(3, value)
        arguments[name] = value
    before = {name: a.copy() for name, a in arguments.items() if isinstance(a, np.ndarray)}
    with pytest.raises(error, match=pattern):
        functional.batch_norm(**arguments)
    for name, a in before.items():
        np.testing.assert_array_equal(arguments[name], a)


def test_read_only_running_statistics_are_refused() -> None:
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var is read-only"):
        functional.batch_norm(drawn((4, 3), np.float32), mean, var, training=True)
    np.testing.assert_array_equal(mean, 0)


# -------------------------------------------------------------------------------------------------- layer


@pytest.mark.parametrize("options", BATCH_NORM, ids=ids)
@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 3)], ids=ids)
def test_as_torch_does_it(options: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(5, **options, dtype=getattr(torch, dtype.name))
    ours = nn.BatchNorm1d(5, **options, dtype=dtype)
    assert repr(ours) == re.sub(r" bias=\w+,", "", repr(theirs))  # newer ones can leave it out
    if options.get("affine", True):
        weight, bias, *_ = numbers(5, dtype)
        for layer, make in ((ours, np.asarray), (theirs, torch.tensor)):
            layer.weight.data[...] = make(weight)
            layer.bias.data[...] = make(bias)
    close = tolerance(dtype)
    for step in range(4):
        for layer in (ours, theirs):
            layer.train(step != 2)
        x, c = drawn(shape, dtype, step, mean=2.0), drawn(shape, dtype, 10 + step)
        a, b = fo.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        y.backward(c)
        z.backward(torch.tensor(c))
        np.testing.assert_allclose(y.data, z.detach().numpy(), **close)
        np.testing.assert_allclose(a.grad.data, b.grad.numpy(), **close)
    state, twin = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(twin)
    for name, value in state.items():
        assert str(value.dtype) == str(twin[name].dtype).removeprefix("torch.")
        np.testing.assert_allclose(value.data, twin[name].numpy(), err_msg=name, **close)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.data, q.grad.numpy(), **close)


def test_states_go_to_torch_and_back() -> None:
    torch = pytest.importorskip("torch")
    ours = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    ours(drawn((6, 4), np.float32))
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    theirs(torch.tensor(drawn((6, 4), np.float32, 1)))
    twin = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    twin.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert int(twin[1].num_batches_tracked) == 2
    x = drawn((5, 4), np.float32, 2)
    np.testing.assert_allclose(
        twin.eval()(x).data,
        theirs.eval()(torch.tensor(x)).detach().numpy(),
        **tolerance(np.dtype(np.float32)),
    )


def test_buffers_are_saved_with_the_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for k in range(3):
        model(drawn((6, 4), np.float32, k))
    checkpoint.save(tmp_path / "m.safetensors", model=model)
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    checkpoint.load(tmp_path / "m.safetensors", model=other)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name].data, value.data, err_msg=name)
    assert int(other[1].num_batches_tracked) == 3


def test_dtypes_of_a_moved_layer_and_its_reset() -> None:
    layer = nn.BatchNorm1d(3).double()
    assert {b.dtype.name for b in layer.buffers()} == {"float64", "int64"}
    layer(drawn((6, 3), np.float64))
    assert int(layer.num_batches_tracked) == 1
    layer.weight.data[...] = 5
    layer.reset_parameters()
    for name, value in {
        "weight": 1,
        "bias": 0,
        "running_mean": 0,
        "running_var": 1,
        "num_batches_tracked": 0,
    }.items():
        np.testing.assert_array_equal(getattr(layer, name).data, value)


def test_refused_layers_and_a_refused_batch() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d: num_features must be at least 1, got 0"):
        nn.BatchNorm1d(0)
    with pytest.raises(ValueError, match="BatchNorm1d: eps must be finite and at least 0, got -1"):
        nn.BatchNorm1d(3, eps=-1)
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="1 value per channel"):
        layer(drawn((1, 3), np.float32))
    assert int(layer.num_batches_tracked) == 0
    layer.eval()
    assert layer(drawn((1, 3), np.float32)).shape == (1, 3)
    alone = nn.BatchNorm1d(3, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="1 value per channel"):  # it uses its batch in evaluation mode too
        alone(drawn((1, 3), np.float32))


@pytest.mark.parametrize("shape", [(0, 300), (4, 3, 0)], ids=str)
def test_an_evaluating_layer_takes_no_values(shape: tuple[int, ...], isa: str) -> None:
    layer = nn.BatchNorm1d(shape[1]).eval()
    x = fo.tensor(np.zeros(shape, np.float32), requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    for p in layer.parameters():
        np.testing.assert_array_equal(p.grad.data, 0.0)


@pytest.mark.parametrize("momentum", [-0.5, np.nan, np.inf])
def test_momentum_is_a_share(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d: momentum must be None or finite and at least 0, got"):
        nn.BatchNorm1d(3, momentum=momentum)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"batch_norm: momentum must be finite and at least 0, got"):
        functional.batch_norm(drawn((4, 3), np.float32), mean, var, training=True, momentum=momentum)
    np.testing.assert_array_equal(mean, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_read_only_statistics_are_refused_before_any_changes(dtype: type) -> None:
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    var.flags.writeable = False
    with pytest.raises(ValueError, match="batch_norm: running_var is read-only"):
        functional.batch_norm(drawn((4, 3), np.float32).astype(dtype), mean, var, training=True)
    np.testing.assert_array_equal(mean, 0.0)


def test_a_compiled_step_refuses_parameters_of_several_layers() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[4].weight = model[1].weight
    opt = fo.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"compile: 1.weight is another layer's parameter too"):
        fo.compile(model, nn.MSELoss(), opt)


def test_a_single_row_is_not_predicted_without_running_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    step = fo.compile(model, nn.MSELoss(), fo.optim.SGD(model.parameters(), lr=0.1))
    assert step.predict(drawn((2, 3), np.float32)).shape == (2, 4)
    with pytest.raises(ValueError, match="predict: x has 1 row"):
        step.predict(drawn((1, 3), np.float32))
