"""scikit-learn's MLPClassifier, a batch a call and many batches a call, from given weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils._testing import ignore_warnings

from harness import Many

Calls = dict[str, Callable[[], Any]]


def version() -> str:
    return sklearn.__version__


def set_threads(n: int) -> None:
    """It multiplies through NumPy and SciPy; run.py narrows the CPUs that their BLAS sees."""


def _classifier(net: Any) -> MLPClassifier:
    hidden = [len(b) for b in net.biases[:-1]]
    made = MLPClassifier(
        hidden, alpha=0.0, batch_size=len(net.xs[0]), learning_rate_init=net.lr, shuffle=False, random_state=0
    )
    # The first call draws weights and makes the optimizer, which holds on to them.
    made.partial_fit(net.xs[0], net.ys[0], classes=np.arange(len(net.biases[-1])))
    for kept, w in zip(made.coefs_, net.weights, strict=True):
        kept[...] = w.T
    for kept, b in zip(made.intercepts_, net.biases, strict=True):
        kept[...] = b
    optimizer = made._optimizer
    optimizer.t = 0
    for moment in (*optimizer.ms, *optimizer.vs):
        moment[...] = 0
    return made


def train(net: Any) -> Calls:
    one, many = _classifier(net), _classifier(net)
    batches = itertools.cycle(list(zip(net.xs, net.ys, strict=True)))
    x, y = np.concatenate(net.xs), np.concatenate(net.ys)

    def step() -> float:
        return one.partial_fit(*next(batches)).loss_

    return {"sklearn": step, "sklearn-epoch": Many(lambda: many.partial_fit(x, y).loss_, len(net.xs))}


def fit(task: Any) -> Calls:
    @ignore_warnings(category=ConvergenceWarning)
    def whole() -> list[float]:
        return MLPClassifier(**task.options).fit(task.x, task.y).loss_curve_

    return {"sklearn": whole}


def steppers(name: str, options: dict[str, Any], arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    """The optimizers of its networks, which update a list of arrays."""
    params = [a.copy() for a in arrays]
    if name == "Adam":
        optimizer = AdamOptimizer(params, learning_rate_init=options["lr"])
    else:
        optimizer = SGDOptimizer(params, options["lr"], momentum=options["momentum"], nesterov=False)
    return {"sklearn": lambda: optimizer.update_params(params, grads)}
