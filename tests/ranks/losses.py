"""Asserts that ranks take one process's step with losses that are no plain mean: ``mpiexec -n 3 python losses.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import distributed

ROWS, IGNORED = 11, 2
CLASS_WEIGHT = np.array([1.0, 9.0, 0.25], np.float32)

#: A loss, and what it divides by; None for a sum.
LOSSES: dict[str, tuple[Callable[[], Any], Callable[[np.ndarray], float] | None]] = {
    "mean": (fo.nn.CrossEntropyLoss, len),
    "sum": (lambda: fo.nn.CrossEntropyLoss(reduction="sum"), None),
    "class weights": (
        lambda: fo.nn.CrossEntropyLoss(weight=CLASS_WEIGHT),
        lambda y: float(CLASS_WEIGHT[y].sum()),
    ),
    "ignore_index": (
        lambda: fo.nn.CrossEntropyLoss(ignore_index=IGNORED),
        lambda y: float((y != IGNORED).sum()),
    ),
}


def make_model() -> fo.nn.Linear:
    fo.manual_seed(1)
    return fo.nn.Linear(3, 3)


def make_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 3)).astype(np.float32), rng.integers(3, size=ROWS)


def alone(loss_fn: Any) -> tuple[np.ndarray, float]:
    """Weights after a step of one process, and its loss."""
    model, (x, y) = make_model(), make_data()
    optimizer = fo.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_fn(model(x), y)
    loss.backward()
    optimizer.step()
    return model.weight.numpy(), loss.item()


def together(
    comm: Any, loss_fn: Any, divisor: Callable[[np.ndarray], float] | None, shard_state: bool
) -> tuple[np.ndarray, float]:
    """The same of ranks."""
    model = make_model()
    optimizer = fo.optim.SGD(model.parameters(), lr=0.1)
    parallel = distributed.DataParallel(model, optimizer, comm, shard_state=shard_state)
    ((x, y),) = fo.data.DataLoader(*make_data(), ROWS, comm=comm)
    loss = loss_fn(parallel(x), y)
    loss.backward()
    weight = 1.0 if divisor is None else parallel.share_of(divisor(y))
    mean = parallel.mean(loss.item(), weight)
    parallel.step(weight=weight)
    parallel.close()
    return model.weight.numpy(), mean


if __name__ == "__main__":
    with distributed.world(timeout=120) as ranks:
        for name, (make_loss, by) in LOSSES.items():
            expected, loss = alone(make_loss())
            for shard in (False, True):
                found, mean = together(ranks, make_loss(), by, shard)
                np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
                np.testing.assert_allclose(mean, loss, rtol=1e-6, err_msg=name)
        print(f"rank {ranks.rank} done")
