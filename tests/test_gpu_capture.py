"""Optimizer steps in CUDA graphs that the caller captures: replays are the steps that would have been taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import OPTIMIZERS
from gpu_tools import assert_same_bits, cp, drawn, flattened, fused, kind
from optim_tools import ROWS

__all__ = ["cp", "fused", "kind"]

SIZES = (257, 1000, 33)


class Graph:
    """A graph of what was queued on the current stream inside `captured`."""

    graph: Any = None

    def replay(self) -> None:
        self.graph.launch()


@contextmanager
def captured(cp: Any) -> Iterator[Graph]:
    stream, result = cp.cuda.get_current_stream(), Graph()
    stream.begin_capture()
    try:
        yield result
    finally:
        result.graph = stream.end_capture()


@pytest.fixture
def stream(cp: Any) -> Iterator[Any]:
    """A stream that can be captured is the current one."""
    own = cp.cuda.Stream(non_blocking=True)
    with own:
        yield own
        own.synchronize()


class Pair:
    """The same optimizer on the host and on the device, with gradients in arrays that keep their place."""

    def __init__(
        self, cp: Any, name: str, options: dict[str, Any], groups: Any = None, count: int = 3
    ) -> None:
        values = [drawn(SIZES[i % 3], np.float32, i) for i in range(count)]
        self._cp, self._turn = cp, 0
        self.host, self.device = [v.copy() for v in values], [cp.asarray(v) for v in values]
        make = getattr(fo.optim, name)
        groups = groups or (lambda arrays: arrays)
        self.on_host, self.on_device = (
            make(groups(self.host), **options),
            make(groups(self.device), **options),
        )
        self.grads = [cp.zeros(v.shape, np.float32) for v in values]

    def draw(self) -> list[np.ndarray]:
        """Other gradients, in the device's arrays too."""
        self._turn += 1
        drawn_now = [drawn(g.shape, np.float32, 100 * self._turn + i) for i, g in enumerate(self.grads)]
        for to, new in zip(self.grads, drawn_now, strict=True):
            to[...] = self._cp.asarray(new)
        return drawn_now

    def check_parameters(self) -> None:
        self._cp.cuda.get_current_stream().synchronize()
        for d, h in zip(self.device, self.host, strict=True):
            assert_same_bits(d, h)

    def check(self) -> None:
        self.check_parameters()
        for d, h in zip(flattened(self.on_device.state), flattened(self.on_host.state), strict=True):
            if isinstance(h, np.ndarray):
                assert_same_bits(d, h)
            else:
                assert d == h


@pytest.mark.parametrize(("name", "row"), [r for r in ROWS if getattr(fo.optim, r[0]).by_element])
@pytest.mark.usefixtures("fused", "stream")
def test_replays_have_the_bits_of_steps(cp: Any, name: str, row: int) -> None:
    pair = Pair(cp, name, OPTIMIZERS[name]["options"][row])
    pair.on_device.prepare_capture()
    with captured(cp) as graph:
        pair.on_device.step(pair.grads)
    pair.check_parameters()  # nothing has run yet
    for turn in range(4):
        grads = pair.draw()
        for optimizer in (pair.on_host, pair.on_device):
            optimizer.param_groups[0]["lr"] /= 1 + turn
        pair.on_host.step(grads)
        if turn == 2:
            pair.on_device.step(pair.grads)  # between replays
        else:
            pair.on_device.advance()
            graph.replay()
        pair.check()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("fused", "stream")
def test_norms_are_limited_and_missing_gradients_skipped(cp: Any, groups: int) -> None:
    """Two groups of SGD are two rules, whose norms are joined; gradients are more than travel with a launch."""

    def grouped(arrays: list[Any]) -> Any:
        if groups == 1:
            return arrays
        return [{"params": arrays[:170]}, {"params": arrays[170:], "momentum": 0.9}]

    def nested(grads: list[Any]) -> Any:
        return grads if groups == 1 else [grads[:170], grads[170:]]

    pair = Pair(
        cp, "SGD", {"lr": 0.1, "max_norm": 0.5, "momentum": 0.9 if groups == 1 else 0.0}, grouped, 340
    )
    missing = {1, 200}
    pair.on_device.prepare_capture()
    with captured(cp) as graph:
        pair.on_device.step(nested([None if i in missing else g for i, g in enumerate(pair.grads)]))
    for _ in range(3):
        grads = pair.draw()
        pair.on_host.step(nested([None if i in missing else g for i, g in enumerate(grads)]))
        pair.on_device.advance()
        graph.replay()
        pair.check()
        assert float(pair.on_device.grad_norm) == pair.on_host.grad_norm > 0.5
    pair.on_host.step(nested(pair.draw()))  # all have one, so some are a step behind
    pair.on_device.step(nested(pair.grads))
    pair.on_host.step(nested([None if i in missing else g for i, g in enumerate(pair.draw())]))
    pair.on_device.advance()
    graph.replay()
    pair.check()
    assert float(pair.on_device.grad_norm) == pair.on_host.grad_norm


