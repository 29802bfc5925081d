"""MPI as the engine, by mpi4py: ``mpiexec -n 4 python train.py``."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from typing import Any, Literal

import numpy as np

from fastopt._arrays import as_view, assign
from fastopt._device import is_device_array, library
from fastopt.distributed.comm import Array, Blocking, Counts, RankError, counts_of, offsets, wide

TIMEOUT = 300.0
_GRACE = 2.0  # seconds in which a rank that is asked has to answer, and others may say what they know
_SPIN = 2e-3  # seconds of a wait in which the processor is only yielded
_NAP = 1e-4
_ERROR, _PING, _PONG = 1, 2, 3
_CHUNK = 2**30  # bytes of one message
_ENGINE_DTYPES = frozenset({"float32", "float64", "int32", "int64", "uint8"})

#: An operation: it yields the requests that have to be complete before it is moved on.
Steps = Generator[list[Any], None, None]


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError('MPIComm needs mpi4py and an MPI: pip install "fastopt[mpi]"') from error
    return MPI


class _Operation:
    """An operation of some rounds of messages."""

    def __init__(self, comm: MPIComm, name: str, steps: Steps) -> None:
        self.name = name
        self._comm, self._steps = comm, steps
        self._requests: list[Any] = []
        self._done = False
        comm._open.add(self)  # what MPI writes to must live until it has
        self.test()

    def test(self) -> bool:
        """Tell whether it is done, moving it on where that is needed; never waits."""
        while not self._done and self._comm._complete(self._requests):
            try:
                self._requests = next(self._steps)
            except StopIteration:
                self._done = True
                self._comm._open.discard(self)
        return self._done

    def wait(self) -> None:
        """Return when it is done.

        Raises
        ------
        RankError
            Another rank has failed, or there was no progress within the communicator's timeout.
        """
        if not self.test():
            self._comm._wait(self)


class MPIComm(Blocking):
    """Ranks of an MPI program.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Whose ranks; MPI.COMM_WORLD by default. It is duplicated, so its own messages are left alone.
    timeout : float
        Seconds that a wait for others may take; also what ``FASTOPT_COMM_TIMEOUT`` in the environment says.
    order : {"rank", "engine"}
        "rank": every rank sends each other its elements, which are added in the order of ranks: bits depend on the
        number of ranks alone. "engine": MPI's own reductions, whose messages are fewer where ranks are many and
        whose order is the engine's affair.

    Attributes
    ----------
    rank, size : int
    neighbours : int
        Ranks on this machine, this one among them.
    processes : list of int
        The ranks' process ids, by which launchers name one that was killed.
    cuda_aware : bool or None
        Whether the MPI says that it takes arrays on GPUs; None where it does not say. Such arrays are sent by way
        of the host either way, in page-locked memory where there is some.

    Raises
    ------
    ImportError
        mpi4py or an MPI is missing.
    ValueError
        A setting is out of range.

    Notes
    -----
    A wait asks again and again, so that a rank which fails can be noticed. A rank that ends with an exception tells
    the others at once, and so does the ``with`` block of this object. One that is silent for `timeout` seconds is
    asked; who does not answer is named. Either way a `RankError` is raised, and the process leaves by ``MPI_Abort``
    when it ends, since ``MPI_Finalize`` would wait for all ranks.

    A launcher that notices how a rank dies as a rule kills the others at once, with a message of its own that may
    have the process and not the rank.
    """

    def __init__(
        self,
        comm: Any = None,
        timeout: float | None = None,
        order: Literal["rank", "engine"] = "rank",
    ) -> None:
        self._mpi = _mpi()
        if order not in ("rank", "engine"):
            raise ValueError(f"MPIComm: order must be 'rank' or 'engine', got {order!r}")
        self.timeout = float(os.environ.get("FASTOPT_COMM_TIMEOUT", TIMEOUT) if timeout is None else timeout)
        if not self.timeout > 0:
            raise ValueError(f"MPIComm: timeout must be positive, got {self.timeout}")
        world = self._mpi.COMM_WORLD if comm is None else comm
        self._comm, self._side = world.Dup(), world.Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        local = world.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.neighbours: int = local.Get_size()
        local.Free()
        self.order = order
        self.ordered = order == "rank"
        self.cuda_aware = _cuda_aware()
        self._open: set[_Operation] = set()
        self._rooms: dict[Any, Array] = {}
        self._notes: list[Any] = []  # messages on their way
        self._waiting = "nothing"
        self._answers: dict[int, str] = {}
        self.failure: RankError | None = None
        self._peers = [(self.rank + k) % self.size for k in range(1, self.size)]
        processes = np.empty(self.size, np.int64)
        self.allgather(np.array([os.getpid()], np.int64), processes, [1] * self.size)
        self.processes: list[int] = processes.tolist()
        self._mind_signal()
        atexit.register(self._leave)

    def __enter__(self) -> MPIComm:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Tell the others where the block ends with an exception."""
        if error is not None and not isinstance(error, RankError):
            self.fail(f"{type(error).__name__}: {error}")

    def __repr__(self) -> str:
        return f"MPIComm(rank {self.rank} of {self.size}, order {self.order!r}, timeout {self.timeout:g})"

    # Operations -----------------------------------------------------------------------------------------

    def start_allreduce(self, a: Array, key: int = 0) -> _Operation:
        """Begin a sum in place; of bfloat16 and float16 it is added in float32 and rounded once."""
        steps = self._staged([a], lambda x: self._allreduce(x.reshape(-1), 4 * key))
        return _Operation(self, "allreduce", steps)

    def start_reduce_scatter(self, a: Array, out: Array, counts: Counts = None, key: int = 0) -> _Operation:
        """Begin `reduce_scatter`."""
        known = counts_of(a.size, self.size, counts, "reduce_scatter")
        if out.size != known[self.rank]:
            raise ValueError(f"reduce_scatter: out has {out.size} elements, expected {known[self.rank]}")
        steps = self._staged([a, out], lambda x, y: self._reduce_scatter(x, y, known, 4 * key))
        return _Operation(self, "reduce_scatter", steps)

    def start_allgather(self, part: Array, out: Array, counts: Counts = None, key: int = 0) -> _Operation:
        """Begin `allgather`."""
        known = counts_of(out.size, self.size, counts, "allgather")
        if part.size != known[self.rank]:
            raise ValueError(f"allgather: part has {part.size} elements, expected {known[self.rank]}")
        steps = self._staged(
            [part, out], lambda x, y: self._allgather(x, y, known, 4 * key + 2, not self.ordered)
        )
        return _Operation(self, "allgather", steps)

    def broadcast(self, a: Array, root: int = 0) -> None:
        """Write the root's array to all others'."""
        if not 0 <= root < self.size:
            raise ValueError(f"broadcast: root is {root}, there are ranks 0 to {self.size - 1}")
        _Operation(self, "broadcast", self._staged([a], lambda x: self._broadcast(x, root))).wait()

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        _Operation(self, "barrier", self._barrier()).wait()

    def _reduce_scatter(self, a: Array, out: Array, counts: list[int], tag: int) -> Steps:
        if not self.ordered and a.dtype == out.dtype and a.dtype.name in _ENGINE_DTYPES:
            yield [self._comm.Ireduce_scatter(a, out, counts, self._mpi.SUM)]
            return
        at, mine = offsets(counts), counts[self.rank]
        room = self._room((tag, "in"), self.size * mine, a.dtype).reshape(self.size, mine)
        requests = [self._receive(room[peer], peer, tag) for peer in self._peers if mine]
        requests += [
            self._send(a[at[peer] : at[peer + 1]], peer, tag) for peer in self._peers if counts[peer]
        ]
        yield requests
        if not mine:
            return
        room[self.rank] = a[at[self.rank] : at[self.rank + 1]]
        out[...] = room[0]
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges, which its loss tells
            for row in room[1:]:
                np.add(out, row.astype(out.dtype, copy=False), out=out)

    def _allgather(self, part: Array, out: Array, counts: list[int], tag: int, engine: bool) -> Steps:
        at = offsets(counts)
        parts = [out[at[r] : at[r + 1]] for r in range(self.size)]
        own = parts[self.rank]
        if not np.shares_memory(own, part):
            own[...] = part
        if engine:
            blocks = out.view(np.uint8), [n * out.itemsize for n in counts]
            yield [self._comm.Iallgatherv(self._mpi.IN_PLACE, [*blocks, self._mpi.BYTE])]
            return
        requests = [self._receive(parts[peer], peer, tag) for peer in self._peers if counts[peer]]
        requests += [self._send(own, peer, tag) for peer in self._peers if counts[self.rank]]
        yield requests

    def _allreduce(self, a: Array, tag: int) -> Steps:
        if not self.ordered and a.dtype.name in _ENGINE_DTYPES:
            yield [self._comm.Iallreduce(self._mpi.IN_PLACE, a, self._mpi.SUM)]
            return
        counts = counts_of(a.size, self.size, None, "allreduce")
        begin = offsets(counts)[self.rank]
        mine = a[begin : begin + counts[self.rank]]
        part = self._room((tag, "sum"), mine.size, wide(a.dtype))
        yield from self._reduce_scatter(a, part, counts, tag)
        mine[...] = part
        # The engine pairs its operations by the order of their calls, and ranks come here in an order of their own.
        yield from self._allgather(mine, a, counts, tag + 2, engine=False)

    def _broadcast(self, a: Array, root: int) -> Steps:
        flat = a.reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, _CHUNK):
            yield [self._comm.Ibcast([flat[begin : begin + _CHUNK], self._mpi.BYTE], root)]

    def _barrier(self) -> Steps:
        yield [self._comm.Ibarrier()]

    def _send(self, a: Array, peer: int, tag: int) -> Any:
        return self._comm.Isend([a.view(np.uint8), self._mpi.BYTE], peer, tag)

    def _receive(self, a: Array, peer: int, tag: int) -> Any:
        return self._comm.Irecv([a.view(np.uint8), self._mpi.BYTE], peer, tag)

    def _room(self, name: Any, n: int, dtype: np.dtype[Any]) -> Array:
        """Return memory that is kept between uses."""
        name = (*name, n, dtype)
        if name not in self._rooms:
            self._rooms[name] = np.empty(n, dtype)
        return self._rooms[name]

    def _staged(self, arrays: list[Any], operation: Any) -> Steps:
        """Do an operation on host arrays; those on a device are copied there, and back."""
        views = [as_view(a, "array") for a in arrays]
        hosts = []
        for view in views:
            host = library(view).to_pinned(view) if is_device_array(view) else view
            if not host.flags.c_contiguous:
                raise ValueError(f"array of shape {view.shape} is not C-contiguous")
            hosts.append(host)
        yield from operation(*hosts)
        for view, host in zip(views, hosts, strict=True):
            if is_device_array(view):
                assign(view, host)

    # Waiting --------------------------------------------------------------------------------------------

    def _complete(self, requests: list[Any]) -> bool:
        return not requests or bool(self._mpi.Request.Testall(requests))

    def _wait(self, operation: _Operation) -> None:
        """Poll until an operation is done, another rank has failed, or the time is up."""
        began = time.monotonic()
        self._waiting = operation.name
        while not operation.test():
            for other in list(self._open):  # whose second round another rank may wait for
                other.test()
            self._listen()
            waited = time.monotonic() - began
            if waited > self.timeout:
                self._accuse(operation, waited)
            if waited < _SPIN:
                os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
            else:
                time.sleep(_NAP)
        self._waiting = "nothing"

    def _listen(self) -> None:
        """Read what other ranks have to say; raise where one has failed."""
        if self.failure is not None:
            raise self.failure
        status = self._mpi.Status()
        while self._side.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
            source, tag = status.Get_source(), status.Get_tag()
            room = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
            self._side.Recv([room, self._mpi.BYTE], source, tag)
            text = room.tobytes().decode(errors="replace")
            if tag == _PING:
                self._note(source, _PONG, self._waiting)
            elif tag == _PONG:
                self._answers[source] = text
            else:
                rank, _, reason = text.partition(" ")
                self.failure = RankError(reason, int(rank) if rank != "-" else None)
                raise self.failure

    def _accuse(self, operation: _Operation, waited: float) -> None:
        """Ask all ranks for a sign of life and raise the error that names those without."""
        self._answers = {}
        for peer in self._peers:
            self._note(peer, _PING, "")
        until = time.monotonic() + _GRACE
        while time.monotonic() < until and len(self._answers) < self.size - 1:
            self._listen()
            if operation.test():
                return
            time.sleep(_NAP)
        silent = [r for r in range(self.size) if r != self.rank and r not in self._answers]
        if silent:
            who = ", ".join(f"rank {r}" for r in silent)
            reason = f"{who} did not answer within {waited:.0f} s of waiting in {operation.name}"
        else:
            doing = ", ".join(f"rank {r} in {text}" for r, text in sorted(self._answers.items()))
            reason = (
                f"rank {self.rank} waited {waited:.0f} s in {operation.name} while others wait: {doing}; "
                "ranks must call the same operations in the same order"
            )
        self.failure = RankError(reason, silent[0] if len(silent) == 1 else None)
        self._tell(reason, self.failure.rank)
        raise self.failure

    def fail(self, reason: str) -> None:
        """Tell the other ranks that this one goes on no further; their next wait raises `RankError`."""
        if self.failure is None:
            text = f"rank {self.rank} failed: {reason}"
            self.failure = RankError(text, self.rank)
            self._tell(text, self.rank)

    def _tell(self, reason: str, rank: int | None) -> None:
        for peer in self._peers:
            self._note(peer, _ERROR, f"{'-' if rank is None else rank} {reason[:2000]}")

    def _note(self, peer: int, tag: int, text: str) -> None:
        data = np.frombuffer(text.encode(), np.uint8)
        self._notes.append((self._side.Isend([data, self._mpi.BYTE], peer, tag), data))

    def _leave(self) -> None:
        """At the end of the process: after a failure, give the others time to say so and stop all."""
        error = getattr(sys, "last_value", None)
        if error is not None and self.failure is None and not isinstance(error, SystemExit):
            self.fail(f"{type(error).__name__}: {error}")
        if self.failure is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        until = time.monotonic() + _GRACE
        while time.monotonic() < until:
            for request, _ in self._notes:
                request.Test()
            for operation in list(self._open):
                self._complete(operation._requests)
            time.sleep(_NAP * 10)
        self._mpi.COMM_WORLD.Abort(1)

    def _mind_signal(self) -> None:
        """Outlive MPICH's notice of a rank that died, a signal which ends a process that does not mind it."""
        own = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR1")
        if own and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _cuda_aware() -> bool | None:
    """Return what the MPI library says of arrays on GPUs."""
    try:
        return bool(ctypes.CDLL(None).MPIX_Query_cuda_support())
    except (AttributeError, OSError):
        return None


def launched() -> bool:
    """Return whether an MPI launcher has started this process as one of several."""
    size = _of_launcher("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
    return size > 1 if size is not None else "PMIX_RANK" in os.environ


def launched_rank() -> int:
    """Return the rank that a launcher has given this process, 0 where there was none."""
    return _of_launcher("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK") or 0


def _of_launcher(*names: str) -> int | None:
    """Return the first of these variables of the environment that holds a number."""
    values = [os.environ.get(name, "") for name in names]
    return next((int(value) for value in values if value.isdigit()), None)
