"""NCCL as the engine, by CuPy: arrays on GPUs go from device to device, one rank a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from fastopt.distributed.comm import (
    Array,
    Blocking,
    Comm,
    Counts,
    Done,
    Pending,
    broadcast_object,
    counts_of,
    offsets,
)

# Numbers of nccl.h.
_TYPES = {"int32": 2, "int64": 4, "uint8": 1, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
_SUM, _MAX = 0, 2


class NCCLComm(Blocking):
    """Ranks whose arrays are on GPUs, joined by NCCL.

    Parameters
    ----------
    meeting : Comm
        Over which the ranks find each other, such as `MPIComm`, and arrays on the host travel.
    device : int, optional
        The GPU of this rank; by default its rank among those that the process sees.
    cupy : module, optional
        CuPy, or what has its ``cuda.nccl``.

    Raises
    ------
    ImportError
        CuPy is missing, or has no NCCL.

    Notes
    -----
    Operations are queued on CuPy's current stream in the order of the calls, and nothing waits for the device. NCCL
    adds in an order of its own, which is the same from run to run on the same machines with the same settings.

    This has not run on a device yet; tests run it over a stand-in for NCCL.
    """

    ordered = False

    def __init__(self, meeting: Comm, device: int | None = None, cupy: Any = None) -> None:
        self._cupy = _cupy() if cupy is None else cupy
        self._meeting = meeting
        self.rank, self.size = meeting.rank, meeting.size
        nccl = self._cupy.cuda.nccl
        visible = self._cupy.cuda.runtime.getDeviceCount()
        self._device = self._cupy.cuda.Device(self.rank % visible if device is None else device)
        self._device.use()
        unique = broadcast_object(meeting, nccl.get_unique_id() if self.rank == 0 else None)
        self._nccl = nccl
        self._comm = nccl.NcclCommunicator(self.size, unique, self.rank)

    def _stream(self) -> int:
        stream: int = self._cupy.cuda.get_current_stream().ptr
        return stream

    def zeros(self, n: int, dtype: np.dtype[Any]) -> Any:
        """Return room for what is to travel, on this rank's GPU."""
        return self._cupy.zeros(n, dtype)

    def _on_host(self, a: Any) -> bool:
        return isinstance(a, np.ndarray) and not isinstance(a, self._cupy.ndarray)

    def start_allreduce(self, a: Array, key: int = 0) -> Pending:
        """Queue a sum in place."""
        if self._on_host(a):
            return self._meeting.start_allreduce(a, key)
        self._comm.allReduce(_address(a), _address(a), a.size, _type(a), _SUM, self._stream())
        return Done()

    def start_reduce_scatter(self, a: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Queue `reduce_scatter`; parts of unequal length are reduced to one rank after the other, in one group."""
        if self._on_host(a):
            return self._meeting.start_reduce_scatter(a, out, counts, key)
        known = counts_of(a.size, self.size, counts, "reduce_scatter")
        if out.dtype != a.dtype:
            raise TypeError(f"reduce_scatter: out is {out.dtype}, NCCL adds in the dtype of a, {a.dtype}")
        stream = self._stream()
        if len(set(known)) == 1:
            self._comm.reduceScatter(_address(a), _address(out), out.size, _type(a), _SUM, stream)
            return Done()
        self._nccl.groupStart()
        for root, begin in zip(range(self.size), offsets(known), strict=False):
            if known[root]:
                to = _address(out) if root == self.rank else _address(a)
                send = _address(a) + begin * a.itemsize
                self._comm.reduce(send, to, known[root], _type(a), _SUM, root, stream)
        self._nccl.groupEnd()
        return Done()

    def start_allgather(self, part: Array, out: Array, counts: Counts = None, key: int = 0) -> Pending:
        """Queue `allgather`; parts of unequal length are broadcast one after the other, in one group."""
        if self._on_host(out):
            return self._meeting.start_allgather(part, out, counts, key)
        known = counts_of(out.size, self.size, counts, "allgather")
        stream = self._stream()
        if len(set(known)) == 1:
            self._comm.allGather(_address(part), _address(out), part.size, _type(out), stream)
            return Done()
        self._nccl.groupStart()
        for root, begin in zip(range(self.size), offsets(known), strict=False):
            if known[root]:
                place = _address(out) + begin * out.itemsize
                send = _address(part) if root == self.rank else place
                self._comm.broadcast(send, place, known[root], _type(out), root, stream)
        self._nccl.groupEnd()
        return Done()

    def allreduce(self, a: Array, op: Any = "sum") -> None:
        """Replace `a` by the sum, or the largest elements, of all ranks' arrays."""
        if self._on_host(a):
            self._meeting.allreduce(a, op)
        elif op not in ("sum", "max"):
            raise ValueError(f"allreduce: op must be 'sum' or 'max', got {op!r}")
        else:
            number = _SUM if op == "sum" else _MAX
            self._comm.allReduce(_address(a), _address(a), a.size, _type(a), number, self._stream())

    def broadcast(self, a: Array, root: int = 0) -> None:
        """Write the root's array to all others'."""
        if self._on_host(a):
            self._meeting.broadcast(a, root)
        else:
            self._comm.broadcast(_address(a), _address(a), a.size, _type(a), root, self._stream())

    def barrier(self) -> None:
        """Return when all ranks have called it and their devices are done."""
        self._cupy.cuda.get_current_stream().synchronize()
        self._meeting.barrier()

    def fail(self, reason: str) -> None:
        """Tell the other ranks, and end what is under way on this device."""
        self._meeting.fail(reason)
        self._comm.abort()


def _cupy() -> Any:
    try:
        importlib.import_module("cupy.cuda.nccl")
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            'NCCLComm needs CuPy with NCCL: pip install "fastopt[cuda13]" nvidia-nccl-cu13'
        ) from error


def _address(a: Any) -> int:
    address: int = a.data.ptr
    return address


def _type(a: Any) -> int:
    if a.dtype.name not in _TYPES:
        raise TypeError(f"NCCL has no {a.dtype}")
    return _TYPES[a.dtype.name]
