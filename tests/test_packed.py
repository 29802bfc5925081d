"""State in two bytes or one, bfloat16 parameters rounded by chance or exactly, shadows."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastopt as fo
from fastopt import _core, optim
from optim_tools import PACKED, make
from same_bits import check_levels, check_threads

ml_dtypes = pytest.importorskip("ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
GROUP = _core.packing_group()
#: Around vectors, groups, blocks of noise and chunks.
SIZES = [0, 1, 17, GROUP - 1, GROUP, GROUP + 1, 1023, 1024, 1025, 8191, 8193, 20011]
STATE_DTYPES = ["bfloat16", "int8"]


def problem(dtype=np.float32, steps=3, sizes=SIZES):
    rng = np.random.default_rng(3)
    # Groups whose elements differ by many orders of magnitude, and some that are zero.
    scales = [np.exp2(rng.integers(-12, 3, n)) * (rng.random(n) > 0.1) for n in sizes]
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    grads = [[(s * rng.standard_normal(s.size)).astype(dtype) for s in scales] for _ in range(steps)]
    return params, grads


def copies(arrays):
    return [a.copy() for a in arrays]


def decoded(entry, rule, name):
    """A stored state as float32."""
    if name + "_exponents" in entry:
        signed = name in _core.rules()[rule]["signed"]
        return _core.decode(entry[name].ravel(), entry[name + "_exponents"], signed).reshape(
            entry[name].shape
        )
    return entry[name].astype(np.float32)


# The codes ------------------------------------------------------------------------------------------------


def plain_code(x, signed):
    """The nearest values of a group's code by its definition, in float64."""
    out = np.zeros_like(x, np.float64)
    bits = 7 if signed else 8
    for begin in range(0, x.size, GROUP):
        group = np.abs(x[begin : begin + GROUP].astype(np.float64))
        exponent = np.floor(np.log2(group, where=group > 0, out=np.full(group.shape, -200.0)))
        step = np.exp2(exponent - 3)
        near = np.floor(group / step + 0.5) * step
        top = np.floor(np.log2(near.max())) if near.max() > 0 else 0
        smallest = np.exp2(top - 2**bits // 8 + 1)
        if signed:
            near[near <= smallest] = 0.0
        else:
            near = np.maximum(near, smallest * (near.max() > 0))
        out[begin : begin + GROUP] = np.sign(x[begin : begin + GROUP]) * near if signed else near
    return out


@pytest.mark.parametrize("signed", [True, False])
def test_bytes_are_the_nearest_codes(signed, isa, rng):
    for n in SIZES[1:]:
        x = (rng.standard_normal(n) * np.exp2(rng.integers(-9, 9, n))).astype(np.float32)
        x[rng.random(n) < 0.1] = 0.0
        if not signed:
            x = np.abs(x)
        codes, exponents = _core.encode(x, signed)
        assert codes.dtype == exponents.dtype == np.uint8
        assert exponents.shape == (-(-n // GROUP),)
        np.testing.assert_array_equal(
            _core.decode(codes, exponents, signed), plain_code(x, signed).astype(np.float32)
        )


def test_extreme_values_keep_their_kind(isa):
    for signed in (True, False):
        zero = np.zeros(GROUP, np.float32)
        np.testing.assert_array_equal(_core.decode(*_core.encode(zero, signed), signed), zero)
        special = np.array([np.inf, np.nan, 1.0], np.float32)
        back = _core.decode(*_core.encode(special, signed), signed)
        assert np.isinf(back[0])
        assert np.isnan(back[1])
    tiny = np.array([1e-42, -1e-44, 3e-39], np.float32)
    back = _core.decode(*_core.encode(tiny, True), True)
    assert np.all(np.abs(back - tiny) <= 2.0**-130)


# Steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "param_dtype", [np.float32, np.float16, BF16], ids=["float32", "float16", "bfloat16"]
)
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("rule", PACKED)
def test_a_step_is_that_of_the_decoded_state(rule, state_dtype, param_dtype, isa):
    name, options = PACKED[rule]
    start, grads = problem(param_dtype)
    params = copies(start)
    packed = make(name, params, {**options, "state_dtype": state_dtype})
    for g in grads:
        before = {
            i: {k: decoded(s, rule, k) for k in _core.rules()[rule]["states"]}
            for i, s in packed.state.items()
        }
        scalars = {
            i: {k: v for k, v in s.items() if v.ndim == 0 and k in packed.scalars}
            for i, s in packed.state.items()
        }
        plain_params = copies(params)
        plain = make(name, plain_params, options)
        if before:
            groups = plain.state_dict()["param_groups"]
            state = {i: {**scalars[i], **before[i]} for i in before}
            plain.load_state_dict({"state": state, "param_groups": groups})
        packed.step(g)
        plain.step(g)
        for i, (ours, theirs) in enumerate(zip(params, plain_params, strict=True)):
            np.testing.assert_array_equal(
                ours.view(f"u{ours.itemsize}"), theirs.view(f"u{ours.itemsize}"), err_msg=str(i)
            )
        for i, entry in packed.state.items():
            for key in _core.rules()[rule]["packable"]:
                got, want = decoded(entry, rule, key).ravel(), plain.state[i][key].ravel()
                if not want.size:
                    continue
                # Rounded by chance to one of the two neighbours: within a gap, besides what a group is too coarse for.
                gap = 2.0**-7 if state_dtype == "bfloat16" else 2.0**-3
                largest = np.repeat(np.maximum.reduceat(np.abs(want), range(0, want.size, GROUP)), GROUP)[
                    : want.size
                ]
                signed = key in _core.rules()[rule]["signed"]
                floor = 0.0 if state_dtype == "bfloat16" else largest * 2.0 ** (-13 if signed else -29)
                assert np.all(np.abs(got - want) <= gap * np.abs(want) + floor)


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_running_averages_are_unbiased(state_dtype):
    """At a decay of 0.999 an average moves by less than half a gap in a step: rounded to nearest, it would stop."""
    n, steps = 50_000, 400
    rng = np.random.default_rng(0)
    p = [np.zeros(n, np.float32)]
    opt = optim.RMSprop(p, lr=0.0, alpha=0.999, state_dtype=state_dtype)
    want = 0.0
    for _ in range(steps):
        g = rng.uniform(0.5, 1.5, n).astype(np.float32)
        opt.step([g])
        want = 0.999 * want + 0.001 * np.mean(g.astype(np.float64) ** 2)
    mean = decoded(opt.state[0], "rmsprop", "square_avg").astype(np.float64).mean()
    # A gap of int8 is an eighth; its chances have a standard deviation of at most half of that in a step.
    assert abs(mean / want - 1) < 5e-3


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_steps_of_a_thousandth_of_a_gap_count(state_dtype):
    """Chances are finer than the table that they come from, which tells a thousand of them apart."""
    p = [np.zeros(50_000, np.float32)]
    opt = optim.RMSprop(p, lr=0.0, alpha=0.99999, initial_square_avg=1.0, state_dtype=state_dtype)
    steps = 400
    for _ in range(steps):
        opt.step([np.full(p[0].size, 2.0, np.float32)])
    moved = decoded(opt.state[0], "rmsprop", "square_avg").astype(np.float64).mean() - 1.0
    # Of 50000 elements that move by a gap at most once, the mean has a standard deviation of 1.6e-4 for bytes.
    assert abs(moved - 3.0 * (1.0 - 0.99999**steps)) < 5e-4


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("rule", PACKED)
def test_kernels_for_packed_states_give_the_bits_of_the_general_way(rule, state_dtype, isa):
    """A limit that no gradient reaches changes nothing, and leads past the kernels that know none."""
    name, options = PACKED[rule]
    ways = []
    for limit in ({}, {"clip_value": 1e30}):
        start, grads = problem()
        params = copies(start)
        opt = make(name, params, {**options, "state_dtype": state_dtype, **limit})
        for g in grads:
            opt.step(g)
        ways.append((params, opt.state))
    (params, state), (other_params, other_state) = ways
    for i, (ours, theirs) in enumerate(zip(params, other_params, strict=True)):
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32), err_msg=str(i))
        for key in state[i]:
            assert state[i][key].tobytes() == other_state[i][key].tobytes(), (i, key)


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_bits_depend_on_neither_threads_nor_level(name, state_dtype, threads):
    def run():
        start, grads = problem()
        params = copies(start)
        opt = make(name, params, {"lr": 0.01, "state_dtype": state_dtype})
        for g in grads:
            opt.step(g)
        states = {f"{i} {k}": a for i, s in opt.state.items() for k, a in s.items()}
        return {**states, **{str(i): p for i, p in enumerate(params)}}

    check_threads(threads, run)
    check_levels(run)


