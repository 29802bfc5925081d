"""fo.interop: what one library began, the other goes on with."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

import fastopt as fo

LR = 0.05
#: Functions of optax and their arguments.
ROWS = [
    ("sgd", {"momentum": 0.9}),
    ("sgd", {}),
    ("adam", {"eps": 1e-3}),
    ("adamw", {"weight_decay": 0.1}),
    ("amsgrad", {"b2": 0.6}),
    ("nadam", {}),
    ("adamax", {"b2": 0.6}),
    ("radam", {"b2": 0.9}),
    ("adabelief", {}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": 0.9}),
    ("rmsprop", {"momentum": 0.9, "centered": True, "eps": 1e-3}),
    ("adagrad", {}),
    ("adadelta", {}),
    ("lion", {}),
]


def tree(rng):
    """Keys that JAX sorts in another order, lists, and a parameter without a dimension."""
    return {
        "w": rng.standard_normal((4, 3)),
        "b": [rng.standard_normal(3), rng.standard_normal(5)],
        "a": {"z": np.asarray(rng.standard_normal())},
    }


def leaves(t):
    return [t["w"], *t["b"], t["a"]["z"]]


class Optax:
    """optax with the parameters and state of one run."""

    def __init__(self, jax, optax, name, options, params, schedule):
        rate = (lambda count: LR) if schedule else LR
        self.jax, self.optax, self.tx = jax, optax, getattr(optax, name)(rate, **options)
        self.params = jax.tree.map(jax.numpy.asarray, params)
        self.state = self.tx.init(self.params)

    def step(self, grads):
        grads = self.jax.tree.map(self.jax.numpy.asarray, grads)
        updates, self.state = self.tx.update(grads, self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)


@pytest.mark.peers
@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(("name", "options"), ROWS)
def test_optax_and_back(name, options, schedule):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    rng = np.random.default_rng(5)
    start, grads = tree(rng), [tree(rng) for _ in range(12)]
    copy = partial(jax.tree.map, np.array)
    with jax.enable_x64(True):
        whole = Optax(jax, optax, name, options, start, schedule)
        params = copy(start)
        ours = getattr(fo.compat.optax, name)(params, LR, **options)
        for g in grads[:4]:
            whole.step(g)
            ours.step(g)
        theirs = Optax(jax, optax, name, options, params, schedule)
        before = jax.tree.map(np.array, theirs.state)
        theirs.state = fo.interop.to_optax(ours, theirs.state)
        assert jax.tree.structure(theirs.state) == jax.tree.structure(before)
        for g in grads[4:8]:
            whole.step(g)
            theirs.step(g)
        params = copy(theirs.params)
        ours = getattr(fo.compat.optax, name)(params, LR, **options)
        fo.interop.from_optax(ours, theirs.state)
        for g in grads[8:]:
            whole.step(g)
            ours.step(g)
        expected = leaves(copy(whole.params))
    for p, q, s in zip(leaves(params), expected, leaves(start), strict=True):
        np.testing.assert_allclose(p - s, q - s, rtol=0, atol=1e-6 * np.abs(q - s).max())


class ScaleByAdamState(NamedTuple):
    """optax's, for what needs no optax."""

    count: object
    mu: object
    nu: object


class TraceState(NamedTuple):
    trace: object


def test_a_template_without_optax():
    p = {"w": np.ones(3), "b": np.ones(2)}
    opt = fo.optim.Adam(p)
    opt.step({"w": np.ones(3), "b": np.full(2, 2.0)})
    zeros = {"b": np.zeros(2), "w": np.zeros(3)}
    template = (ScaleByAdamState(np.int32(0), zeros, zeros), {"inner": ()})
    state = fo.interop.to_optax(opt, template)
    np.testing.assert_allclose(state[0].mu["b"], 0.2)
    np.testing.assert_allclose(state[0].nu["w"], 1e-3)
    assert (state[0].count, state[0].count.dtype, template[0].count) == (1, np.int32, 0)
    assert not zeros["b"].any()
    assert state[1] == {"inner": ()}
    state[0].mu["b"][:] = 7.0  # a copy
    np.testing.assert_allclose(opt.state[1]["exp_avg"], 0.2)


