"""Tensor and its tape: values, gradients, dtypes, memory, errors."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from fastopt import _dtypes, operations
from fastopt._random import get_rng_state, manual_seed, next_dropout, set_rng_state
from fastopt._tape import enable_grad, is_grad_enabled, no_grad
from fastopt.creation import (
    arange,
    as_tensor,
    empty,
    eye,
    from_numpy,
    full,
    linspace,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from fastopt.operations import cat, maximum, minimum, stack, where
from fastopt.tensor import Tensor
from gradients import check_gradients, gradient_of

RNG = np.random.default_rng(11)


def away_from_zero(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, shape) * RNG.choice([-1.0, 1.0], shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, shape)


# One row per operation: a name, the function and its inputs.
OPERATIONS = [
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


# --------------------------------------------------------------------------------------------- the tape


def test_the_issue_example() -> None:
    w = tensor([1.0], requires_grad=True)
    ((w**2) / 2.0).sum().backward()
    assert w.grad.data.tolist() == [1.0]
    assert w.grad.dtype == np.float32
    assert repr(w) == "tensor([1.], requires_grad=True)"


def test_gradients_accumulate_until_they_are_forgotten() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    (w * w).sum().backward()
    held = w.grad
    (3 * w).sum().backward()
    assert w.grad is held
    assert w.grad.tolist() == [5.0, 7.0]
    w.zero_grad()
    assert w.grad is None
    (w * w).sum().backward()
    assert w.grad.tolist() == [2.0, 4.0]
    w.grad.zero_()
    assert w.grad.tolist() == [0.0, 0.0]


def test_leaves_do_not_share_the_memory_of_their_gradients() -> None:
    x, y = tensor([1.0, 2.0], requires_grad=True), tensor([3.0, 4.0], requires_grad=True)
    arriving = np.array([1.0, 1.0], np.float32)
    (x + y).backward(arriving)
    x.grad.zero_()
    assert y.grad.tolist() == [1.0, 1.0]
    assert arriving.tolist() == [1.0, 1.0]


def test_retain_graph_gives_the_same_gradient_again() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    loss = (w.exp() * w).sum()
    loss.backward(retain_graph=True)
    first = w.grad.numpy().copy()
    loss.backward()
    np.testing.assert_array_equal(w.grad.data, 2 * first)


def test_second_backward_is_refused_and_changes_nothing() -> None:
    w, v = tensor(2.0, requires_grad=True), tensor(3.0, requires_grad=True)
    shared = w * w
    (shared * 2).backward()
    with pytest.raises(RuntimeError, match=r"backward: the graph of 'multiply' is gone.*retain_graph=True"):
        (shared * v).backward()
    assert w.grad.item() == 8.0
    assert v.grad is None


def test_backward_needs_a_graph_and_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):
        tensor([1.0]).backward()
    w = tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"gradient is needed for a Tensor of shape \(2,\)"):
        (w * 2).backward()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\), the Tensor has shape \(2,\)"):
        (w * 2).backward(np.ones(3, np.float32))
    assert w.grad is None
    (w * 2).backward([1.0, 10.0])
    assert w.grad.tolist() == [2.0, 20.0]


def test_backward_on_a_leaf() -> None:
    w = tensor(2.0, requires_grad=True)
    w.backward()
    w.backward(3.0)
    assert w.grad.item() == 4.0


def test_deep_graphs() -> None:
    w = tensor([1.0], requires_grad=True)
    y = w
    for _ in range(10_000):
        y = y + 1.0
    y.backward()
    assert (y.item(), w.grad.item()) == (10_001.0, 1.0)
    y = w
    for _ in range(10_000):
        y = y * 1.0
    del y  # a graph that is dropped unused goes without recursion too


def test_the_graph_holds_nothing_once_it_is_dropped_or_used() -> None:
    def graph_of(x: Tensor) -> tuple[Tensor, list[weakref.ref]]:
        y = x.exp()
        return (y * y).sum(), [weakref.ref(y._node.fn), weakref.ref(y.data)]

    gc.disable()  # reference counts alone must do it
    try:
        x = ones(100, requires_grad=True)
        _, seen = graph_of(x)
        del _
        assert [ref() for ref in seen] == [None, None]
        loss, seen = graph_of(x)
        assert seen[1]() is not None
        loss.backward()
        assert [ref() for ref in seen] == [None, None]
        leaf = weakref.ref(x)
        del x, loss
        assert leaf() is None
    finally:
        gc.enable()


def test_sum_does_not_keep_its_input() -> None:
    x = ones(10, requires_grad=True)
    y = x + 1.0
    seen = weakref.ref(y.data)
    loss = (y + 2.0).sum()
    del y
    assert seen() is None
    loss.backward()
    assert x.grad.tolist() == [1.0] * 10


def test_no_grad_as_context_and_decorator() -> None:
    w = tensor([1.0], requires_grad=True)
    with no_grad():
        assert not is_grad_enabled()
        assert not (w * 2).requires_grad
        with enable_grad():
            assert (w * 2).requires_grad
        assert not is_grad_enabled()
    assert is_grad_enabled()

    @no_grad()
    def double(x: Tensor, depth: int = 0) -> Tensor:
        return double(x, depth + 1) if depth < 2 else x * 2

    assert not double(w).requires_grad
    assert is_grad_enabled()
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_grad_enabled()


def test_grad_mode_belongs_to_the_thread() -> None:
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_shares_memory_and_stops_gradients() -> None:
    w = tensor([2.0], requires_grad=True)
    d = w.detach()
    assert not d.requires_grad
    assert d.data is w.data
    (w * d).sum().backward()
    assert w.grad.tolist() == [2.0]


def test_retain_grad_of_a_result() -> None:
    w = tensor([2.0, 3.0], requires_grad=True)
    y = w * w
    assert not y.is_leaf
    assert y.grad is None
    y.retain_grad()
    (3 * y).sum().backward()
    assert y.grad.tolist() == [3.0, 3.0]
    assert w.grad.tolist() == [12.0, 18.0]


def test_ties_share_the_gradient_of_an_extreme() -> None:
    x = tensor([3.0, 1.0, 3.0], requires_grad=True)
    x.max().backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]
    y = tensor([3.0, 1.0], requires_grad=True)
    maximum(y, tensor([3.0, 2.0])).sum().backward()
    assert y.grad.tolist() == [0.5, 0.0]
    values, indices = tensor([[1.0, 5.0], [7.0, 2.0]]).max(1)
    assert values.tolist() == [5.0, 7.0]
    assert indices.tolist() == [1, 0]
    assert indices.dtype == np.int64


def test_power_at_zero() -> None:
    x = tensor([0.0, 2.0], requires_grad=True)
    (x**2).sum().backward()
    assert x.grad.tolist() == [0.0, 4.0]
    x.grad = None
    (x**0).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]
    base, exponent = tensor([0.0, 0.0], requires_grad=True), tensor([0.0, 2.0], requires_grad=True)
    (base**exponent).sum().backward()
    assert base.grad.tolist() == [0.0, 0.0]
    assert exponent.grad.tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------ in place


def test_training_by_hand() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    memory = w.data
    for expected in ([0.8, 1.6], [0.64, 1.28]):
        ((w * w).sum()).backward()
        with no_grad():
            w -= 0.1 * w.grad
        w.grad = None
        np.testing.assert_allclose(w.data, expected, rtol=1e-6)
    assert w.data is memory
    assert w.requires_grad
    assert w.is_leaf


def test_data_is_changed_in_place() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    (w * w).sum().backward()
    memory = w.data
    w.data -= 0.5 * w.grad
    assert w.tolist() == [0.0, 0.0]
    w.data = np.array([3.0, 4.0])
    assert w.data is memory
    assert memory.tolist() == [3.0, 4.0]
    assert memory.dtype == np.float32
    w.data = tensor([5.0, 6.0])
    assert memory.tolist() == [5.0, 6.0]
    w.data = [1.0, 2.0, 3.0]
    assert w.shape == (3,)


def test_a_leaf_that_requires_grad_is_not_changed_in_place() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    one = tensor([1.0, 1.0])
    for change in (
        lambda: w.__iadd__(1.0),
        lambda: w.__isub__(1.0),
        lambda: w.__imul__(w),
        lambda: w.__itruediv__(2.0),
        lambda: w.__setitem__(0, 5.0),
        w.zero_,
        lambda: w.copy_(one),
        lambda: w.add_(one),
    ):
        with pytest.raises(
            RuntimeError, match=r"a leaf Tensor that requires grad cannot be changed in place"
        ):
            change()
    with pytest.raises(RuntimeError, match="cannot be written into another"):
        one[0] = w[0]
    with pytest.raises(RuntimeError, match="result of a recorded operation cannot be changed"):
        (w * 2).zero_()
    assert w.tolist() == [1.0, 2.0]
    assert one.tolist() == [1.0, 1.0]


def test_in_place_on_what_is_recorded_gives_a_new_tensor() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    y = w * 2
    before = y
    y += w
    y *= 3.0
    assert y.tolist() == [9.0, 18.0]
    assert before.tolist() == [2.0, 4.0]
    total = tensor([0.0, 0.0])
    total += w
    (y.sum() + total.sum()).backward()
    assert w.grad.tolist() == [10.0, 10.0]


def test_in_place_on_plain_tensors() -> None:
    x = tensor([1.0, 2.0, 3.0])
    memory = x.data
    x += 1
    x *= tensor([2.0, 2.0, 2.0])
    x[0] = 7.0
    x[1:] -= 1.0
    x.add_(1.0, alpha=2).sub_(1.0).mul_(2.0).div_(4.0)
    assert x.data is memory
    assert memory.tolist() == [4.0, 3.0, 4.0]
    assert x.fill_(2.0).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(TypeError):
        tensor([1, 2]).add_(0.5)


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


# -------------------------------------------------------------------------------------------- as an array


def test_arrays_are_shared_and_copied_as_said() -> None:
    a = np.array([1.0, 2.0])
    assert Tensor(a).data is a
    assert from_numpy(a).data is a
    assert as_tensor(a).data is a
    assert tensor(a).data is not a
    assert from_numpy(a).numpy() is a
    t = as_tensor(a)
    assert as_tensor(t) is t
    with pytest.raises(TypeError, match="from_numpy: expected an ndarray, got list"):
        from_numpy([1.0])
    back = np.asarray(Tensor(a))
    assert back is a
    assert np.array(Tensor(a), copy=True) is not a


def test_a_recorded_tensor_does_not_lose_its_gradient_unseen() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    for use in (
        np.asarray,
        np.sin,
        lambda x: np.concatenate([x, x]),
        lambda x: np.add(x, 1.0, out=np.ones(2)),
    ):
        with pytest.raises(RuntimeError, match="requires grad"):
            use(w)
    with no_grad():
        np.testing.assert_allclose(np.sin(w), np.sin([1.0, 2.0]), rtol=1e-6)
    assert w.numpy() is w.data
    np.testing.assert_array_equal(np.asarray(w.detach()), [1.0, 2.0])


def test_numpy_functions_on_tensors() -> None:
    x = tensor([1.0, 4.0])
    assert isinstance(np.sqrt(x), Tensor)
    assert np.sqrt(x).tolist() == [1.0, 2.0]
    assert isinstance(np.floor(x), np.ndarray)
    out = np.zeros(2, np.float32)
    np.add(x, 1.0, out=out)
    assert out.tolist() == [2.0, 5.0]
    np.multiply(x, 2.0, out=x)
    assert x.tolist() == [2.0, 8.0]
    array = np.ones(2)
    array += x
    assert array.tolist() == [3.0, 9.0]
    assert (np.ones(2, np.float32) + x).tolist() == [3.0, 9.0]
    assert (np.array([2.0, 0.0]) == x).tolist() == [True, False]
    assert np.add.reduce(x) == 10.0


def test_protocols() -> None:
    x = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (len(x), x.shape, x.ndim, x.dim(), x.numel()) == (2, (2, 3), 2, 2, 6)
    assert (x.size(), x.size(1), x.size(-2)) == ((2, 3), 3, 2)
    assert [row.tolist() for row in x] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert [row.tolist() for row in reversed(x)] == [[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]
    assert 5.0 in x
    assert 7.0 not in x
    assert x[tensor(1), tensor([0, 2])].tolist() == [4.0, 6.0]
    assert x[x > 2].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert (x.argmax().item(), x.argmin(1).tolist(), x.argmax(0, keepdim=True).shape) == (5, [0, 0], (1, 3))
    scalar = tensor(2.5)
    assert (float(scalar), int(scalar), scalar.item(), bool(scalar)) == (2.5, 2, 2.5, True)
    assert f"{scalar:.2f}|{scalar}" == "2.50|2.5"
    assert [10, 20, 30][tensor(1)] == 20
    assert hash(x) == hash(x)
    assert x is not None
    assert (x == None) is False  # noqa: E711
    for refused, error in ((lambda: len(scalar), TypeError), (lambda: iter(scalar), TypeError)):
        with pytest.raises(error, match="0-d"):
            refused()
    with pytest.raises(RuntimeError, match=r"Tensor of shape \(2, 3\) is ambiguous"):
        bool(x)


def test_operations_as_functions() -> None:
    x = tensor([[4.0, 9.0], [1.0, 16.0]], requires_grad=True)
    for name, args in (
        ("abs", ()), ("argmax", (1,)), ("argmin", (0,)), ("clamp", (2.0, 10.0)), ("exp", ()), ("flatten", ()),
        ("log", ()), ("mean", (0,)), ("pow", (3,)), ("relu", ()), ("reshape", (4, 1)), ("sigmoid", ()),
        ("sqrt", ()), ("square", ()), ("squeeze", ()), ("std", ()), ("sum", (1, True)), ("tanh", ()),
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


def test_comparisons_are_plain() -> None:
    x, y = tensor([1.0, 2.0, 3.0], requires_grad=True), tensor([3, 2, 1])
    for result, expected in (
        (x == y, [False, True, False]),
        (x != y, [True, False, True]),
        (x < y, [True, False, False]),
        (x <= y, [True, True, False]),
        (x > 1, [False, True, True]),
        (x <= 2.0, [True, True, False]),
        (~(x > 1), [True, False, False]),
        (x.eq(y), [False, True, False]),
    ):
        assert result.tolist() == expected
        assert not result.requires_grad
    assert (x == y).sum().item() == 1
    assert (x == y).float().mean().item() == pytest.approx(1 / 3)


def test_repr() -> None:
    assert repr(tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(tensor([1, 2])) == "tensor([1, 2])"
    assert repr(tensor([1.0], dtype=_dtypes.float64)) == "tensor([1.], dtype=float64)"
    assert repr(tensor(1.0, requires_grad=True) * 2) == "tensor(2., grad_fn=<multiply>)"
    assert repr(zeros(2, 2)) == "tensor([[0., 0.],\n        [0., 0.]])"


def test_copies_and_pickles() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    (w * w).sum().backward()
    for twin in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert twin.tolist() == [1.0, 2.0]
        assert twin.grad.tolist() == [2.0, 4.0]
        assert twin.requires_grad
        assert not np.shares_memory(twin.data, w.data)
    with pytest.raises(RuntimeError, match="only a leaf Tensor can be copied"):
        copy.deepcopy(w * 2)


def test_grad_can_be_set() -> None:
    w = tensor([1.0, 2.0], requires_grad=True)
    w.grad = np.array([3.0, 4.0], np.float32)
    assert isinstance(w.grad, Tensor)
    np.testing.assert_array_equal(w.grad, [3.0, 4.0])
    with pytest.raises(ValueError, match=r"grad: got shape \(3,\), the Tensor has shape \(2,\)"):
        w.grad = np.ones(3)
    assert w.grad.tolist() == [3.0, 4.0]


# ----------------------------------------------------------------------------------- creation and random


def test_filled_tensors() -> None:
    assert zeros(2, 1).tolist() == [[0.0], [0.0]]
    assert ones((1, 2)).tolist() == [[1.0, 1.0]]
    assert zeros().shape == ()
    assert full((2,), 7).tolist() == [7, 7]
    assert full((2,), 7).dtype == np.int64
    assert full((2,), 7.0).dtype == np.float32
    assert full(2, 1.5, dtype=_dtypes.float64).tolist() == [1.5, 1.5]
    assert empty(2, 3).shape == (2, 3)
    assert eye(2).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert arange(3).tolist() == [0, 1, 2]
    assert arange(1, 2, 0.25).tolist() == [1.0, 1.25, 1.5, 1.75]
    assert arange(1, 2, 0.25).dtype == np.float32
    assert linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert zeros_like(tensor([1, 2])).tolist() == [0, 0]
    assert ones_like(np.zeros(2)).dtype == np.float64
    assert ones(2, requires_grad=True).requires_grad


def test_the_seed_fixes_every_random_number() -> None:
    def draw() -> list:
        manual_seed(3)
        return [
            randn(2, 3).tolist(),
            rand(2).tolist(),
            randint(0, 10, (5,)).tolist(),
            randperm(5).tolist(),
            next_dropout(),
        ]

    first = draw()
    assert first == draw()
    assert first[4] == (3, 0)
    manual_seed(4)
    assert randn(2, 3).tolist() != first[0]


def test_random_numbers_have_their_distributions() -> None:
    manual_seed(0)
    x = randn(100, 1000)
    assert x.dtype == np.float32
    assert abs(x.mean().item()) < 0.01
    assert abs(x.std().item() - 1) < 0.01
    u = rand(100_000, dtype=_dtypes.float64)
    assert 0 <= u.min().item() < 1e-3
    assert 1 - 1e-3 < u.max().item() < 1
    assert abs(u.mean().item() - 0.5) < 0.01
    counts = np.bincount(randint(2, 5, (30_000,)).data)
    assert counts[:2].tolist() == [0, 0]
    np.testing.assert_allclose(counts[2:], 10_000, rtol=0.05)
    assert randint(4, (3,)).shape == (3,)
    assert sorted(randperm(50).tolist()) == list(range(50))
    assert randn(3, dtype=_dtypes.float16).dtype == np.float16
    mine = np.random.default_rng(1)
    assert (
        randn(3, generator=mine).tolist() == np.random.default_rng(1).standard_normal(3, np.float32).tolist()
    )


def test_random_state_survives_json() -> None:
    manual_seed(5)
    randn(3)
    randint(0, 5, (3,))
    next_dropout()
    state = json.loads(json.dumps(get_rng_state()))
    expected = [randn(4).tolist(), next_dropout(), rand(3).tolist()]
    manual_seed(99)
    set_rng_state(state)
    assert [randn(4).tolist(), next_dropout(), rand(3).tolist()] == expected


def test_random_errors() -> None:
    with pytest.raises(ValueError, match=r"manual_seed: seed must be in \[0, 2\*\*64\), got -1"):
        manual_seed(-1)
    with pytest.raises(TypeError, match="manual_seed: seed must be an int, got float"):
        manual_seed(1.5)
    with pytest.raises(ValueError, match="randint: high must be above low, got low 5 and high 5"):
        randint(5, 5, (2,))
    with pytest.raises(TypeError, match="size is missing"):
        randint(5)
    with pytest.raises(TypeError, match="dtype must be floating-point, got int64"):
        randn(2, dtype=_dtypes.int64)
    manual_seed(1)
    before = get_rng_state()
    for bad in (
        {},
        {**before, "generator": {}},
        {**before, "dropout_offset": -1},
        {**before, "dropout_seed": "x"},
    ):
        with pytest.raises(ValueError, match="set_rng_state"):
            set_rng_state(bad)
    assert get_rng_state() == before


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


def test_one_thread_and_two_give_the_same_bits(threads) -> None:
    x = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)

    def run(count: int) -> list[bytes]:
        threads(count)
        t = tensor(x, requires_grad=True)
        loss = (t.sigmoid() * t.tanh() + t.relu()).mean()
        (gradient,) = gradient_of(loss, t)
        return [loss.data.tobytes(), gradient.tobytes()]

    assert run(1) == run(2)
