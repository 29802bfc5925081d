"""Runs of compiled steps: batches, schedules, callbacks, interrupts and predictions."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

import fastopt
import fastopt as fo
from cases import SCHEDULERS
from fastopt import nn, optim
from fastopt._stepping import Block
from fastopt.data import DataLoader
from fastopt.optim import lr_scheduler
from program_tools import (
    IN,
    OUT,
    N,
    assert_same,
    batches,
    build,
    data,
    left,
    make,
    seeded,
)

# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"batch_size": 8, "drop_last": True, "epochs": 3},
        {"batch_size": 8, "shuffle": True, "seed": 5, "epochs": 3},
        {"batch_size": 1, "shuffle": True, "seed": 5},
        {"batch_size": N, "epochs": 4},
        {"epochs": 2, "shuffle": True},
        {"batch_size": 1000, "epochs": 2},
    ],
)
@pytest.mark.parametrize("opt", ["Adam", "LBFGS"])
def test_run_takes_the_steps_of_a_loop_over_a_loader(opt, options):
    x, y = data()
    a, b = make(opt), make(opt)
    losses = a.run(x, y, **options)
    fastopt.manual_seed(4)
    loader = DataLoader(x, y, **{"batch_size": None, **{k: v for k, v in options.items() if k != "epochs"}})
    expected = [b(xb, yb) for _ in range(options.get("epochs", 1)) for xb, yb in loader]
    assert losses.dtype == np.float64
    np.testing.assert_array_equal(losses, expected)
    assert_same(left(a), left(b))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stop", [0, 3, 7])
def test_run_of_a_loader_goes_on_where_it_stands(shuffle, stop):
    """Two passes in one run, or some batches of the first by hand and the rest in a run."""
    x, y = data()
    a, b = make(), make()
    whole, part = (DataLoader(x, y, 8, shuffle=shuffle, seed=5) for _ in range(2))
    losses = a.run(whole, epochs=2)
    assert whole.state_dict() == {"seed": 5, "epoch": 2, "batch": 0}
    fastopt.manual_seed(4)
    pairs = iter(part)
    first = [b(*next(pairs)) for _ in range(stop)]
    rest = DataLoader(x, y, 8, shuffle=shuffle)
    rest.load_state_dict(part.state_dict())
    np.testing.assert_array_equal([*first, *b.run(rest, epochs=2)], losses)
    assert rest.state_dict() == whole.state_dict()
    assert_same(left(a), left(b))


def test_run_of_a_loader_refuses_what_the_loader_has():
    x, y = data()
    step = make()
    loader = DataLoader(x, y, 8)
    for options in ({"y": y}, {"batch_size": 8}, {"shuffle": True}, {"seed": 0}, {"drop_last": True}):
        with pytest.raises(TypeError, match="run: x is a DataLoader"):
            step.run(loader, **options)
    with pytest.raises(ValueError, match="run: x is a DataLoader of 1 arrays, expected x and y"):
        step.run(DataLoader(x, batch_size=8))


@pytest.mark.parametrize("kind", ["number", "distribution"])
def test_run_gathers_targets_of_any_width(kind):
    pairs = batches(kind, np.float32, 4)
    x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    loss_fn = nn.MSELoss() if kind == "number" else nn.CrossEntropyLoss()
    a, b = make(loss_fn=loss_fn, dropout=0.0), make(loss_fn=loss_fn, dropout=0.0)
    losses = a.run(x, y, batch_size=9, shuffle=True, seed=2)
    np.testing.assert_array_equal(losses, [b(*p) for p in DataLoader(x, y, 9, shuffle=True, seed=2)])
    assert_same(left(a), left(b))


def test_samples_of_several_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3, IN)).astype(np.float32), rng.standard_normal((20, 3, OUT))
    a, b, c = (make(loss_fn=nn.MSELoss(), dropout=0.0) for _ in range(3))
    losses = a.run(x, y, batch_size=6, shuffle=True, seed=1)
    np.testing.assert_array_equal(losses, [b(*p) for p in DataLoader(x, y, 6, shuffle=True, seed=1)])
    assert a.predict(x).shape == (20, 3, OUT)
    np.testing.assert_array_equal(a.predict(x).reshape(60, OUT), a.predict(x.reshape(60, IN)))
    flat = c(x.reshape(60, IN), y.reshape(60, OUT))
    np.testing.assert_allclose(flat, b.loss_fn(c.model(x), y.astype(np.float32)).item(), rtol=0.5)


def test_batchmean_divides_by_samples():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, IN)).astype(np.float32)
    t = np.full((4, 3, OUT), 1 / OUT, np.float32)
    model = seeded(nn.Sequential(nn.Linear(IN, OUT), nn.LogSoftmax(-1)))
    loss_fn = nn.KLDivLoss("batchmean")
    expected = float(loss_fn(model(x), t))
    step = fastopt.compile(model, loss_fn, optim.SGD(model.parameters(), lr=0.1))
    np.testing.assert_allclose(step(x, t), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4, 2), (6, 8), (6, 2, 2, 2)])
def test_a_model_that_begins_with_flatten_takes_samples_of_any_shape(shape):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, shape, dtype=np.uint8), rng.integers(0, 3, 6)
    model = seeded(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Sequential(nn.Linear(8, 3))))
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=1e-4))
    expected = nn.CrossEntropyLoss()(model(x), y).item()
    np.testing.assert_allclose(step(x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(step.predict(x), model(x).data, rtol=1e-4, atol=1e-4)
    assert len(step.run(x, y, batch_size=4, shuffle=True)) == 2


def test_what_a_loader_takes_is_taken():
    x, y = data()
    results = []
    for a, b in ((x, y), (fastopt.tensor(x), fastopt.tensor(y)), (x.tolist(), y.tolist())):
        step = make()
        results.append([[step(a, b)], step.run(a, b, batch_size=8), *left(step), step.predict(a)])
    step = make()
    wide = np.asfortranarray(x.astype(np.float64))
    results.append(
        [[step(wide, y.astype(np.uint8))], step.run(wide, y, batch_size=8), *left(step), step.predict(wide)]
    )
    for other in results[1:]:
        assert_same(results[0], other)


def test_without_a_batch_size_that_of_compile_counts():
    x, y = data()
    model = build()
    step = fastopt.compile(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters()), batch_size=10)
    assert len(step.run(x, y)) == 6
    assert len(step.run(x, y, batch_size=N)) == 1
    assert len(step.run(x, y, epochs=0)) == 0


def test_weights_of_elements_fit_every_batch():
    x, _ = data()
    t = np.random.default_rng(1).random((N, OUT)).astype(np.float32)
    loss_fn = nn.BCEWithLogitsLoss(weight=np.linspace(0.1, 1, 8)[:, None])
    a, b = make(loss_fn=loss_fn, dropout=0.0), make(loss_fn=loss_fn, dropout=0.0)
    losses = a.run(x, t, batch_size=8, drop_last=True)
    np.testing.assert_array_equal(losses, [b(*p) for p in DataLoader(x, t, 8, drop_last=True)])
    before = left(a)
    with pytest.raises(
        ValueError, match=r"run: weight has shape \(8, 1\), which does not broadcast .* \(5, 5\)"
    ):
        a.run(x, t, batch_size=8)
    assert_same(before, left(a))


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule(name, every):
    x, y = data()
    for row in SCHEDULERS[name]["options"]:
        options = dict(row)
        kind = options.pop("optimizer", "SGD")
        plateau = name == "ReduceLROnPlateau"
        if plateau and every == "step":
            continue
        results = []
        for compiled in (True, False):
            step = make(kind, lr=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))
            scheduler = getattr(lr_scheduler, name)(step.optimizer, **options)
            if compiled:
                losses = step.run(x, y, 8, epochs=4, scheduler=scheduler, scheduler_every=every)
            else:
                losses = []
                for _ in range(4):
                    for xb, yb in DataLoader(x, y, 8):
                        losses.append(step(xb, yb))
                        if every == "step":
                            scheduler.step()
                    if every == "epoch":
                        scheduler.step(*([np.mean(losses[-7:])] if plateau else []))
            group = step.optimizer.param_groups[0]
            results.append([losses, *left(step), scheduler.get_last_lr(), group["lr"], scheduler.last_epoch])
        assert_same(*results)


def test_a_schedule_may_turn_a_rule_into_another():
    x, y = data()
    results = []
    for compiled in (True, False):
        step = make("SGD", lr=0.1, momentum=0.9, dropout=0.0)
        scheduler = lr_scheduler.CyclicLR(step.optimizer, 0.01, 0.3, step_size_up=3, base_momentum=0.0)
        rules = set()
        if compiled:
            losses = step.run(x, y, 8, epochs=4, scheduler=scheduler)
        else:
            losses = []
            for xb, yb in [batch for _ in range(4) for batch in DataLoader(x, y, 8)]:
                losses.append(step(xb, yb))
                rules.add(step.optimizer.rule(step.optimizer.param_groups[0]))
                scheduler.step()
            assert rules == {"sgd", "momentum"}
        results.append([losses, *left(step)])
    assert_same(*results)


def test_schedules_are_checked():
    x, y = data()
    step, other = make(), make()
    before = left(step)
    plateau = lr_scheduler.ReduceLROnPlateau(step.optimizer)
    for options, message in (
        (
            {"scheduler": lr_scheduler.StepLR(other.optimizer, 3)},
            r"scheduler is a StepLR of another optimizer",
        ),
        ({"scheduler": plateau}, r"ReduceLROnPlateau, which needs scheduler_every='epoch'"),
        ({"scheduler_every": "batch"}, r"scheduler_every must be 'step' or 'epoch', got 'batch'"),
        ({"epochs": -1}, r"run: epochs must be at least 0, got -1"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            step.run(x, y, **options)
    assert_same(before, left(step))


# ------------------------------------------------------------------------------- callbacks and interrupts


def test_callback_sees_the_run_and_may_end_it():
    x, y = data()
    step = make()
    seen = []
    losses = step.run(x, y, 8, epochs=3, callback=seen.append)
    assert seen[-1].step == seen[-1].steps == 21
    assert [p.epochs for p in seen] == [3] * len(seen)
    assert [p.step for p in seen] == sorted({p.step for p in seen})
    for end in (7, 14, 21):
        (progress,) = [p for p in seen if p.step == end]
        assert progress.epoch == end // 7
        assert progress.loss == pytest.approx(losses[end - 7 : end].mean())

    ended = make()
    part = ended.run(x, y, 8, epochs=3, callback=lambda p: p.step < 14)
    np.testing.assert_array_equal(part, losses[: len(part)])
    assert len(part) == 14
    assert {float(s["step"]) for s in ended.optimizer.state.values()} == {14.0}


def test_an_error_in_the_callback_leaves_the_steps_taken():
    x, y = data()
    step, twin = make(dropout=0.0), make(dropout=0.0)
    scheduler = lr_scheduler.StepLR(step.optimizer, 5, 0.5)

    def fail(progress):
        if progress.step >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step.run(x, y, 8, epochs=3, scheduler=scheduler, callback=fail)
    twin.run(x, y, 8, epochs=2, scheduler=lr_scheduler.StepLR(twin.optimizer, 5, 0.5))
    assert_same(left(step), left(twin))
    assert step.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"]


def test_an_interrupt_between_steps_keeps_counts_and_schedule_with_the_updates():
    """The schedule runs ahead of a block; an error in it must not leave it or the counts ahead."""
    x, y = data()

    class Failing(lr_scheduler.ExponentialLR):
        fails_at = 100

        def step(self, epoch=None):
            if self.last_epoch + 1 == self.fails_at:
                raise KeyboardInterrupt
            super().step(epoch)

    step, twin = make(dropout=0.0), make(dropout=0.0)
    scheduler = Failing(step.optimizer, 0.99)
    twin_scheduler = Failing(twin.optimizer, 0.99)
    step.run(x, y, 1, epochs=1, scheduler=scheduler)
    twin.run(x, y, 1, epochs=1, scheduler=twin_scheduler)
    with pytest.raises(KeyboardInterrupt):
        step.run(x, y, 1, epochs=1, scheduler=scheduler)
    counts = {float(s["step"]) for s in step.optimizer.state.values()}
    assert len(counts) == 1
    taken = int(counts.pop())
    assert N < taken < 100
    assert scheduler.last_epoch == taken
    for xb, yb in list(DataLoader(x, y, 1))[: taken - N]:
        twin(xb, yb)
        twin_scheduler.step()
    assert_same(left(step)[:5], left(twin)[:5])
    assert step.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"]


def test_a_signal_ends_a_long_run_soon():
    x, y = data()
    step = make()
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        step.run(x, y, 8, epochs=10_000_000)
    timer.join()
    counts = {float(s["step"]) for s in step.optimizer.state.values()}
    assert len(counts) == 1
    twin = make(dropout=0.25)
    taken = int(counts.pop())
    twin.run(x, y, 8, epochs=taken // 7)
    for xb, yb in list(DataLoader(x, y, 8))[: taken % 7]:
        twin(xb, yb)
    assert_same(left(step), left(twin))


def test_two_threads_take_turns():
    x, y = data()
    step = make(dropout=0.0)
    threads = [threading.Thread(target=lambda: step.run(x, y, 8, epochs=40)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    step.sync()
    twin = make(dropout=0.0)
    twin.run(x, y, 8, epochs=80)
    assert_same(left(step), left(twin))


def test_the_gil_is_free_during_a_run():
    x, y = data(n=4000)
    step = make("SGD")
    counted = 0
    done = threading.Event()

    def run():
        step.run(x, y, 4000, epochs=30)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        counted += 1
        time.sleep(0)
    thread.join()
    assert counted > 30


def test_predict_in_a_callback():
    x, y = data()
    step = make()
    outputs = []
    step.run(x, y, 8, epochs=2, callback=lambda p: outputs.append(step.predict(x)))
    np.testing.assert_array_equal(outputs[-1], step.predict(x))


# -------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1025])
def test_predict_is_the_model_in_evaluation_mode(n, isa):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, IN))
    model, exact = build(nn.Softmax), build(nn.Softmax, np.float64)
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
    y = step.predict(x)
    assert y.dtype == np.float32
    assert y.shape == (n, OUT)
    model.eval()
    exact.eval()
    error = np.abs(y - exact(x).data).max()
    plain = np.abs(model(x.astype(np.float32)).data - exact(x).data).max()
    assert error <= 2 * plain + 1e-7
    for size in (1, 3, n, 5000):
        np.testing.assert_allclose(step.predict(x, size), y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_steps_of_any_number_of_rows(n, dtype):
    x, y = data(dtype, n)
    a, b = make(dtype=dtype, dropout=0.0), make(dtype=dtype, dropout=0.0)
    for _ in range(3):
        loss = a(x, y)
        b.optimizer.zero_grad()
        eager = b.loss_fn(b.model(x), y)
        eager.backward()
        b.optimizer.step()
        np.testing.assert_allclose(loss, eager.item(), rtol=1e-5)
    for p, q in zip(left(a), left(b), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)


def test_batches_may_grow_and_shrink():
    a, b = make(dropout=0.0), make(dropout=0.0)
    losses = []
    for n in (3, 40, 1, 17, 53):
        x, y = data(n=n)
        a(x, y)
        b(x, y)
        losses.append(a.predict(x))
        np.testing.assert_array_equal(losses[-1], b.predict(x))
    assert_same(left(a), left(b))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_told_layer_by_layer_from_the_last_and_have_the_same_bits(frozen: bool) -> None:
    fastopt.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(7, 40), nn.ReLU(), nn.Linear(40, 30), nn.Tanh(), nn.LogSoftmax(), nn.Linear(30, 5)
    )
    if frozen:
        model[0].weight.requires_grad_(False)
    optimizer = optim.SGD(list(model.parameters()), lr=0.1)
    stepping = fastopt.compile(model, nn.CrossEntropyLoss(), optimizer)._stepping
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((33, 7)).astype(np.float32), rng.integers(5, size=33)
    block = Block("step", x, y, None, 0, 33, 33, 1, None, None)
    loss, grads = stepping.evaluation(block)()
    expected = [None if g is None else g.copy() for g in grads]
    told: list[int] = []

    def ready(i: int, gradient: np.ndarray) -> None:
        np.testing.assert_array_equal(gradient, expected[i])
        told.append(i)

    for g in grads:
        if g is not None:
            g.fill(np.nan)
    assert stepping.evaluation(block, ready)()[0] == loss
    assert told == ([4, 5, 2, 3, 1] if frozen else [4, 5, 2, 3, 0, 1])


def test_an_exception_of_who_is_told_of_gradients_leaves_the_step() -> None:
    model = nn.Linear(3, 2)
    step = fastopt.compile(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1))
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    block = Block("step", x, y, None, 0, 4, 4, 1, None, None)

    def refuse(i: int, gradient: np.ndarray) -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        step._stepping.evaluation(block, refuse)()
    before = step(x, y)
    assert step(x, y) < before


def test_a_schedule_may_end_at_a_rate_that_no_step_takes():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 3)).astype(np.float32), rng.standard_normal((16, 2)).astype(np.float32)
    weights = []
    for compiled in (True, False):
        fo.manual_seed(0)
        model, loss_fn = fo.nn.Linear(3, 2), fo.nn.MSELoss()
        opt = fo.optim.Ftrl(model.parameters(), lr=0.1)
        schedule = fo.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=4)
        if compiled:
            step = fo.compile(model, loss_fn, opt)
            assert len(step.run(x, y, batch_size=4, epochs=1, scheduler=schedule)) == 4
        else:
            for i in range(0, 16, 4):
                opt.zero_grad()
                loss_fn(model(fo.as_tensor(x[i : i + 4])), y[i : i + 4]).backward()
                opt.step()
                schedule.step()
        assert opt.param_groups[0]["lr"] == 0.0
        weights.append(model.weight.numpy().copy())
    np.testing.assert_allclose(*weights, rtol=1e-5)
