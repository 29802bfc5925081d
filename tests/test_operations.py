"""Every operation of the tape: gradients by finite differences, values, dtypes, torch's results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from fastopt import _dtypes, operations
from fastopt._tape import no_grad
from fastopt.creation import (
    full,
    ones,
    tensor,
)
from fastopt.operations import cat, maximum, minimum, stack, where
from fastopt.tensor import Tensor
from gradients import check_gradients

RNG = np.random.default_rng(11)


def away_from_zero(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, shape) * RNG.choice([-1.0, 1.0], shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, shape)


# One row per operation: a name, the function and its inputs.
OPERATIONS = [
    ("sin", lambda x: x.sin(), [away_from_zero(2, 3)]),
    ("cos", lambda x: x.cos(), [away_from_zero(2, 3)]),
    ("norm", lambda x: x.norm(), [away_from_zero(2, 3)]),
    ("norm 1 along", lambda x: x.norm(1, 1), [away_from_zero(2, 3)]),
    ("norm 2 along", lambda x: x.norm(dim=0, keepdim=True), [away_from_zero(2, 3)]),
    ("softmax", lambda x: x.softmax(0), [away_from_zero(2, 3)]),
    ("log_softmax", lambda x: x.log_softmax(-1), [away_from_zero(2, 3)]),
    ("std along", lambda x: x.std(1, False, True), [away_from_zero(2, 3)]),
    ("add", lambda x, y: x + y, [away_from_zero(2, 3), away_from_zero(2, 3)]),
    ("add broadcast", lambda x, y: x + y, [away_from_zero(2, 1, 3), away_from_zero(4, 1)]),
    ("add scalar", lambda x: 3 + x + 1.5, [away_from_zero(2, 3)]),
    ("subtract broadcast", lambda x, y: x - y, [away_from_zero(3), away_from_zero(2, 3)]),
    ("subtract from scalar", lambda x: 2.0 - x - 1, [away_from_zero(2, 3)]),
    ("multiply", lambda x, y: x * y, [away_from_zero(2, 3), away_from_zero(2, 3)]),
    ("multiply broadcast", lambda x, y: x * y, [away_from_zero(2, 1), away_from_zero(1, 3)]),
    ("multiply by itself", lambda x: x * x, [away_from_zero(2, 3)]),
    ("multiply scalar", lambda x: 3 * x * 0.5, [away_from_zero(4)]),
    ("divide", lambda x, y: x / y, [away_from_zero(2, 3), away_from_zero(2, 3)]),
    ("divide broadcast", lambda x, y: x / y, [away_from_zero(3), away_from_zero(2, 3)]),
    ("divide into scalar", lambda x: 2.0 / x / 4, [away_from_zero(2, 3)]),
    ("power 2", lambda x: x**2, [away_from_zero(2, 3)]),
    ("power 3", lambda x: x**3, [away_from_zero(2, 3)]),
    ("power 0.5", lambda x: x**0.5, [positive(2, 3)]),
    ("power -1", lambda x: x**-1, [away_from_zero(2, 3)]),
    ("power 0", lambda x: x**0, [away_from_zero(2, 3)]),
    ("power of Tensors", lambda x, y: x**y, [positive(2, 3), away_from_zero(3)]),
    ("power of a number", lambda x: 2**x, [away_from_zero(2, 3)]),
    ("negative", lambda x: -x, [away_from_zero(2, 3)]),
    ("abs", lambda x: abs(x), [away_from_zero(2, 3)]),
    ("exp", lambda x: x.exp(), [away_from_zero(2, 3)]),
    ("log", lambda x: x.log(), [positive(2, 3)]),
    ("sqrt", lambda x: x.sqrt(), [positive(2, 3)]),
    ("square", lambda x: x.square(), [away_from_zero(2, 3)]),
    ("clamp", lambda x: x.clamp(-1.0, 1.0), [away_from_zero(3, 4)]),
    ("clamp below", lambda x: x.clamp(min=0.0), [away_from_zero(3, 4)]),
    ("relu", lambda x: x.relu(), [away_from_zero(2, 3)]),
    ("sigmoid", lambda x: x.sigmoid(), [away_from_zero(2, 3)]),
    ("tanh", lambda x: x.tanh(), [away_from_zero(2, 3)]),
    ("matmul", lambda x, y: x @ y, [away_from_zero(2, 3), away_from_zero(3, 4)]),
    ("matmul square", lambda x, y: x @ y, [away_from_zero(3, 3), away_from_zero(3, 3)]),
    ("matmul vectors", lambda x, y: x @ y, [away_from_zero(3), away_from_zero(3)]),
    ("matmul vector left", lambda x, y: x @ y, [away_from_zero(3), away_from_zero(3, 2)]),
    ("matmul vector right", lambda x, y: x @ y, [away_from_zero(2, 3), away_from_zero(3)]),
    ("matmul batch", lambda x, y: x @ y, [away_from_zero(2, 2, 3), away_from_zero(2, 3, 2)]),
    ("matmul batch broadcast", lambda x, y: x @ y, [away_from_zero(2, 1, 2, 3), away_from_zero(3, 3, 2)]),
    ("matmul batch and matrix", lambda x, y: x @ y, [away_from_zero(2, 2, 3), away_from_zero(3, 2)]),
    ("matmul matrix and batch", lambda x, y: x @ y, [away_from_zero(2, 3), away_from_zero(2, 3, 2)]),
    ("matmul vector and batch", lambda x, y: x @ y, [away_from_zero(3), away_from_zero(2, 3, 2)]),
    ("matmul batch and vector", lambda x, y: x @ y, [away_from_zero(2, 2, 3), away_from_zero(3)]),
    ("sum", lambda x: x.sum(), [away_from_zero(2, 3)]),
    ("sum dim", lambda x: x.sum(1), [away_from_zero(2, 3)]),
    ("sum axis", lambda x: x.sum(axis=0), [away_from_zero(2, 3)]),
    ("sum dims", lambda x: x.sum((0, -1)), [away_from_zero(2, 3, 2)]),
    ("sum keepdim", lambda x: x.sum(-1, keepdim=True), [away_from_zero(2, 3)]),
    ("mean", lambda x: x.mean(), [away_from_zero(2, 3)]),
    ("mean dim", lambda x: x.mean(dim=0), [away_from_zero(2, 3)]),
    ("mean keepdim", lambda x: x.mean(1, True), [away_from_zero(2, 3)]),
    ("var", lambda x: x.var(), [away_from_zero(2, 3)]),
    ("var dim", lambda x: x.var(1, correction=0), [away_from_zero(2, 3)]),
    ("std", lambda x: x.std(0, keepdim=True), [away_from_zero(4, 3)]),
    ("max", lambda x: x.max(), [away_from_zero(2, 3)]),
    ("min", lambda x: x.min(), [away_from_zero(2, 3)]),
    ("max dim", lambda x: x.max(1).values, [away_from_zero(2, 3)]),
    ("min dim keepdim", lambda x: x.min(0, keepdim=True)[0], [away_from_zero(2, 3)]),
    ("reshape", lambda x: x.reshape(3, 2) * x.reshape((3, 2)), [away_from_zero(2, 3)]),
    ("view -1", lambda x: x.view(-1) ** 2, [away_from_zero(2, 3)]),
    ("flatten", lambda x: x.flatten(1) ** 2, [away_from_zero(2, 3, 2)]),
    ("squeeze", lambda x: x.squeeze() ** 2, [away_from_zero(2, 1, 3)]),
    ("unsqueeze", lambda x: x.unsqueeze(-1) ** 2, [away_from_zero(2, 3)]),
    ("T", lambda x: x.T @ x, [away_from_zero(2, 3)]),
    ("transpose", lambda x: x.transpose(0, -1) ** 2, [away_from_zero(2, 3, 2)]),
    ("permute", lambda x: x.permute(2, 0, 1) ** 2, [away_from_zero(2, 3, 2)]),
    ("index", lambda x: x[1] ** 2, [away_from_zero(2, 3)]),
    ("slice", lambda x: x[:, 1:] ** 2, [away_from_zero(2, 3)]),
    ("negative stride", lambda x: x[::-1, None, ..., 0] ** 2, [away_from_zero(3, 2)]),
    ("repeated indices", lambda x: x[[0, 0, 1]] ** 2, [away_from_zero(2, 3)]),
    ("index arrays", lambda x: x[np.array([0, 1, 1]), np.array([2, 0, 0])] ** 2, [away_from_zero(2, 3)]),
    ("mask", lambda x: x[np.array([True, False, True])] ** 2, [away_from_zero(3, 2)]),
    ("iteration", lambda x: sum(row * (i + 1) for i, row in enumerate(x)), [away_from_zero(3, 2)]),
    ("clone", lambda x: x.clone() * x, [away_from_zero(2, 3)]),
    ("cat", lambda x, y: cat([x, y, x], 1) ** 2, [away_from_zero(2, 3), away_from_zero(2, 1)]),
    ("stack", lambda x, y: stack([x, y], -1) ** 2, [away_from_zero(2, 3), away_from_zero(2, 3)]),
    ("where", lambda x, y: where(x > 0, x * x, y), [away_from_zero(2, 3), away_from_zero(3)]),
    ("where number", lambda x: where(x > 0, x, 0.0), [away_from_zero(2, 3)]),
    ("maximum", lambda x, y: maximum(x, y), [away_from_zero(2, 3), away_from_zero(3)]),
    ("minimum", lambda x, y: minimum(x, y), [away_from_zero(2, 3), away_from_zero(2, 3)]),
    ("numpy functions", lambda x: np.exp(x) * np.sqrt(np.square(x)) / np.tanh(x), [positive(2, 3)]),
    ("numpy reductions", lambda x: np.mean(x * x) + np.sum(x, axis=0), [positive(2, 3)]),
    ("numpy operand", lambda x: np.arange(3.0) * x + (np.eye(2) @ x), [positive(2, 3)]),
    ("shared node", lambda x: (lambda y: y * y + y)(x.exp()), [away_from_zero(2, 3)]),
]


@pytest.mark.parametrize(("f", "inputs"), [row[1:] for row in OPERATIONS], ids=[row[0] for row in OPERATIONS])
def test_gradient(f, inputs) -> None:
    check_gradients(f, *inputs)


# The same operations on NumPy arrays; what is missing here has no NumPy twin of the same spelling.
NUMPY_TWINS = {
    "add": np.add,
    "multiply broadcast": np.multiply,
    "divide": np.divide,
    "power of Tensors": np.power,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "matmul batch broadcast": np.matmul,
    "sum dims": lambda x: x.sum((0, -1)),
    "mean keepdim": lambda x: x.mean(1, keepdims=True),
    "var": lambda x: x.var(ddof=1),
    "std": lambda x: x.std(0, ddof=1, keepdims=True),
    "max dim": lambda x: x.max(1),
    "min": np.min,
    "cat": lambda x, y: np.concatenate([x, y, x], 1) ** 2,
    "stack": lambda x, y: np.stack([x, y], -1) ** 2,
    "clamp": lambda x: np.clip(x, -1, 1),
    "flatten": lambda x: x.reshape(2, -1) ** 2,
    "transpose": lambda x: x.transpose(2, 1, 0) ** 2,
}


@pytest.mark.parametrize("name", NUMPY_TWINS)
def test_value(name: str) -> None:
    _, f, inputs = next(row for row in OPERATIONS if row[0] == name)
    result = f(*[Tensor(x) for x in inputs])
    np.testing.assert_allclose(result.data, NUMPY_TWINS[name](*inputs), rtol=1e-14)
    assert not result.requires_grad


@settings(max_examples=60, deadline=None)
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4))
def test_broadcasting_sums_the_gradient(shapes) -> None:
    (first, second), result = shapes.input_shapes, shapes.result_shape
    x, y = ones(first, requires_grad=True), full(second, 2.0, requires_grad=True)
    (x * y).backward(np.ones(result, np.float32))
    repeats = np.prod(result) / max(np.prod(first), 1)
    np.testing.assert_array_equal(x.grad.data, np.full(first, 2 * repeats, np.float32))
    repeats = np.prod(result) / max(np.prod(second), 1)
    np.testing.assert_array_equal(y.grad.data, np.full(second, repeats, np.float32))


@settings(max_examples=40, deadline=None)
@given(array_shapes(min_dims=1, max_dims=3, max_side=5), st.data())
def test_any_strides(shape, data) -> None:
    whole = np.arange(float(np.prod(shape) * 2 ** len(shape))).reshape([2 * n for n in shape])
    steps = data.draw(
        st.tuples(*[st.sampled_from([slice(None, None, 2), slice(None, None, -2)])] * len(shape))
    )
    axes = data.draw(st.permutations(range(len(shape))))
    x = whole[steps].transpose(axes)
    t = Tensor(x, requires_grad=True)
    (t.relu() + t.sum()).sum().backward()
    np.testing.assert_array_equal(t.grad.data, (x > 0) + float(x.size))
    assert t.data is x


def test_operations_as_functions() -> None:
    x = tensor([[4.0, 9.0], [1.0, 16.0]], requires_grad=True)
    for name, args in (
        ("abs", ()), ("argmax", (1,)), ("argmin", (0,)), ("clamp", (2.0, 10.0)), ("exp", ()), ("flatten", ()),
        ("log", ()), ("mean", (0,)), ("pow", (3,)), ("reshape", (4, 1)),
        ("sqrt", ()), ("square", ()), ("squeeze", ()), ("std", ()), ("sum", (1, True)),
        ("transpose", (0, 1)), ("unsqueeze", (0,)), ("var", (1,)), ("max", ()), ("min", ()), ("mm", (x,)),
        ("matmul", (x,)),
    ):  # fmt: skip
        function = getattr(operations, name)
        np.testing.assert_array_equal(function(x, *args).data, getattr(x, name)(*args).data)
        assert isinstance(function(x.data, *args), Tensor)
        assert name in operations.__all__
    assert operations.max(x, 1).indices.tolist() == [1, 1]
    operations.sum(operations.exp(x)).backward()
    np.testing.assert_array_equal(x.grad.data, np.exp(x.data))


# -------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("result", "dtype"),
    [
        (lambda: tensor([1.0]), "float32"),
        (lambda: tensor(1.0), "float32"),
        (lambda: tensor([[1, 2]]), "int64"),
        (lambda: tensor([True]), "bool"),
        (lambda: tensor([]), "float32"),
        (lambda: tensor(np.array([1.0])), "float64"),
        (lambda: tensor(np.float64(1.0)), "float64"),
        (lambda: tensor([np.float64(1.0)]), "float64"),
        (lambda: tensor([1.0], dtype=_dtypes.float16), "float16"),
        (lambda: tensor([1, 2], dtype=_dtypes.float32), "float32"),
        (lambda: Tensor([1, 2]), "float32"),
        (lambda: tensor([1.0]) + 1, "float32"),
        (lambda: tensor([1.0]) * 2.5, "float32"),
        (lambda: tensor([1.0]) + np.float64(2.0), "float32"),
        (lambda: tensor([1]) + 2, "int64"),
        (lambda: tensor([1]) * 2.5, "float32"),
        (lambda: 2.5 - tensor([1]), "float32"),
        (lambda: tensor([1]) / 2, "float32"),
        (lambda: tensor([1]) / tensor([2]), "float32"),
        (lambda: tensor([1.0]) * tensor([2]), "float32"),
        (lambda: tensor([1.0]) * np.array([2]), "float32"),
        (lambda: tensor([1.0]) * np.array([2.0]), "float64"),
        (lambda: tensor([1.0]) * np.array(2.0), "float32"),
        (lambda: tensor([True]) * tensor([1.0]), "float32"),
        (lambda: tensor([True]) + 1, "int64"),
        (lambda: tensor([1.0], dtype=_dtypes.float16) * tensor([1.0]), "float32"),
        (lambda: tensor([1, 2], dtype=_dtypes.int32).sum(), "int64"),
        (lambda: tensor([True, False]).mean(), "float32"),
        (lambda: tensor([1, 2]).exp(), "float32"),
        (lambda: tensor([1, 2]).sigmoid(), "float32"),
        (lambda: tensor([1.0]) == tensor([1.0]), "bool"),
        (lambda: tensor([1.0]).double(), "float64"),
        (lambda: tensor([1.0]).half(), "float16"),
        (lambda: tensor([1.5]).long(), "int64"),
        (lambda: tensor([1.5]).int(), "int32"),
        (lambda: tensor([1.5]).bool(), "bool"),
        (lambda: tensor([1]).float(), "float32"),
        (lambda: cat([tensor([1]), tensor([1.0])]), "float32"),
        (lambda: where([True], tensor([1.0]), 0), "float32"),
    ],
)
def test_dtype(result, dtype: str) -> None:
    assert result().dtype == dtype


def test_bfloat16() -> None:
    pytest.importorskip("ml_dtypes")
    bfloat16 = _dtypes.bfloat16
    x = tensor([1.0, 2.0], dtype=bfloat16, requires_grad=True)
    y = (x * 2.0).sum()
    assert y.dtype == bfloat16
    y.backward()
    assert x.grad.dtype == bfloat16
    assert x.grad.float().tolist() == [2.0, 2.0]
    assert (x * tensor([1.0, 1.0])).dtype == np.float32
    assert (x * tensor([1.0, 1.0], dtype=_dtypes.float16)).dtype == np.float32
    assert x.relu().dtype == bfloat16
    assert (0.5 - x**0.5).mean().dtype == bfloat16
    with no_grad():
        x *= 0.5
    assert x.float().tolist() == [0.5, 1.0]


def test_gradients_have_the_dtype_of_their_leaf() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    x = tensor(np.array([3.0, 4.0]), requires_grad=True)
    h = tensor([1.0, 1.0], dtype=_dtypes.float16, requires_grad=True)
    loss = (w * x * h).sum()
    assert loss.dtype == np.float64
    loss.backward()
    assert [t.grad.dtype for t in (w, x, h)] == [np.float32, np.float64, np.float16]
    assert w.grad.tolist() == [3.0, 4.0]
    v = tensor([1.0], requires_grad=True)
    (v.double() ** 2).sum().backward()
    assert v.grad.dtype == np.float32


def test_only_floats_require_grad() -> None:
    with pytest.raises(TypeError, match="only a floating-point Tensor can require grad, this one is int64"):
        tensor([1, 2], requires_grad=True)
    y = tensor([1.0], requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="only a leaf can stop requiring grad"):
        y.requires_grad = False
    x = tensor([1.0])
    x.requires_grad = True
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0]


@pytest.mark.parametrize("bad", ["abc", ["a"], None, object(), [1.0, [2.0]], 1j, [1j]])
def test_what_is_no_number_is_refused(bad) -> None:
    with pytest.raises((TypeError, ValueError)):
        tensor(bad)
    if bad is not None:
        with pytest.raises((TypeError, ValueError)):
            tensor([1.0]) + bad


# -------------------------------------------------------------------------------------------------- torch


@pytest.mark.peers
@pytest.mark.parametrize(
    "name", [row[0] for row in OPERATIONS if not row[0].startswith(("numpy", "negative str"))]
)
def test_values_and_gradients_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    _, f, inputs = next(row for row in OPERATIONS if row[0] == name)
    theirs = {fn: getattr(torch, fn) for fn in ("cat", "stack", "where", "maximum", "minimum")}
    arrays = [np.array(x, np.float32) for x in inputs]
    ours = [tensor(x, requires_grad=True) for x in arrays]
    y = f(*ours)
    y.sum().backward()
    named = {"f": f}
    original = {fn: globals()[fn] for fn in theirs}
    globals().update(theirs)
    try:
        twins = [torch.tensor(x, requires_grad=True) for x in arrays]
        z = named["f"](*twins)
        z.sum().backward()
    finally:
        globals().update(original)
    assert y.dtype == str(z.dtype).removeprefix("torch.")
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=3e-6, atol=1e-6)
    for mine, twin in zip(ours, twins, strict=True):
        np.testing.assert_allclose(mine.grad.data, twin.grad.numpy(), rtol=3e-6, atol=2e-6)


def test_gradients_keep_the_dtype_and_stop_at_what_was_not_chosen() -> None:
    x = tensor([-1.0, 0.5, 2.0], requires_grad=True)
    operations.max(x.sigmoid()).backward()
    assert x.grad is not None
    assert x.grad.dtype == np.float32
    y = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(x.grad.data, [0, 0, y * (1 - y)], rtol=1e-6)
    for f in (lambda t: t.clamp(0.0, 1.0), lambda t: maximum(t, tensor([0.0, 0.0, 5.0]))):
        z = tensor([-1.0, 0.5, 2.0], requires_grad=True)
        f(z).backward(tensor([np.inf, 1.0, np.nan]))
        assert z.grad is not None
        np.testing.assert_array_equal(z.grad.data, [0, 1, 0])


def test_larger_and_smaller_of_two() -> None:
    x, y = tensor([1.0, -2.0]), tensor([0.0, 3.0])
    np.testing.assert_array_equal(operations.max(x, y).data, [1, 3])
    np.testing.assert_array_equal(operations.min(x, np.zeros(2, np.float32)).data, [0, -2])
    values, indices = operations.max(tensor([[1.0, 5.0], [7.0, 2.0]]), dim=1)
    assert (values.tolist(), indices.tolist()) == ([5, 7], [1, 0])
    assert operations.min(x).item() == -2
    with pytest.raises(TypeError, match="max: dim"):
        x.max(y)


def test_std_and_norm_have_gradient_0_where_they_are_0() -> None:
    for f in (lambda t: t.std(), lambda t: t.norm(), lambda t: t.norm(dim=0).sum()):
        x = tensor([0.0, 0.0, 0.0], requires_grad=True)
        f(x).backward()
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.data, [0, 0, 0])
    with pytest.raises(ValueError, match="norm: p must be 1 or 2, got 3"):
        ones(2).norm(3)


def test_variance_takes_torchs_arguments() -> None:
    x = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 9.0]])
    t = tensor(x)
    np.testing.assert_allclose(t.var(0, True).data, x.var(0, ddof=1))  # the second one is `unbiased`
    np.testing.assert_allclose(t.var(1, False, True).data, x.var(1, keepdims=True))
    np.testing.assert_allclose(t.var(axis=1, unbiased=False).data, x.var(1))
    np.testing.assert_allclose(t.std([0, 1], correction=0).data, x.std())


def test_bits_remainders_and_comparisons_of_masks() -> None:
    x = tensor([1, 2, 3])
    assert ((x > 1) & (x < 3)).tolist() == [False, True, False]
    assert ((x > 2) | (x == 1)).tolist() == [True, False, True]
    assert ((x > 1) ^ np.array([True, True, True])).tolist() == [True, False, False]
    assert (np.array([True, True, False]) & (x > 1)).tolist() == [False, True, False]
    assert (tensor([5, -5]) % 3).tolist() == [2, 1]
    assert (tensor([5, -5]) // 2).tolist() == [2, -3]
    assert (tensor([5.5]) % 2).tolist() == [1.5]
    assert ((x > 1).any().item(), (x > 1).all().item(), (x > 0).all(0).item()) == (True, False, True)
    with pytest.raises(RuntimeError, match="mod of a Tensor that requires grad is not recorded"):
        tensor([1.0], requires_grad=True) % 2


def test_dtypes_of_sums_and_limits() -> None:
    total = tensor([200, 100], dtype=_dtypes.uint8).sum()
    assert (total.dtype, total.item()) == (np.int64, 300)
    limited = tensor([-1, 5]).clamp(min=0.5)
    assert (limited.dtype, limited.tolist()) == (np.float32, [0.5, 5.0])
    assert tensor([-1, 5]).clip(0, 3).tolist() == [0, 3]
    assert ones(2, 3).sum([0, 1]).item() == 6
    assert tensor([[1.0, 5.0]]).argmax(axis=1).tolist() == [1]
    assert tensor([[1.0, 5.0]]).max(axis=1).values.tolist() == [5]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_products_of_half_precision_stay_in_it(name: str) -> None:
    dtype = np.dtype(name) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x = tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    w = tensor([[1.0, 0.0], [2.0, 1.0]], dtype=dtype, requires_grad=True)
    y = x @ w
    assert y.dtype == dtype
    y.tanh().sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    slope = 1 - np.tanh(np.array([[5.0, 2.0], [11.0, 4.0]])) ** 2
    np.testing.assert_allclose(x.grad.data.astype(float), slope @ w.data.astype(float).T, atol=0.02)
    np.testing.assert_allclose(w.grad.data.astype(float), x.data.astype(float).T @ slope, atol=0.02)


def test_equal_and_allclose() -> None:
    x = tensor([1.0, 2.0])
    assert operations.equal(x, np.array([1.0, 2.0]))
    assert not operations.equal(x, tensor([1.0]))
    assert operations.allclose(x, x + 1e-6)
    assert not operations.allclose(x, x + 1e-3)
    assert operations.allclose(x, x + 1e-3, atol=1e-2)


@pytest.mark.peers
def test_promotion_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    names = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]
    for first in names:
        for second in names:
            for shape_a, shape_b in (((2,), (2,)), ((), (2,)), ((2,), ())):
                a, b = np.ones(shape_a, first), np.ones(shape_b, second)
                theirs = torch.tensor(a) * torch.tensor(b)
                ours = Tensor(a) * Tensor(b)
                assert ours.dtype == str(theirs.dtype).removeprefix("torch."), (
                    first,
                    second,
                    shape_a,
                    shape_b,
                )
