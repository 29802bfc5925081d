"""fastopt._ops: activations, dropout, reductions and the softmax family, against tests/reference.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference as ref
from cases import ACTIVATION_ERRORS, ACTIVATIONS
from fastopt import _core, _ops
from fastopt._formulas import activation_needs
from same_bits import check_levels, check_threads

NAMES = sorted(ACTIVATIONS)
ROWS = [
    pytest.param(name, params, id=f"{name}{list(params)}") for name in NAMES for params in ACTIVATIONS[name]
]
LOW = ["bfloat16", "float16"]


def gradient(name: str, dy: np.ndarray, x: np.ndarray, params: tuple, **kwargs: Any) -> np.ndarray:
    """The gradient from exactly what `activation_needs` asks for."""
    needs_x, needs_y = activation_needs(name)
    y = _ops.activation(name, x, params)
    return _ops.activation_grad(name, dy, x if needs_x else None, y if needs_y else None, params, **kwargs)


def specials(dtype: np.dtype) -> np.ndarray:
    limits = np.finfo(dtype)
    positive = [
        0.0,
        limits.smallest_subnormal,
        limits.tiny,
        1e-8,
        0.5,
        1.0,
        19.9,
        20.1,
        88.7,
        104.0,
        1e20,
        limits.max,
    ]
    return np.array([*positive, np.inf, *(-v for v in positive), -np.inf, np.nan], dtype)


def low_precision(name: str) -> np.dtype:
    return np.dtype(np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)


# --------------------------------------------------------------------------------------------- activations


def test_the_table_has_every_activation_with_its_defaults_first() -> None:
    assert set(_core.activations()) == set(ACTIVATIONS) == set(ref.ACTIVATIONS)
    x = np.linspace(-3, 30, 64)
    for name, rows in ACTIVATIONS.items():
        assert all(len(row) == len(_core.activations()[name][0]) for row in rows)
        np.testing.assert_array_equal(_ops.activation(name, x), _ops.activation(name, x, rows[0]))


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient(
    isa: str, dtype: np.dtype, size: int, name: str, rng: np.random.Generator
) -> None:
    value, slope = ref.ACTIVATIONS[name]
    for params in ACTIVATIONS[name]:
        for spread in (1e-3, 3.0, 60.0):
            x = (spread * rng.standard_normal(size)).astype(dtype)
            dy = rng.standard_normal(size).astype(dtype)
            wide = ref.wide(x)
            unit = min(spread, 1.0)
            ref.assert_accurate(
                _ops.activation(name, x, params), value(x, *params), value(wide, *params), unit
            )
            exact = ref.wide(dy) * slope(wide, *params)
            ref.assert_accurate(gradient(name, dy, x, params), dy * slope(x, *params), exact)


@pytest.mark.parametrize(("name", "params"), ROWS)
def test_special_values(isa: str, dtype: np.dtype, name: str, params: tuple) -> None:
    value, slope = ref.ACTIVATIONS[name]
    x = specials(dtype)
    wide = ref.wide(x)
    ref.assert_accurate(_ops.activation(name, x, params), value(x, *params), value(wide, *params))
    ref.assert_accurate(gradient(name, np.ones_like(x), x, params), slope(x, *params), slope(wide, *params))


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(isa: str, dtype: np.dtype, name: str) -> None:
    assert np.isnan(_ops.activation(name, np.full(33, np.nan, dtype))).all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "softplus", "gelu_tanh"])
def test_a_slope_of_zero_stops_any_gradient(isa: str, dtype: np.dtype, name: str) -> None:
    """As torch's relu: 0 times infinity is nothing here, not NaN."""
    params = {"leaky_relu": (0.0,), "elu": (0.0,), "softplus": (1.0, 20.0)}.get(name, ())
    x = np.full(37, -1000, dtype)
    for dy in (np.inf, -np.inf, np.nan):
        np.testing.assert_array_equal(gradient(name, np.full_like(x, dy), x, params), np.zeros_like(x))
    np.testing.assert_array_equal(gradient("relu", np.full_like(x, np.inf), -x, ()), np.full_like(x, np.inf))


