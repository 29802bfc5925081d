"""What ranks need of each other: a few collective operations on arrays, over whatever engine carries them."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T = TypeVar("T")
Op = Literal["sum", "max"]
Counts = Sequence[int] | None

_UFUNCS = {"sum": np.add, "max": np.maximum}
_SMALL = 2**16  # bytes of all ranks' arrays together, up to which everyone is sent everything


class RankError(RuntimeError):
    """Another rank failed, or does not answer; the message names it.

    Attributes
    ----------
    rank : int or None
        Which; None where several do not answer.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


@runtime_checkable
class Pending(Protocol):
    """An operation under way. Its arrays must not be touched before it is done."""

    def test(self) -> bool:
        """Tell whether it is done, moving it on where that is needed; never waits."""
        ...

    def wait(self) -> None:
        """Return when it is done."""
        ...


@runtime_checkable
class Comm(Protocol):
    """Ranks that work together. Arrays are dense, and of the same dtype and length on all ranks.

    Every rank calls the same operations in the same order. `counts` are the elements that each rank has, equal
    shares without it. What `start_...` begins goes on beside other work; operations that are under way at the same
    time have a `key` each, small numbers that all ranks use alike.

    Attributes
    ----------
    rank, size : int
        This process among all, from 0, and how many there are.
    ordered : bool
        Sums are added in the order of ranks, so that their bits depend on nothing else.
    """

    rank: int
    size: int
    ordered: bool

    def allreduce(self, a: Array, op: Op = "sum") -> None:
        """Replace `a` by the sum, or the largest elements, of all ranks' arrays; all get the same bits."""
        ...

    def reduce_scatter(self, a: Array, out: Array, counts: Counts = None) -> None:
        """Write this rank's elements of the sum of all `a` to `out`, summed in the dtype of `out`."""
        ...

    def allgather(self, part: Array, out: Array, counts: Counts = None) -> None:
        """Write all ranks' parts one after the other to `out`, of which `part` may be its place."""
        ...

    def broadcast(self, a: Array, root: int = 0) -> None:
        """Write the root's array to all others'."""
        ...

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        ...

    def start_allreduce(self, a: Array, key: int = 0) -> Pending:
        """Begin a sum in place; of bfloat16 and float16 it is added in float32 and rounded once."""
        ...

    def start_reduce_scatter(self, a: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `reduce_scatter`."""
        ...

    def start_allgather(self, part: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `allgather`."""
        ...

    def fail(self, reason: str) -> None:
        """Tell the other ranks that this one goes on no further; their next wait raises `RankError`."""
        ...


class Done:
    """An operation that is done."""

    def test(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""


def shares(n: int, size: int) -> list[int]:
    """Return how many of n each rank takes: equal parts, the first ranks one more where it does not divide."""
    return [n // size + (r < n % size) for r in range(size)]


def offsets(counts: Sequence[int]) -> list[int]:
    """Return where each rank's part begins, and at last where all end."""
    return list(accumulate(counts, initial=0))


def share(n: int, rank: int, size: int) -> tuple[int, int]:
    """Return begin and end of a rank's part of n."""
    ends = offsets(shares(n, size))
    return ends[rank], ends[rank + 1]


def counts_of(n: int, size: int, counts: Counts, name: str) -> list[int]:
    """Return every rank's elements of n, or raise where they do not make n."""
    if counts is None:
        return shares(n, size)
    if len(counts) != size or sum(counts) != n:
        raise ValueError(f"{name}: counts are {list(counts)}, expected {size} numbers that make {n}")
    return list(counts)


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that sums of a dtype are added in."""
    return np.dtype(np.float32) if dtype.name in ("bfloat16", "float16") else dtype


class Blocking:
    """The operations that wait, over those that do not."""

    rank: int
    size: int

    def start_reduce_scatter(self, a: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `reduce_scatter`."""
        raise NotImplementedError

    def start_allgather(self, part: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `allgather`."""
        raise NotImplementedError

    def start_allreduce(self, a: Array, key: int = 0) -> Pending:
        """Begin a sum in place."""
        raise NotImplementedError

    def reduce_scatter(self, a: Array, out: Array, counts: Counts = None) -> None:
        """Write this rank's elements of the sum of all `a` to `out`, summed in the dtype of `out`."""
        self.start_reduce_scatter(a, out, counts).wait()

    def allgather(self, part: Array, out: Array, counts: Counts = None) -> None:
        """Write all ranks' parts one after the other to `out`, of which `part` may be its place."""
        self.start_allgather(part, out, counts).wait()

    def allreduce(self, a: Array, op: Op = "sum") -> None:
        """Replace `a` by the sum, or the largest elements, of all ranks' arrays; all get the same bits."""
        if op not in _UFUNCS:
            raise ValueError(f"allreduce: op must be 'sum' or 'max', got {op!r}")
        if op == "sum" and a.nbytes * self.size > _SMALL:
            self.start_allreduce(a).wait()
            return
        everyone = np.empty((self.size, a.size), a.dtype)
        self.allgather(a.reshape(-1), everyone.reshape(-1), [a.size] * self.size)
        total = everyone[0].astype(wide(a.dtype))
        with np.errstate(over="ignore", invalid="ignore"):
            for other in everyone[1:]:
                _UFUNCS[op](total, other.astype(total.dtype, copy=False), out=total)
        a[...] = total.reshape(a.shape)


class NullComm(Blocking):
    """A single process that has no others to wait for."""

    rank = 0
    size = 1
    neighbours = 1
    ordered = True

    @property
    def processes(self) -> list[int]:
        """The id of this process."""
        return [os.getpid()]

    def __enter__(self) -> NullComm:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave all as it is."""

    def start_allreduce(self, a: Array, key: int = 0) -> Pending:
        """Begin a sum in place; of one it is `a`."""
        return Done()

    def start_reduce_scatter(self, a: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `reduce_scatter`; of one it is a copy."""
        counts_of(a.size, 1, counts, "reduce_scatter")
        out[...] = a
        return Done()

    def start_allgather(self, part: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Begin `allgather`; of one it is a copy."""
        counts_of(out.size, 1, counts, "allgather")
        out[...] = part
        return Done()

    def broadcast(self, a: Array, root: int = 0) -> None:
        """Leave `a` as it is."""
        if root != 0:
            raise ValueError(f"broadcast: root is {root}, there is only rank 0")

    def barrier(self) -> None:
        """Return at once."""

    def fail(self, reason: str) -> None:
        """Tell nobody."""


def broadcast_object(comm: Comm, obj: Any, root: int = 0) -> Any:
    """Return the root's object on every rank; it is pickled, for the ranks are one program."""
    data = np.frombuffer(pickle.dumps(obj), np.uint8) if comm.rank == root else np.empty(0, np.uint8)
    length = np.array([data.size], np.int64)
    comm.broadcast(length, root)
    data = data.copy() if comm.rank == root else np.empty(int(length[0]), np.uint8)
    comm.broadcast(data, root)
    return pickle.loads(data.tobytes())


def any_rank(comm: Comm, flag: bool) -> bool:
    """Return whether the flag is set on some rank."""
    flags = np.array([flag], np.uint8)
    comm.allreduce(flags, "max")
    return bool(flags[0])


def together(comm: Comm, call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return what `call` returns, or None and an error on all ranks where it raises on some.

    The error is a rank's own, else the `RankError` of the first that has one; no rank has failed by it.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = call()
    except Exception as caught:
        error = caught
    failed = np.empty(comm.size, np.uint8)
    comm.allgather(np.array([error is not None], np.uint8), failed, [1] * comm.size)
    if not failed.any():
        return result, None
    first = int(failed.argmax())
    told = broadcast_object(comm, f"{type(error).__name__}: {error}", first)
    return None, error or RankError(f"rank {first} failed: {told}", first)


@contextlib.contextmanager
def telling(comm: Comm) -> Iterator[None]:
    """Tell the others of an exception that leaves the block: they would wait for this rank for ever."""
    try:
        yield
    except RankError:
        raise
    except BaseException as error:
        comm.fail(f"{type(error).__name__}: {error}")
        raise


_NULL = NullComm()
_current: ContextVar[Comm] = ContextVar("fastopt.distributed", default=_NULL)


def current() -> Comm:
    """Return the ranks that `use` has set, or the null one."""
    return _current.get()


def shared(obj: Any) -> Any:
    """Return rank 0's object on every rank that `use` has set."""
    comm = current()
    return obj if comm.size == 1 else broadcast_object(comm, obj)


@contextlib.contextmanager
def use(comm: Comm) -> Iterator[Comm]:
    """Let what takes no `comm` of its own, the perceptrons of `fastopt.sklearn`, work on these ranks together.

    Every rank fits the same estimator to the same data, and has the same fitted estimator after it.
    """
    token = _current.set(comm)
    try:
        yield comm
    finally:
        _current.reset(token)
