"""Compiled steps of models with batch normalisation: the eager steps' bits, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import _core, nn, optim
from program_tools import BATCH, IN, OUT, assert_same, batches, compiled, data, eager

#: What the model's second normalisation has away from its defaults, and whether there is one before all layers.
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, False),
    "first": ({}, True),
    "momentum": ({"momentum": 0.6, "eps": 0.1}, False),
    "cumulative": ({"momentum": None}, False),
    "no weights": ({"affine": False}, True),
    "untracked": ({"track_running_stats": False}, False),
}


def build(kind: str = "plain", dtype: Any = np.float32) -> nn.Sequential:
    """Normalisations before and after activations, beside dropout, one above the other, and last."""
    options, first = MODELS[kind]
    fastopt.manual_seed(5)
    return nn.Sequential(
        *([nn.BatchNorm1d(IN)] if first else []),
        nn.Linear(IN, 9),
        nn.BatchNorm1d(9, **options),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(9, 8, bias=False),
        nn.SiLU(),
        nn.BatchNorm1d(8),
        nn.BatchNorm1d(8, momentum=0.3),
        nn.Linear(8, OUT),
        nn.BatchNorm1d(OUT),
    ).to(np.dtype(dtype))


def numbers(model: nn.Module) -> list[np.ndarray]:
    return [value.data.copy() for value in model.state_dict().values()]


def both(model_kind: str, opt: str, dtype: Any = np.float32, **options: Any) -> list[Any]:
    """Losses, numbers and outputs of eager and compiled steps."""
    found = []
    pairs = batches("class", dtype, count=6)
    for train in (eager, compiled):
        model = build(model_kind, dtype)
        optimizer = getattr(optim, opt)(model.parameters(), **{"lr": 0.01, **options})
        losses = train(model, nn.CrossEntropyLoss(), optimizer, pairs)
        found.append((losses, numbers(model), model.eval()(pairs[0][0]).data))
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("opt", "options"), [("SGD", {}), ("AdamW", {"max_norm": 0.5}), ("Adam", {})])
def test_steps_are_the_eager_ones(isa: str, kind: str, opt: str, options: dict[str, Any]) -> None:
    (a, before, y), (b, after, z) = both(kind, opt, **options)
    assert a == b
    assert_same(before, after)
    np.testing.assert_array_equal(y, z)


def test_steps_in_float64(isa: str) -> None:
    (a, before, y), (b, after, z) = both("first", "Adam", np.float64)
    assert a == b
    assert_same(before, after)
    np.testing.assert_array_equal(y, z)


@pytest.mark.parametrize("fuse", [True, False])
def test_runs_are_steps_one_by_one_for_any_number_of_threads(threads: Any, fuse: bool) -> None:
    x, y = data(n=50)
    reference: list[np.ndarray] | None = None
    for n in (1, 2, 3):
        threads(n)
        model = build()
        step = fastopt.compile(
            model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=0.01), fuse_update=fuse
        )
        fastopt.manual_seed(4)
        step.run(x, y, batch_size=BATCH, epochs=2)
        reference = reference or numbers(model)
        assert_same(reference, numbers(model))
    model = build()
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=0.01))
    fastopt.manual_seed(4)
    for _ in range(2):
        for at in range(0, len(x), BATCH):
            step(x[at : at + BATCH], y[at : at + BATCH])
    assert_same(reference, numbers(model))


def test_evaluation_uses_running_statistics_and_leaves_them() -> None:
    x, y = data(n=50)
    model = build()
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.01))
    step.run(x, y, batch_size=BATCH)
    before = numbers(model)
    predicted = step.predict(x)
    assert_same(before, numbers(model))
    np.testing.assert_array_equal(predicted, step.predict(x, batch_size=1))
    model.eval()
    np.testing.assert_array_equal(predicted, model(x).data)
    # Steps of a model in evaluation mode train against constant statistics.
    twin = build()
    twin.load_state_dict(model.state_dict())
    twin.eval()
    loss = step(x[:1], y[:1])  # of one row too
    opt = optim.SGD(twin.parameters(), lr=0.01)
    eager_loss = nn.CrossEntropyLoss()(twin(x[:1]), y[:1])
    eager_loss.backward()
    opt.step()
    assert loss == float(eager_loss)
    assert_same(numbers(model), numbers(twin))
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_a_model_without_running_statistics_predicts_with_those_of_all_rows() -> None:
    x, _ = data()
    model = build("untracked")
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.01))
    many = np.tile(x, (50, 1))
    np.testing.assert_array_equal(step.predict(many, batch_size=7), model.eval()(many).data)


def test_frozen_normalisations_and_moved_statistics_are_noticed() -> None:
    x, y = data()
    found = []
    for is_compiled in (False, True):
        model = build()
        opt = optim.Adam(model.parameters(), lr=0.01)
        loss_fn = nn.CrossEntropyLoss()
        step = fastopt.compile(model, loss_fn, opt) if is_compiled else None
        fastopt.manual_seed(2)
        for k in range(4):
            if k == 1:
                model[1].requires_grad_(False)
                for p in model[1].parameters():
                    p.grad = None
            if k == 2:
                model[1].running_mean = model[1].running_mean.data + 1
            if k == 3:
                model[6].eval()
            rows = slice(k * BATCH, (k + 1) * BATCH)
            if step is not None:
                step(x[rows], y[rows])
                continue
            for p in model.parameters():
                p.grad = None
            loss_fn(model(x[rows]), y[rows]).backward()
            opt.step()
        found.append(numbers(model))
    assert_same(*found)


def test_lbfgs_evaluates_in_training_mode() -> None:
    (a, before, _), (b, after, _) = both("plain", "LBFGS", max_iter=3)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for p, q in zip(before, after, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-3, atol=1e-5)


def test_a_loss_that_stops_a_step_has_changed_nothing() -> None:
    x, _ = data()
    model = nn.Sequential(nn.Linear(IN, 2), nn.BatchNorm1d(2))  # its outputs are no probabilities
    step = fastopt.compile(model, nn.BCELoss(), optim.SGD(model.parameters(), lr=0.1))
    before = numbers(model)
    with pytest.raises(ValueError, match="expected a probability"):
        step(x[:BATCH], np.zeros((BATCH, 2), np.float32))
    assert_same(before, numbers(model))


def test_batches_of_one_row_are_refused_before_the_first_step() -> None:
    x, y = data()
    model = build()
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.01))
    before = numbers(model)
    for call in (
        lambda: step(x[:1], y[:1]),
        lambda: step.run(x[:27], y[:27], batch_size=BATCH),  # 13, 13 and 1
        lambda: step.run(x, y, batch_size=1),
    ):
        with pytest.raises(ValueError, match="a batch has 1 row, batch normalisation needs more in training"):
            call()
    assert_same(before, numbers(model))
    step.run(x[:27], y[:27], batch_size=BATCH, drop_last=True)


def test_models_that_cannot_be_compiled() -> None:
    def refuse(model: nn.Module, message: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))

    norm = nn.BatchNorm1d(4)
    refuse(nn.Sequential(nn.Linear(3, 4), norm, norm), r"module '2' \(BatchNorm1d\) is there twice")
    refuse(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5)),
        "module '1' takes 5 features, the one before gives 4",
    )
    mixed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, dtype=np.float64))
    refuse(mixed, r"1\.weight is float64, 0\.weight is float32", TypeError)
    odd = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    odd[1].running_var = np.ones(4)
    refuse(odd, r"1\.running_var is float64, 0\.weight is float32", TypeError)
    odd[1].running_var = np.ones(8, np.float32)[::2]
    refuse(odd, r"1\.running_var is not a writable C-contiguous array")
    odd[1].running_var = np.ones(5, np.float32)
    refuse(odd, r"1\.running_var has shape \(5,\), expected \(4,\)")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(
        ValueError, match=r"the model takes \(n, 3\): module '1' \(BatchNorm1d\) has its channels"
    ):
        step(np.zeros((2, 5, 3), np.float32), np.zeros((2, 5, 4), np.float32))


def test_the_native_program_checks_what_it_is_given() -> None:
    w, g, b = np.ones((3, 2), np.float32), np.ones(3, np.float32), np.zeros(3, np.float32)
    loss = ("mse", (), "mean", None, -100, 0.0)
    linear = ("linear", 2, 3, (w, None, -1, -1, 0), None, "", (), False, None)

    def program(norm: Any, weight: Any = g) -> Any:
        parameter = None if weight is None else (weight, None, -1, -1, 0)
        layer = ("batch_norm", 3, 3, parameter, (b, None, -1, -1, 0), "", (), False, norm)
        return _core.Program("float32", False, [linear, layer], loss, [])

    mean, var, count = np.zeros(3, np.float32), np.ones(3, np.float32), np.zeros((), np.int64)
    program((1e-5, 0.1, mean, var, count)).reserve(4)
    program((1e-5, 0.1, None, None, None), None)
    for norm, message in (
        (None, "has no weight, or one too many"),
        ((1e-5, 0.1, np.zeros(4, np.float32), var, count), r"running_mean\[1\] is float32 of shape \(4,\)"),
        ((1e-5, 0.1, mean, np.ones(3), count), r"running_var\[1\] is float64 of shape \(3,\)"),
        ((1e-5, 0.1, mean, var, np.zeros(2, np.int64)), "num_batches_tracked is not one int64"),
        ((1e-5, 0.1, mean, var, np.zeros((), np.int32)), "num_batches_tracked is not one int64"),
        ((1e-5, 0.1, mean, mean, count), "overlaps"),
    ):
        with pytest.raises(ValueError, match=message):
            program(norm)
    with pytest.raises(ValueError, match=r"weight\[1\] is float32 of shape \(2,\)"):
        program((1e-5, 0.1, mean, var, count), g[:2])