@pytest.mark.parametrize(("name", "params"), ROWS)
def test_gradient_is_the_difference_quotient(
    isa: str, name: str, params: tuple, rng: np.random.Generator
) -> None:
    x = rng.uniform(-4, 4, 200)
    x = x[np.abs(x) > 1e-3]  # the kink of the piecewise ones
    if name == "softplus":
        x = x[np.abs(params[0] * x - params[1]) > 1e-3]
    h = 1e-5
    quotient = (_ops.activation(name, x + h, params) - _ops.activation(name, x - h, params)) / (2 * h)
    np.testing.assert_allclose(gradient(name, np.ones_like(x), x, params), quotient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("columns", [1, 3, 10, 63, 64, 65, 300, 1500])
def test_bias_is_added_first(isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator) -> None:
    for rows in (0, 1, 2, 17, 1 + 20000 // columns):
        z, bias = (
            rng.standard_normal((rows, columns)).astype(dtype),
            rng.standard_normal(columns).astype(dtype),
        )
        np.testing.assert_array_equal(_ops.bias_activation(z, bias), z + bias)
        got = z.copy()
        assert _ops.bias_activation(got, bias, "gelu", out=got) is got
        np.testing.assert_array_equal(got, _ops.activation("gelu", z + bias))


def test_bias_of_more_axes_and_nothing_to_do(dtype: np.dtype, rng: np.random.Generator) -> None:
    z, bias = rng.standard_normal((4, 5, 6)).astype(dtype), rng.standard_normal(6).astype(dtype)
    np.testing.assert_array_equal(_ops.bias_activation(z, bias, "relu"), np.maximum(z + bias, 0))
    same = _ops.bias_activation(z, None)
    assert same is not z
    np.testing.assert_array_equal(same, z)
    assert _ops.bias_activation(z, None, out=z) is z


@pytest.mark.parametrize("storage", LOW)
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_rounds_the_float32_result_once(
    isa: str, storage: str, name: str, rng: np.random.Generator
) -> None:
    low, params = low_precision(storage), ACTIVATIONS[name][0]
    x, dy, bias = ((3 * rng.standard_normal(n)).astype(low) for n in (2040, 2040, 40))
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(
        _ops.activation(name, x, params), _ops.activation(name, wide, params).astype(low)
    )
    y = _ops.activation(name, x, params)
    want = _ops.activation_grad(name, dy.astype(np.float32), wide, y.astype(np.float32), params).astype(low)
    np.testing.assert_array_equal(_ops.activation_grad(name, dy, x, y, params), want)
    rows = x.reshape(51, 40)
    want = _ops.bias_activation(rows.astype(np.float32), bias.astype(np.float32), name, params).astype(low)
    np.testing.assert_array_equal(_ops.bias_activation(rows, bias, name, params), want)


@pytest.mark.parametrize(("name", "params", "error", "message"), ACTIVATION_ERRORS)
def test_refused_parameters(name: str, params: tuple, error: type[Exception], message: str) -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(error, match=message):
        _ops.activation(name, x, params)
    with pytest.raises(error, match=message.replace("activation:", "activation(_grad)?:")):
        _ops.activation_grad(name, x, x, x, params)


def test_gradient_without_what_it_needs() -> None:
    dy = np.ones(3)
    with pytest.raises(TypeError, match="tanh: the gradient needs y, got None"):
        _ops.activation_grad("tanh", dy, x=dy)
    with pytest.raises(TypeError, match="gelu: the gradient needs x, got None"):
        _ops.activation_grad("gelu", dy, y=dy)
    with pytest.raises(ValueError, match="activation: name is 'swish'"):
        activation_needs("swish")


# ------------------------------------------------------------------------------------------- dropout, axpy


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_dropout(isa: str, dtype: np.dtype, size: int, p: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal(size).astype(dtype)
    for seed, offset in ((0, 0), (123, 7), (2**64 - 1, 2**63)):
        np.testing.assert_array_equal(_ops.dropout(x, p, seed, offset), ref.dropout(x, p, seed, offset))


@pytest.mark.parametrize("storage", LOW)
def test_dropout_of_low_precision_has_the_same_mask(isa: str, storage: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(3001).astype(low_precision(storage))
    want = ref.dropout(x.astype(np.float32), 0.3, 5, 6).astype(x.dtype)
    np.testing.assert_array_equal(_ops.dropout(x, 0.3, 5, 6), want)


def test_a_dropped_element_is_zero_whatever_it_was() -> None:
    y = _ops.dropout(np.full(1000, np.inf), 0.5, 1, 2)
    assert set(np.unique(y)) == {0.0, np.inf}
    assert not _ops.dropout(np.full(1000, np.nan), 1.0, 1, 2).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0, 0), r"dropout: p must be in \[0, 1\], got -0\.1"),
        ((float("nan"), 0, 0), r"dropout: p must be in \[0, 1\], got nan"),
        ((0.5, -1, 0), r"dropout: seed must be in \[0, 2\*\*64\), got -1"),
        ((0.5, 0, 2**64), r"dropout: offset must be in \[0, 2\*\*64\), got 18446744073709551616"),
    ],
)
def test_dropout_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ops.dropout(np.ones(3), *arguments)


