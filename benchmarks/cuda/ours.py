"""Ours on device arrays: the tasks through the public interface."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import device_data as data
import fastopt as fo
from device_data import Timed
from fastopt import functional as F
from harness import Many

Calls = dict[str, Any]


def steps(name: str, options: dict[str, Any], sets: Sequence[Sequence[Any]], grads: Sequence[Any]) -> Timed:
    """An optimizer's step over one of several sets of parameters each time, all with the same gradients."""
    timed = []
    for arrays in sets:
        mine = [a.copy() for a in arrays]
        step = getattr(fo.optim, name)(mine, **options).step
        timed.append(Timed(lambda step=step: step(grads), lambda mine=mine: mine[0].ravel()[:1000]))
    return data.in_turn(timed)


def replays(name: str, options: dict[str, Any], sets: Sequence[Sequence[Any]], grads: Sequence[Any]) -> Timed:
    """The same from CUDA graphs: the next step's numbers, and a replay."""
    timed = []
    for arrays in sets:
        mine = [a.copy() for a in arrays]
        opt = getattr(fo.optim, name)(mine, **options)
        opt.prepare_capture()
        with data.xp.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            opt.step(grads)
            graph = stream.end_capture()

        def call(opt: Any = opt, graph: Any = graph) -> None:
            opt.advance()
            graph.launch()

        timed.append(Timed(call, lambda mine=mine: mine[0].ravel()[:1000]))
    return data.in_turn(timed)


def optimizer(
    name: str, options: dict[str, Any], sets: Sequence[Sequence[Any]], grads: Sequence[Any]
) -> Calls:
    return {
        "fastopt": steps(name, options, sets, grads),
        "fastopt-graph": replays(name, options, sets, grads),
    }


def cross_entropy(logits: Sequence[Any], target: Any) -> Calls:
    timed = []
    for x in logits:
        grad = data.xp.empty_like(x)
        kept: list[Any] = [None, grad]

        def call(x: Any = x, kept: list[Any] = kept) -> None:
            kept[0], _ = F.cross_entropy_with_grad(x, target, grad_out=kept[1])

        timed.append(Timed(call, lambda kept=kept: data.beginning(*kept)))
    return {"fastopt": data.in_turn(timed)}


def linear_forward(xs: Sequence[Any], w: Any, b: Any, out: Any, options: dict[str, Any]) -> Calls:
    return {
        "fastopt": data.in_turn(
            [
                Timed(
                    lambda x=x: F.linear(x, w, b, activation="relu", out=out, **options),
                    lambda: data.beginning(out),
                )
                for x in xs
            ]
        )
    }


def linear_backward(
    dys: Sequence[Any], x: Any, w: Any, y: Any, out: tuple[Any, Any, Any], dz: Any, options: dict[str, Any]
) -> Calls:
    def backward(dy: Any) -> Any:
        return F.linear_backward(dy, x, w, activation="relu", y=y, out=out, dz=dz, **options)

    return {
        "fastopt": data.in_turn(
            [Timed(lambda dy=dy: backward(dy), lambda: data.beginning(*out)) for dy in dys]
        )
    }


def _network(net: Any) -> tuple[Any, Any, Any]:
    layers: list[Any] = []
    for w, b in zip(net.weights, net.biases, strict=True):
        layer = fo.nn.Linear(w.shape[1], w.shape[0])
        layer.weight.data[...], layer.bias.data[...] = w, b
        layers += [layer, fo.nn.ReLU()]
    model = fo.nn.Sequential(*layers[:-1]).to("cuda")
    return model, fo.nn.CrossEntropyLoss(), getattr(fo.optim, net.optimizer)(model.parameters(), lr=net.lr)


def train(net: Any) -> Calls:
    """A compiled step with its loss as a number, and many steps in a call over data on the device."""
    xs, ys = [data.xp.asarray(x) for x in net.xs], [data.xp.asarray(y) for y in net.ys]
    step, run = fo.compile(*_network(net)), fo.compile(*_network(net))
    batches = itertools.cycle(list(zip(xs, ys, strict=True)))
    x, y = data.xp.asarray(np.concatenate(net.xs)), data.xp.asarray(np.concatenate(net.ys))
    model, loss_fn, adam = _network(net)
    own = itertools.cycle(list(zip(xs, ys, strict=True)))

    def eager() -> float:
        x, y = next(own)
        adam.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        adam.step()
        return float(loss.item())

    def many() -> Any:
        return run.run(x, y, batch_size=len(net.xs[0]), epochs=1, shuffle=False)

    calls: Calls = {
        "fastopt": Timed(lambda: float(step(*next(batches))), lambda: None),
        "fastopt-eager": Timed(eager, lambda: None),
        "fastopt-run": Many(many, len(net.xs)),
    }
    if net.optimizer == "SGD":  # whose products update weights, unless they are told not to
        apart = fo.compile(*_network(net), fuse_update=False)
        calls["fastopt-apart-run"] = Many(
            lambda: apart.run(x, y, batch_size=len(net.xs[0]), epochs=1, shuffle=False), len(net.xs)
        )
    return calls