@pytest.mark.parametrize(
    "storage",
    [{"state_dtype": d} for d in STATE_DTYPES] + [{"rounding": "stochastic"}, {"rounding": "exact"}],
)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad"])
def test_resuming_is_the_unbroken_run(name, storage):
    dtype = BF16 if "rounding" in storage else np.float32
    options = {"lr": 0.05, **storage, **({"momentum": 0.9} if name == "SGD" else {})}
    start, grads = problem(dtype, steps=6)
    whole, first = copies(start), copies(start)
    unbroken = make(name, whole, options)
    for g in grads:
        unbroken.step(g)
    opt = make(name, first, options)
    for g in grads[:3]:
        opt.step(g)
    second = copies(first)
    resumed = make(name, second, options)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    pickled = copy.deepcopy(opt)
    for g in grads[3:]:
        resumed.step(g)
        pickled.step(g)
    for a, b, c in zip(whole, second, pickled._objects, strict=True):
        np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{a.itemsize}"))
        np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), c.view(f"u{a.itemsize}"))


@pytest.mark.parametrize("layout", ["F", "strided"])
def test_layouts(layout):
    rng = np.random.default_rng(1)
    base = rng.standard_normal((40, 60)).astype(np.float32)
    odd = np.asfortranarray(base) if layout == "F" else np.repeat(base, 2, axis=1)[:, ::2]
    grads = [rng.standard_normal(base.shape).astype(np.float32) for _ in range(4)]
    kernel_order = np.ascontiguousarray(base.T if layout == "F" else base)
    a, b = optim.AdamW([odd], state_dtype="int8"), optim.AdamW([kernel_order], state_dtype="int8")
    for t, g in enumerate(grads):
        a.step([g])
        b.step([np.ascontiguousarray(g.T) if layout == "F" else g])
        if t == 1:  # and again after a round through a dictionary
            saved = a.state_dict()
            a = optim.AdamW([odd], state_dtype="int8")
            a.load_state_dict(saved)
    np.testing.assert_array_equal(odd, kernel_order.T if layout == "F" else kernel_order)