def test_axpy(isa: str, dtype: np.dtype, size: int, rng: np.random.Generator) -> None:
    x, y = (rng.standard_normal(size).astype(dtype) for _ in "xy")
    got = y.copy()
    _ops.axpy(0.3, x, got)
    ref.assert_accurate(got, y + dtype.type(0.3) * x, ref.wide(y) + 0.3 * ref.wide(x))
    strided = np.repeat(y, 2)[::2]
    _ops.axpy(0.3, x[::-1][::-1], strided)
    np.testing.assert_array_equal(strided, got)


# -------------------------------------------------------------------------------------------- reductions


def test_sums(isa: str, dtype: np.dtype, size: int, rng: np.random.Generator) -> None:
    for offset in (0.0, 1.0):
        x = (rng.standard_normal(size) + offset).astype(dtype)
        y = rng.standard_normal(size).astype(dtype)
        wide, other = x.astype(np.longdouble), y.astype(np.longdouble)
        for got, plain, terms in (
            (_ops.sum(x), x.sum(), wide),
            (_ops.abs_sum(x), np.abs(x).sum(), np.abs(wide)),
            (_ops.sum_squares(x), (x * x).sum(), wide * wide),
            (_ops.dot(x, y), (x * y).sum(), wide * other),
        ):
            exact = terms.sum()
            tiny = 4 * np.finfo(np.float64).eps * float(np.abs(terms).sum())
            assert abs(got - exact) <= 2 * abs(plain.astype(np.longdouble) - exact) + tiny


