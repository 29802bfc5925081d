"""What compiled steps refuse, with nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

import fastopt
from fastopt import nn, optim
from program_tools import (
    BATCH,
    IN,
    OUT,
    N,
    assert_same,
    build,
    data,
    everything,
    left,
    loss_of,
    make,
    seeded,
)


class Residual(nn.Module):
    def __init__(self):
        self.inner = nn.Linear(IN, IN)

    def forward(self, x):
        return x + self.inner(x)


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_models_that_cannot_be_compiled():
    def refuse(model, message, error=TypeError, loss_fn=None, opt=None, **options):
        params = list(model.parameters()) if isinstance(model, nn.Module) else []
        opt = opt or optim.SGD(params or [np.zeros(2)], lr=0.1)
        with pytest.raises(error, match=message):
            fastopt.compile(model, loss_fn or nn.MSELoss(), opt, **options)

    good = nn.Sequential(nn.Linear(IN, OUT))
    refuse(Residual(), r"compile: the model \(Residual\) cannot be compiled: expected a Sequential of")
    refuse(nn.Sequential(nn.ReLU(), nn.Sequential(Residual())), r"module '1\.0' \(Residual\) cannot be")
    refuse(nn.Sequential(nn.Linear(3, IN), Doubled(IN, OUT)), r"module '1' \(Doubled\) cannot be compiled")
    refuse(nn.Sequential(nn.Linear(2, 2), nn.MSELoss()), r"module '1' \(MSELoss\) cannot be compiled")
    refuse(nn.Sequential(nn.ReLU()), r"the model has no parameters", ValueError)
    refuse(
        nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)),
        r"module '1' takes 3 features, .* gives 4",
        ValueError,
    )
    refuse(
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(0)),
        r"module '1' \(Softmax\) has dim 0, .* -1 or 1",
        ValueError,
    )
    refuse(
        nn.Sequential(nn.Flatten(0), nn.Linear(3, 4)), r"module '0' \(Flatten\) has .*start_dim=0", ValueError
    )
    refuse(nn.Linear(3, 4).half(), r"compile: weight is float16, expected float32 or float64")
    mixed = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5, dtype=np.float64))
    refuse(mixed, r"1\.weight is float64, 0\.weight is float32")
    turned = nn.Linear(3, 4)
    turned.weight = nn.Parameter(np.asfortranarray(turned.weight.data))
    refuse(turned, r"compile: weight is not a writable C-contiguous array", ValueError)
    refuse(lambda x: x, r"model is function, expected a Module")
    refuse(good, r"loss_fn is function, expected one of BCELoss, ", loss_fn=lambda x, y: x)
    refuse(good, r"loss_fn has reduction 'none', a step needs one number", ValueError, nn.MSELoss("none"))
    refuse(
        good,
        r"weight has shape \(3,\), the model gives 5 classes",
        ValueError,
        nn.CrossEntropyLoss(weight=np.ones(3)),
    )
    extra = np.zeros(3, np.float32)
    refuse(
        good,
        r"the optimizer's params\[2\] is not a parameter of the model",
        ValueError,
        opt=optim.SGD([*good.parameters(), extra]),
    )
    refuse(good, r"optimizer is object, expected a fastopt optimizer", opt=object())
    frozen = nn.Sequential(nn.Linear(IN, OUT)).requires_grad_(False)
    refuse(frozen, r"no parameter of the optimizer requires grad", ValueError)
    params = list(good.parameters())
    refuse(
        good,
        r"fuse_update is True, but max_norm needs",
        ValueError,
        opt=optim.SGD(params, max_norm=1.0),
        fuse_update=True,
    )
    refuse(
        good,
        r"fuse_update is True, but LBFGS is no rule",
        ValueError,
        opt=optim.LBFGS(params),
        fuse_update=True,
    )
    refuse(good, r"fuse_update must be True, False or 'auto', got 'never'", ValueError, fuse_update="never")
    refuse(good, r"precision must be None or 'bf16', got 'fp8'", ValueError, precision="fp8")
    refuse(nn.Linear(2, 2, dtype=np.float64), r"precision 'bf16' is for float32", precision="bf16")
    refuse(good, r"batch_size must be at least 1, got 0", ValueError, batch_size=0)


def test_data_that_does_not_fit_changes_nothing():
    x, y = data()
    step = make("SGD", momentum=0.9)
    step(x, y)
    state, before = fastopt.get_rng_state(), left(step)
    bad = y.copy()
    bad[3] = 12
    for a, b, message, error in (
        (x[:, :6], y, r"x has shape \(53, 6\), the model takes \(\.\.\., 7\)", ValueError),
        (x[0], y[0], r"x has shape \(7,\), the model takes \(\.\.\., 7\)", ValueError),
        (x[:0], y[:0], r"x has shape \(0, 7\), expected at least one row", ValueError),
        (x.astype(complex), y, r"x is complex128, expected real numbers", TypeError),
        (x[:, None], y[:, None], r"x has shape \(53, 1, 7\), a loss of classes takes \(n, 7\)", ValueError),
        (x, y[:-1], r"target has shape \(52,\), expected one class for each row, \(53,\)", ValueError),
        (x, y[:, None], r"target has shape \(53, 1\), expected one class for each row", ValueError),
        (x, x, r"target has shape \(53, 7\), the model's output has shape \(53, 5\)", ValueError),
        (x, y > 1, r"target is bool, expected", TypeError),
        (x, bad, r"target\[3\] is 12, input has 5 classes", ValueError),
        (x, -y, r"target\[\d+\] is -\d, input has 5 classes", ValueError),
    ):
        for call, name in ((step, "step"), (lambda p, q: step.run(p, q, 8, shuffle=True), "run")):
            with pytest.raises(error, match=f"{name}: {message}"):
                call(a, b)
    with pytest.raises(ValueError, match=r"predict: x has shape \(53, 6\), the model takes"):
        step.predict(x[:, :6])
    with pytest.raises(ValueError, match=r"predict: batch_size must be at least 1, got 0"):
        step.predict(x, 0)
    assert_same(before, left(step))
    assert fastopt.get_rng_state() == state


def test_targets_of_other_losses_are_checked():
    x, _ = data()
    step = fastopt.compile(
        m := seeded(nn.Sequential(nn.Linear(IN, OUT), nn.LogSoftmax())),
        nn.NLLLoss(),
        optim.SGD(m.parameters()),
    )
    with pytest.raises(TypeError, match=r"step: target is float32, expected classes \(integers\)"):
        step(x, np.zeros((N, OUT), np.float32))
    step = fastopt.compile(m := build(nn.Sigmoid), nn.BCELoss(), optim.SGD(m.parameters()))
    t = np.zeros((N, OUT), np.float32)
    t[4, 2] = 1.5
    before = [p.data.copy() for p in m.parameters()]
    with pytest.raises(ValueError, match=r"step: target\[4, 2\] is 1\.5, expected a probability in \[0, 1\]"):
        step(x, t)
    assert_same(before, [p.data for p in m.parameters()])
    step = fastopt.compile(m := build(), nn.CrossEntropyLoss(ignore_index=0), optim.SGD(m.parameters()))
    with pytest.raises(
        ValueError, match=r"step: ignore_index is 0, target has probabilities and not classes"
    ):
        step(x, np.full((N, OUT), 0.2))
    step = fastopt.compile(
        m := seeded(nn.Sequential(nn.Linear(IN, OUT), nn.Softmax(1))), nn.MSELoss(), optim.SGD(m.parameters())
    )
    with pytest.raises(ValueError, match=r"takes \(n, 7\): module '1' \(Softmax\) has dim 1"):
        step(np.zeros((2, 3, IN)), np.zeros((2, 3, OUT)))


def test_an_output_that_is_no_probability_ends_the_run_there():
    x, _ = data()
    t = np.ones((N, OUT), np.float32)
    model = seeded(nn.Sequential(nn.Linear(IN, OUT)))
    step = fastopt.compile(model, nn.BCELoss(), optim.SGD(model.parameters()))
    before = [p.data.copy() for p in model.parameters()]
    with pytest.raises(
        ValueError, match=r"run: output\[\d+, \d\] of the model is .*, expected a probability"
    ):
        step.run(x, t, 8)
    assert_same(before, [p.data for p in model.parameters()])


def test_data_in_the_memory_of_a_parameter_is_refused():
    model = seeded(nn.Sequential(nn.Linear(IN, IN)))
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
    w = model[0].weight.data
    with pytest.raises(ValueError, match=r"step: x overlaps weight\[0\] in memory; pass a copy"):
        step(w, w.copy())


def test_functions_are_losses_with_their_defaults():
    x, y = data()
    a, b = make(dropout=0.0), make(loss_fn=fastopt.functional.cross_entropy, dropout=0.0)
    assert a(x, y) == b(x, y)


def test_loss_settings_reach_the_kernels():
    x, y = data()
    loss_fn, _, _ = loss_of("cross_entropy smoothing")
    step = make(loss_fn=loss_fn, dropout=0.0)
    expected = loss_fn(step.model(x), y).item()
    np.testing.assert_allclose(step(x, y), expected, rtol=1e-5)
    assert repr(step) == "CompiledStep(CrossEntropyLoss, Adam, 7 -> 5, float32)"
    assert len(everything(step.model, step.optimizer)) == 5 + 3 * 5
    assert BATCH == 13
