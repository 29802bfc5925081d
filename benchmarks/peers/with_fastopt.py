"""Ours: the tasks through the public interface."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import functional as F
from harness import Many

Calls = dict[str, Callable[[], Any]]

#: The loss functions, by the name that the kernels use.
LOSSES = {
    "mse": F.mse_loss_with_grad,
    "smooth_l1": F.smooth_l1_loss_with_grad,
    "bce_with_logits": F.binary_cross_entropy_with_logits_with_grad,
}


def linear_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Calls:
    y = np.zeros((len(x), len(w)), np.float32)
    return {"fastopt": lambda: F.linear(x, w, b, activation="relu", out=y)}


def linear_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> Calls:
    out, dz = (np.zeros_like(x), np.zeros_like(w), np.zeros(len(w), np.float32)), np.zeros_like(dy)
    return {"fastopt": lambda: F.linear_backward(dy, x, w, activation="relu", y=y, out=out, dz=dz)}


def activation(name: str, x: np.ndarray) -> Calls:
    function, y = getattr(F, name), np.zeros_like(x)
    return {"fastopt": lambda: function(x, out=y)}


def activation_grad(name: str, dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> Calls:
    function, dx = getattr(F, f"{name}_grad"), np.zeros_like(x)
    if "y" in inspect.signature(function).parameters:
        return {"fastopt": lambda: function(dy, y=y, out=dx)}
    return {"fastopt": lambda: function(dy, x, out=dx)}


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> Calls:
    grad = np.zeros_like(logits)
    return {"fastopt": lambda: F.cross_entropy_with_grad(logits, target, grad_out=grad)}


def loss(name: str, input: np.ndarray, target: np.ndarray) -> Calls:
    function, grad = LOSSES[name], np.zeros_like(input)
    return {"fastopt": lambda: function(input, target, grad_out=grad)}


def softmax(name: str, x: np.ndarray) -> Calls:
    function, y = getattr(F, name), np.zeros_like(x)
    return {"fastopt": lambda: function(x, out=y)}


def batch_norm(x_: np.ndarray, dy: np.ndarray, weight_: np.ndarray, bias_: np.ndarray) -> Calls:
    x, weight, bias = (fo.tensor(a, requires_grad=True) for a in (x_, weight_, bias_))
    mean, var = np.zeros_like(bias_), np.ones_like(bias_)

    def call() -> tuple[np.ndarray, ...]:
        x.grad = weight.grad = bias.grad = None
        y = F.batch_norm(x, mean, var, weight, bias, True)
        y.backward(dy)
        return y.data, x.grad.data, weight.grad.data, bias.grad.data

    return {"fastopt": call}


def _network(net: Any) -> tuple[Any, Any, Any]:
    """The model, loss and optimizer of a training task, from its weights."""
    layers: list[Any] = []
    for w, b in zip(net.weights, net.biases, strict=True):
        layer = fo.nn.Linear(w.shape[1], w.shape[0])
        layer.weight.data[...], layer.bias.data[...] = w, b
        layers += [layer, fo.nn.ReLU()]
    model = fo.nn.Sequential(*layers[:-1])
    return model, fo.nn.CrossEntropyLoss(), fo.optim.Adam(model.parameters(), lr=net.lr)


def train(net: Any) -> Calls:
    model, loss_fn, optimizer = _network(net)
    batches = itertools.cycle(list(zip(net.xs, net.ys, strict=True)))

    def eager() -> float:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    step, run = fo.compile(*_network(net)), fo.compile(*_network(net))
    own = itertools.cycle(list(zip(net.xs, net.ys, strict=True)))
    x, y, size = np.concatenate(net.xs), np.concatenate(net.ys), len(net.xs[0])
    return {
        "fastopt": lambda: step(*next(own)),
        "fastopt-run": Many(lambda: run.run(x, y, batch_size=size, epochs=1, shuffle=False), len(net.xs)),
        "fastopt-eager": eager,
    }


def adam(arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    """The update in place; like the others it returns the beginning of the first array, for comparison."""
    step = fo.optim.Adam(arrays, lr=1e-3).step

    def call() -> np.ndarray:
        step(grads)
        return arrays[0][:1000]

    return {"fastopt": call}


def fit(task: Any) -> Calls:
    """An estimator's fit; the other side warns of too few epochs too."""
    from fastopt.sklearn import MLPClassifier

    def whole() -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curve: list[float] = MLPClassifier(**task.options).fit(task.x, task.y).loss_curve_
        return curve

    return {"fastopt": whole}