def test_abs_max(isa: str, dtype: np.dtype, size: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal(size).astype(dtype)
    assert _ops.abs_max(x) == np.abs(x).max(initial=0)
    for place in {0, size // 2, size - 1} if size else ():
        spoilt = x.copy()
        spoilt[place] = -np.inf
        assert _ops.abs_max(spoilt) == np.inf
        spoilt[place] = np.nan
        assert math.isnan(_ops.abs_max(spoilt))


@pytest.mark.parametrize("storage", LOW)
def test_reductions_of_low_precision(isa: str, storage: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(5001).astype(low_precision(storage))
    wide = x.astype(np.float32)
    for f in (_ops.sum, _ops.abs_sum, _ops.sum_squares, _ops.abs_max):
        assert f(x) == f(wide)


@pytest.mark.parametrize("columns", [1, 3, 10, 128, 129, 512, 513, 2000])
def test_bias_grad(isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator) -> None:
    for rows in (0, 1, 33, 1 + 50000 // columns):
        dy = rng.standard_normal((rows, columns)).astype(dtype)
        ref.assert_accurate(_ops.bias_grad(dy), dy.sum(0), ref.wide(dy).sum(0), unit=max(rows, 1) ** 0.5)
    cube = rng.standard_normal((5, 6, columns)).astype(dtype)
    np.testing.assert_array_equal(_ops.bias_grad(cube), _ops.bias_grad(cube.reshape(30, columns)))
    assert _ops.bias_grad(np.zeros((3, 0), dtype)).shape == (0,)


# ------------------------------------------------------------------------------------------------ softmax


FAMILY = [
    (_ops.softmax, ref.softmax, _ops.softmax_grad, ref.softmax_grad),
    (_ops.log_softmax, ref.log_softmax, _ops.log_softmax_grad, ref.log_softmax_grad),
]


@pytest.mark.parametrize("columns", [1, 2, 10, 16, 31, 32, 33, 48, 100, 511, 512, 513, 1000, 5003])
@pytest.mark.parametrize(("f", "plain", "f_grad", "plain_grad"), FAMILY, ids=["softmax", "log_softmax"])
def test_softmax_of_rows(
    isa: str, dtype: np.dtype, columns: int, rng: np.random.Generator,
    f: Callable, plain: Callable, f_grad: Callable, plain_grad: Callable,
) -> None:  # fmt: skip
    for rows in (0, 1, 15, 16, 17, 40):
        x = (3 * rng.standard_normal((rows, columns))).astype(dtype)
        dy = rng.standard_normal((rows, columns)).astype(dtype)
        wide = ref.wide(x)
        y = f(x)
        ref.assert_accurate(y, plain(x), plain(wide), 1.0 if plain is ref.log_softmax else 1 / columns)
        dx, exact = f_grad(dy, y), plain_grad(ref.wide(dy), ref.wide(y))
        unit = float(y.max(initial=0.1)) if plain is ref.softmax else columns**0.5
        ref.assert_accurate(dx, plain_grad(dy, y), exact, unit)
        assert f(x, out=x) is x
        np.testing.assert_array_equal(x, y)
        assert f_grad(dy, y, out=dy) is dy
        np.testing.assert_array_equal(dy, dx)


@pytest.mark.parametrize("columns", [5, 40, 600])
def test_softmax_of_special_rows(isa: str, dtype: np.dtype, columns: int) -> None:
    rows = np.zeros((6, columns), dtype)
    rows[0] = 1e4 * np.arange(columns)
    rows[1, : columns - 1] = -np.inf  # masked but for one
    rows[2] = -np.inf
    rows[3, 2] = np.inf
    rows[4, 3] = np.nan
    rows[5] = np.finfo(dtype).max
    for f, plain, _, _ in FAMILY:
        ref.assert_accurate(f(rows), plain(rows), plain(ref.wide(rows)))
    assert np.isnan(_ops.softmax(rows)[[2, 3, 4]]).all()
    assert _ops.softmax(rows)[1, -1] == 1


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_softmax_along_any_axis(dtype: np.dtype, axis: int, rng: np.random.Generator) -> None:
    x, dy = (rng.standard_normal((7, 5, 6)).astype(dtype) for _ in "xd")
    for f, plain, f_grad, plain_grad in FAMILY:
        y = f(x, axis)
        assert y.flags.c_contiguous
        np.testing.assert_allclose(y, plain(x, axis), rtol=1e-5 if dtype == np.float32 else 1e-13)
        out = np.full((6, 5, 7), np.nan, dtype).T
        assert f(x, axis, out=out) is out
        np.testing.assert_array_equal(out, y)
        dx = f_grad(dy, y, axis)
        np.testing.assert_allclose(dx, plain_grad(dy, y, axis), atol=2e-6 if dtype == np.float32 else 1e-14)
        assert f_grad(dy, y, axis, out=out) is out
        np.testing.assert_array_equal(out, dx)


@pytest.mark.parametrize("columns", [4, 50])
def test_softmax_gradients_are_difference_quotients(isa: str, columns: int, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((3, columns)), rng.standard_normal((3, columns))
    h = 1e-5
    for f, _, f_grad, _ in FAMILY:
        quotient = np.empty_like(x)
        for i in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[i] = h
            quotient[i] = (dy * (f(x + step) - f(x - step))).sum() / (2 * h)
        np.testing.assert_allclose(f_grad(dy, f(x)), quotient, rtol=1e-6, atol=1e-9)


def test_softmax_refuses_axes_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="softmax: axis is 2, x has 2 axes"):
        _ops.softmax(np.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="log_softmax: axis is -1, x has 0 axes"):
        _ops.log_softmax(np.ones(()))
    with pytest.raises(ValueError, match=r"softmax_grad: y has shape \(3, 2\), dy has shape \(2, 3\)"):
        _ops.softmax_grad(np.ones((2, 3)), np.ones((3, 2)))


# --------------------------------------------------------------------- threads, instruction sets, any layout


def everything(dtype: np.dtype) -> dict[str, Any]:
    """Results of every kernel on arrays of several chunks."""
    rng = np.random.default_rng(5)
    x, dy = (3 * rng.standard_normal((1001, 101)).astype(dtype) for _ in "xd")
    results: dict[str, Any] = {"dropout": _ops.dropout(x, 0.4, 1, 2), "bias_grad": _ops.bias_grad(x)}
    for name in NAMES:
        results[name] = _ops.bias_activation(x, x[0].copy(), name)
        results[name + "_grad"] = gradient(name, dy, x, ACTIVATIONS[name][-1])
    for f, _, f_grad, _ in FAMILY:
        results[f.__name__] = f(x)
        results[f_grad.__name__] = f_grad(dy, results[f.__name__])
        results[f.__name__ + "_narrow"] = f(x.reshape(-1, 7))
    for reduce in (_ops.sum, _ops.abs_sum, _ops.sum_squares, _ops.abs_max):
        results[reduce.__name__] = reduce(x)
    results["dot"] = _ops.dot(x, dy)
    return results


def test_results_do_not_depend_on_the_number_of_threads(threads, isa: str, dtype: np.dtype) -> None:
    check_threads(threads, lambda: everything(dtype))


def test_levels_with_fma_agree_bit_for_bit(dtype: np.dtype) -> None:
    check_levels(lambda: everything(dtype))


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...] | None = None, dtype: np.dtype | None = None) -> np.ndarray:
    """An array whose axes are permuted, strided and reversed, possibly off its alignment."""
    if shape is None:
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    if dtype is None:
        dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64])))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 2, -1, -3])) for _ in shape]
    full = [abs(steps[axis]) * shape[axis] for axis in order]
    count, shift = math.prod(full), draw(st.sampled_from([0, 0, 1]))
    memory = np.zeros(count * dtype.itemsize + 8, np.uint8)
    base = memory[shift : shift + count * dtype.itemsize].view(dtype).reshape(full)
    view = base.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    view = np.asarray(view)
    assert view.shape == shape
    view[...] = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape)
    return view


