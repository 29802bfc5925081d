"""The optimizers: rules against the references and torch, structures, layouts, refusals, state."""

from __future__ import annotations

import copy
import pickle
import re
from functools import cache

import numpy as np
import pytest
from cases import OPTIMIZERS
from conftest import SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_optim import Run, run

import fastopt
from fastopt import _core, optim

STEPS = 50
RULES = [name for name in OPTIMIZERS if name != "LBFGS"]
ROWS = [(name, row) for name in RULES for row in range(len(OPTIMIZERS[name]["options"]))]


def make(name, params, options=None):
    return getattr(optim, name)(params, **(options or {}))


@cache
def problem(dtype: str) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters of every size and the gradients of each step."""
    rng = np.random.default_rng(7)
    # NumPy is slow in float16 and bfloat16; one chunk's end is enough there.
    sizes = SIZES if dtype in ("float32", "float64") else [*SIZES[:-1], 20011]
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    drift = [0.3 * rng.standard_normal(n) for n in sizes]
    steps = [[(d + rng.standard_normal(d.size)).astype(dtype) for d in drift] for _ in range(STEPS)]
    return params, steps


@cache
def references(name: str, row: int, dtype: str, steps: int) -> tuple[Run, Run]:
    """The oracle's run, in a wider dtype, and the plain baseline's."""
    params, grads = problem(dtype)
    options = OPTIMIZERS[name]["options"][row]
    wide = np.dtype(dtype) in (np.float32, np.float64)
    exact = run(name, params, grads[:steps], options, np.longdouble if dtype == "float64" else np.float64)
    plain = run(name, params, grads[:steps], options, dtype if wide else np.float32, dtype)
    return exact, plain


def ulp(dtype) -> float:
    if np.dtype(dtype) in (np.float16, np.float32, np.float64):
        return float(np.finfo(dtype).eps)
    return 2.0**-7  # bfloat16


def joined(arrays):
    return np.concatenate([np.asarray(a, np.longdouble).ravel() for a in arrays])


def assert_close(ours, exact, plain, dtype, what):
    """The largest error against the oracle is at most twice the plain baseline's and a few ulp.

    The arrays of all sizes are taken together: a single element's error says little about the arithmetic.
    """
    ours, exact, plain = joined(ours), joined(exact), joined(plain)
    error = np.max(np.abs(ours - exact))
    allowed = 2 * np.max(np.abs(plain - exact)) + 4 * ulp(dtype) * np.max(np.abs(exact))
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


def assert_matches(opt, params, exact: Run, plain: Run, dtype):
    assert all(p.dtype == dtype for p in params)
    assert_close(params, exact.params, plain.params, dtype, "params")
    state_dtype = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
    entries = [opt.state.get(i, {}) for i in range(len(params))]
    rule = _core.rules()[opt.rule(opt.param_groups[0])]
    for key in rule["states"]:
        ours = [entry[key] for entry in entries]
        assert {a.dtype for a in ours} == {state_dtype}
        assert_close(ours, [s[key] for s in exact.states], [s[key] for s in plain.states], state_dtype, key)
    if opt.param_groups[0]["ema_decay"] is not None:
        assert_close([entry["ema"] for entry in entries], exact.emas, plain.emas, dtype, "ema")


# ------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_rule_matches_reference(name, row, dtype, isa):
    start, grads = problem(dtype.name)
    params = [p.copy() for p in start]
    opt = make(name, params, OPTIMIZERS[name]["options"][row])
    for t, g in enumerate(grads, 1):
        assert opt.step(g) is None
        if t in (1, STEPS):
            assert_matches(opt, params, *references(name, row, dtype.name, t), dtype)
    assert all(np.array_equal(a, b) for a, b in zip(grads[0], problem(dtype.name)[1][0], strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "row"), ROWS)
def test_low_precision_parameters(name, row, dtype):
    pytest.importorskip("ml_dtypes")
    start, grads = problem(dtype)
    params = [p.copy() for p in start]
    opt = make(name, params, OPTIMIZERS[name]["options"][row])
    for t, g in enumerate(grads[:10], 1):
        opt.step(g)
        if t in (1, 10):
            assert_matches(opt, params, *references(name, row, dtype, t), dtype)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_threads_change_no_bit(name, row, threads):
    start, grads = problem("float32")
    results = []
    for n in (1, 2):
        threads(n)
        params = [p.copy() for p in start]
        opt = make(name, params, OPTIMIZERS[name]["options"][row])
        for g in grads[:3]:
            opt.step(g)
        results.append([*params, *(a for s in opt.state.values() for a in s.values())])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_row(name):
    rules = {make(name, [np.zeros(1)], row).rule({**make(name, [np.zeros(1)], row).param_groups[0]})
             for row in OPTIMIZERS[name]["options"]}
    assert rules <= _core.rules().keys()


def test_every_native_rule_is_used():
    used = set()
    for name, row in ROWS:
        opt = make(name, [np.zeros(1)], OPTIMIZERS[name]["options"][row])
        used.add(opt.rule(opt.param_groups[0]))
    assert used == set(_core.rules())


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_coefficients_fit_the_rule(name, row):
    opt = make(name, [np.zeros(1)], OPTIMIZERS[name]["options"][row])
    group = opt.param_groups[0]
    s = {**opt.scalars, "step": 1}
    assert len(opt.coefficients(group, s)) == 1 + len(_core.rules()[opt.rule(group)]["coefs"])


@pytest.mark.parametrize("name", RULES)
def test_velocity_keeps_the_rate_of_each_step(name):
    if name != "SGD":
        pytest.skip("momentum forms belong to SGD")
    p, q = np.ones(3), np.ones(3)
    a = optim.SGD([p], lr=0.1, momentum=0.9, momentum_form="velocity")
    b = optim.SGD([q], lr=0.1, momentum=0.9)
    for lr in (0.1, 0.01):
        a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = lr
        a.step([np.ones(3)])
        b.step([np.ones(3)])
    np.testing.assert_allclose(p, 1 - 0.1 - (0.9 * 0.1 + 0.01), rtol=1e-12)
    np.testing.assert_allclose(q, 1 - 0.1 - 0.01 * (0.9 + 1), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_minimises_parabola_and_rosenbrock(name):
    lr = {"Adadelta": 30.0, "Adagrad": 0.5}.get(name, 0.05 if name != "SGD" else 0.2)
    x = np.array([-1.0, 10.0])
    opt = make(name, [x], {"lr": lr})
    target = np.array([3.0, -2.0])
    for _ in range(3000):
        opt.step([2 * (x - target)])
    np.testing.assert_allclose(x, target, atol=0.02)

    x = np.array([-1.2, 1.0])
    # Adadelta's steps do not shrink: it comes near and circles.
    rosenbrock = {
        "SGD": ({"lr": 1e-3, "momentum": 0.9}, 5e-3),
        "Adagrad": ({"lr": 0.3}, 5e-3),
        "Adadelta": ({"lr": 0.3}, 0.25),
        "RMSprop": ({"lr": 1e-3, "centered": True}, 5e-3),
    }
    options, bound = rosenbrock.get(name, ({"lr": 0.02}, 5e-3))
    opt = make(name, [x], options)
    for _ in range(8000):
        a, b = x
        opt.step([np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])])
    a, b = x
    assert (1 - a) ** 2 + 100 * (b - a * a) ** 2 < bound


# ------------------------------------------------------------------------------------- torch


TORCH_ONLY_OURS = ("l1", "max_norm", "clip_value", "ema_decay")


def torch_options(name, options):
    """The row as torch's arguments, or None where torch cannot do it."""
    plain = {k: v for k, v in options.items() if k not in ("max_norm", "clip_value", "ema_decay")}
    if plain.get("l1") or plain.pop("momentum_form", "torch") != "torch":
        plain.pop("l1", None)
        if options.get("momentum_form", "torch") != "torch":
            return None
    if plain.get("decoupled_weight_decay") and name not in ("Adam", "NAdam"):
        return None
    return plain