@pytest.mark.usefixtures("fused", "stream")
def test_graphs_of_several_gradients(cp: Any) -> None:
    pair = Pair(cp, "Adam", {"lr": 0.1}, count=200)
    others = [g.copy() for g in pair.grads]
    pair.on_device.prepare_capture()
    graphs = []
    for grads in (pair.grads, others):
        with captured(cp) as graph:
            pair.on_device.step(grads)
        graphs.append(graph)
    for which in (0, 1, 0):
        grads = pair.draw()
        if which == 1:
            for to, new in zip(others, grads, strict=True):
                to[...] = cp.asarray(new)
        pair.on_host.step(grads)
        pair.on_device.advance()
        graphs[which].replay()
        pair.check()


@pytest.mark.usefixtures("stream")
def test_what_cannot_be_captured_is_refused(cp: Any) -> None:
    pair = Pair(cp, "SGD", {"lr": 0.1, "max_norm": 1.0, "momentum": 0.9})
    opt = pair.on_device
    with pytest.raises(RuntimeError, match=r"advance: prepare_capture\(\) was not called"):
        opt.advance()
    with pytest.raises(RuntimeError, match=r"parameters of SGD are on the host"):
        pair.on_host.prepare_capture()
    opt.step(pair.grads)
    with captured(cp), pytest.raises(RuntimeError, match=r"call the optimizer's prepare_capture\(\) before"):
        opt.step(pair.grads)
    with captured(cp), pytest.raises(RuntimeError, match="prepare_capture: the stream is being captured"):
        opt.prepare_capture()
    opt.prepare_capture()
    with pytest.raises(RuntimeError, match="advance: no step was captured"):
        opt.advance()
    with captured(cp):
        with pytest.raises(ValueError, match=r"grads\[1\] has shape"):
            opt.step([pair.grads[0], pair.grads[2], pair.grads[1]])
        opt.step(pair.grads)
        with pytest.raises(ValueError, match=r"params\[2\] has no gradient, it had a gradient in the step"):
            opt.step([*pair.grads[:2], None])
    opt.max_norm = 2.0
    with pytest.raises(
        RuntimeError, match=r"advance: max_norm is 2.0, in the step that was captured it was 1.0"
    ):
        opt.advance()
    opt.max_norm = 1.0
    before = opt.state_dict()
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be in"):
        opt.advance()
    opt.param_groups[0].update(lr=0.1, momentum=0.0)
    with pytest.raises(RuntimeError, match=r"advance: parameters, state or rule are not what they were"):
        opt.advance()
    opt.param_groups[0]["momentum"] = 0.9
    opt.advance()
    opt.load_state_dict(before)
    with (
        captured(cp),
        pytest.raises(RuntimeError, match=r"step: parameters, state or rule are not what they were"),
    ):
        opt.step(pair.grads)


@pytest.mark.usefixtures("stream")
def test_a_copy_has_captured_nothing(cp: Any) -> None:
    pair = Pair(cp, "Adam", {"lr": 0.1})
    pair.on_device.prepare_capture()
    with pytest.raises(RuntimeError, match=r"prepare_capture\(\) was not called"):
        copy.deepcopy(pair.on_device).advance()


def test_a_model_that_has_moved_is_no_longer_what_was_captured(cp: Any) -> None:
    model = fo.nn.Linear(3, 2).to("cuda")
    opt = fo.optim.Adam(model.parameters())
    opt.prepare_capture()
    with cp.cuda.Stream(non_blocking=True), captured(cp):
        opt.step([cp.zeros(p.shape, np.float32) for p in model.parameters()])
    model.to("cpu")
    with pytest.raises(RuntimeError, match="advance: parameters, state or rule are not what they were"):
        opt.advance()


@pytest.mark.gpu
@pytest.mark.usefixtures("fused")
def test_a_graph_of_torchs() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    values = [drawn(n, np.float32, n) for n in SIZES]
    host, device = [v.copy() for v in values], [torch.from_numpy(v).cuda() for v in values]
    on_host, on_device = (fo.optim.AdamW(arrays, lr=0.01, max_norm=1.0) for arrays in (host, device))
    grads = [torch.zeros_like(d) for d in device]
    graph = torch.cuda.CUDAGraph()
    on_device.prepare_capture()
    with torch.cuda.graph(graph):
        on_device.step(grads)
    for turn in range(3):
        new = [drawn(n, np.float32, n + turn) for n in SIZES]
        for to, g in zip(grads, new, strict=True):
            to.copy_(torch.from_numpy(g))
        on_host.step(new)
        on_device.advance()
        graph.replay()
    for d, h in zip(device, host, strict=True):
        assert_same_bits(d.cpu().numpy(), h)


@pytest.mark.parametrize("name", ["Muon", "Adafactor", "SOAP", "SparseAdam"])
def test_steps_that_no_graph_repeats_are_refused(cp: Any, stream: Any, name: str) -> None:
    p = cp.ones((3, 2), np.float32)
    grad: Any = cp.ones((3, 2), np.float32)
    if name == "SparseAdam":
        grad = (cp.asarray(np.array([1])), cp.ones((1, 2), np.float32))
    opt = getattr(fo.optim, name)([p], lr=0.1)
    with captured(cp), pytest.raises(RuntimeError, match=f"cannot repeat a step of {name}"):
        opt.step([grad])
    np.testing.assert_array_equal(p.get(), 1)
    assert not opt.state
