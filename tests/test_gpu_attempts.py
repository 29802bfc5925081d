"""Scaled steps that a device takes or leaves out by itself: the CPU's bits and counts, and nothing that waits."""

from __future__ import annotations

import copy
import ctypes
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from gpu_tools import There, assert_same_bits, cp, drawn, flattened, fused, kind
from optim_tools import ROWS
from test_gpu_capture import captured, stream

__all__ = ["cp", "fused", "kind", "stream"]

SIZES = (33, 257, 5)
BY_ELEMENT = [row for row in ROWS if getattr(fo.optim, row[0]).by_element]
#: Attempts with a gradient that is not finite; more in a row than one, and the first.
SKIPPED = {0: np.inf, 3: np.nan, 4: -np.inf, 9: np.inf}
SETTINGS: dict[str, Any] = {"init_scale": 64.0, "growth_interval": 2, "backoff_factor": 0.25}


def counted(what: str) -> int:
    """How many "kernels" have run over host memory, or "waits": the host's for the device, and copies at once."""
    count = getattr(ctypes.CDLL(sys.modules["fastopt._cuda"].__file__), f"host_cuda_{what}")
    count.restype = ctypes.c_ulong
    return int(count())


@pytest.fixture
def at_work(cp: Any, kind: str) -> Any:
    """A context in which nothing may wait for the device; on one itself nothing is checked."""

    @contextmanager
    def context(allowed: int = 0) -> Iterator[None]:
        if kind == "device":
            yield
            return

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("the host reads what is on the device")

        with pytest.MonkeyPatch.context() as patch:
            for name in ("get", "item", "tolist", "__bool__", "__int__", "__float__"):
                patch.setattr(cp.ndarray, name, refuse)
            before = counted("waits")
            yield
            assert counted("waits") - before <= allowed

    return context