class TorchTwin:
    """torch's optimizer of the same name, with the clipping and averaging that ours does inside."""

    def __init__(self, torch, name, params, options):
        self.torch = torch
        self.params = [torch.tensor(p, requires_grad=True) for p in params]
        self.options = options
        self.opt = getattr(torch.optim, name)(self.params, **torch_options(name, options))

    def step(self, grads):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else self.torch.tensor(g)
            if g is not None and self.options.get("l1"):
                # our penalty is added after clipping
                pass
        utils = self.torch.nn.utils
        if self.options.get("max_norm"):
            utils.clip_grad_norm_(self.params, self.options["max_norm"])
        if self.options.get("clip_value"):
            utils.clip_grad_value_(self.params, self.options["clip_value"])
        if self.options.get("l1"):
            for p in self.params:
                if p.grad is not None:
                    p.grad += self.options["l1"] * p.detach().sign()
        self.opt.step()

    def arrays(self):
        return [p.detach().numpy() for p in self.params]


PEER_ROWS = [(n, r) for n, r in ROWS if torch_options(n, OPTIMIZERS[n]["options"][r]) is not None]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_matches_torch(name, row, dtype):
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem(dtype.name)
    twin = TorchTwin(torch, name, start, options)
    params = [p.copy() for p in start]
    opt = make(name, params, options)
    for t, g in enumerate(grads, 1):
        opt.step(g)
        twin.step(g)
        if t in (1, STEPS):
            exact, _ = references(name, row, dtype.name, t)
            assert_close(params, exact.params, twin.arrays(), dtype, f"after {t} steps")


def to_numpy(torch, x):
    if isinstance(x, torch.Tensor):
        return x.detach().numpy().copy()
    if isinstance(x, dict):
        return {k: to_numpy(torch, v) for k, v in x.items()}
    return [to_numpy(torch, v) for v in x] if isinstance(x, list) else x


def to_torch(torch, x):
    if isinstance(x, np.ndarray):
        return torch.tensor(x)
    if isinstance(x, dict):
        return {k: to_torch(torch, v) for k, v in x.items()}
    return [to_torch(torch, v) for v in x] if isinstance(x, list) else x


