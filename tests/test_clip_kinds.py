"""Clipping inside the step: per group, per parameter, by other norms, adaptively; alone and with what surrounds it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from fastopt import optim
from fastopt.optim.rule import RuleOptimizer
from optim_tools import RULES, make, refuse

SHAPES = ((33,), (), (0,), (40, 27), (5, 3, 2, 2), (1, 70))


def problem(dtype, seed=0):
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    return params, [[np.asarray(3 * rng.standard_normal(s), dtype) for s in SHAPES] for _ in range(3)]


def norm(*gs):
    return math.sqrt(sum(float(np.sum(np.asarray(g, np.float64) ** 2)) for g in gs))


def clipped(g, max_norm, of=None):
    factor = min(1.0, max_norm / (norm(*([g] if of is None else of)) + 1e-6))
    return np.asarray(g * np.asarray(factor, g.dtype))


def assert_like_clipping_before(name, options, kinds, prepare, dtype=np.float64, groups=None):
    """The steps of an optimizer with `kinds` are those of one without, on gradients that were clipped before."""
    start, steps = problem(dtype)
    params, expected = [p.copy() for p in start], [p.copy() for p in start]
    split = groups or (lambda ps: [{"params": ps}])
    ours = make(name, split(params), {**options, **kinds})
    bare = [{k: v for k, v in g.items() if k not in ("max_norm", "adaptive_clip")} for g in split(expected)]
    plain = make(name, bare, options)
    nested = [len(group["params"]) for group in ours.param_groups]
    for grads in steps:
        flat, begin = [], 0
        for n in nested:
            flat.append(grads[begin : begin + n])
            begin += n
        before = [p.copy() for p in params]
        kept = [g.copy() for g in grads]
        ours.step(flat if len(flat) > 1 else grads)
        assert all(np.array_equal(a, b) for a, b in zip(grads, kept, strict=True))
        used = prepare(grads, before)
        assert ours.grad_norm == pytest.approx(norm(*grads), rel=1e-12 if dtype == np.float64 else 1e-6)
        flat, begin = [], 0
        for n in nested:
            flat.append(used[begin : begin + n])
            begin += n
        plain.step(flat if len(flat) > 1 else used)
        for p, q in zip(params, expected, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-9 if dtype == np.float64 else 1e-4, atol=1e-12)
            q[...] = p  # small differences must not grow


def own_way(name):
    """Whether a class steps in passes of its own."""
    cls = getattr(optim, name)
    return cls._run is not RuleOptimizer._run or cls._prepare is not RuleOptimizer._prepare


@pytest.mark.parametrize("name", [name for name in RULES if own_way(name)])
def test_what_is_refused_where_norms_of_tensors_are_the_step(name):
    for kinds, what in [
        ({"max_norm": 1.0, "clip_scope": "parameter"}, "clip_scope 'parameter'"),
        ({"adaptive_clip": 0.1}, "adaptive_clip"),
    ]:
        with pytest.raises(
            ValueError, match=f"{name}: {what} is for optimizers that step each element by itself"
        ):
            make(name, [np.zeros(2)], kinds)


@pytest.mark.parametrize("name", [name for name in RULES if not own_way(name)])
def test_each_parameter(name, isa):
    options = OPTIMIZERS[name]["options"][0]
    assert_like_clipping_before(
        name,
        options,
        {"max_norm": 2.5, "clip_scope": "parameter"},
        lambda grads, _: [clipped(g, 2.5) for g in grads],
    )


def test_each_group():
    """One has a limit of its own, one none, and two are of one rule."""

    def groups(ps):
        first = {"params": ps[:2], "momentum": 0.0}
        second = {"params": ps[2:4], "max_norm": 7.0}
        return [first, second, {"params": ps[4:5], "max_norm": None}, {"params": ps[5:]}]

    def prepare(grads, _):
        limits = [2.5, 2.5, 7.0, 7.0, math.inf, 2.5]
        members = [grads[:2], grads[:2], grads[2:4], grads[2:4], grads[4:5], grads[5:]]
        return [clipped(g, limit, of) for g, limit, of in zip(grads, limits, members, strict=True)]

    kinds = {"max_norm": 2.5, "clip_scope": "group"}
    assert_like_clipping_before("SGD", {"lr": 0.1, "momentum": 0.9}, kinds, prepare, groups=groups)
    kinds["clip_scope"] = "parameter"
    assert_like_clipping_before(
        "SGD",
        {"lr": 0.1, "momentum": 0.9},
        kinds,
        lambda grads, _: [
            clipped(g, m) for g, m in zip(grads, [2.5, 2.5, 7.0, 7.0, math.inf, 2.5], strict=True)
        ],
        groups=groups,
    )


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_norms(order, dtype):
    """Two rules under one norm, as clip_grad_norm_ before the step."""
    start, steps = problem(dtype)
    start, steps = [p for p in start if p.size], [[g for g in grads if g.size] for grads in steps]
    params, expected = [p.copy() for p in start], [p.copy() for p in start]

    def groups(ps):
        return [{"params": ps[:2]}, {"params": ps[2:], "momentum": 0.9}]

    ours = optim.SGD(groups(params), lr=0.1, max_norm=2.0, norm_type=order)
    plain = optim.SGD(groups(expected), lr=0.1)
    assert (ours.norm_type, ours.clip_scope) == (order, "global")
    for grads in steps:
        ours.step([grads[:2], grads[2:]])
        grads = [g.copy() for g in grads]
        expected_norm = optim.clip_grad_norm_(grads, 2.0, order)
        plain.step([grads[:2], grads[2:]])
        assert ours.grad_norm == pytest.approx(expected_norm, rel=1e-12)
        for p, q in zip(params, expected, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-7)


def adapted(g, p, share, eps=1e-3):
    """Unit-wise clipping straight from the paper."""
    g, p = np.asarray(g), np.asarray(p)
    axes = tuple(range(1, g.ndim)) if sum(n > 1 for n in g.shape) > 1 else None
    of_g = np.sqrt(np.sum(g**2, axis=axes, keepdims=True))
    limit = share * np.maximum(np.sqrt(np.sum(p**2, axis=axes, keepdims=True)), eps)
    factor = np.ones_like(of_g)
    np.divide(limit, of_g, out=factor, where=of_g > limit)
    return np.asarray((g * factor).reshape(g.shape))


@pytest.mark.parametrize("name", [name for name in RULES if not own_way(name)])
def test_adaptive(name, isa):
    """Some units of the same array are clipped and some are not."""
    options = OPTIMIZERS[name]["options"][0]
    assert_like_clipping_before(
        name,
        options,
        {"adaptive_clip": 2.9},
        lambda grads, before: [adapted(g, p, 2.9) for g, p in zip(grads, before, strict=True)],
    )


def test_adaptive_in_some_groups():
    def groups(ps):
        return [
            {"params": ps[:3], "adaptive_clip": None},
            {"params": ps[3:4]},
            {"params": ps[4:], "adaptive_clip": 1.5},
        ]

    def prepare(grads, before):
        shares = [math.inf, math.inf, math.inf, 0.4, 1.5, 1.5]
        return [
            g if s == math.inf else adapted(g, p, s, 0.5)
            for g, p, s in zip(grads, before, shares, strict=True)
        ]

    kinds = {"adaptive_clip": 0.4, "adaptive_clip_eps": 0.5}
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "ema_decay": 0.9}
    assert_like_clipping_before("SGD", options, kinds, prepare, groups=groups)


@pytest.mark.peers
def test_adaptive_is_optax():
    """Its units are columns where torch's layout has rows."""
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(3)
    p, g = rng.standard_normal((20, 12)).astype(np.float32), rng.standard_normal((20, 12)).astype(np.float32)
    b, h = rng.standard_normal(9).astype(np.float32), 5 * rng.standard_normal(9).astype(np.float32)
    rule = optax.chain(optax.adaptive_grad_clip(0.7, eps=0.2), optax.sgd(1.0))
    params = {"p": p.T, "b": b}
    updates, _ = rule.update({"p": g.T, "b": h}, rule.init(params), params)
    ours = {"p": p.copy(), "b": b.copy()}
    optim.SGD(ours, lr=1.0, adaptive_clip=0.7, adaptive_clip_eps=0.2).step({"p": g, "b": h})
    np.testing.assert_allclose(ours["p"], p + np.asarray(updates["p"]).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours["b"], b + np.asarray(updates["b"]), rtol=1e-5, atol=1e-6)


