"""The short way of a compiled step over plain arrays: the bits of the long one, and nothing done where that decides."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt import nn, optim
from program_tools import (
    BATCH,
    IN,
    LOSSES,
    OUT,
    assert_same,
    batches,
    data,
    everything,
    left,
    loss_of,
    make,
    seeded,
    snapshot,
)

#: Losses with checks of their own, factors for each element, or probabilities of classes.
LONG = {
    "bce",
    "bce sum",
    "bce_with_logits weights",
    "cross_entropy probabilities",
    "cross_entropy probabilities sum",
}


def plain_model(last=None, dtype=np.float32):
    modules = [nn.Linear(IN, 6), nn.ReLU(), nn.Linear(6, OUT)]
    return seeded(nn.Sequential(*modules, *([] if last is None else [last()])), dtype)


def taken(step, pairs):
    """The losses of the steps, and for each whether it went the short way."""
    results, native = [], type(step._stepping).step_plain
    short = []

    def spy(x, y):
        loss = native(step._stepping, x, y)
        short.append(loss is not None)
        return loss

    step._stepping.step_plain = spy
    for x, y in pairs:
        results.append(step(x, y))
    return results, short


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", LOSSES)
def test_bits_of_the_long_way(case, dtype):
    runs = []
    for layout in ("C", "F"):
        loss_fn, kind, last = loss_of(case, dtype)
        model = plain_model(last, dtype)
        opt = optim.Adam(model.parameters(), lr=1e-2)
        step = fastopt.compile(model, loss_fn, opt)
        pairs = [(np.array(x, order=layout), y) for x, y in batches(kind, dtype, 5)]
        losses, short = taken(step, pairs)
        assert short == [layout == "C" and case not in LONG] * 5
        assert all(state["step"] == 5 for state in opt.state.values())
        runs.append((losses, snapshot(model, opt)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


def test_groups_of_two_rules():
    results = []
    for layout in ("C", "F"):
        model = plain_model()
        first, second, *rest = model.parameters()
        opt = optim.Adam([{"params": [first, second]}, {"params": rest, "amsgrad": True, "lr": 1e-2}])
        step = fastopt.compile(model, nn.CrossEntropyLoss(), opt)
        x, y = data()
        losses, short = taken(step, [(np.array(x, order=layout), y)] * 3)
        assert short == [layout == "C"] * 3
        results.append((losses, everything(model, opt)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


@pytest.mark.parametrize("how", ["dropout", "max_norm", "closure"])
def test_what_goes_the_long_way(how):
    options = {"dropout": {"dropout": 0.5}, "max_norm": {"max_norm": 1.0}, "closure": {"opt": "LBFGS"}}[how]
    step = make(**{"dropout": 0.0, **options})
    _, short = taken(step, [data()])
    assert short == [False]


NOT_PLAIN = {
    "x dtype": lambda x, y: (x.astype(np.float64), y),
    "x list": lambda x, y: (x.tolist(), y),
    "x axes": lambda x, y: (x[:, None], y),
    "x width": lambda x, y: (np.ascontiguousarray(x[:, 1:]), y),
    "no rows": lambda x, y: (x[:0], y[:0]),
    "y length": lambda x, y: (x, y[1:]),
    "y axes": lambda x, y: (x, y[:, None]),
    "y dtype": lambda x, y: (x, y.astype(np.int32)),
    "class": lambda x, y: (x, np.where(np.arange(len(y)) == 7, OUT, y)),
    "negative class": lambda x, y: (x, y - 1),
    "probabilities": lambda x, y: (x, np.eye(OUT, dtype=np.float32)[y]),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_nothing_is_done_where_the_long_way_decides(case):
    model = plain_model()
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters()))
    x, y = data()
    step(x, y)
    before, counts = left(step), step._stepping._native.steps
    assert step._stepping.step_plain(*NOT_PLAIN[case](x, y)) is None
    assert_same(left(step), before)
    assert step._stepping._native.steps == counts
    assert all(state["step"] == 1 for state in step.optimizer.state.values())


def test_a_batch_in_the_memory_of_a_parameter_goes_the_long_way():
    model = nn.Sequential(nn.Linear(BATCH, BATCH))
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters()))
    weight, other = model[0].weight.data, np.zeros((BATCH, BATCH), np.float32)
    assert step._stepping.step_plain(weight, other) is None
    assert step._stepping.step_plain(other, weight) is None
    assert step._stepping.step_plain(other, other) is not None
