"""SparseAdam: rows against torch and against dense steps, duplicates, missing and empty gradients, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import optim
from optim_tools import refuse, to_numpy, to_torch

ROWS = range(len(OPTIMIZERS["SparseAdam"]["options"]))


def tables(dtype):
    rng = np.random.default_rng(4)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((11, 3), (7,), (5, 2, 3))]


def draws(params, steps, seed=5):
    """Pairs for each step; indices repeat, and some steps have none of a parameter."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        yield [
            None if (t + i) % 5 == 4 else drawn_pair(rng, p, 0 if (t, i) == (2, 1) else 4)
            for i, p in enumerate(params)
        ]


def drawn_pair(rng, p, n):
    return rng.integers(0, len(p), n), rng.standard_normal((n, *p.shape[1:])).astype(p.dtype)


def sparse(torch, p, pair):
    return torch.sparse_coo_tensor(
        torch.tensor(pair[0])[None], torch.tensor(pair[1]), p.shape, check_invariants=True
    )


@pytest.mark.peers
@pytest.mark.parametrize("row", ROWS)
def test_matches_torch(row, dtype):
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS["SparseAdam"]["options"][row]
    params = tables(dtype)
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    opt, twin = optim.SparseAdam(params, **options), torch.optim.SparseAdam(theirs, **options)
    for pairs in draws(params, 12):
        opt.step(pairs)
        for p, pair in zip(theirs, pairs, strict=True):
            p.grad = None if pair is None else sparse(torch, p, pair)
        twin.step()
    rtol = 20 * np.finfo(dtype).eps
    for ours, p in zip(params, theirs, strict=True):
        np.testing.assert_allclose(ours, p.detach().numpy(), rtol=rtol, atol=rtol)
    state, peer = opt.state_dict(), to_numpy(torch, twin.state_dict())
    for i, entry in peer["state"].items():
        assert entry.keys() == state["state"][i].keys()
        for key, value in entry.items():
            np.testing.assert_allclose(state["state"][i][key], value, rtol=1e-4, atol=rtol)

    # Each goes on from the other's state.
    heir = optim.SparseAdam([p.detach().numpy().copy() for p in theirs])
    heir.load_state_dict(peer)
    twin.load_state_dict(to_torch(torch, state))
    for pairs in draws(params, 3, seed=6):
        heir.step(pairs)
        opt.step(pairs)
    for a, b in zip(heir.param_groups[0]["params"], params, strict=True):
        np.testing.assert_allclose(a, b, rtol=100 * rtol, atol=100 * rtol)


@pytest.mark.peers
def test_torch_s_embedding_with_sparse_gradients():
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    ours = torch.nn.Embedding(9, 4, sparse=True)
    twin = torch.nn.Embedding(9, 4, sparse=True, _weight=ours.weight.detach().clone())
    opts = [optim.SparseAdam(ours.parameters(), lr=0.1), torch.optim.SparseAdam(twin.parameters(), lr=0.1)]
    for words in ([1, 5, 1], [8], [0, 1]):
        for table, opt in zip((ours, twin), opts, strict=True):
            opt.zero_grad()
            (table(torch.tensor(words)) ** 2).sum().backward()
            opt.step()
    np.testing.assert_allclose(ours.weight.detach(), twin.weight.detach(), rtol=1e-6, atol=1e-7)
    ours.weight.grad = torch.ones(9, 4)
    with pytest.raises(TypeError, match=r"grads\[0\] is Tensor, expected a pair"):
        opts[0].step()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_all_rows_are_a_dense_step(dtype):
    """Of rectified RAdam's formula, whose bias corrections are the same."""
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(1)
    start = rng.standard_normal((9, 4)).astype(dtype)
    a, b = start.copy(), np.asfortranarray(start)
    opt, plain = optim.SparseAdam([a], lr=0.1), optim.SparseAdam([b], lr=0.1)
    for _ in range(4):
        g = rng.standard_normal((9, 4)).astype(dtype)
        order = rng.permutation(9)
        opt.step([(np.arange(9), g)])
        plain.step([(order, g[order])])
    np.testing.assert_array_equal(a, b)
    g = rng.standard_normal((9, 4)).astype(dtype)
    once, exact = start.copy(), start.astype(np.float64)
    optim.SparseAdam([once], lr=0.1).step([(np.arange(9), g)])
    m, v = 0.1 * g.astype(np.float64), 0.001 * g.astype(np.float64) ** 2
    exact -= 0.1 * np.sqrt(0.001) / 0.1 * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(once.astype(np.float64), exact, rtol=2.0**-8, atol=2.0**-8)