def test_velocities_keep_their_rate():
    """optax's trace is of gradients, the velocity form's buffer of steps."""
    p = [np.ones(2)]
    opt = fo.optim.SGD(p, lr=0.1, momentum=0.9, momentum_form="velocity")
    opt.step([np.full(2, 3.0)])
    state = fo.interop.to_optax(opt, (TraceState([np.zeros(2)]),))
    np.testing.assert_allclose(state[0].trace[0], 3.0)
    other = fo.optim.SGD([p[0].copy()], lr=0.1, momentum=0.9, momentum_form="velocity")
    fo.interop.from_optax(other, state)
    np.testing.assert_allclose(other.state[0]["momentum_buffer"], 0.3)


def test_what_does_not_fit_is_refused():
    p = {"w": np.ones(3)}
    opt = fo.optim.SGD(p, lr=0.1, momentum=0.9)
    trace = (TraceState({"w": np.zeros(3)}),)
    adam = (ScaleByAdamState(np.int32(1), {"w": np.zeros(3)}, {"w": np.zeros(3)}),)
    for call, message in [
        (lambda: fo.interop.to_optax(opt, adam), r"ScaleByAdamState has exp_avg, SGD has momentum_buffer"),
        (lambda: fo.interop.from_optax(opt, adam), r"ScaleByAdamState has exp_avg, SGD has momentum_buffer"),
        (
            lambda: fo.interop.from_optax(opt, (TraceState({"w": np.zeros(2)}),)),
            r"\['momentum_buffer'\] has shape \(2,\)|has shape \(2,\)",
        ),
        (lambda: fo.interop.from_optax(opt, (TraceState({"v": np.ones(3)}),)), r"state has no 'w'"),
        (
            lambda: fo.interop.from_optax(opt, (TraceState({"w": [np.ones(3)]}),)),
            r"its parameter is an array",
        ),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
        assert opt.state == {}
    opt.step({"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"not of the parameters' keys \['w'\]"):
        fo.interop.to_optax(opt, (TraceState({"v": np.zeros(3)}),))
    fo.interop.to_optax(opt, trace)
    groups = fo.optim.SGD([{"params": [np.ones(1)]}, {"params": [np.ones(1)]}], momentum=0.9)
    with pytest.raises(ValueError, match=r"no groups of parameters, the optimizer has 2"):
        fo.interop.to_optax(groups, trace)
    two = fo.optim.Adam([np.ones(1), np.ones(1)])
    two.step([np.ones(1), None])
    with pytest.raises(ValueError, match=r"different counts of steps, \[0, 1\]"):
        fo.interop.to_optax(two, adam)
    counts = (adam[0], ScaleByAdamState(np.int32(2), {"w": np.zeros(3)}, {"w": np.zeros(3)}))
    with pytest.raises(ValueError, match=r"different counts of steps, \[1, 2\]"):
        fo.interop.from_optax(fo.optim.Adam({"w": np.ones(3)}), counts)


@pytest.mark.peers
def test_torch_and_back():
    torch = pytest.importorskip("torch")
    p = [np.ones((2, 3)), np.ones(4)]
    opt = fo.optim.NAdam(p, lr=LR)
    opt.step([np.ones((2, 3)), np.full(4, 2.0)])
    saved = fo.interop.to_torch(opt)
    q = [torch.tensor(a, requires_grad=True) for a in p]
    theirs = torch.optim.NAdam(q)
    theirs.load_state_dict(saved)
    for t in range(3):
        opt.step([np.full((2, 3), 1.0 + t), np.full(4, 2.0 - t)])
        q[0].grad, q[1].grad = torch.full((2, 3), 1.0 + t).double(), torch.full((4,), 2.0 - t).double()
        theirs.step()
    for a, b in zip(p, q, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-6)
    heir = fo.optim.NAdam([b.detach().numpy().copy() for b in q])
    fo.interop.from_torch(heir, theirs.state_dict())
    assert heir.param_groups[0]["lr"] == LR
    assert heir.state[1]["step"] == 4
    np.testing.assert_allclose(heir.state[1]["exp_avg"], opt.state[1]["exp_avg"], rtol=1e-12)
    saved["state"][0]["exp_avg"].zero_()  # a copy
    assert opt.state[0]["exp_avg"].all()
