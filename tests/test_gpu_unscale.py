"""Gradients unscaled on the device, and the step after it, that waits for nothing: the CPU's bits and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from gpu_tools import There, assert_same_bits, cp, drawn, dtypes, fused, kind, there
from test_gpu_attempts import SKIPPED, Twins, at_work, counted, nested, two_rules
from test_gpu_capture import captured, stream

__all__ = ["at_work", "cp", "fused", "kind", "stream", "there"]

#: Whose inverses float32 rounds.
ODD: dict[str, Any] = {"init_scale": 100.0, "backoff_factor": 0.3}


def attempt(twins: Twins, nest: Any = list, clip: float | None = None) -> Any:
    """Both unscale, look at the gradients and step; return what the device says."""
    grads = twins.draw()
    twins.schedule()
    twins.scaler.unscale_(twins.ours, nest(twins.room))
    twins.other.unscale_(twins.theirs, nest(grads))
    if clip is not None:
        for g in (*twins.room, *grads):
            g *= np.float32(clip)
    ran = twins.scaler.step(twins.ours, nest(twins.room))
    twins.scaler.update()
    assert twins.other.step(twins.theirs, nest(grads)) is (twins.turn - 1 not in SKIPPED)
    twins.other.update()
    twins.grads = grads
    return ran


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "ema_decay": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "max_norm": 0.5}),
        ("Adam", {"lr": 0.01, "state_dtype": "bfloat16", "rounding": "stochastic"}),
        ("NAdam", {"lr": 0.01}),
    ],
)
@pytest.mark.usefixtures("fused")
def test_steps_are_the_cpus_and_nothing_waits(
    cp: Any, at_work: Any, name: str, options: dict[str, Any], lags: bool
) -> None:
    twins = Twins(cp, name, options, **ODD)
    ran = [attempt(twins)]
    if lags:
        twins.lag(3)
    for turn in range(1, 12):
        with at_work(12 if lags and name == "NAdam" else 0):
            ran.append(attempt(twins, clip=0.5 if turn % 2 else None))
        for d, h in zip(twins.room, twins.grads, strict=True):
            assert_same_bits(d, h)
    assert [not bool(taken) for taken in ran] == [turn in SKIPPED for turn in range(12)]
    twins.check()
    if "max_norm" in options:
        assert float(twins.ours.grad_norm) == pytest.approx(twins.theirs.grad_norm, rel=1e-14)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.usefixtures("fused")
def test_two_rules(cp: Any, at_work: Any, max_norm: float | None) -> None:
    twins = Twins(cp, "SGD", {"lr": 0.1, "max_norm": max_norm}, two_rules, **ODD)
    attempt(twins, nested)
    for turn in range(8):
        with at_work():
            (twins.attempt if turn % 3 == 2 else lambda nest: attempt(twins, nest))(nested)
    twins.check()


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.usefixtures("fused", "stream")
def test_a_captured_graph(cp: Any, kind: str, at_work: Any, max_norm: float | None) -> None:
    twins = Twins(cp, "AdamW", {"lr": 0.01, "max_norm": max_norm}, **ODD)
    twins.scaler.prepare_capture(twins.ours)
    with captured(cp) as graph:
        twins.scaler.unscale_(twins.ours, twins.room)
        twins.scaler.step(twins.ours, twins.room)
        twins.scaler.update()
    for turn in range(12):
        grads = twins.draw()
        twins.schedule()
        twins.other.unscale_(twins.theirs, grads)
        twins.other.step(twins.theirs, grads)
        twins.other.update()
        with at_work():
            twins.ours.advance()
            before = kind == "host" and counted("kernels")
            graph.replay()
            # Unscaling, judging, with a max_norm the norms, the step, the scale's update.
            assert kind != "host" or counted("kernels") - before == 4
        if turn == 6:
            attempt(twins)  # between replays
        for d, h in zip(twins.room, grads if turn != 6 else twins.grads, strict=True):
            assert_same_bits(d, h)
    twins.check()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.usefixtures("fused")
def test_every_dtype_and_alignment(there: There, dtype: str) -> None:
    """Elements before and behind packs, of arrays that begin where a pack does not."""
    for size in (1, 7, 33, 5000, 40_001):
        for start in (0, 1):
            whole = drawn(size + start, *dtypes(dtype), size)
            on_device = there.put(whole)
            params = [there.put(np.zeros(size, whole.dtype)), np.zeros(size, whole.dtype)]
            scalers = [fo.GradScaler(init_scale=60.0) for _ in params]
            grads = [on_device[start:], whole[start:].copy()]
            for p, g, scaler in zip(params, grads, scalers, strict=True):
                scaler.get_scale()
                opt = fo.optim.SGD([p], lr=1.0)
                scaler.unscale_(opt, [g])
                assert bool(scaler.step(opt, [g]))
                scaler.update()
            whole[start:] = grads[1]
            assert_same_bits(there.take(on_device), whole)
            assert_same_bits(there.take(params[0]), params[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"max_norm": 9, "norm_type": 1.0}, {"max_norm": 0.5, "clip_scope": "group"}, {"adaptive_clip": 0.5}],
)
@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.usefixtures("fused")
def test_every_library(there: There, options: dict[str, Any], unscales: bool) -> None:
    """Two steps of which the second is left out."""
    params = [there.put(np.ones(33, np.float32)), np.ones(33, np.float32)]
    norms = []
    for p in params:
        opt, scaler = fo.optim.SGD([p], lr=1.0, **options), fo.GradScaler(**ODD)
        scaler.get_scale()
        for last in (1.0, np.inf):
            g = drawn(33, np.float32, 1) * np.float32(100)
            g[-1] *= last
            g = there.put(g) if p is params[0] else g
            if unscales:
                scaler.unscale_(opt, [g])
            assert bool(scaler.step(opt, [g])) is (last == 1.0)
            scaler.update()
        assert scaler.get_scale() == 30.0
        norms.append(float(opt.grad_norm) if options else 0.0)
    assert_same_bits(there.take(params[0]), params[1])
    assert norms[0] == pytest.approx(norms[1], rel=1e-14)


@pytest.mark.usefixtures("fused")
def test_one_element_among_many(cp: Any) -> None:
    """Wherever it is, and of whatever kind."""
    w, g = cp.zeros(40_001, np.float32), cp.ones(40_001, np.float32)
    opt, scaler = fo.optim.SGD([w], lr=1.0), fo.GradScaler(init_scale=8.0, growth_interval=100)
    scaler.get_scale()
    for turn, (i, bad) in enumerate([(0, np.inf), (40_000, np.nan), (2047, -np.inf), (16_384, np.nan)]):
        g[...], g[i] = 1.0, bad
        scaler.unscale_(opt, [g])
        assert not bool(scaler.step(opt, [g]))
        scaler.update()
        assert scaler.get_scale() == 4.0 / 2**turn
    assert not w.get().any()


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 1, "norm_type": 1.0},
        {"max_norm": 0.5, "norm_type": np.inf},
        {"max_norm": 0.5, "clip_scope": "group"},
        {"max_norm": 0.5, "clip_scope": "parameter"},
        {"adaptive_clip": 0.01},
    ],
)
@pytest.mark.usefixtures("fused")
def test_other_kinds_of_clipping(
    cp: Any, at_work: Any, options: dict[str, Any], rules: int, unscales: bool
) -> None:
    twins = Twins(cp, "SGD", {"lr": 0.1, **options}, two_rules if rules == 2 else None, **ODD)
    nest = nested if rules == 2 else list
    for turn in range(12):
        with at_work(0 if turn else 100):  # the first one makes room
            attempt(twins, nest) if unscales else twins.attempt(nest)
        assert float(twins.ours.grad_norm) == pytest.approx(
            np.nan if twins.theirs.grad_norm is None else twins.theirs.grad_norm, rel=1e-14, nan_ok=True
        )
    # Sums of one order of both rules' gradients are added exactly on the host alone.
    if options.get("norm_type") != 1.0 or rules == 1:
        twins.check()


@pytest.mark.parametrize(
    "options",
    [{"max_norm": 1.0, "clip_scope": "group"}, {"max_norm": 1.0, "norm_type": 1.0}, {"max_norm": 1.0}],
)
def test_a_norm_of_a_step_that_the_host_knew(cp: Any, options: dict[str, Any]) -> None:
    results = []
    for module in (cp, np):
        w = module.ones(5, np.float32)
        opt = fo.optim.SGD([w], lr=0.125, **options)
        scaler = fo.optim.GradScaler(init_scale=4.0)
        scaler.get_scale()
        opt.step_scaled([module.full(5, 2.0, np.float32)], 0.5)
        for max_norm in (1.0, None):
            if "clip_scope" in options:
                opt.param_groups[0]["max_norm"] = max_norm
            else:
                opt.max_norm = max_norm
            scaler.step(opt, [module.full(5, 8.0, np.float32)])
            scaler.update()
        results.append(w if module is np else w.get())
    np.testing.assert_array_equal(results[0], results[1])


def test_one_gradient_of_two_parameters_is_divided_twice(cp: Any) -> None:
    g = cp.full(70, 64.0, np.float32)
    opt = fo.optim.SGD([cp.ones(70, np.float32), cp.ones(70, np.float32)], lr=1.0)
    scaler = fo.optim.GradScaler(init_scale=8.0)
    scaler.get_scale()
    scaler.unscale_(opt, [g, g])
    np.testing.assert_array_equal(g.get(), np.full(70, 1.0, np.float32))


@pytest.mark.usefixtures("fused")
def test_an_update_without_a_step(cp: Any) -> None:
    """What was found backs the scale off; the step after the next unscaling knows nothing of it."""
    twins = Twins(cp, "SGD", {"lr": 0.1}, **ODD)
    for _ in range(5):
        grads = twins.draw()
        twins.scaler.unscale_(twins.ours, twins.room)
        twins.other.unscale_(twins.theirs, grads)
        for scaler in (twins.scaler, twins.other):
            scaler.update()
        twins.check()
    attempt(twins)
    twins.check()


@pytest.mark.usefixtures("fused")
def test_what_was_found_elsewhere_and_steps_that_look_at_it(cp: Any) -> None:
    """An optimizer that no longer leaves steps out by itself reads what was found."""
    for bad in (False, True):
        twins = Twins(cp, "SGD", {"lr": 0.1, "momentum": 0.9}, **ODD)
        twins.attempt()
        for optimizer, scaler in ((twins.ours, twins.scaler), (twins.theirs, twins.other)):
            grads = [np.full(n, np.nan if bad else 1.0, np.float32) for n in (33, 257, 5)]
            if optimizer is twins.ours:
                grads = [cp.asarray(g) for g in grads]
            scaler.unscale_(optimizer, grads)
            optimizer.accumulate = 2
            assert scaler.step(optimizer, grads) is not bad
            scaler.update()
            assert optimizer.accumulated == (not bad)
        twins.check()


@pytest.mark.usefixtures("fused")
def test_gradients_that_the_kernels_do_not_take(cp: Any) -> None:
    """In another layout, beside missing ones; float16 is refused as on the CPU."""
    w = [cp.zeros((3, 4), np.float32), cp.zeros(2, np.float32)]
    opt, scaler = fo.optim.SGD(w, lr=1.0), fo.GradScaler(init_scale=8.0)
    scaler.get_scale()
    g = cp.asarray(np.arange(12, dtype=np.float32).reshape(4, 3)).T
    for grads in ([g, None], [None, cp.full(2, 16.0, np.float32)]):
        scaler.unscale_(opt, grads)
        with pytest.raises(RuntimeError, match="already called"):
            scaler.unscale_(opt, grads)
        assert bool(scaler.step(opt, grads))
        scaler.update()
    np.testing.assert_array_equal(g.get(), np.arange(12).reshape(4, 3).T / 8)
    np.testing.assert_array_equal(w[0].get(), -g.get())
    np.testing.assert_array_equal(w[1].get(), -2.0)
    half = fo.optim.SGD([cp.zeros(2, np.float16)], lr=1.0)
    with pytest.raises(ValueError, match=r"unscale_: grads\[0\] is float16"):
        scaler.unscale_(half, [cp.ones(2, np.float16)])