def test_rows_without_gradient_keep_their_moments():
    p = np.ones((4, 2))
    opt = optim.SparseAdam({"w": p}, lr=0.5)
    opt.step({"w": (np.array([0, 2]), np.ones((2, 2)))})
    opt.step({"w": (np.array([2, 2]), np.array([[1.0, 2.0], [3.0, 4.0]]))})
    np.testing.assert_array_equal(p[[1, 3]], 1.0)
    m = opt.state[0]["exp_avg"]
    np.testing.assert_allclose(m, [[0.1, 0.1], [0, 0], [0.9 * 0.1 + 0.4, 0.9 * 0.1 + 0.6], [0, 0]])
    assert opt.state[0]["step"] == 2


def test_structures_and_closures():
    tree = {"a": [np.ones((3, 2)), np.ones((2, 2))], "b": (np.ones(4),)}
    pair = (np.array([1], np.int32), np.ones((1, 2)))
    opt = optim.SparseAdam(tree, lr=0.5)
    loss = opt.step(lambda: (3.0, {"b": ((np.array([3]), np.ones(1)),), "a": [pair, None]}))
    assert loss == 3.0
    np.testing.assert_allclose(tree["a"][0], [[1, 1], [0.5, 0.5], [1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(tree["a"][1], 1.0)
    np.testing.assert_allclose(tree["b"][0], [1, 1, 1, 0.5], rtol=1e-6)
    opt.step([pair, pair, (np.array([], int), np.ones(0))])
    assert [int(entry["step"]) for entry in opt.state.values()] == [2, 1, 2]


def test_groups_have_their_own_settings():
    p, q = np.ones((2, 1)), np.ones((2, 1))
    opt = optim.SparseAdam([{"params": [p]}, {"params": [q], "lr": 0.25, "maximize": True}], lr=0.5)
    pair = (np.array([1]), np.ones((1, 1)))
    opt.step([[pair], [pair]])
    np.testing.assert_allclose(p.ravel(), [1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(q.ravel(), [1, 1.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (np.ones((3, 2)), r"grads\[0\] is ndarray, expected a pair \(indices, rows\)"),
        ((np.array([0]), np.ones((1, 2), np.float32)), r"grads\[0\]\[1\] is float32, params\[0\] is float64"),
        ((np.array([[0]]), np.ones((1, 2))), r"grads\[0\]\[0\] has shape \(1, 1\), expected one dimension"),
        ((np.array([0]), np.ones((2, 2))), r"grads\[0\]\[1\] has shape \(2, 2\), expected \(1, 2\)"),
        ((np.array([0, 3]), np.ones((2, 2))), r"grads\[0\]\[0\] has the index 3, params\[0\] has 3 rows"),
        ((np.array([-1]), np.ones((1, 2))), r"grads\[0\]\[0\] has the index -1, params\[0\] has 3 rows"),
        (
            (np.array([0, 2**63 + 5], np.uint64), np.ones((2, 2))),
            r"has the index 9223372036854775813, params\[0\] has 3 rows",
        ),
        ((np.array([0.0]), np.ones((1, 2))), r"grads\[0\] is"),
    ],
)
def test_gradients_that_are_refused(grad, message):
    opt = optim.SparseAdam([np.ones((3, 2)), np.ones(2)])
    good = (np.array([0]), np.ones(1))
    opt.step([(np.array([0]), np.ones((1, 2))), good])
    refuse(opt, lambda: opt.step([grad, good]), message)


def test_what_else_is_refused():
    opt = optim.SparseAdam([np.ones((3, 2))])
    refuse(opt, opt.step, r"params\[0\] is a plain array, so step needs grads")
    refuse(opt, lambda: opt.step([]), r"grads has 0 entries, params has 1")
    refuse(opt, lambda: opt.add_param_group({"params": [np.array(1.0)]}), r"params\[0\] is a scalar")
    with pytest.raises(TypeError, match="weight_decay"):
        optim.SparseAdam([np.ones(2)], weight_decay=0.1)


@pytest.mark.parametrize("row", ROWS)
def test_resume_is_bit_identical(row):
    options = OPTIMIZERS["SparseAdam"]["options"][row]
    whole, half = tables(np.float32), tables(np.float32)
    opt, first = optim.SparseAdam(whole, **options), optim.SparseAdam(half, **options)
    steps = list(draws(whole, 8))
    for pairs in steps:
        opt.step(pairs)
    for pairs in steps[:4]:
        first.step(pairs)
    second = optim.SparseAdam(half)
    second.load_state_dict(first.state_dict())
    for pairs in steps[4:]:
        second.step(pairs)
    for a, b in zip(whole, half, strict=True):
        np.testing.assert_array_equal(a, b)
