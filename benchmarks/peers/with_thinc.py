"""thinc: its Relu and Softmax layers, categorical cross-entropy and Adam."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import thinc
from thinc.api import Adam, Relu, Softmax, chain

Calls = dict[str, Callable[[], Any]]


def version() -> str:
    return thinc.__version__


def set_threads(n: int) -> None:
    """It multiplies on one thread."""


def train(net: Any) -> Calls:
    layers = []
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        made = (Softmax if i == len(net.weights) - 1 else Relu)(w.shape[0], w.shape[1])
        made.initialize()
        made.set_param("W", w.copy())
        made.set_param("b", b.copy())
        layers.append(made)
    model = chain(*layers)
    optimizer = Adam(net.lr, beta1=0.9, beta2=0.999, eps=1e-8, L2=0.0, grad_clip=0.0, use_averages=False)
    batch = len(net.xs[0])
    rows = np.arange(batch)
    batches = itertools.cycle(list(zip(net.xs, net.ys, strict=True)))

    def step() -> float:
        x, y = next(batches)
        p, backward = model.begin_update(x)
        loss = float(-np.log(p[rows, y]).mean())
        # What its loss computes too, without a one-hot array of the targets.
        p[rows, y] -= 1
        p /= batch
        backward(p)
        model.finish_update(optimizer)
        return loss

    return {"thinc": step}


def steppers(name: str, options: dict[str, Any], arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    """Its Adam, an array after the other; its SGD has no momentum."""
    if name != "Adam":
        return {}
    optimizer = Adam(
        options["lr"], beta1=0.9, beta2=0.999, eps=1e-8, L2=0.0, grad_clip=0.0, use_averages=False
    )
    params = [a.copy() for a in arrays]
    own = [g.copy() for g in grads]  # it fills them with zeros, at no cost to its next step

    def call() -> None:
        for i, (p, g) in enumerate(zip(params, own, strict=True)):
            optimizer((0, str(i)), p, g)

    return {"thinc": call}
