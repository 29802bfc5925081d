"""Compiled steps against eager ones: losses, optimizers, layers, bits that do not depend on how it is done."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import fastopt
from cases import ACTIVATIONS, OPTIMIZERS
from fastopt import nn, optim
from fastopt.functional import activation as apply_activation
from fastopt.nn.activations import Activation
from optim_tools import ROWS
from program_tools import (
    BATCH,
    HIDDEN,
    IN,
    LOSSES,
    OUT,
    assert_as_exact,
    assert_same,
    batches,
    build,
    compiled,
    eager,
    everything,
    loss_of,
    optimizer_of,
    seeded,
    snapshot,
    tame,
)
from same_bits import check_threads

STEPS = 20


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_loss_with_every_optimizer(name, row):
    options = OPTIMIZERS[name]["options"][row]
    for case in LOSSES:
        results = []
        for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
            loss_fn, target, last = loss_of(case, dtype)
            model = build(last, dtype)
            opt = optimizer_of(name, model, tame(name, options, case))
            losses = run(model, loss_fn, opt, batches(target, dtype, STEPS))
            results.append((losses, everything(model, opt)))
        (ours, our_arrays), (plain, plain_arrays), (exact, exact_arrays) = results
        assert_as_exact([ours], [plain], [exact], f"losses, {case}")
        assert_as_exact(our_arrays, plain_arrays, exact_arrays, f"arrays, {case}")


@pytest.mark.parametrize("row", range(len(OPTIMIZERS["LBFGS"]["options"])))
def test_every_loss_with_lbfgs(row):
    """In float64, one step of up to 20 iterations: beyond that the search makes much of any rounding."""
    for case in LOSSES:
        results = []
        for run in (compiled, eager):
            loss_fn, target, last = loss_of(case, np.float64)
            model = build(last, np.float64, dropout=0.0)
            opt = optimizer_of("LBFGS", model, OPTIMIZERS["LBFGS"]["options"][row])
            losses = run(model, loss_fn, opt, batches(target, np.float64, 1))
            results.append([np.array(losses), *(p.data for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=case)


@pytest.mark.parametrize("case", LOSSES)
def test_every_loss_in_float64_on_every_level(case, isa):
    results = []
    for run in (compiled, eager):
        loss_fn, target, last = loss_of(case, np.float64)
        model = build(last, np.float64)
        opt = optim.AdamW(model.parameters(), lr=0.01)
        results.append([run(model, loss_fn, opt, batches(target, np.float64)), *everything(model, opt)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", LOSSES)
def test_losses_in_float32_on_every_level(case, isa):
    results = []
    for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
        loss_fn, target, last = loss_of(case, dtype)
        model = build(last, dtype)
        opt = optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
        results.append([run(model, loss_fn, opt, batches(target, dtype)), *everything(model, opt)])
    assert_as_exact(*results, case)


MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}
POSITIONS = {
    "after a linear": lambda act: [nn.Linear(IN, HIDDEN), act, nn.Linear(HIDDEN, OUT)],
    "with dropout": lambda act: [nn.Linear(IN, HIDDEN), act, nn.Dropout(0.4), nn.Linear(HIDDEN, OUT)],
    "after dropout": lambda act: [nn.Linear(IN, HIDDEN), nn.Dropout(0.4), act, nn.Linear(HIDDEN, OUT)],
    "first": lambda act: [act, nn.Linear(IN, OUT)],
    "last": lambda act: [nn.Linear(IN, OUT), act],
    "twice": lambda act: [nn.Linear(IN, HIDDEN), act, nn.Tanh(), act, nn.Linear(HIDDEN, OUT), act],
    "last with dropout": lambda act: [nn.Linear(IN, OUT), act, nn.Dropout(0.2), nn.Dropout(0.1)],
    "after softmax": lambda act: [nn.Linear(IN, OUT), nn.Softmax(-1), act, nn.Linear(OUT, OUT)],
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_in_every_position(name, position):
    for params in ACTIVATIONS[name]:
        results = []
        for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
            act = MODULES[name]()
            for key, value in zip(act.parameters_of_kernel, params, strict=True):
                setattr(act, key, value)
            model = seeded(nn.Sequential(*POSITIONS[position](act)), dtype)
            opt = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            losses = run(model, nn.MSELoss(), opt, batches("number", dtype, 10))
            results.append([losses, *everything(model, opt)])
        assert_as_exact(*results, f"{name} {params}")


def test_the_modules_above_are_all():
    assert set(MODULES) == set(ACTIVATIONS)
    assert {type(make()) for make in MODULES.values()} == set(Activation.__subclasses__())
    x = np.ones(3, np.float32)
    for name, make in MODULES.items():
        np.testing.assert_array_equal(make()(x).data, apply_activation(name, x, make().params))


# --------------------------------------------------------------------------------------------------- bits


def trained(
    opt_name="Adam", options=None, dtype=np.float32, sizes=(IN, 40, 24, OUT), batch=BATCH, **compile_options
):
    """Everything a few compiled steps leave, with a wide enough model that tasks are cut."""
    modules = []
    for a, b in itertools.pairwise(sizes):
        modules += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.3)]
    model = seeded(nn.Sequential(*modules[:-2]), dtype)
    opt = optimizer_of(opt_name, model, options or {})
    rng = np.random.default_rng(5)
    pairs = [
        (rng.standard_normal((batch, sizes[0])).astype(dtype), rng.integers(0, sizes[-1], batch))
        for _ in range(3)
    ]
    losses = compiled(model, nn.CrossEntropyLoss(), opt, pairs, **compile_options)
    return {"losses": losses, **{str(i): a for i, a in enumerate(snapshot(model, opt))}}


@pytest.mark.parametrize("sizes", [(IN, 40, 24, OUT), (300, 257, 130, 11), (1, 3, 1, 2)])
@pytest.mark.parametrize(
    ("name", "row"), [r for r in ROWS if r[1] in (0, 2) and getattr(optim, r[0]).by_element]
)
def test_fused_updates_change_no_bit(name, row, sizes):
    options = {k: v for k, v in OPTIMIZERS[name]["options"][row].items() if k != "max_norm"}
    runs = [trained(name, options, sizes=sizes, fuse_update=fuse) for fuse in (True, False, "auto")]
    for other in runs[1:]:
        for key, value in runs[0].items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_no_bit(threads, fuse, dtype):
    for batch in (1, 64, 130):
        check_threads(
            threads,
            lambda: trained(dtype=dtype, sizes=(300, 257, 530, 11), batch=batch, fuse_update=fuse),  # noqa: B023
        )


def test_batches_of_thousands_change_no_bit(threads):
    """Their tasks are columns of a weight's gradient rather than rows."""
    sizes = (150, 300, 11)
    a = trained(sizes=sizes, batch=2100, fuse_update=True)
    b = trained(sizes=sizes, batch=2100, fuse_update=False)
    assert_same(list(a.values()), list(b.values()))
    check_threads(threads, lambda: trained(sizes=sizes, batch=2100, fuse_update=True))