class Lagging:
    """Attempts of a device that has come no further than at the last wait, or so many looks ago."""

    def __init__(self, native: Any, looks: int | None) -> None:
        self._native, self._looks = native, looks
        self._before = [native.counts()]

    def counts(self) -> tuple[int, int]:
        if self._looks is not None:
            self._before = [*self._before, self._native.counts()][-1 - self._looks :]
        return self._before[0]

    def settle(self) -> tuple[int, int]:
        self._before = [self._native.settle()]
        return self._before[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


class Twins:
    """An optimizer and a scaler on the host, the same on the device, and the gradients of their attempts."""

    def __init__(
        self, cp: Any, name: str, options: dict[str, Any], groups: Any = None, **settings: Any
    ) -> None:
        values = [drawn(n, np.float32, n) for n in SIZES]
        self._cp, self.turn = cp, 0
        self.host, self.device = [v.copy() for v in values], [cp.asarray(v) for v in values]
        groups = groups or (lambda arrays: arrays)
        make = getattr(fo.optim, name)
        self.ours, self.theirs = make(groups(self.device), **options), make(groups(self.host), **options)
        self.scaler, self.other = (fo.GradScaler(**{**SETTINGS, **settings}) for _ in range(2))
        self.scaler.get_scale()
        self.room = [cp.zeros(n, np.float32) for n in SIZES]

    def draw(self) -> list[np.ndarray]:
        """Scaled gradients of the next attempt; they are in `room`, too."""
        scale = np.float32(self.other.get_scale())
        grads = [scale * drawn(n, np.float32, 1000 * self.turn + n) for n in SIZES]
        if self.turn in SKIPPED:
            grads[self.turn % 3][self.turn % 5] = SKIPPED[self.turn]
        for to, g in zip(self.room, grads, strict=True):
            to[...] = self._cp.asarray(g)
        self.turn += 1
        return grads

    def lag(self, looks: int | None = None) -> None:
        """Have the device's counts come late from now on."""
        attempts = self.ours._attempts
        attempts._native = Lagging(attempts._native, looks)

    def schedule(self) -> None:
        """Another rate for each attempt."""
        for optimizer in (self.ours, self.theirs):
            for group in optimizer.param_groups:
                group["lr"] *= 0.99

    def attempt(self, nest: Any = None, missing: int | None = None) -> Any:
        """One attempt of both; return whether the device says that it took the step."""
        nest = nest or (lambda grads: grads)
        grads = self.draw()
        on_host, on_device = (
            [None if i == missing else g for i, g in enumerate(gs)] for gs in (grads, self.room)
        )
        self.schedule()
        ran = self.scaler.step(self.ours, nest(on_device))
        self.scaler.update()
        assert self.other.step(self.theirs, nest(on_host)) is (self.turn - 1 not in SKIPPED)
        self.other.update()
        return ran

    def check(self) -> None:
        """All bits, counts and the scaler's numbers are the same."""
        self._cp.cuda.get_current_stream().synchronize()
        for d, h in zip(self.device, self.host, strict=True):
            assert_same_bits(d, h)
        assert self.ours.state.keys() == self.theirs.state.keys()
        for d, h in zip(flattened(self.ours.state), flattened(self.theirs.state), strict=True):
            if isinstance(d, np.ndarray):
                np.testing.assert_array_equal(d, h)
            else:
                assert_same_bits(d, h)
        assert self.scaler.state_dict() == self.other.state_dict()


def two_rules(arrays: list[Any]) -> list[dict[str, Any]]:
    return [{"params": arrays[:1]}, {"params": arrays[1:], "momentum": 0.9}]


def nested(grads: list[Any]) -> list[list[Any]]:
    return [grads[:1], grads[1:]]


@pytest.mark.parametrize(("name", "row"), BY_ELEMENT)
@pytest.mark.usefixtures("fused")
def test_steps_are_the_cpus_and_nothing_waits(cp: Any, at_work: Any, name: str, row: int) -> None:
    twins = Twins(cp, name, OPTIMIZERS[name]["options"][row])
    ran = [twins.attempt()]  # the first one makes room
    for _ in range(11):
        with at_work():
            ran.append(twins.attempt())
    assert [not bool(taken) for taken in ran] == [turn in SKIPPED for turn in range(12)]
    twins.check()


@pytest.mark.parametrize("looks", [None, 1, 5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "max_norm": 0.5}),
        ("Adam", {"lr": 0.01, "state_dtype": "bfloat16", "rounding": "stochastic"}),
        ("RAdam", {"lr": 0.01, "ema_decay": 0.9}),
        ("NAdam", {"lr": 0.01}),
    ],
)
@pytest.mark.usefixtures("fused")
def test_a_device_that_is_behind(
    cp: Any, at_work: Any, name: str, options: dict[str, Any], looks: int | None
) -> None:
    """Coefficients are those of the steps that were taken, whatever the host knows of them."""
    twins = Twins(cp, name, options)
    twins.attempt()
    twins.lag(looks)
    # At most so many steps ahead; NAdam's next numbers depend on which steps were taken.
    allowed = 40 if name == "NAdam" else 2 if looks is None else 0
    with at_work(allowed):
        for _ in range(40):
            twins.attempt()
    assert twins.ours._pending is not None
    twins.check()
    assert twins.ours._pending is None


@pytest.mark.usefixtures("fused")
def test_two_rules_and_missing_gradients(cp: Any, at_work: Any) -> None:
    twins = Twins(cp, "SGD", {"lr": 0.1, "max_norm": 0.5, "dampening": 0.5}, two_rules)
    twins.attempt(nested)
    twins.lag()
    for missing in (2, 2, None, 0, 2, 2, 1, None):
        twins.attempt(nested, missing)
    with at_work():
        twins.attempt(nested)
    twins.check()
    assert float(twins.ours.grad_norm) == pytest.approx(twins.theirs.grad_norm, rel=1e-14)


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.usefixtures("fused", "stream")
def test_a_captured_graph_skips_steps(
    cp: Any, at_work: Any, rules: int, max_norm: float | None, lags: bool
) -> None:
    if rules == 2:
        twins = Twins(cp, "SGD", {"lr": 0.1, "max_norm": max_norm, "dampening": 0.1}, two_rules)
    else:
        twins = Twins(cp, "AdamW", {"lr": 0.01, "max_norm": max_norm, "ema_decay": 0.9})
    nest = nested if rules == 2 else list
    twins.scaler.prepare_capture(twins.ours)
    with captured(cp) as graph:
        assert twins.scaler.step(twins.ours, nest(twins.room)) is True
        twins.scaler.update()
    if lags:
        twins.lag(3)
    for turn in range(24):
        grads = twins.draw()
        twins.schedule()
        twins.other.step(twins.theirs, nest(grads))
        twins.other.update()
        with at_work():
            twins.ours.advance()
            graph.replay()
        if turn in (4, 23):
            twins.check()
            if max_norm is not None:
                assert float(twins.ours.grad_norm) == pytest.approx(twins.theirs.grad_norm, rel=1e-14)
        if turn in (4, 9):  # between replays
            twins.attempt(nest)
        if turn == 12:
            grads = twins.draw()
            for optimizer, given in ((twins.ours, twins.room), (twins.theirs, grads)):
                optimizer.step(nest(given))