@pytest.mark.peers
@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_state_dict_exchange_with_torch(name, row):
    torch = pytest.importorskip("torch")
    options = OPTIMIZERS[name]["options"][row]
    if "ema_decay" in options or "l1" in options:
        options = {k: v for k, v in options.items() if k not in TORCH_ONLY_OURS}
    start, grads = problem("float64")
    start, grads = start[:6], [g[:6] for g in grads]
    twin = TorchTwin(torch, name, start, options)
    params = [p.copy() for p in start]
    opt = make(name, params, options)
    for g in grads[:5]:
        opt.step(g)
        twin.step(g)

    ours, theirs = opt.state_dict(), to_numpy(torch, twin.opt.state_dict())
    assert ours["state"].keys() == theirs["state"].keys()
    for i, entry in theirs["state"].items():
        assert {k for k, v in entry.items() if v is not None} == ours["state"][i].keys()
        for key, value in ours["state"][i].items():
            np.testing.assert_allclose(value, entry[key], rtol=1e-6, atol=1e-12)
            assert value.shape == np.shape(entry[key])
    torch_keys = theirs["param_groups"][0].keys() - {"foreach", "capturable", "differentiable", "fused"}
    assert torch_keys <= ours["param_groups"][0].keys()

    # Each goes on from the other's state.
    heir = [p.copy() for p in twin.arrays()]
    opt2 = make(name, heir)
    opt2.load_state_dict(theirs)
    twin2 = TorchTwin(torch, name, params, options)
    twin2.opt.load_state_dict(to_torch(torch, ours))
    for g in grads[5:10]:
        for o in (opt, twin, opt2, twin2):
            o.step(g)
    for results in (twin.arrays(), heir, twin2.arrays()):
        for a, b in zip(params, results, strict=True):
            np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-9)


@pytest.mark.peers
def test_torch_tensors_are_updated_in_place():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(5, 3)
    twin = copy.deepcopy(model)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    opts = [optim.Adam(model.named_parameters(), lr=0.1), torch.optim.Adam(twin.named_parameters(), lr=0.1)]
    for _ in range(5):
        for m, o in zip((model, twin), opts, strict=True):
            o.zero_grad()
            (m(x) ** 2).sum().backward()
            o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)
    opts[0].zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())
    opts[0].zero_grad()
    assert all(p.grad is None for p in model.parameters())
    # A parameter whose storage was replaced is followed, not left behind.
    model.weight.data = torch.zeros(3, 5)
    opts[0].step([torch.ones(3, 5), torch.ones(3)])
    assert (model.weight.detach() != 0).all()


# ------------------------------------------------------------------------------------------- structures