def test_layouts_of_units():
    rng = np.random.default_rng(1)
    g = rng.standard_normal((6, 4, 5))
    for p in (np.ones((12, 4, 10))[::2, :, ::2], np.ones((6, 5, 4)).transpose(0, 2, 1)):
        before = p.copy()
        optim.SGD([p], lr=1.0, adaptive_clip=0.1).step([g])
        np.testing.assert_allclose(p, before - adapted(g, before, 0.1), rtol=1e-12)
    p = np.ones((6, 4), order="F")
    opt = optim.SGD([p], adaptive_clip=0.1)
    refuse(
        opt,
        lambda: opt.step([np.ones((6, 4))]),
        r"adaptive_clip takes units along the first axis, .* of params\[0\]",
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "storage",
    [
        {"state_dtype": "bfloat16"},
        {"state_dtype": "int8"},
        {"rounding": "exact"},
        {"rounding": "stochastic", "state_dtype": "bfloat16"},
    ],
    ids=lambda storage: "-".join(storage.values()),
)
def test_adaptive_with_storage_in_fewer_bytes(storage, dtype, isa):
    """A unit is updated as a parameter of its own would be, with the gradient that it is clipped to."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(4)
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    n = 256  # two groups of bytes
    p = rng.standard_normal((5, n)).astype(dtype)
    units = [row.copy() for row in p]
    options = {"lr": 0.05, "ema_decay": 0.9, **storage}
    ours = optim.AdamW([p], adaptive_clip=0.2, **options)
    apart = optim.AdamW(units, adaptive_clip=0.2, **options)
    shadow = np.zeros((5, n), np.float16)
    if dtype == np.float32:
        ours.keep_shadow([shadow])
    for _ in range(4):
        g = (rng.standard_normal((5, n)) * [[0.01], [0.1], [1.0], [10.0], [100.0]]).astype(dtype)
        ours.step([g])
        apart.step(list(g))
        np.testing.assert_array_equal(p, np.stack(units))
    if dtype == np.float32:
        np.testing.assert_array_equal(shadow, p.astype(np.float16))
    for key, value in ours.state[0].items():
        if value.ndim:
            together = np.stack([apart.state[k][key] for k in range(5)]).reshape(value.shape)
            np.testing.assert_array_equal(value, together, err_msg=key)


def test_bytes_of_units_are_whole_groups():
    p = np.ones((3, 100), np.float32)
    opt = optim.AdamW([p, np.ones(100, np.float32)], adaptive_clip=0.1, state_dtype="int8")
    grads = [np.ones_like(p), np.ones(100, np.float32)]
    refuse(
        opt,
        lambda: opt.step(grads),
        r"units of 100 elements of params\[0\], .*'int8' needs a multiple of 128",
    )
    for group in opt.param_groups:
        group["state_dtype"] = "bfloat16"
    opt.step(grads)
    assert np.all(p < 1)


@pytest.mark.parametrize("kinds", [{"max_norm": 0.5, "clip_scope": "parameter"}, {"adaptive_clip": 0.2}])
def test_with_missing_gradients_states_and_averages(kinds):
    """Rows of coefficients that differ by parameter: step counts, with and without a gradient."""
    start, steps = problem("float32")
    params, expected = [p.copy() for p in start], [p.copy() for p in start]
    ours = optim.Adam(params, lr=0.1, ema_decay=0.9, maximize=True, l1=0.01, clip_value=0.3, **kinds)
    plain = optim.Adam(expected, lr=0.1, ema_decay=0.9, maximize=True, l1=0.01, clip_value=0.3)
    for t, grads in enumerate(steps):
        given = [None if (i + t) % 3 == 0 else g for i, g in enumerate(grads)]
        used = [
            None if g is None else clipped(g, 0.5) if "max_norm" in kinds else adapted(g, p, 0.2)
            for g, p in zip(given, params, strict=True)
        ]
        ours.step(given)
        plain.step(used)
        for p, q in zip(params, expected, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5)
            q[...] = p
    for i, entry in plain.state.items():
        for key, value in entry.items():
            np.testing.assert_allclose(ours.state[i][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kinds",
    [
        {"max_norm": 0.5, "clip_scope": "parameter"},
        {"max_norm": 0.5, "clip_scope": "group"},
        {"max_norm": 0.5, "norm_type": 1},
        {"max_norm": 0.5, "norm_type": math.inf},
        {"adaptive_clip": 0.2},
    ],
)
def test_scaled_and_accumulated(kinds):
    """Two batches of scaled gradients make the step of their mean; one that is not finite changes nothing."""
    start, steps = problem("float32")
    params, expected = [p.copy() for p in start], [p.copy() for p in start]
    ours = optim.AdamW(params, lr=0.1, accumulate=2, **kinds)
    plain = optim.AdamW(expected, lr=0.1, **kinds)
    scaler = fo.GradScaler(init_scale=256.0)
    scaler.get_scale()
    for grads in (steps[0], None, steps[1]):
        if grads is None:
            bad = [g.copy() for g in steps[2]]
            bad[3][4, 5] = math.nan
            assert not scaler.step(ours, bad)
            scaler.update(256.0)
            continue
        assert scaler.step(ours, [g * np.float32(256) for g in grads])
        scaler.update()
    plain.step([np.asarray((a + b) * np.float32(0.5)) for a, b in zip(*steps[:2], strict=True)])
    assert ours.grad_norm == plain.grad_norm
    for p, q in zip(params, expected, strict=True):
        np.testing.assert_array_equal(p, q)
    ours.accumulate = 1
    before = [p.copy() for p in params]
    bad[3][4, 5] = math.inf
    assert not scaler.step(ours, bad)
    assert all(np.array_equal(a, b) for a, b in zip(before, params, strict=True))


def test_limits_of_groups_are_settings():
    p, q = np.zeros(4), np.zeros(4)
    opt = optim.SGD(
        [{"params": [p]}, {"params": [q], "max_norm": 4.0}], lr=1.0, max_norm=1.0, clip_scope="group"
    )
    assert [group["max_norm"] for group in opt.param_groups] == [1.0, 4.0]
    opt.step([[np.ones(4)], [np.full(4, 4.0)]])
    np.testing.assert_allclose(p, -0.5, rtol=1e-6)
    np.testing.assert_allclose(q, -2.0, rtol=1e-6)
    opt.param_groups[0]["max_norm"] = None
    saved = opt.state_dict()
    opt.max_norm = 0.5
    assert [group["max_norm"] for group in opt.param_groups] == [0.5, 0.5]
    opt.load_state_dict(saved)
    assert [group["max_norm"] for group in opt.param_groups] == [None, 4.0]
    opt.step([[np.ones(4)], [np.ones(4)]])
    np.testing.assert_allclose(p, -1.5, rtol=1e-6)
    opt.param_groups[0]["max_norm"] = -1.0
    refuse(
        opt,
        lambda: opt.step([[np.ones(4)], [np.ones(4)]]),
        r"SGD: max_norm must be in \(0, inf\), got -1.0 in param_groups\[0\]",
    )


@pytest.mark.parametrize(
    ("kinds", "setting"),
    [
        ({"max_norm": 0.05, "clip_scope": "parameter"}, "clip_scope"),
        ({"max_norm": 0.05, "norm_type": math.inf}, "norm_type"),
        ({"adaptive_clip": 0.05}, "adaptive_clip"),
    ],
)
def test_compiled(kinds, setting):
    def model():
        fo.manual_seed(3)
        return fo.nn.Sequential(fo.nn.Linear(5, 7), fo.nn.ReLU(), fo.nn.Linear(7, 2))

    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((8, 5)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    ours, theirs, loss_fn = model(), model(), fo.nn.MSELoss()
    a, b = optim.SGD(ours.parameters(), lr=0.5, **kinds), optim.SGD(theirs.parameters(), lr=0.5, **kinds)
    step = fo.compile(ours, loss_fn, a)
    for _ in range(5):
        mine = step(x, y)
        b.zero_grad()
        loss = loss_fn(theirs(fo.tensor(x)), y)
        loss.backward()
        b.step()
        assert mine == pytest.approx(float(loss.item()), rel=1e-5)
    with pytest.raises(ValueError, match=f"fuse_update is True, but {setting} needs all gradients"):
        fo.compile(ours, loss_fn, a, fuse_update=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_scope": "layer"}, r"clip_scope must be one of global, group, parameter, got 'layer'"),
        ({"norm_type": 3}, r"norm_type must be 1, 2 or inf, got 3"),
        ({"norm_type": 1, "clip_scope": "group"}, r"norm_type 1 is for clip_scope 'global', got 'group'"),
        ({"max_norm": 0.0, "clip_scope": "group"}, r"max_norm must be in \(0, inf\), got 0.0"),
        ({"adaptive_clip": 0.0}, r"adaptive_clip must be in \(0, inf\), got 0.0"),
        (
            {"adaptive_clip": 0.1, "adaptive_clip_eps": 0.0},
            r"adaptive_clip_eps must be in \(0, inf\), got 0.0",
        ),
        (
            {"adaptive_clip": 0.1, "max_norm": 1.0},
            r"adaptive_clip is another kind of clipping than max_norm, got 0.1 and 1.0",
        ),
        (
            {"adaptive_clip": 0.1, "max_norm": 1.0, "clip_scope": "parameter"},
            r"adaptive_clip is another kind of clipping than max_norm",
        ),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match="AdamW: " + message):
        optim.AdamW([np.zeros(1)], **settings)


def test_settings_that_are_refused_later():
    opt = optim.AdamW([np.zeros((2, 2))], adaptive_clip=0.1)
    refuse(
        opt, lambda: setattr(opt, "max_norm", 1.0), "adaptive_clip is another kind of clipping than max_norm"
    )
    assert opt.max_norm is None
    with pytest.raises(
        ValueError, match=r"max_norm is one for all groups, .* clip_scope='group' or 'parameter'"
    ):
        optim.AdamW([{"params": [np.zeros(1)], "max_norm": 1.0}])