@pytest.mark.usefixtures("fused", "stream")
def test_an_update_that_is_not_captured(cp: Any, at_work: Any) -> None:
    twins = Twins(cp, "Adam", {"lr": 0.01})
    twins.scaler.prepare_capture(twins.ours)
    with captured(cp) as graph:
        twins.scaler.step(twins.ours, twins.room)
    twins.scaler.update(SETTINGS["init_scale"])
    for _ in range(12):
        twins.other.step(twins.theirs, twins.draw())
        twins.other.update()
        with at_work():
            twins.ours.advance()
            graph.replay()
            twins.scaler.update()
    twins.check()


@pytest.mark.usefixtures("fused", "stream")
def test_replays_that_were_left_out_do_not_count(cp: Any) -> None:
    twins = Twins(cp, "Adam", {"lr": 0.01})
    twins.scaler.prepare_capture(twins.ours)
    with captured(cp) as graph:
        twins.scaler.step(twins.ours, twins.room)
        twins.scaler.update()
    for turn in range(12):
        twins.other.step(twins.theirs, twins.draw())
        twins.other.update()
        for _ in range(40 if turn == 6 else turn % 3 + 1):
            twins.ours.advance()
        if turn % 2:
            twins.ours.state_dict()  # before the replay
        graph.replay()
    twins.check()


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy", "safetensors"])
@pytest.mark.usefixtures("fused")
def test_checkpoints_after_skipped_steps(cp: Any, how: str, tmp_path: Any) -> None:
    twins = Twins(cp, "AdamW", {"lr": 0.01, "ema_decay": 0.9})
    twins.attempt()
    twins.lag()
    for _ in range(9):
        twins.attempt()  # the tenth is skipped
    assert twins.ours._pending is not None
    steps = 10 - len(SKIPPED)
    if how == "state_dict":
        saved = pickle.loads(pickle.dumps(twins.theirs.state_dict()))
        state = twins.ours.state_dict()
        assert [float(entry["step"]) for entry in state["state"].values()] == [steps] * 3
        twins.attempt()
        twins.ours.load_state_dict(saved)  # while an attempt is under way
        twins.theirs.load_state_dict(state_on_host(state))
    elif how == "safetensors":
        path = tmp_path / "at.safetensors"
        fo.checkpoint.save(path, optimizer=twins.ours, extra=twins.scaler.state_dict())
        twins.attempt()
        for optimizer, scaler in ((twins.ours, twins.scaler), (twins.theirs, twins.other)):
            scaler.load_state_dict(fo.checkpoint.load(path, optimizer=optimizer)["extra"])
        for d, h in zip(twins.device, twins.host, strict=True):
            assert_same_bits(d, h)
    else:
        both = (twins.ours, twins.scaler)
        # Of CuPy's arrays only the real ones can be pickled.
        ours, scaler = (
            copy.deepcopy(both) if how == "deepcopy" else (twins.ours, pickle.loads(pickle.dumps(both[1])))
        )
        assert [float(entry["step"]) for entry in ours.state.values()] == [steps] * 3
        assert scaler.state_dict() == twins.other.state_dict()
        twins.scaler = scaler
        if how == "deepcopy":
            twins.ours, twins.device = ours, ours.param_groups[0]["params"]
    for _ in range(3):
        twins.attempt()
    twins.check()


def state_on_host(state: dict[str, Any]) -> dict[str, Any]:
    entries = {
        i: {key: a.get() if hasattr(a, "get") else a for key, a in entry.items()}
        for i, entry in state["state"].items()
    }
    return {**state, "state": entries}


