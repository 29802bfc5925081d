"""Trains an epoch and saves, or loads and trains another, on the ranks of an MPI program.

mpiexec -n 4 python checkpoints.py save DIRECTORY
mpiexec -n 2 python checkpoints.py resume DIRECTORY OUT.npz
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import checkpoint, distributed

sys.path.insert(0, os.path.dirname(__file__))
from training import BATCH, CASES, WAYS, make_data, make_model

RUNS = [
    (case, "compiled_sharded") for case in ("adamw", "clipped", "groups", "accumulated", "lamb", "novograd")
]
RUNS += [("adamw", "sharded"), ("adamw", "eager"), ("muon", "sharded"), ("adafactor", "compiled_sharded")]


class Run:
    """A model that is trained in one of the ways, with the parts of its checkpoint."""

    def __init__(self, case: str, way: str, comm: Any, seed: int) -> None:
        self.model, self.loss_fn = make_model(seed), fo.nn.CrossEntropyLoss()
        optimizer = CASES[case](list(self.model.parameters()))
        self.scheduler = fo.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        self.loader = fo.data.DataLoader(*make_data(), BATCH, shuffle=True, seed=5, comm=comm)
        self.compiled = way.startswith("compiled")
        trained = fo.compile(self.model, self.loss_fn, optimizer) if self.compiled else self.model
        self.parallel = distributed.DataParallel(trained, optimizer, comm, **WAYS[way])

    def epoch(self) -> None:
        if self.compiled:
            self.parallel.run(self.loader)
        else:
            for xb, yb in self.loader:
                self.parallel.zero_grad()
                self.loss_fn(self.parallel(xb), yb).backward()
                self.parallel.step()
        self.scheduler.step()

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.parallel,
            "scheduler": self.scheduler,
            "loader": self.loader,
        }


def main(what: str, directory: str, out: str) -> None:
    results: dict[str, Any] = {}
    with distributed.world(timeout=120) as comm:
        for case, way in RUNS:
            path = f"{directory}/{case}-{way}.safetensors"
            run = Run(case, way, comm, seed=3 if what != "resume" else 8)
            if what == "resume":
                checkpoint.load(path, **run.parts())
                run.epoch()
            else:
                run.epoch()
                distributed.save(path, comm, **run.parts())
                if what == "go on":
                    run.epoch()
            for name, p in run.model.state_dict().items():
                results[f"{case}/{way}/{name}"] = np.asarray(p)
            run.parallel.close()
        if out and comm.rank == 0:
            np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
