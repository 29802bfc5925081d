"""Tensor and its tape: values, gradients, dtypes, memory, errors."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

from fastopt import _dtypes
from fastopt._tape import enable_grad, is_grad_enabled, no_grad
from fastopt.creation import (
    as_tensor,
    from_numpy,
    ones,
    tensor,
    zeros,
)
from fastopt.operations import maximum
from fastopt.tensor import Tensor

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
    w.grad = None
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
        np.arctan,
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


def test_one_thread_and_two_give_the_same_bits(threads) -> None:
    x = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)

    def run(count: int) -> list[bytes]:
        threads(count)
        t = tensor(x, requires_grad=True)
        loss = (t.sigmoid() * t.tanh() + t.relu()).mean()
        loss.backward()
        return [loss.data.tobytes(), t.grad.data.tobytes()]

    assert run(1) == run(2)


def test_one_element_picked_is_a_view_as_any_other_part() -> None:
    x = zeros(3)
    x[0].fill_(5)
    x[-1] += 2
    for element in x:
        element.add_(1)
    assert x.tolist() == [6, 1, 3]
    assert x[1].shape == ()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Tensor(2, 3), TypeError, "requires_grad: expected True or False, got 3"),
        (lambda: Tensor([1.0]).requires_grad_(None), TypeError, "expected True or False, got None"),
        (lambda: tensor(np.array(["a"])), TypeError, "data is <U1, expected real numbers"),
        (lambda: tensor([1, "a"]), TypeError, "expected real numbers"),
        (lambda: tensor(np.array([1j])), TypeError, "data is complex128, expected real numbers"),
        (lambda: tensor([[1], [1, 2]]), ValueError, "data: .*inhomogeneous"),
        (lambda: ones(2).squeeze(4), IndexError, "squeeze: dim 4 is out of range for 1 dimensions"),
        (lambda: ones(2).unsqueeze(3), IndexError, "unsqueeze: dim 3 is out of range for 2 dimensions"),
        (lambda: ones(2).transpose(0, 1), IndexError, "transpose: dim 1 is out of range for 1 dimensions"),
        (lambda: ones(2).flatten(0, 2), IndexError, "flatten: dim 2 is out of range for 1 dimensions"),
        (lambda: zeros(2.5), TypeError, "expected integers, or one sequence of them, got 2.5"),
        (
            lambda: ones(4).reshape(2, 2.0),
            TypeError,
            "expected integers, or one sequence of them, got 2, 2.0",
        ),
    ],
)
def test_what_cannot_be_says_why(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_device_and_ranges() -> None:
    x = tensor(range(3))
    assert (x.tolist(), x.dtype, x.device) == ([0, 1, 2], np.int64, "cpu")
    assert x.to(x.device) is x
    assert x.nelement() == 3
