"""torch on the device: fused, foreach, compiled, and captured as CUDA graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

import device_data as data
from device_data import Timed
from harness import Many

aten = torch.ops.aten
Calls = dict[str, Any]


def version() -> str:
    return str(torch.__version__)


def set_tf32(allowed: bool) -> None:
    """Whether float32 products may round their factors."""
    torch.backends.cuda.matmul.allow_tf32 = allowed


def captured(call: Callable[[], Any], times: int = 1) -> Callable[[], Any]:
    """Record calls as a CUDA graph, after warming up beside the current stream as torch asks for."""
    if data.dry:
        return lambda: [call() for _ in range(times)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return graph.replay


# ---------------------------------------------------------------------------------------------- optimizers


def _steps(
    name: str, options: dict[str, Any], sets: Sequence[Sequence[Any]], grads: Sequence[Any], **flags: bool
) -> Timed:
    timed = []
    for arrays in sets:
        params = [torch.nn.Parameter(data.as_torch(a).clone()) for a in arrays]
        for p, g in zip(params, grads, strict=True):
            p.grad = data.as_torch(g)
        step = getattr(torch.optim, name)(params, **options, **flags).step
        timed.append(
            Timed(lambda step=step: step(), lambda params=params: params[0].detach().reshape(-1)[:1000])
        )
    return data.in_turn(timed)


def optimizer(
    name: str, options: dict[str, Any], sets: Sequence[Sequence[Any]], grads: Sequence[Any]
) -> Calls:
    made: Calls = {
        "torch-fused": _steps(name, options, sets, grads, fused=True),
        "torch-foreach": _steps(name, options, sets, grads, foreach=True),
    }
    graph = _steps(name, options, sets, grads, fused=True, capturable=not data.dry)
    return {**made, "torch-graph": Many(captured(graph.call, len(sets)), len(sets), "step")}


# -------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: Sequence[Any], target_: Any) -> Calls:
    target = data.as_torch(target_)
    ways = {"torch-eager": F.cross_entropy}
    if not data.dry:
        ways["torch-compile"] = torch.compile(F.cross_entropy, dynamic=False)
    calls: Calls = {}
    for name, function in ways.items():
        timed = []
        for x in logits:
            leaf = data.as_torch(x).clone().requires_grad_()
            kept: list[Any] = [None]

            def call(leaf: Any = leaf, kept: list[Any] = kept, function: Any = function) -> None:
                leaf.grad = None
                kept[0] = function(leaf, target)
                kept[0].backward()

            timed.append(Timed(call, lambda leaf=leaf, kept=kept: data.beginning(kept[0], leaf.grad)))
        calls[name] = data.in_turn(timed)
    return calls


# -------------------------------------------------------------------------------------------------- linear


def linear_forward(xs: Sequence[Any], w: Any, b: Any) -> Calls:
    wt, out = w.t(), torch.empty((len(xs[0]), len(w)), dtype=w.dtype, device=w.device)
    kept: list[Any] = [out]
    ways: dict[str, Callable[[Any], Any]] = {
        "torch-linear": lambda x: F.linear(x, w, b).relu_(),
        "torch-addmm": lambda x: torch.addmm(b, x, wt, out=out).relu_(),
        # cuBLASLt's own epilogue, where torch uses it.
        "torch-epilogue": lambda x: torch._addmm_activation(b, x, wt, use_gelu=False),
    }

    def call(way: Callable[[Any], Any], x: Any) -> None:
        kept[0] = way(x)

    return {
        name: data.in_turn([Timed(partial(call, way, x), lambda: data.beginning(kept[0])) for x in xs])
        for name, way in ways.items()
    }


def linear_backward(dys: Sequence[Any], x: Any, w: Any, y: Any) -> Calls:
    dz, dx, dw = torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)
    db = torch.empty_like(y[0])
    results: list[Any] = [dx, dw, db]

    def by_hand(dy: Any) -> None:
        aten.threshold_backward.grad_input(dy, y, 0.0, grad_input=dz)
        torch.mm(dz, w, out=dx)
        torch.mm(dz.t(), x, out=dw)
        torch.sum(dz, 0, out=db)
        results[:] = dx, dw, db

    leaves = x.clone().requires_grad_(), w.clone().requires_grad_(), torch.zeros_like(db).requires_grad_()
    z = F.linear(*leaves)
    with torch.no_grad():
        z.copy_(y)
    out = z.relu()

    def autograd(dy: Any) -> None:
        results[:] = torch.autograd.grad(out, leaves, dy, retain_graph=True)

    ways = {"torch-out": by_hand, "torch-autograd": autograd}
    return {
        name: data.in_turn(
            [Timed(lambda dy=dy, way=way: way(dy), lambda: data.beginning(*results)) for dy in dys]
        )
        for name, way in ways.items()
    }


# ------------------------------------------------------------------------------------------------ training


def _network(net: Any, **flags: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    layers: list[torch.nn.Module] = []
    for w, b in zip(net.weights, net.biases, strict=True):
        layer = torch.nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    if not data.dry:
        model.cuda()
    if net.optimizer == "SGD":  # which graphs may capture as it is
        return model, torch.optim.SGD(model.parameters(), lr=net.lr, fused=True)
    return model, torch.optim.Adam(model.parameters(), lr=net.lr, fused=True, **flags)


def _step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _restore(model: Any, optimizer: Any, start: Sequence[Any]) -> None:
    """Put a network back to its start: capturing has trained it."""
    with torch.no_grad():
        for p, s in zip(model.parameters(), start, strict=True):
            p.copy_(s)
        for entry in optimizer.state.values():
            for value in entry.values():
                value.zero_()


def train(net: Any) -> Calls:
    """One step a call, which ends with its loss as a number, and as many as there are batches in a call."""
    xs = [data.as_torch(data.xp.asarray(x)) for x in net.xs]
    ys = [data.as_torch(data.xp.asarray(y)) for y in net.ys]
    batches = list(zip(xs, ys, strict=True))
    own = itertools.cycle(batches)
    eager, many = _network(net), _network(net)
    calls: Calls = {
        "torch-eager": Timed(lambda: float(_step(*eager, *next(own))), lambda: None),
        "torch-eager-run": Many(lambda: [_step(*many, *batch) for batch in batches][-1], len(batches)),
    }
    if data.dry:
        return calls

    model, optimizer = _network(net, capturable=True)
    start = [p.detach().clone() for p in model.parameters()]
    x, y, loss = xs[0].clone(), ys[0].clone(), torch.zeros((), device="cuda")

    def static() -> None:
        loss.copy_(_step(model, optimizer, x, y))

    replay, turns = captured(static), itertools.cycle(batches)
    _restore(model, optimizer, start)

    def graph() -> float:
        now = next(turns)
        x.copy_(now[0])
        y.copy_(now[1])
        replay()
        return float(loss)

    calls["torch-graph"] = Timed(graph, lambda: None)
    whole = _network(net, capturable=True)
    own_batches = itertools.cycle(batches)
    calls["torch-graph-run"] = Many(
        captured(lambda: _step(*whole, *next(own_batches)), len(batches)), len(batches)
    )
    return calls