@given(data=st.data())
def test_any_layout_gives_what_a_dense_copy_gives(data: st.DataObject) -> None:
    x = data.draw(views())
    out = data.draw(views(x.shape, x.dtype))
    dense = np.array(x, order="C")
    y = _ops.activation("gelu", dense)
    np.testing.assert_array_equal(_ops.activation("gelu", x), y)
    assert _ops.activation("gelu", x, out=out) is out
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(
        _ops.activation_grad("elu", x, dense), _ops.activation_grad("elu", dense, x)
    )
    np.testing.assert_array_equal(_ops.dropout(x, 0.5, 1, 2), _ops.dropout(dense, 0.5, 1, 2))
    assert _ops.sum(x) == _ops.sum(dense)
    if x.ndim:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        y = _ops.softmax(dense, axis)
        np.testing.assert_array_equal(_ops.softmax(x, axis, out=out), y)
        if x.size:
            np.testing.assert_allclose(y, ref.softmax(dense, axis), rtol=1e-5)
        np.testing.assert_allclose(
            _ops.bias_grad(x), dense.sum(tuple(range(x.ndim - 1))), rtol=1e-4, atol=1e-4
        )
    assert _ops.activation("gelu", x, out=x) is x  # in place, whatever the layout
    np.testing.assert_array_equal(x, _ops.activation("gelu", dense))


# ------------------------------------------------------------------------------------------- refused arrays


CALLS: dict[str, Callable[[Any, Any], object]] = {
    "relu": lambda x, out: _ops.activation("relu", x, (), out),
    "dropout": lambda x, out: _ops.dropout(x, 0.5, 1, 2, out),
    "softmax": lambda x, out: _ops.softmax(x, -1, out),
    "tanh": lambda x, out: _ops.activation_grad("tanh", x, None, x, (), out),
    "log_softmax_grad": lambda x, out: _ops.log_softmax_grad(x, x, -1, out),
    "bias_activation": lambda x, out: _ops.bias_activation(x, np.ones(x.shape[-1], x.dtype), out=out),
}


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