def test_storage_is_converted():
    start, grads = problem(steps=2)
    params = copies(start)
    opt = optim.AdamW(params)
    opt.step(grads[0])
    exact = {k: opt.state[8][k].copy() for k in ("exp_avg", "exp_avg_sq")}
    for group in opt.param_groups:
        group["state_dtype"] = "int8"
    opt._refresh()
    for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        codes, exponents = _core.encode(exact[key], signed)
        np.testing.assert_array_equal(opt.state[8][key], codes)
        np.testing.assert_array_equal(opt.state[8][key + "_exponents"], exponents)
    # A dictionary says how its state is stored.
    other = optim.AdamW(copies(params))
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["state_dtype"] == "int8"
    np.testing.assert_array_equal(other.state[8]["exp_avg"], opt.state[8]["exp_avg"])
    for group in opt.param_groups:
        group["state_dtype"] = "float32"
    opt._refresh()
    assert "exp_avg_exponents" not in opt.state[8]
    np.testing.assert_array_equal(
        opt.state[8]["exp_avg"], _core.decode(*_core.encode(exact["exp_avg"], True), True)
    )
    opt.step(grads[1])


def test_float64_keeps_its_state_and_starts_are_kept():
    p = [np.ones(5), np.ones(300, np.float32)]
    opt = optim.Adagrad(p, initial_accumulator_value=0.75, state_dtype="int8")
    assert opt.state[0]["sum"].dtype == np.float64
    np.testing.assert_array_equal(decoded(opt.state[1], "adagrad", "sum"), 0.75)
    assert {a.dtype for k, a in opt.state[1].items() if k != "step"} == {np.dtype(np.uint8)}