@pytest.mark.usefixtures("fused")
def test_a_scaler_of_several_optimizers(cp: Any, at_work: Any) -> None:
    """Two on the device, one on the host: what one finds backs the scale off."""
    scaler = fo.GradScaler(**SETTINGS)
    scaler.get_scale()
    arrays = [cp.zeros(3, np.float32), cp.zeros(3, np.float32), np.zeros(3, np.float32)]
    optimizers = [fo.optim.SGD([a], lr=1.0) for a in arrays]
    bad = {0: 1, 2: 2, 5: 0}
    scales = []
    for turn in range(7):
        scales.append(scaler.get_scale())
        for i, optimizer in enumerate(optimizers):
            g = np.full(3, np.nan if bad.get(turn) == i else scales[-1], np.float32)
            scaler.step(optimizer, [g if i == 2 else cp.asarray(g)])
        scaler.update()
    assert scales == [64.0, 16.0, 16.0, 4.0, 4.0, 8.0, 2.0]
    assert [float(a[0]) for a in arrays] == [-6.0, -6.0, -6.0]
    grads = [cp.ones(3, np.float32)]
    with at_work():
        for optimizer in optimizers[:2]:
            scaler.step(optimizer, grads)
        scaler.update()


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("first", ["cupy", "torch"])
def test_what_one_library_found_outlives_a_step_of_the_other(cp: Any, kind: str, first: str) -> None:
    pytest.importorskip("torch")
    scaler = fo.GradScaler(**SETTINGS)
    scaler.get_scale()
    for name in (first, "torch" if first == "cupy" else "cupy"):
        there = There(name, kind, cp)
        optimizer = fo.optim.SGD([there.put(np.zeros(3, np.float32))], lr=1.0)
        g = np.full(3, np.inf if name == first else 64.0, np.float32)
        assert bool(scaler.step(optimizer, [there.put(g)])) is (name != first)
    scaler.update()
    assert scaler.get_scale() == 16.0


@pytest.mark.usefixtures("fused", "stream")
def test_a_graph_keeps_the_scale_in_its_library(cp: Any, kind: str) -> None:
    pytest.importorskip("torch")
    scaler = fo.GradScaler(**SETTINGS)
    scaler.get_scale()
    scaler.prepare_capture(fo.optim.SGD([cp.zeros(3, np.float32)], lr=1.0))
    there = There("torch", kind, cp)
    other = fo.optim.SGD([there.put(np.zeros(3, np.float32))], lr=1.0)
    for call in (scaler.prepare_capture, lambda o: scaler.step(o, [there.put(np.ones(3, np.float32))])):
        with pytest.raises(
            RuntimeError, match="GradScaler: SGD is on another device, or its arrays are another"
        ):
            call(other)
    assert other._captured is None


@pytest.mark.usefixtures("fused", "stream")
def test_the_norm_of_the_last_step_that_was_taken(cp: Any) -> None:
    opt = fo.optim.SGD([cp.zeros(3, np.float32)], lr=1.0, max_norm=100.0)
    scaler = fo.GradScaler(init_scale=8.0, growth_interval=100)
    scaler.get_scale()
    g, norms = cp.zeros(3, np.float32), []

    def attempt(value: float, replay: Any = None) -> None:
        scaler.update(8.0)
        g[...] = value
        if replay is None:
            scaler.step(opt, [g])
        else:
            opt.advance()
            replay()
        norms.append(float(opt.grad_norm) / 3**0.5)

    attempt(8.0)
    scaler.update()
    scaler.prepare_capture(opt)
    with captured(cp) as graph:
        scaler.step(opt, [g])
    for value, replay in ((np.nan, True), (16.0, True), (np.inf, True), (24.0, False), (np.nan, True)):
        attempt(value, graph.replay if replay else None)
    np.testing.assert_allclose(norms, [1, 1, 2, 2, 3, 3], rtol=1e-6)


@pytest.mark.usefixtures("fused")
def test_parameters_that_moved_to_the_host(cp: Any) -> None:
    layer = fo.nn.Linear(2, 1).to("cuda")
    opt, scaler = fo.optim.SGD(layer.parameters(), lr=0.5), fo.GradScaler(init_scale=8.0)
    scaler.get_scale()
    scaler.step(opt, [cp.ones(p.data.shape, np.float32) for p in layer.parameters()])
    scaler.update()
    layer.to("cpu")
    before = [p.data.copy() for p in layer.parameters()]
    assert scaler.step(opt, [np.full(p.shape, 8.0, np.float32) for p in before]) is True
    for p, old in zip(layer.parameters(), before, strict=True):
        np.testing.assert_allclose(p.data, old - 0.5, rtol=1e-6)