BASE = np.zeros(24, np.float32)
REFUSED_OUT = {
    "a list": ([0.0] * 12, TypeError, "is list, expected a NumPy array"),
    "another dtype": (np.zeros((3, 4)), TypeError, "is float64, d?[xyz] is float32"),
    "another shape": (
        np.zeros((4, 3), np.float32),
        ValueError,
        r"has shape \(4, 3\), d?[xyz] has shape \(3, 4\)",
    ),
    "another dtype and strided": (np.zeros((4, 3)).T, TypeError, "is float64, expected float32"),
    "another shape and strided": (
        np.zeros((3, 4), np.float32).T,
        ValueError,
        r"has shape \(4, 3\), expected shape \(3, 4\)",
    ),
    "read-only": (read_only(np.zeros((3, 4), np.float32)), ValueError, "is read-only"),
    "read-only and strided": (read_only(np.zeros((4, 3), np.float32).T), ValueError, "is read-only"),
    "overlapping": (BASE[1:13].reshape(3, 4), ValueError, "overlaps .* in memory but is not the same array"),
}


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("case", sorted(REFUSED_OUT))
def test_refused_outputs_change_nothing(call: str, case: str) -> None:
    out, error, message = REFUSED_OUT[case]
    x = BASE[:12].reshape(3, 4)
    BASE[:] = np.arange(24)
    before = np.array(out)
    with pytest.raises(error, match=rf"^{call}: out {message}"):
        CALLS[call](x, out)
    np.testing.assert_array_equal(out, before)
    np.testing.assert_array_equal(BASE, np.arange(24))


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 4), np.int64), "is int64, expected float32"),
        (np.ones((3, 4), bool), "is bool, expected float32"),
        (np.ones((3, 4), np.complex64), "is complex64, expected float32"),
        (np.ones((3, 4), ">f4"), "is >f4, expected float32"),
        (np.ones((3, 4), object), "is object, expected float32"),
    ],
    ids=["int64", "bool", "complex64", "big-endian", "object"],
)
def test_refused_inputs(call: str, x: np.ndarray, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^{call}: \w+ {message}"):
        CALLS[call](x, None)


def test_refused_companions() -> None:
    x, wide = np.ones((2, 3), np.float32), np.ones((2, 3))
    with pytest.raises(TypeError, match="gelu: x is float64, dy is float32"):
        _ops.activation_grad("gelu", x, wide)
    with pytest.raises(ValueError, match=r"gelu: x has shape \(3, 2\), dy has shape \(2, 3\)"):
        _ops.activation_grad("gelu", x, x.reshape(3, 2))
    with pytest.raises(TypeError, match="bias_activation: bias is float64, x is float32"):
        _ops.bias_activation(x, wide[0].copy())
    with pytest.raises(ValueError, match=r"bias_activation: bias has shape \(2,\), x has shape \(2, 3\)"):
        _ops.bias_activation(x, np.ones(2, np.float32))
    memory = np.zeros(9, np.float32)
    with pytest.raises(ValueError, match="bias_activation: out overlaps bias in memory; pass a copy"):
        _ops.bias_activation(memory[:6].reshape(2, 3), memory[3:6], out=memory[:6].reshape(2, 3))
    with pytest.raises(TypeError, match="dot: y is float64, x is float32"):
        _ops.dot(x, wide)
    with pytest.raises(TypeError, match="axpy: y is float64, x is float32"):
        _ops.axpy(1.0, x, wide)
    with pytest.raises(TypeError, match="softmax: x is float16, expected float32 or float64"):
        _ops.softmax(x.astype(np.float16))
    with pytest.raises(TypeError, match="sum: x is list, expected a NumPy array"):
        _ops.sum([1.0])


# -------------------------------------------------------------------------------------------------- torch


@pytest.mark.peers
@pytest.mark.parametrize(("name", "params"), ROWS)
def test_activation_is_torchs(dtype: np.dtype, name: str, params: tuple, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, dy = (4 * rng.standard_normal(501).astype(dtype) for _ in "xd")
    x[:2] = 0.0, -0.0
    t = torch.tensor(x, requires_grad=True)
    theirs = functional.gelu if name == "gelu_tanh" else getattr(functional, name)
    y = theirs(t, *params, **({"approximate": "tanh"} if name == "gelu_tanh" else {}))
    y.backward(torch.tensor(dy))
    tolerance = {"rtol": 2e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(_ops.activation(name, x, params), y.detach().numpy(), **tolerance)
    np.testing.assert_allclose(gradient(name, dy, x, params), t.grad.numpy(), **tolerance)