# bfloat16 parameters --------------------------------------------------------------------------------------


def float32_run(name, options, start, grads):
    params = [p.astype(np.float32) for p in start]
    opt = make(name, params, options)
    for g in grads:
        opt.step([a.astype(np.float32) for a in g])
    return params


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "LAMB", "LARS", "NovoGrad"])
def test_exact_is_a_float32_run(name, isa):
    start, grads = problem(BF16, steps=5)
    params = copies(start)
    opt = make(name, params, {"lr": 0.01, "rounding": "exact"})
    for g in grads:
        opt.step(g)
    want = float32_run(name, {"lr": 0.01}, start, grads)
    for p, w, entry in zip(params, want, opt.state.values(), strict=True):
        bits = (p.view(np.uint16).astype(np.int64) << 16) + entry["remainder"]
        np.testing.assert_array_equal(bits, w.view(np.uint32))
        assert np.all(np.abs(p.astype(np.float64) - w) <= np.abs(w.astype(BF16).astype(np.float64) - w))


def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased():
    start, _ = problem(BF16)
    params = copies(start)
    opt = optim.SGD(params, lr=0.01, rounding="stochastic")
    grads = [np.ones_like(p) for p in params]
    opt.step(grads)
    for p, s in zip(params, start, strict=True):
        want = s.astype(np.float32) - np.float32(0.01)
        down = (want.view(np.uint32) & 0xFFFF0000).view(np.float32)
        up = (
            ((want.view(np.uint32) & 0xFFFF0000) + 0x10000 * (want != down))
            .astype(np.uint32)
            .view(np.float32)
        )
        assert np.all((p.astype(np.float32) == down) | (p.astype(np.float32) == up))
    p = np.ones(50_000, BF16)
    opt = optim.SGD([p], lr=1e-3, rounding="stochastic")
    for _ in range(100):
        opt.step([np.ones_like(p)])
    assert abs(p.astype(np.float64).mean() - 0.9) < 1e-3
    nearest = np.ones(10, BF16)
    opt = optim.SGD([nearest], lr=1e-3)
    for _ in range(100):
        opt.step([np.ones_like(nearest)])
    assert np.all(nearest == 1)


def test_rounding_is_of_bfloat16_alone():
    for dtype in (np.float32, np.float16, np.float64):
        start, grads = problem(dtype)
        a, b = copies(start), copies(start)
        x, y = optim.AdamW(a, rounding="exact"), optim.AdamW(b)
        for g in grads:
            x.step(g)
            y.step(g)
        for p, q in zip(a, b, strict=True):
            np.testing.assert_array_equal(p, q)
        assert "remainder" not in x.state[3]


# Shadows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state_dtype", ["float32", *STATE_DTYPES])
@pytest.mark.parametrize("shadow", [np.dtype(np.float16), BF16], ids=str)
def test_shadows_are_the_rounded_parameters(shadow, state_dtype, isa):
    start, grads = problem()
    params, twins = copies(start), copies(start)
    opt, twin = (optim.AdamW(a, lr=0.01, ema_decay=0.9, state_dtype=state_dtype) for a in (params, twins))
    shadows = [np.empty(p.shape, shadow) if i != 5 else None for i, p in enumerate(params)]
    opt.keep_shadow(shadows)
    for g in [None, *grads]:
        if g is not None:
            opt.step(g)
            twin.step(g)
        for p, s in zip(params, shadows, strict=True):
            if s is not None:
                np.testing.assert_array_equal(s.view(np.uint16), p.astype(shadow).view(np.uint16))
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_array_equal(p, q)
    opt.keep_shadow(None)
    before = copies([s for s in shadows if s is not None])
    opt.step(grads[0])
    for s, b in zip([s for s in shadows if s is not None], before, strict=True):
        np.testing.assert_array_equal(s, b)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            [np.zeros(4, np.float32)],
            TypeError,
            r"shadows\[0\] is float32, params\[0\] is float32; a shadow is a",
        ),
        ([np.zeros(3, BF16)], ValueError, r"shadows\[0\] has shape \(3,\), params\[0\] has shape \(4,\)"),
        ([np.zeros(8, BF16)[::2]], ValueError, r"shadows\[0\] is not C-contiguous"),
        ([np.zeros(4, BF16)] * 2, ValueError, r"has 2 entries, params has 1"),
    ],
)
def test_refused_shadows_change_nothing(arrays, error, message):
    p, good = np.ones(4, np.float32), np.zeros(4, np.float16)
    opt = optim.SGD([p], lr=0.5)
    opt.keep_shadow([good])
    with pytest.raises(error, match=message):
        opt.keep_shadow(arrays)
    opt.step([np.ones(4, np.float32)])
    np.testing.assert_array_equal(good, 0.5)