def dense(*sizes, bias=True):
    modules = [[nn.Linear(a, b, bias=bias), nn.ReLU(), nn.Dropout(0.2)] for a, b in itertools.pairwise(sizes)]
    return list(itertools.chain(*modules))[:-2]


def frozen(modules):
    modules[0].weight.requires_grad = modules[0].bias.requires_grad = False
    return modules


def tied():
    linear = nn.Linear(60, 60)
    return [linear, nn.Tanh(), linear, nn.Linear(60, 12)]


# Networks that tasks take rows through, wholly or from a layer on.
THROUGH = {
    "all layers": lambda: [nn.Dropout(0.1), nn.Tanh(), *dense(60, 96, 40, 12), nn.GELU(), nn.Identity()],
    "no biases": lambda: dense(60, 96, 40, 12, bias=False),
    "after a large layer": lambda: dense(60, 700, 48, 12),
    "after a batch norm": lambda: [nn.Linear(60, 96), nn.BatchNorm1d(96), *dense(96, 80, 12)],
    "up to a batch norm": lambda: [*dense(60, 96, 12), nn.BatchNorm1d(12)],
    "frozen first layer": lambda: frozen(dense(60, 96, 40, 12)),
    "softmax between": lambda: [nn.Linear(60, 96), nn.Softmax(-1), *dense(96, 40, 12), nn.LogSoftmax(-1)],
    "one weight twice": tied,
}


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"samples": 3}])
@pytest.mark.parametrize("network", THROUGH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tasks_that_take_rows_through_layers_change_no_bit(threads, network, dtype, options):
    """Of several threads; on one, layers follow one another. Shuffled, so that tasks gather their rows."""
    precision, samples = options.get("precision"), options.get("samples")
    if precision and dtype == np.float64:
        pytest.skip("for float32 alone")
    if samples and "norm" in network:
        pytest.skip("batch normalisation takes matrices alone")
    rng = np.random.default_rng(6)
    shape = (500,) if samples is None else (170, samples)
    x, y = rng.standard_normal((*shape, 60)).astype(dtype), rng.standard_normal((*shape, 12)).astype(dtype)

    def run():
        model = seeded(nn.Sequential(*THROUGH[network]()), dtype)
        opt = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        step = fastopt.compile(model, nn.MSELoss(), opt, precision=precision)
        fastopt.manual_seed(3)
        losses = step.run(x, y, len(x) // 2 + 7, epochs=2, shuffle=True, seed=1)
        arrays = {str(i): a for i, a in enumerate(snapshot(model, opt))}
        return {"losses": losses, "outputs": step.predict(x), **arrays}

    check_threads(threads, run)


def test_a_row_too_long_for_the_room_is_cut():
    """260 KiB of float64 a row: tasks of a few rows take some columns at a time."""
    sizes = (33003, 14, 3)
    a = trained(sizes=sizes, dtype=np.float64, fuse_update=True)
    b = trained(sizes=sizes, dtype=np.float64, fuse_update=False)
    assert_same(list(a.values()), list(b.values()))


def test_dropout_masks_are_the_eager_ones():
    def model():
        return seeded(
            nn.Sequential(nn.Linear(IN, 8, bias=False), nn.Dropout(0.5), nn.Linear(8, 3), nn.Dropout(0.2))
        )

    x, y = np.eye(BATCH, IN, dtype=np.float32), np.zeros((BATCH, 3), np.float32)
    results = []
    for run in (compiled, eager):
        m = model()
        opt = optim.SGD(m.parameters(), lr=0.1)
        losses = run(m, nn.MSELoss(), opt, [(x, y)] * 5)
        results.append([losses, *everything(m, opt), [fastopt._random.next_dropout()[1]]])
    assert results[0][-1] == results[1][-1] == [10]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(p):
    results = []
    for run in (compiled, eager):
        model = seeded(nn.Sequential(nn.Linear(IN, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3)))
        opt = optim.SGD(model.parameters(), lr=0.1)
        y = np.zeros((BATCH, 3), np.float32)
        losses = run(model, nn.MSELoss(), opt, [(x, y) for x, _ in batches("class", np.float32, 4)])
        results.append([losses, *everything(model, opt)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_evaluation_mode_turns_dropout_off():
    model = build()
    model.eval()
    opt = optim.SGD(model.parameters(), lr=0.0)
    x, y = batches("class", np.float32, 1)[0]
    step = fastopt.compile(model, nn.CrossEntropyLoss(), opt)
    off = step(x, y)
    assert off == step(x, y)
    np.testing.assert_allclose(off, float(nn.CrossEntropyLoss()(model(x), y)), rtol=1e-5)
    model.train()
    assert step(x, y) != off
    model[2].eval()
    assert step(x, y) == off


# ------------------------------------------------------------------------------------ optimizers' settings


def test_groups_of_several_rules_with_frozen_and_missing_parameters():
    results = []
    for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
        model = build(dtype=dtype)
        a, b, c, d, e = model.parameters()
        d.requires_grad = False
        groups = [
            {"params": [b, d], "weight_decay": 0.1, "decoupled_weight_decay": True},
            {"params": [c], "amsgrad": True, "ema_decay": 0.9},
            {"params": [e], "lr": 0.05, "maximize": True, "clip_value": 0.01},
        ]
        opt = optim.Adam(groups, lr=0.01)
        frozen = [a.data.copy(), d.data.copy()]
        losses = run(model, nn.CrossEntropyLoss(), opt, batches("class", dtype))
        assert_same([a.data, d.data], frozen)
        assert set(opt.state) == {0, 2, 3}
        results.append([losses, *everything(model, opt)])
    assert_as_exact(*results, "groups")


def test_max_norm_over_several_rules():
    results = []
    for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
        model = build(dtype=dtype)
        first, *rest = model.parameters()
        opt = optim.Adam([{"params": [first], "amsgrad": True}, {"params": rest}], lr=0.01, max_norm=0.3)
        norms = []
        step = fastopt.compile(model, nn.CrossEntropyLoss(), opt) if run is compiled else None
        fastopt.manual_seed(2)
        for x, y in batches("class", dtype):
            if step is not None:
                step(x, y)
            else:
                opt.zero_grad()
                nn.CrossEntropyLoss()(model(x), y).backward()
                opt.step()
            norms.append(opt.grad_norm)
        results.append([norms, *everything(model, opt)])
    assert_as_exact(*results, "max_norm")
    assert min(results[0][0]) > 0.3


def test_settings_of_the_optimizer_may_change_between_steps():
    results = []
    for dtype, fast in ((np.float32, True), (np.float32, False), (np.float64, False)):
        model = build(dtype=dtype, dropout=0.0)
        opt = optim.SGD(model.parameters(), lr=0.1)
        step = fastopt.compile(model, nn.CrossEntropyLoss(), opt) if fast else None
        for k, (x, y) in enumerate(batches("class", dtype, 12)):
            if k == 3:
                opt.param_groups[0].update(lr=0.05, momentum=0.9)
            if k == 6:
                opt.max_norm = 0.2
            if k == 8:
                opt.param_groups[0].update(momentum=0.0)
                opt.max_norm = None
            if k == 9:
                model[0].weight.requires_grad = False
            if step is not None:
                step(x, y)
            else:
                eager(model, nn.CrossEntropyLoss(), opt, [(x, y)])
        results.append([p.data for p in model.parameters()])
    assert_as_exact(*results, "settings")


def test_eager_and_compiled_steps_mix_and_state_is_the_eager_one():
    results, counts = [], []
    for pattern in ("cececcee", "eeeeeeee"):
        model = build(dropout=0.0)
        opt = optim.NAdam(model.parameters(), lr=0.01, ema_decay=0.9)
        step = fastopt.compile(model, nn.CrossEntropyLoss(), opt)
        for kind, (x, y) in zip(pattern, batches("class", np.float32, 8), strict=True):
            if kind == "c":
                step(x, y)
            else:
                eager(model, nn.CrossEntropyLoss(), opt, [(x, y)])
        results.append(everything(model, opt))
        saved = opt.state_dict()
        counts.append([float(entry["step"]) for entry in saved["state"].values()])
        json.dumps(saved["param_groups"])
    assert counts[0] == counts[1] == [8.0] * 5
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_saved_state_continues_bit_by_bit():
    pairs = batches("class", np.float32, 8)
    model = build(dropout=0.0)
    opt = optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    compiled(model, nn.CrossEntropyLoss(), opt, pairs[:4])
    copy = build(dropout=0.0)
    copied = optim.Adam(copy.parameters(), lr=0.5)
    step = fastopt.compile(copy, nn.CrossEntropyLoss(), copied)
    step(*pairs[7])
    copy.load_state_dict(model.state_dict())
    copied.load_state_dict(opt.state_dict())
    a = compiled(model, nn.CrossEntropyLoss(), opt, pairs[4:])
    assert [step(x, y) for x, y in pairs[4:]] == a
    assert_same(everything(model, opt), everything(copy, copied))


def test_averages_swapped_in_are_predicted_with_and_not_trained():
    model = build(dropout=0.0)
    opt = optim.Adam(model.parameters(), lr=0.1, ema_decay=0.5)
    x, y = batches("class", np.float32, 1)[0]
    step = fastopt.compile(model, nn.CrossEntropyLoss(), opt)
    start = [p.data.copy() for p in model.parameters()]
    step(x, y)
    after = step.predict(x)
    with opt.swap_ema():
        for p, s, w in zip(model.parameters(), start, opt.state.values(), strict=True):
            np.testing.assert_array_equal(p.data, w["ema"])
            assert not np.array_equal(p.data, s)
        averaged = step.predict(x)
        with pytest.raises(RuntimeError, match=r"step: the parameters hold their averages"):
            step(x, y)
    assert not np.array_equal(after, averaged)
    np.testing.assert_array_equal(after, step.predict(x))


@pytest.mark.parametrize("fuse", ["auto", False])
def test_freezing_thawing_and_adding_groups_between_steps(fuse):
    results, counts = [], []
    for dtype, fast in ((np.float32, True), (np.float32, False), (np.float64, False)):
        model = build(dtype=dtype, dropout=0.0)
        first, *rest = model.parameters()
        opt = optim.Adam(rest, lr=0.01)
        step = fastopt.compile(model, nn.CrossEntropyLoss(), opt, fuse_update=fuse) if fast else None
        for k, (x, y) in enumerate(batches("class", dtype, 12)):
            if k == 4:
                opt.add_param_group({"params": [first], "amsgrad": True})
            rest[1].requires_grad = not 2 <= k < 7
            if step is not None:
                step(x, y)
            else:
                eager(model, nn.CrossEntropyLoss(), opt, [(x, y)])
        results.append([p.data for p in model.parameters()])
        counts.append([float(entry["step"]) for _, entry in sorted(opt.state.items())])
    assert counts[0] == counts[1] == [12.0, 7.0, 12.0, 12.0, 8.0]
    assert_as_exact(*results, "groups")


def test_tied_weights_add_their_gradients():
    results = []
    for run, dtype in ((compiled, np.float32), (eager, np.float32), (eager, np.float64)):
        first, other = nn.Linear(IN, IN), nn.Linear(IN, OUT)
        second = nn.Linear(IN, IN)
        second.weight = first.weight
        model = seeded(nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), first, other), dtype)
        opt = optim.Adam(model.parameters(), lr=0.01)
        losses = run(model, nn.CrossEntropyLoss(), opt, batches("class", dtype))
        results.append([losses, *everything(model, opt)])
    assert_as_exact(*results, "tied")


def test_parameters_of_another_array_are_followed():
    model = build(dropout=0.0)
    opt = optim.SGD(model.parameters(), lr=0.1)
    step = fastopt.compile(model, nn.CrossEntropyLoss(), opt)
    x, y = batches("class", np.float32, 1)[0]
    first = step(x, y)
    seeded(model)
    for p in model.parameters():
        p.data = p.data.copy()
    assert step(x, y) == first
    np.testing.assert_allclose(step.predict(x), model(x).data, rtol=1e-5, atol=1e-6)


def test_an_optimizer_with_a_step_of_its_own_is_given_a_closure():
    class Own(optim.Optimizer):
        ranges = {}  # noqa: RUF012

        def step(self, closure):
            loss, grads = closure()
            self.seen = grads
            for p, g in zip(self.param_groups[0]["params"], grads, strict=True):
                if g is not None:
                    p.data -= 0.1 * g
            return loss

    a, b = build(dropout=0.0), build(dropout=0.0)
    a[0].bias.requires_grad = b[0].bias.requires_grad = False
    own = Own(a.parameters(), {})
    pairs = batches("class", np.float32, 4)
    ours = compiled(a, nn.CrossEntropyLoss(), own, pairs)
    theirs = compiled(b, nn.CrossEntropyLoss(), optim.SGD(b.parameters(), lr=0.1), pairs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert own.seen[1] is None
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-5, atol=1e-7)


def test_bfloat16_products_round_as_said():
    results = {}
    for precision in (None, "bf16"):
        model = build(dropout=0.0)
        opt = optim.SGD(model.parameters(), lr=0.1)
        results[precision] = compiled(
            model, nn.CrossEntropyLoss(), opt, batches("class", np.float32, 5), precision=precision
        )
    np.testing.assert_allclose(results["bf16"], results[None], rtol=0.02)
