"""One rank does what the others do not: ``mpiexec -n 2 python telling.py WHAT [ARGUMENT ...]``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import _random, checkpoint, cli, distributed
from fastopt.sklearn import MLPClassifier


def interrupted(*arguments: Any, **settings: Any) -> None:
    raise KeyboardInterrupt


def callback_of_one_rank() -> None:
    """A callback that stops a run, which the other ranks have none of."""
    with distributed.world(timeout=60) as comm:
        model = fo.nn.Linear(8, 3)
        optimizer = fo.optim.SGD(model.parameters(), lr=0.1)
        step = distributed.DataParallel(fo.compile(model, fo.nn.MSELoss(), optimizer), comm=comm)
        x, y = np.ones((64, 8), np.float32), np.zeros((64, 3), np.float32)
        for stop in (None, False):
            losses = step.run(x, y, 16, 2, callback=(lambda _, s=stop: s) if comm.rank == 0 else None)
            assert (len(losses) < 8) == (stop is False)
        print("done")


def train(rank: int, what: str, path: str) -> None:
    """``fastopt train`` where this rank's data or save fails."""
    if rank == 0 and what == "save":
        checkpoint.save = interrupted
    data = path if what == "data" and rank == 1 else "digits"
    target = "/nowhere/x.safetensors" if what == "output" else f"{path}.safetensors"
    sys.exit(cli.main(["train", data, "--epochs", "2", "--save", target]))


def fit(rank: int) -> None:
    """A perceptron's fit that is interrupted on rank 1, after one that left the stream of dropout as it was."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4))
    y = (x[:, 0] > 0).astype(int)
    with distributed.world(timeout=60) as comm:
        model = MLPClassifier((5,), random_state=0, dropout=0.3)
        with distributed.use(comm):
            model.partial_fit(x, y, classes=[0, 1])
            model.partial_fit(x, y)
        assert _random.dropout_seed_here(7) == 7
        with distributed.use(comm):
            model.set_params(callbacks=[interrupted] if rank == 1 else [])
            model.fit(x, y)


if __name__ == "__main__":
    _, WHAT, *REST = sys.argv
    if WHAT == "callback":
        callback_of_one_rank()
    elif WHAT == "fit":
        fit(distributed.launched_rank())
    else:
        train(distributed.launched_rank(), WHAT, *REST)
