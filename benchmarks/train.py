"""Training steps of small networks - forward, cross-entropy, backward, Adam - against whole libraries.

Every provider starts from the same weights and sees the same batches, in turn; a step ends with its loss as a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from harness import Aim, Call, Case
from peers import gather

PEERS = ("torch", "jax", "sklearn", "thinc", "numpy")

#: Different batches; providers that do many steps in a call ("run") do so many.
BATCHES = 32
BEST = ("torch", "jax")


@dataclass
class Net:
    """A training task: weights (out, in) and biases to start from, batches, and what else a step needs."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    xs: list[np.ndarray]
    ys: list[np.ndarray]
    lr: float = 1e-3
    compile: bool = True
    optimizer: str = "Adam"  # or "SGD", of providers on a GPU


def net(sizes: Sequence[int], batch: int, batches: int = BATCHES, compile: bool = True) -> Net:
    """Draw weights as torch does, and batches of noise."""
    rng = np.random.default_rng(0)
    weights, biases = [], []
    for inside, outside in pairwise(sizes):
        bound = inside**-0.5
        weights.append(rng.uniform(-bound, bound, (outside, inside)).astype(np.float32))
        biases.append(rng.uniform(-bound, bound, outside).astype(np.float32))
    xs = [rng.random((batch, sizes[0]), dtype=np.float32) for _ in range(batches)]
    # All classes in each batch where there is room, as scikit-learn checks for them.
    ys = [rng.permutation(np.arange(batch) % sizes[-1]) for _ in range(batches)]
    return Net(weights, biases, xs, ys, compile=compile)


def _build(
    sizes: Sequence[int], batch: int, batches: int, compile: bool, peers: Mapping[str, Any]
) -> dict[str, Call]:
    return gather(peers, "train", net(sizes, batch, batches, compile))


def case(
    sizes: Sequence[int],
    batch: int,
    aims: tuple[Aim, ...] = (),
    *,
    op: str = "train",
    batches: int = BATCHES,
    compile: bool = True,
) -> Case:
    """A step: three products a layer, but no gradient of the input; Adam reads and writes 28 bytes a parameter."""
    products = [inside * outside for inside, outside in pairwise(sizes)]
    parameters = sum(products) + sum(sizes[1:])
    return Case(
        op=op,
        mode="step",
        size=f"{'-'.join(map(str, sizes))} b{batch}",
        build=partial(_build, sizes, batch, batches, compile),
        flops=2.0 * batch * (3 * sum(products) - products[0]),
        nbytes=28.0 * parameters + 4.0 * batch * sizes[0],
        unit="GFLOP/s",
        ceilings=("fma", "copy"),
        aims=aims,
        calls=3,
        tolerance=2e-3,
    )


def _aims(best: float, sklearn: float, torch: float | None = None) -> tuple[Aim, ...]:
    more = (Aim(torch, ("torch",)),) if torch else ()
    return Aim(best, BEST), *more, Aim(sklearn, ("sklearn",)), Aim(sklearn, ("sklearn",), mode="run")


CASES = [
    case((784, 256, 10), 64, _aims(2.5, 8)),
    case((784, 32, 10), 32, _aims(3.5, 6, torch=7)),
    case((784, 128, 64, 10), 64, _aims(2.5, 8)),
    case((784, 512, 512, 10), 128, _aims(1.3, 8), batches=16),
    case((784, 1024, 1024, 10), 256, _aims(1.1, 8), batches=8),
]
