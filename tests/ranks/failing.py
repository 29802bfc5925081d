"""Trains with checkpoints while one rank fails: ``mpiexec -n 3 python failing.py HOW CHECKPOINT [TIMEOUT]``.

HOW is what rank 1 does in its fifth step: raise, kill, hang, leave; or ``saving``: rank 0 cannot write.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any

import fastopt as fo
from fastopt import distributed

sys.path.insert(0, os.path.dirname(__file__))
from training import BATCH, CASES, make_data, make_model


def write_at_once(*error: Any) -> None:
    """Write a traceback in one piece: line by line those of several ranks end up inside one another."""
    os.write(2, "".join(traceback.format_exception(*error)).encode())


def fail(how: str, comm: Any) -> None:
    if how == "raise":
        raise ArithmeticError("out of luck")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    if how == "leave":
        sys.exit(0)


def main(how: str, path: str, timeout: float) -> None:
    with distributed.world(timeout=timeout) as comm:
        model, loss_fn = make_model(), fo.nn.CrossEntropyLoss()
        parallel = distributed.DataParallel(
            model, CASES["adamw"](list(model.parameters())), comm, shard_state=True
        )
        loader = fo.data.DataLoader(*make_data(), BATCH, shuffle=True, seed=5, comm=comm)
        for epoch in range(3):
            for batch, (xb, yb) in enumerate(loader):
                if epoch == 1 and batch == 1 and comm.rank == 1:
                    fail(how, comm)
                parallel.zero_grad()
                loss_fn(parallel(xb), yb).backward()
                parallel.step()
            target = "/nowhere/x.safetensors" if how == "saving" else path
            distributed.save(target, comm, model=model, optimizer=parallel, loader=loader, epoch=epoch)
        if comm.rank == 0:
            print("done")


if __name__ == "__main__":
    sys.excepthook = write_at_once
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