@pytest.mark.usefixtures("fused", "stream")
def test_a_first_step_in_a_capture_that_was_not_prepared(cp: Any) -> None:
    opt, scaler = fo.optim.Adam([cp.zeros(3, np.float32)]), fo.GradScaler()
    scaler.get_scale()
    with (
        captured(cp),
        pytest.raises(
            RuntimeError, match=r"being captured into a CUDA graph, call prepare_capture\(optimizer\)"
        ),
    ):
        scaler.step(opt, [cp.ones(3, np.float32)])


def test_losses_are_scaled_where_they_are(cp: Any, at_work: Any) -> None:
    scaler = fo.GradScaler(**SETTINGS)
    w = fo.tensor([1.0, -2.0], requires_grad=True).to("cuda").detach().requires_grad_()
    opt = fo.optim.SGD([w], lr=0.5)
    for _ in range(3):
        opt.zero_grad()
        scaler.scale((w * w).sum()).backward()
        scaler.step(opt)
        scaler.update()
    with at_work():
        opt.zero_grad()
        loss = scaler.scale((w * w).sum() + 1.0)
        loss.backward()
        half = scaler.scale(cp.ones(2, np.float16))
        wide = scaler.scale([cp.ones((), np.float64)])[0]
    assert scaler.get_scale() == 128.0
    assert float(loss.item()) == 128.0
    assert (half.dtype, wide.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(half.get(), 128.0)
    assert float(wide) == scaler.scale(1.0) == 128.0
    scaler.unscale_(opt)
    assert scaler.step(opt)


def test_numbers_that_are_set(cp: Any) -> None:
    twins = Twins(cp, "SGD", {"lr": 0.1})
    twins.attempt()
    address = twins.scaler._on_device.numbers.data.ptr
    for scaler in (twins.scaler, twins.other):
        scaler.update(32.0) if scaler._uses else scaler.load_state_dict(
            {**scaler.state_dict(), "scale": 32.0}
        )
        scaler.set_growth_factor(8.0)
    for _ in range(4):
        twins.attempt()
    twins.check()
    for scaler in (twins.scaler, twins.other):
        scaler.update(2.0)
    twins.attempt()
    twins.check()
    assert twins.scaler._on_device.numbers.data.ptr == address  # which a graph may have


@pytest.mark.usefixtures("stream")
def test_what_is_refused(cp: Any) -> None:
    twins = Twins(cp, "Adam", {"lr": 0.01})
    scaler, opt = twins.scaler, twins.ours
    with pytest.raises(RuntimeError, match="update: no gradients were checked"):
        scaler.update()
    twins.attempt()
    with pytest.raises(RuntimeError, match="update: no gradients were checked"):
        scaler.update()
    with pytest.raises(ValueError, match=r"grads\[1\] has shape"):
        scaler.step(opt, [twins.room[0], twins.room[2], twins.room[1]])
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be in"):
        scaler.step(opt, twins.room)
    opt.param_groups[0]["lr"] = twins.theirs.param_groups[0]["lr"]
    twins.check()
    twins.attempt()
    twins.check()
    with pytest.raises(RuntimeError, match="parameters of Adam are on the host"):
        scaler.prepare_capture(twins.theirs)
    with pytest.raises(RuntimeError, match="the GradScaler is disabled"):
        fo.GradScaler(enabled=False).prepare_capture(opt)
    with pytest.raises(TypeError, match="prepare_capture: Muon cannot be captured"):
        scaler.prepare_capture(fo.optim.Muon([cp.zeros((2, 2), np.float32)]))
    message = r"captured after its prepare_capture\(optimizer\)"
    with (
        captured(cp),
        pytest.raises(RuntimeError, match="step: the stream is being captured into a CUDA graph"),
    ):
        scaler.step(opt, twins.room)
    opt.prepare_capture()
    with captured(cp), pytest.raises(RuntimeError, match=message):
        scaler.step(opt, twins.room)
    scaler.prepare_capture(opt)
    with captured(cp), pytest.raises(RuntimeError, match=message):
        opt.step(twins.room)
    with captured(cp), pytest.raises(RuntimeError, match="the stream is being captured"):
        scaler.prepare_capture(opt)