# Refusals, and the compiled step ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "AdamW",
            {"state_dtype": "fp8"},
            r"AdamW: state_dtype must be one of float32, bfloat16, int8, got 'fp8'",
        ),
        ("SGD", {"rounding": "up"}, r"SGD: rounding must be one of nearest, stochastic, exact, got 'up'"),
        (
            "Rprop",
            {"state_dtype": "int8"},
            r"Rprop: state_dtype is 'int8', rule 'rprop' needs its state in float32",
        ),
        (
            "RMSprop",
            {"centered": True, "state_dtype": "bfloat16"},
            r"rule 'rmsprop_centered' needs its state in float32",
        ),
    ],
)
def test_refused_storage(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, [np.ones(3, np.float32)], options)
    opt = make("AdamW", [np.ones(3, np.float32)])
    opt.param_groups[0]["state_dtype"] = None
    with pytest.raises(ValueError, match=r"state_dtype must be one of .*, got None in param_groups\[0\]"):
        opt.step([np.ones(3, np.float32)])


def test_dictionary_with_wrong_exponents_is_refused():
    opt = optim.AdamW([np.ones(300, np.float32)], state_dtype="int8")
    opt.step([np.ones(300, np.float32)])
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    saved["state"][0]["exp_avg_exponents"] = np.zeros(2, np.uint8)
    with pytest.raises(
        ValueError, match=r"exp_avg_exponents'\] has shape \(2,\), params\[0\] has 3 groups of 128"
    ):
        opt.load_state_dict(saved)
    np.testing.assert_array_equal(opt.state[0]["exp_avg"], before["state"][0]["exp_avg"])


def mnist_losses(data, name, options, seed):
    """Losses of one pass over 6000 digits."""
    x, y = data
    fo.manual_seed(seed)
    model = fo.nn.Sequential(fo.nn.Linear(784, 64), fo.nn.ReLU(), fo.nn.Linear(64, 10))
    opt, loss_fn = make(name, model.parameters(), options), fo.nn.CrossEntropyLoss()

    def eager(x, y):
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        opt.step()
        return loss.item()

    step = fo.compile(model, loss_fn, opt) if opt.by_element else eager
    batches = np.random.default_rng(seed).permutation(len(x))[:6000].reshape(-1, 50)
    return np.array([step(x[batch], y[batch]) for batch in batches])


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {"lr": 2e-3}), ("LAMB", {"lr": 0.02}), ("LARS", {"lr": 5.0, "nesterov": True})],
)
def test_digits_are_learnt_as_with_float32(shared, name, options, state_dtype):
    """Over 5 seeds, the mean of a run's last 40 losses differs by less than what seeds make of it."""
    data = fo.data.load_mnist(shared / "data" / "mnist")[:2]
    plain, packed = (
        np.array(
            [
                mnist_losses(data, name, {**options, "state_dtype": dtype}, seed)[-40:].mean()
                for seed in range(5)
            ]
        )
        for dtype in ("float32", state_dtype)
    )
    assert np.all(plain < 0.6)
    # Half of the seeds' own standard deviation; the same seed has the same batches and weights.
    assert abs(np.mean(packed - plain)) < 0.5 * plain.std(ddof=1)