def tree():
    rng = np.random.default_rng(3)
    return {"layers": [{"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}, (rng.standard_normal(4),)],
            "scale": np.array(1.5)}


def leaves(t):
    if isinstance(t, dict):
        return [x for v in t.values() for x in leaves(v)]
    if isinstance(t, list | tuple):
        return [x for v in t for x in leaves(v)]
    return [t]


def ones_like(t):
    if isinstance(t, dict):
        return {k: ones_like(t[k]) for k in reversed(list(t))}  # the order of keys does not matter
    if isinstance(t, list | tuple):
        return [ones_like(v) for v in t]
    return np.full_like(t, t.size)


@pytest.mark.parametrize("form", ["tree", "flat", "generator", "pairs", "dict of pairs", "groups", "group dicts"])
def test_structures(form):
    t = tree()
    expected = [a - 0.1 * a.size for a in leaves(t)]
    flat = leaves(t)
    grads = [np.full_like(a, a.size) for a in flat]
    names = ["a", "b", "c", "d"]
    if form == "tree":
        opt = optim.SGD(t, lr=0.1)
        assert opt.param_groups[0]["param_names"] == ["layers.0.w", "layers.0.b", "layers.1.0", "scale"]
        opt.step(ones_like(t))
    elif form == "flat":
        opt = optim.SGD(t, lr=0.1)
        opt.step(tuple(grads))
    elif form == "generator":
        opt = optim.SGD((a for a in flat), lr=0.1)
        assert "param_names" not in opt.param_groups[0]
        opt.step(g for g in grads)
    elif form in ("pairs", "dict of pairs"):
        pairs = list(zip(names, grads, strict=True))
        opt = optim.SGD(zip(names, flat, strict=True), lr=0.1)
        assert opt.param_groups[0]["param_names"] == names
        opt.step(pairs if form == "pairs" else dict(reversed(pairs)))
    else:
        opt = optim.SGD([{"params": t["layers"]}, {"params": t["scale"], "lr": 0.1}], lr=0.1)
        inner, scale = ones_like(t["layers"]), [np.ones(())]
        opt.step([inner, scale] if form == "groups" else [{"params": inner}, {"params": scale}])
    for a, b in zip(flat, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_gradients_of_a_scalar_parameter_may_be_numpy_scalars():
    p = np.array(2.0, np.float32)
    optim.SGD([p], lr=0.5).step([np.float32(1.0)])
    assert p == 1.5


STRUCTURE_ERRORS = [
    ({"w": 1}, r"grads has no 'b', params has the keys 'w', 'b'"),
    ({"w": 1, "b": 1, "c": 1}, r"grads has 'c', params has only the keys 'w', 'b'"),
    ({"w": 1, "b": {"x": 1}}, r"grads\['b'\] is a dict, its parameter is an array"),
    ([1], r"grads has 1 entries, params has 2"),
    ([[1], [1]], r"grads is a list of 2, params has the keys"),
    ("w", r"grads is str, expected"),
    ({1, 2}, r"grads is a set"),
]


@pytest.mark.parametrize(("grads", "message"), STRUCTURE_ERRORS)
def test_wrong_structure(grads, message):
    def fill(t):
        if isinstance(t, dict):
            return {k: fill(v) for k, v in t.items()}
        if isinstance(t, list):
            return [fill(v) for v in t]
        return np.ones(2) if isinstance(t, int) else t

    opt = optim.Adam({"w": np.zeros(2), "b": np.zeros(2)})
    refuse(opt, lambda: opt.step(grads if isinstance(grads, set | str) else fill(grads)), message)


def test_wrong_nested_structure():
    t = tree()
    opt = optim.SGD(t)
    g = ones_like(t)
    g["layers"][0] = [g["layers"][0]["w"]]
    refuse(opt, lambda: opt.step(g), r"grads\['layers'\]\[0\] is a list of 1, params has the keys 'w', 'b'")
    g = ones_like(t)
    g["layers"][1] = g["layers"][1] * 2
    refuse(opt, lambda: opt.step(g), r"grads\['layers'\]\[1\] has 2 entries, params has 1")
    g = ones_like(t)
    g["layers"][0]["b"] = np.ones(3)
    refuse(
        opt,
        lambda: opt.step(g),
        r"grads\['layers'\]\[0\]\['b'\] has shape \(3,\), params\['layers'\]\[0\]\['b'\] has shape \(2,\)",
    )
    refuse(opt, lambda: opt.step(np.ones(4)), r"grads is a single ndarray, expected the structure of params")


def snapshot(opt):
    arrays = [p.copy() for group in opt.param_groups for p in group["params"]]
    return arrays, copy.deepcopy(opt.state), [dict(g) for g in opt.param_groups]


def assert_unchanged(opt, before):
    arrays, state, groups = before
    now = snapshot(opt)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, now[0], strict=True))
    assert state.keys() == now[1].keys()
    for i, entry in state.items():
        assert entry.keys() == now[1][i].keys()
        assert all(np.array_equal(v, now[1][i][k]) for k, v in entry.items())
    for a, b in zip(groups, now[2], strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def refuse(opt, call, message, error=(TypeError, ValueError)):
    """The call raises with the message and has changed nothing."""
    before = snapshot(opt)
    with pytest.raises(error, match=message):
        call()
    assert_unchanged(opt, before)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("name", "options", "message"),
                         [(name, *error) for name in OPTIMIZERS for error in OPTIMIZERS[name]["errors"]])
def test_settings_out_of_range(name, options, message):
    with pytest.raises((TypeError, ValueError), match=name + ": .*" + message):
        make(name, [np.zeros(3)], options)
    if "max_norm" in options:
        return
    opt = make(name, [np.zeros(3)])
    refuse(opt, lambda: opt.add_param_group({"params": [np.zeros(2)], **options}),
           "works on one" if name == "LBFGS" else message)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("several_rules", [False, True])
def test_refused_steps_change_nothing(name, several_rules):
    a, b = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    opt = make(name, [a, b])
    if several_rules:
        extra = {"SGD": {"momentum": 0.9}, "RMSprop": {"centered": True}, "Adam": {"amsgrad": True},
                 "AdamW": {"amsgrad": True}}.get(name)
        if extra is None:
            pytest.skip(f"{name} has one rule")
        opt.add_param_group({"params": [np.ones(3, np.float32)], **extra})
    good = [np.ones_like(p) for g in opt.param_groups for p in g["params"]]
    opt.step(good)

    def broken(i, g):
        return [g if k == i else x for k, x in enumerate(good)]

    last = len(good) - 1
    where = {0: r"grads\[0\]", last: r"grads\[1\]"}
    if several_rules:
        where = {0: r"grads\[0\]\[0\]", last: r"grads\[1\]\[0\]"}
    for i, label in where.items():
        shape = good[i].shape
        refuse(opt, lambda i=i, s=shape: opt.step(broken(i, np.ones(s))), label + r" is float64, params.* is float32")
        refuse(opt, lambda i=i: opt.step(broken(i, np.ones((5, 5), np.float32))), label + r" has shape \(5, 5\)")
        refuse(opt, lambda i=i, s=shape: opt.step(broken(i, np.ones(s, int))), label + r" is int64")
        refuse(opt, lambda i=i: opt.step(broken(i, object())), label + r" is object, expected an array")
    refuse(opt, lambda: opt.step(good[:-1]), r"grads has \d entries, params has \d")
    refuse(opt, lambda: opt.step(), r"is a plain array, so step needs grads")
    refuse(opt, lambda: opt.step(lambda: 1.0), r"closure returned float, plain arrays need \(loss, grads\)")
    refuse(opt, lambda: opt.step(lambda: (1, 2, 3)), r"closure returned 3 values")
    for key, value in {"lr": float("nan"), "weight_decay": -1.0, "clip_value": float("nan")}.items():
        old = opt.param_groups[0][key]
        opt.param_groups[0][key] = value
        refuse(opt, lambda: opt.step(good), rf"{name}: {key} must be in .* in param_groups\[0\]")
        opt.param_groups[0][key] = old
    opt.step(good)
    assert opt.state.get(0, {}).get("step", 2) == 2


def test_gradient_that_overlaps_another_parameter():
    memory = np.ones(10)
    opt = optim.SGD([memory[:4]], momentum=0.9)
    before = memory.copy()
    with pytest.raises(ValueError, match=r"grads\[0\] overlaps params\[0\]"):
        opt.step([memory[2:6]])
    np.testing.assert_array_equal(memory, before)


def read_only():
    a = np.ones(3)
    a.flags.writeable = False
    return a


shared_memory = np.zeros(8)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda: np.zeros(3), TypeError, r"params is a single ndarray, expected a list, dict or tree"),
        (lambda: [], ValueError, r"params is empty"),
        (lambda: 3, TypeError, r"params is int, expected a list"),
        (lambda: {1.0}, TypeError, r"params is a set, whose order changes between runs"),
        (lambda: [np.zeros(3, int)], TypeError, r"params\[0\] is int64, expected one of float32"),
        (lambda: [np.zeros(3), np.zeros(3, ">f8")], TypeError, r"params\[1\] is >f8, expected"),
        (lambda: [[1.0, 2.0]], TypeError, r"params\[0\]\[0\] is float, expected an array"),
        (lambda: {"w": read_only()}, ValueError, r"params\['w'\] is read-only"),
        (lambda: [np.broadcast_to(np.zeros(1), 5)], ValueError, r"params\[0\] is read-only"),
        (lambda: [np.lib.stride_tricks.as_strided(np.zeros(9), (4, 4), (8, 8))], ValueError,
         r"params\[0\] has elements that share memory"),
        (lambda: [shared_memory, shared_memory], ValueError, r"params\[1\] is the same array as params\[0\]"),
        (lambda: {"a": shared_memory[:5], "b": shared_memory[4:]}, ValueError, r"params\['b'\] overlaps params\['a'\]"),
        (lambda: [shared_memory[::2], np.zeros(2), shared_memory[::3]], ValueError, r"params\[2\] overlaps params\[0\]"),
        (lambda: [("w", np.zeros(1)), ("w", np.zeros(1))], ValueError, r"params has the name 'w' twice"),
        (lambda: [("w", np.zeros(1)), np.zeros(1)], ValueError, r"params mixes arrays with and without names"),
        (lambda: [{"params": [np.zeros(1)]}, {"lr": 1}], ValueError, r"a group has no 'params', it has \['lr'\]"),
        (lambda: [{"params": [np.zeros(1)]}, [np.zeros(1)]], TypeError, r"a group is list, expected a dict"),
        (lambda: [{"params": [np.zeros(1)], "max_norm": 1.0}], ValueError, r"max_norm is one for all groups"),
        (lambda: [np.ma.zeros(3)], TypeError, r"params\[0\] is a masked array"),
    ],
)
def test_parameters_that_are_refused(params, error, message):
    with pytest.raises(error, match="Adam: " + message):
        optim.Adam(params())


