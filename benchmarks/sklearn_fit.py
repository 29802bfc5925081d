"""Whole fits of a perceptron: `fastopt.sklearn.MLPClassifier` and scikit-learn's, same data, seed and epochs.

Both draw the same weights and the same batches, so the loss curves that are compared before anything is timed are equal
up to rounding. MNIST is looked for where the tests look for it; without it images are noise of its shape.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.data import load_mnist
from harness import Aim, Call, Case
from peers import gather

PEERS = ("sklearn",)

ROWS = 12_800  # of MNIST: a fifth of an epoch, so that a round does not last minutes


@dataclass
class Fit:
    """A fit: data, the estimator's arguments, and how many epochs."""

    x: np.ndarray
    y: np.ndarray
    options: dict[str, Any]


@cache
def mnist(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images as float32 rows in [0, 1], and their digits."""
    shared = Path(os.environ.get("FASTOPT_SHARED", Path(__file__).parents[2] / "shared"))
    if (shared / "data" / "mnist").is_dir():
        x, y, _, _ = load_mnist(shared / "data" / "mnist")
        return x[:rows], y[:rows]
    rng = np.random.default_rng(0)
    return rng.random((rows, 784), dtype=np.float32), rng.integers(0, 10, rows)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 digits as float64 rows in [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16, y


def _build(data: Any, options: dict[str, Any], peers: Mapping[str, Any]) -> dict[str, Call]:
    return gather(peers, "fit", Fit(*data(), options))


def case(
    name: str, data: Any, shape: tuple[int, int, int], hidden: int, batch: int | None, epochs: int, aim: float
) -> Case:
    """A fit of one hidden layer; `shape` is rows, features and classes."""
    rows, *ends = shape
    sizes = [ends[0], hidden, ends[1]]
    products = [inside * outside for inside, outside in pairwise(sizes)]
    steps = epochs * -(-rows // (batch or 200))
    options: dict[str, Any] = {
        "hidden_layer_sizes": (hidden,),
        "max_iter": epochs,
        "tol": 0.0,
        "random_state": 0,
    }
    if batch is not None:
        options["batch_size"] = batch
    return Case(
        op=name,
        mode="fit",
        size=f"{'-'.join(map(str, sizes))} b{batch or 200}",
        build=partial(_build, data, options),
        flops=2.0 * rows * epochs * (3 * sum(products) - products[0]),
        nbytes=28.0 * steps * (sum(products) + sum(sizes[1:])),
        unit="GFLOP/s",
        ceilings=("fma",),
        aims=(Aim(aim, ("sklearn",)),),
        dtype="float64" if data is digits else "float32",
        tolerance=1e-2,
    )


CASES = [
    case("fit.mnist", partial(mnist, ROWS), (ROWS, 784, 10), 256, 64, 1, 8.0),
    case("fit.mnist", partial(mnist, ROWS), (ROWS, 784, 10), 100, 200, 2, 5.0),
    case("fit.digits", digits, (1797, 64, 10), 100, None, 20, 3.0),
]
