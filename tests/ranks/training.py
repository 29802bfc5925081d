"""Trains a small model with many optimizers on the ranks of an MPI program and writes what comes of it.

    mpiexec -n 4 python training.py OUT.npz [CASE ...]

The results are under ``CASE/WAY/PARAMETER``, where the way is one of `WAYS`. Without MPI it is what to compare with.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import distributed

WAYS = {
    "eager": {},
    "overlapped": {"overlap": True},
    "compiled": {},
    "sharded": {"shard_state": True},
    "compiled_sharded": {"shard_state": True},
}
# The last batch has one row, which most ranks have no part of.
ROWS, WIDTHS, BATCH, EPOCHS = 49, (20, 17, 9, 5), 24, 2

CASES: dict[str, Any] = {
    "adamw": lambda p: fo.optim.AdamW(p, lr=1e-2),
    "clipped": lambda p: fo.optim.Adam(p, lr=1e-2, max_norm=0.05, amsgrad=True),
    "groups": lambda p: fo.optim.SGD(
        [{"params": p[:2], "lr": 0.05}, {"params": p[2:], "momentum": 0.5}], lr=0.1, momentum=0.9
    ),
    "by_parameter": lambda p: fo.optim.RMSprop(p, lr=1e-2, max_norm=0.02, clip_scope="parameter"),
    "accumulated": lambda p: fo.optim.Lion(p, lr=1e-2, accumulate=2),
    "lamb": lambda p: fo.optim.LAMB(p, lr=1e-2),
    "lars": lambda p: fo.optim.LARS(p, lr=1e-1, momentum=0.9),
    "novograd": lambda p: fo.optim.NovoGrad(p, lr=1e-2),
    "muon": lambda p: fo.optim.Muon(p, lr=1e-2, adamw={"lr": 1e-2}),
    "soap": lambda p: fo.optim.SOAP(p, lr=1e-2),
    "adafactor": lambda p: fo.optim.Adafactor(p, lr=1e-2),
}


def make_model(seed: int = 3) -> fo.nn.Sequential:
    fo.manual_seed(seed)
    layers: list[Any] = []
    for a, b in pairwise(WIDTHS):
        layers += [fo.nn.Linear(a, b), fo.nn.Tanh()]
    return fo.nn.Sequential(*layers[:-1])


def make_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTHS[0])).astype(np.float32)
    return x, rng.integers(WIDTHS[-1], size=ROWS)


def train(case: str, way: str, comm: Any, epochs: int = EPOCHS) -> tuple[Any, Any, list[float]]:
    """Return the model, the DataParallel and the losses of whole batches."""
    model, loss_fn = make_model(), fo.nn.CrossEntropyLoss()
    optimizer = CASES[case](list(model.parameters()))
    x, y = make_data()
    settings: dict[str, Any] = {**WAYS[way], "bucket_bytes": 1000}
    if way.startswith("compiled"):
        step = fo.compile(model, loss_fn, optimizer)
        parallel = distributed.DataParallel(step, comm=comm, **settings)
        return model, parallel, parallel.run(x, y, BATCH, epochs, shuffle=True, seed=5).tolist()
    parallel = distributed.DataParallel(model, optimizer, comm, **settings)
    losses = []
    loader = fo.data.DataLoader(x, y, BATCH, shuffle=True, seed=5, comm=comm)
    for _ in range(epochs):
        for xb, yb in loader:
            parallel.zero_grad()
            loss = loss_fn(parallel(xb), yb)
            loss.backward()
            losses.append(parallel.mean(loss.item()))
            parallel.step()
    return model, parallel, losses


def main(out: str, cases: list[str]) -> None:
    results: dict[str, Any] = {}
    with distributed.world(timeout=120) as comm:
        for case in cases or CASES:
            for way in WAYS:
                model, parallel, losses = train(case, way, comm)
                for name, p in model.state_dict().items():
                    results[f"{case}/{way}/{name}"] = p.numpy() if hasattr(p, "numpy") else p
                results[f"{case}/{way}/losses"] = np.array(losses)
                sizes = np.zeros(comm.size, np.int64)
                comm.allgather(np.array([parallel.state_bytes()], np.int64), sizes, [1] * comm.size)
                results[f"{case}/{way}/state_bytes"] = sizes
                parallel.close()
        if comm.rank == 0:
            np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
