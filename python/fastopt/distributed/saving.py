"""One checkpoint of a run on several ranks: whole arrays, written by rank 0, read by any number of ranks."""

from __future__ import annotations

from typing import Any

from fastopt import checkpoint
from fastopt.checkpoint import StrPath
from fastopt.distributed.comm import Comm, RankError, broadcast_object, telling


class _State:
    """A state dictionary as an object that has one."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> Any:
        """Return it."""
        return self._state


def save(path: StrPath, comm: Comm, *, optimizer: Any = None, **parts: Any) -> None:
    """Save a run on several ranks to the file that a single process would save; all ranks call it.

    Rank 0 writes, the others wait for it. Loading is `fastopt.checkpoint.load` on every rank, with the `DataParallel`
    as optimizer, on any number of ranks.

    Parameters
    ----------
    path, **parts
        As of `fastopt.checkpoint.save`.
    comm : Comm
    optimizer : DataParallel or Optimizer, optional
        Whose state is gathered first.

    Raises
    ------
    TypeError, ValueError, OSError
        On rank 0, as `fastopt.checkpoint.save`; the file that was there is as it was.
    RankError
        On the other ranks, where rank 0 could not write.
    """
    with telling(comm):
        state = None if optimizer is None else _State(optimizer.state_dict())
    error: Exception | None = None
    with telling(comm):  # of Ctrl-C
        if comm.rank == 0:
            try:
                checkpoint.save(path, optimizer=state, **parts)
            except Exception as caught:
                error = caught
    told = broadcast_object(comm, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if told is not None:
        raise RankError(f"rank 0 could not save {path}: {told}", 0)