def test_interleaved_parameters_do_not_overlap():
    memory = np.zeros(9)
    optim.SGD([memory[::2], memory[1::2]], lr=1.0).step([np.full(5, -1.0), np.full(4, -2.0)])
    np.testing.assert_array_equal(memory, [1, 2, 1, 2, 1, 2, 1, 2, 1])


def test_params_list_of_a_group_is_not_to_be_changed():
    opt = optim.SGD([np.zeros(2)])
    opt.step([np.ones(2)])
    opt.param_groups[0]["params"].append(np.zeros(2))
    with pytest.raises((RuntimeError, ValueError), match="use add_param_group|has 1 entries|2"):
        opt.step([np.ones(2), np.ones(2)])


# ------------------------------------------------------------------------------------------- layouts


@st.composite
def layouts(draw):
    """A writable view of some memory: sliced, transposed, reversed, misaligned."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    steps = [draw(st.sampled_from([-2, -1, 1, 2, 3])) for _ in shape]
    axes = draw(st.permutations(range(len(shape))))
    big = tuple(max(1, n * abs(s)) for n, s in zip(shape, steps, strict=True))
    dtype = np.dtype(draw(st.sampled_from(["f4", "f8"])))
    misaligned = draw(st.booleans())
    raw = np.zeros(int(np.prod(big)) * dtype.itemsize + 1, np.uint8)
    memory = raw[1:] if misaligned else raw[:-1]
    a = memory.view(dtype).reshape(big)
    a = a[(*(slice(None, None, s) for s in steps), ...)]
    return a[(*(slice(0, n) for n in shape), ...)].transpose(axes)


@settings(max_examples=150, deadline=None)
@given(st.lists(layouts(), min_size=1, max_size=3), st.integers(0, 99))
def test_any_layout_gives_the_same_bits(params, seed):
    rng = np.random.default_rng(seed)
    for p in params:
        p[...] = rng.standard_normal(p.shape)
    plain = [np.array(p, order="C") for p in params]
    a, b = (optim.Adam(ps, lr=0.1, amsgrad=True, ema_decay=0.5) for ps in (params, plain))
    for _ in range(3):
        grads = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
        strange = [np.asfortranarray(g)[...] for g in grads]
        for k, g in enumerate(strange):
            if g.ndim and g.shape[0]:
                doubled = np.repeat(g, 2, axis=0)
                strange[k] = doubled[::2] if k % 2 else doubled[::-2][::-1]
        a.step(strange)
        b.step(grads)
    for i, (p, q) in enumerate(zip(params, plain, strict=True)):
        np.testing.assert_array_equal(p, q)
        for key, value in b.state[i].items():
            np.testing.assert_array_equal(a.state[i][key], value)
    a.load_state_dict(pickle.loads(pickle.dumps(b.state_dict())))
    for opt, ps in ((a, params), (b, plain)):
        opt.step([np.ones(p.shape, p.dtype) for p in ps])
    assert all(np.array_equal(p, q) for p, q in zip(params, plain, strict=True))


def test_the_view_s_surroundings_are_left_alone():
    memory = np.ones((4, 6), np.float32)
    optim.SGD([memory[1:3, ::2]], lr=1.0).step([np.ones((2, 3), np.float32)])
    expected = np.ones((4, 6), np.float32)
    expected[1:3, ::2] = 0
    np.testing.assert_array_equal(memory, expected)


def test_dlpack_array():
    class Foreign:
        def __init__(self, a):
            self.a = a

        def __dlpack__(self, **kwargs):
            return self.a.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

    a = np.ones(3, np.float32)
    optim.SGD([Foreign(a)], lr=1.0).step([Foreign(np.full(3, 2.0, np.float32))])
    np.testing.assert_array_equal(a, -np.ones(3))


# --------------------------------------------------------------------------------- missing gradients, groups


@pytest.mark.parametrize("name", RULES)
def test_missing_gradients_skip_their_parameters(name):
    start, grads = problem("float64")
    start, grads = start[1:6], [g[1:6] for g in grads[:12]]
    pattern = [[t % (i + 1) == 0 or t > 8 for i in range(5)] for t in range(12)]
    given_grads = [[g if use else None for g, use in zip(gs, row, strict=True)]
                   for gs, row in zip(grads, pattern, strict=True)]
    params = [p.copy() for p in start]
    opt = make(name, params, {"ema_decay": 0.9})
    for g in given_grads:
        opt.step(g)
    exact = run(name, start, given_grads, {"ema_decay": 0.9})
    for i, p in enumerate(params):
        np.testing.assert_allclose(p, exact.params[i], rtol=1e-12)
        np.testing.assert_allclose(opt.state[i]["ema"], exact.emas[i], rtol=1e-12)
        count = sum(row[i] for row in pattern)
        assert opt.state[i].get("step", count) == count


def test_all_gradients_missing():
    p = np.ones(2)
    opt = optim.Adam([p])
    opt.step([None])
    assert opt.state_dict()["state"] == {}
    np.testing.assert_array_equal(p, 1)


def test_groups_of_different_rules_and_global_norm():
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(n) for n in (5, 3, 8, 2)]
    copies = [a.copy() for a in arrays]
    steps = [[rng.standard_normal(a.size) for a in arrays] for _ in range(6)]
    groups = [
        {"params": arrays[:2]},
        {"params": [arrays[2]], "amsgrad": True, "lr": 0.05, "maximize": True},
        {"params": [arrays[3]], "betas": (0.5, 0.9), "ema_decay": 0.5},
    ]
    opt = optim.Adam(groups, lr=0.1, max_norm=0.8)
    for g in steps:
        opt.step(g)
        assert opt.grad_norm == pytest.approx(np.sqrt(sum((x**2).sum() for x in g)), rel=1e-14)
    scaled = [[x * min(1.0, 0.8 / (np.sqrt(sum((y**2).sum() for y in g)) + 1e-6)) for x in g] for g in steps]
    expected = [
        *run("Adam", copies[:2], [g[:2] for g in scaled], {"lr": 0.1}).params,
        *run("Adam", copies[2:3], [g[2:3] for g in scaled], {"lr": 0.05, "amsgrad": True, "maximize": True}).params,
        *run("Adam", copies[3:], [g[3:] for g in scaled], {"lr": 0.1, "betas": (0.5, 0.9)}).params,
    ]
    for a, b in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert "ema" in opt.state[3]
    assert "ema" not in opt.state[0]


def test_norm_of_bad_gradients_is_torch_s():
    p = np.ones(2)
    opt = optim.SGD([p], lr=1.0, max_norm=1.0)
    opt.step([np.array([np.nan, 1.0])])
    assert np.isnan(p).all()
    assert np.isnan(opt.grad_norm)
    opt.max_norm = None
    opt.step([np.zeros(2)])
    assert opt.grad_norm is None
    with pytest.raises(ValueError, match=r"SGD: max_norm must be in \(0, inf\), got -1"):
        opt.max_norm = -1


def test_settings_may_change_between_steps():
    start, grads = problem("float64")
    p = start[5].copy()
    opt = optim.SGD([p], lr=0.1)
    expected = start[5].copy()
    g = [gs[5] for gs in grads]
    opt.step([g[0]])
    expected -= 0.1 * g[0]
    opt.param_groups[0].update(lr=0.2, momentum=0.5, dampening=0.5)
    opt.step([g[1]])  # the buffer starts here, without dampening
    buffer = g[1].copy()
    expected -= 0.2 * buffer
    opt.param_groups[0]["momentum"] = 0.0
    opt.step([g[2]])
    expected -= 0.2 * g[2]
    opt.param_groups[0].update(momentum=0.5, nesterov=True, dampening=0.0)
    opt.step([g[3]])  # and is still there
    buffer = 0.5 * buffer + g[3]
    expected -= 0.2 * (g[3] + 0.5 * buffer)
    np.testing.assert_allclose(p, expected, rtol=1e-13)


def test_added_group_starts_its_own_count():
    a, b = np.zeros(2), np.zeros(3)
    opt = optim.Adam({"a": a}, lr=0.1)
    opt.step({"a": np.ones(2)})
    opt.add_param_group({"params": {"b": b}, "lr": 0.5})
    opt.step([{"a": np.ones(2)}, {"b": np.ones(3)}])
    opt.step([np.ones(2), np.ones(3)])
    np.testing.assert_allclose(a, -0.3, rtol=1e-6)
    np.testing.assert_allclose(b, -1.0, rtol=1e-6)
    steps = [float(s["step"]) for s in opt.state.values()]
    assert steps == [3, 2]
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    refuse(opt, lambda: opt.add_param_group({"params": [a[:1]]}), r"params\[1\]\[0\] overlaps params\['a'\]|overlaps")


def test_the_caller_s_group_is_not_changed():
    group = {"params": [np.zeros(1)], "lr": 0.3, "note": "kept"}
    before = dict(group)
    opt = optim.SGD([group])
    assert group == before
    assert opt.param_groups[0]["note"] == "kept"


# ------------------------------------------------------------------------------------------- Tensors


def fo_tensor(a):
    tensor = pytest.importorskip("fastopt.tensor")
    return tensor.Tensor(a, requires_grad=True)


def test_tensors_use_their_gradients():
    w, b, frozen = (fo_tensor(np.full(n, 2.0, np.float32)) for n in (3, 2, 4))
    opt = optim.SGD([("w", w), ("b", b), ("frozen", frozen)], lr=0.5, momentum=0.9)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum() + (3 * b).sum()
        loss.backward()
        return loss

    loss = opt.step(closure)
    assert float(loss) == 24.0
    np.testing.assert_array_equal(w.data, 0.0)
    np.testing.assert_array_equal(b.data, 0.5)
    np.testing.assert_array_equal(frozen.data, 2.0)
    assert opt.state.keys() == {0, 1}
    opt.step(closure=closure)
    np.testing.assert_allclose(b.data, 0.5 - 0.5 * (0.9 * 3 + 3), rtol=1e-6)
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(w.grad.data, 0.0)
    opt.zero_grad()
    assert w.grad is None
    opt.step()
    np.testing.assert_allclose(b.data, 0.5 - 0.5 * (0.9 * 3 + 3), rtol=1e-6)


def test_tensor_results_are_no_parameters():
    w = fo_tensor(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"params\[0\] is the result of an operation, expected a leaf"):
        optim.SGD([w * 2])


def test_closure_of_plain_arrays():
    x = np.array([4.0])
    opt = optim.SGD([x], lr=0.25)
    assert opt.step(lambda: (float(x[0] ** 2), [2 * x])) == 16.0
    np.testing.assert_array_equal(x, 2.0)


# ------------------------------------------------------------------------------------------- averages


def test_swap_ema():
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)[::2]
    opt = optim.SGD([{"params": [p]}, {"params": [q], "ema_decay": None}], lr=1.0, ema_decay=0.5)
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    with opt.swap_ema():
        np.testing.assert_array_equal(p, 0.5 * (0.5 * 1 + 0.5 * 0) + 0.5 * -1)
        np.testing.assert_array_equal(q, -1)
        with pytest.raises(RuntimeError, match="inside swap_ema"):
            opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
        with pytest.raises(RuntimeError, match="swapped in already"), opt.swap_ema():
            pass
    np.testing.assert_array_equal(p, -1)
    with pytest.raises(KeyError), opt.swap_ema():
        raise KeyError
    np.testing.assert_array_equal(p, -1)
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    with pytest.raises(RuntimeError, match="SGD keeps no averages"), optim.SGD([p]).swap_ema():
        pass


def test_average_starts_from_the_weights_of_the_first_step():
    p = np.zeros(2)
    opt = optim.SGD([p], lr=0.0, ema_decay=0.9)
    p[:] = 5.0  # a checkpoint loaded after the optimizer was made
    opt.step([np.ones(2)])
    np.testing.assert_array_equal(opt.state[0]["ema"], 5.0)


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_resume_is_bit_identical(name, row):
    options = OPTIMIZERS[name]["options"][row]
    start, grads = problem("float32")
    start, grads = start[:9], [g[:9] for g in grads[:8]]
    whole = [p.copy() for p in start]
    opt = make(name, whole, options)
    for g in grads:
        opt.step(g)
    half = [p.copy() for p in start]
    opt1 = make(name, half, options)
    for g in grads[:4]:
        opt1.step(g)
    saved = pickle.loads(pickle.dumps(opt1.state_dict()))
    opt2 = make(name, half, {"max_norm": options.get("max_norm")})
    opt2.load_state_dict(saved)
    for g in grads[4:]:
        opt2.step(g)
    assert all(np.array_equal(a, b) for a, b in zip(whole, half, strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_their_own_way(name, how):
    start, grads = problem("float32")
    model = {"w": start[9].copy(), "b": start[3].copy()}
    opt = make(name, model, {"ema_decay": 0.9})
    pair = [{"w": g[9], "b": g[3]} for g in grads[:4]]
    opt.step(pair[0])
    if how == "pickle":
        model2, opt2 = pickle.loads(pickle.dumps((model, opt)))
    else:
        model2, opt2 = copy.deepcopy((model, opt))
    for g in pair[1:]:
        opt.step(g)
    assert not np.array_equal(model2["w"], model["w"])
    for g in pair[1:]:
        opt2.step(g)
    for key in model:
        np.testing.assert_array_equal(model2[key], model[key])
    assert repr(opt) == repr(opt2)


def test_state_dict_is_a_copy_and_loads_in_place():
    p = np.ones(3)
    opt = optim.Adam([p])
    opt.step([np.ones(3)])
    saved = opt.state_dict()
    live = opt.state[0]["exp_avg"]
    opt.step([np.ones(3)])
    np.testing.assert_allclose(saved["state"][0]["exp_avg"], 0.1)
    opt.load_state_dict(saved)
    assert opt.state[0]["exp_avg"] is live
    np.testing.assert_allclose(live, 0.1)
    assert opt.state[0]["step"] == 1
    saved["state"][0]["exp_avg"][:] = 7
    np.testing.assert_allclose(live, 0.1)
    group = opt.param_groups[0]
    saved["param_groups"][0]["lr"] = 0.7
    opt.load_state_dict(saved)
    assert opt.param_groups[0] is group
    assert group["lr"] == 0.7


def test_state_dict_that_does_not_fit():
    opt = optim.Adam([np.ones(3), np.ones(2)])
    opt.step([np.ones(3), np.ones(2)])
    good = opt.state_dict()

    def changed(**how):
        return {**copy.deepcopy(good), **how}

    def with_state(i, **how):
        sd = copy.deepcopy(good)
        sd["state"][i].update(how)
        return sd

    group = good["param_groups"][0]
    lost = copy.deepcopy(good)
    del lost["state"][1]["exp_avg_sq"]
    for sd, message in [
        ({"state": {}}, r"expected a dict with 'state' and 'param_groups'"),
        (changed(param_groups=[]), r"state_dict has 0 parameter groups, the optimizer has 1"),
        (changed(param_groups=[{**group, "params": [0]}]), r"param_groups\[0\] has 1 parameters, the optimizer's has 2"),
        (changed(param_groups=[{**group, "lr": -1.0}]), r"Adam: lr must be in \[0, inf\), got -1.0 in param_groups\[0\]"),
        (with_state(1, exp_avg=np.ones(3)), r"state\[1\]\['exp_avg'\] has shape \(3,\), params\[1\] has shape \(2,\)"),
        (with_state(0, exp_avg=np.array("x")), r"could not convert|state\[0\]"),
        (lost, r"state\[1\] has no 'exp_avg_sq', it has \['exp_avg', 'step'\]"),
        (changed(param_groups=[{**group, "amsgrad": True}]), r"state\[0\] has no 'max_exp_avg_sq'"),
    ]:
        refuse(opt, lambda sd=sd: opt.load_state_dict(sd), message)
    opt.load_state_dict(good)


def test_betas_that_went_through_json():
    opt = optim.Adam([np.ones(1)])
    sd = opt.state_dict()
    sd["param_groups"][0]["betas"] = [0.5, 0.6]
    opt.load_state_dict(sd)
    assert opt.param_groups[0]["betas"] == (0.5, 0.6)


def test_repr():
    text = repr(optim.SGD({"w": np.ones(1)}, lr=0.5))
    assert text.startswith("SGD (\nParameter Group 0\n    clip_value: None\n")
    assert "    lr: 0.5\n" in text
    assert "    param_names: ['w']\n" in text


def test_many_small_arrays_are_one_call():
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(i % 7) for i in range(1000)]
    grads = [rng.standard_normal(a.size) for a in arrays]
    exact = run("Adam", arrays, [grads] * 3, {})
    calls = []
    opt = optim.Adam(arrays)
    opt.step(grads)
    plan = opt._plans[0]
    native = plan.native

    class Counting:
        def step(self, *args):
            calls.append(args)
            native.step(*args)

    plan.native = Counting()
    opt.step(grads)
    opt.step(grads)
    assert len(calls) == 2
    assert calls[0][0] is grads  # not even the list is made anew
    for a, b in zip(arrays, exact.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_exports():
    assert re.fullmatch(r"\d+\.\d+.*", fastopt.__version__)
    for name in OPTIMIZERS:
        assert name in optim.__all__
        assert issubclass(getattr(optim, name), optim.Optimizer)
        assert "References" in getattr(optim, name).__doc__
    subclasses = {c.__name__ for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    assert subclasses - {"Optimizer"} == OPTIMIZERS.keys()


def test_tutorial_cases(shared):
    import json

    cases = json.loads((shared / "data" / "tutorial_cases.json").read_text())["cases"]
    used = 0
    for case in cases:
        if not case["case"].startswith("optim.") or case.get("objective") != "sum(w**2)/2":
            continue
        used += 1
        w = np.array(case["w0"], np.float32)
        opt = getattr(optim, case["case"].removeprefix("optim."))([w], **case["options"])
        for expected in case["steps"]:
            np.testing.assert_allclose(w, expected["grad"], rtol=1e-6)
            opt.step([w.copy()])
            np.testing.assert_allclose(w, expected["weight"], rtol=1e-6)
    assert used
