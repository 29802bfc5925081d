"""Training on several processes and machines, over engines that are there: MPI and NCCL.

``mpiexec -n 4 python train.py``, with in it

.. code-block:: python

    with fo.distributed.world() as comm:
        model = fo.distributed.DataParallel(model, optimizer, comm, shard_state=True)
        for xb, yb in fo.data.DataLoader(x, y, batch_size=64, shuffle=True, comm=comm):
            model.zero_grad(); loss = loss_fn(model(xb), yb); loss.backward(); model.step()
"""

from fastopt.distributed.comm import Comm, NullComm, Pending, RankError, current, share, shared, shares, use
from fastopt.distributed.data_parallel import DataParallel
from fastopt.distributed.mpi import MPIComm, launched, launched_rank
from fastopt.distributed.nccl import NCCLComm
from fastopt.distributed.saving import save

__all__ = [
    "Comm",
    "DataParallel",
    "MPIComm",
    "NCCLComm",
    "NullComm",
    "Pending",
    "RankError",
    "current",
    "launched",
    "launched_rank",
    "save",
    "share",
    "shared",
    "shares",
    "use",
    "world",
]


def world(timeout: float | None = None) -> MPIComm | NullComm:
    """Return the ranks that an MPI launcher has started, and the null communicator where there is only this process.

    Parameters
    ----------
    timeout : float, optional
        See `MPIComm`.
    """
    return MPIComm(timeout=timeout) if launched() else NullComm()
