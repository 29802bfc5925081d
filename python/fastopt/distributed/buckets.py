"""Gradients side by side in a few arrays, each of which is averaged in one operation."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt._arrays import Dense, DeviceDense, assign
from fastopt._device import is_device_array, library
from fastopt.distributed.comm import Comm, Pending, offsets, wide

#: Elements between beginnings of tensors, and of ranks' parts of them: whole cache lines, whole groups of packed state.
ALIGN = 128


class Slot(NamedTuple):
    """Where a parameter lies in a bucket."""

    tensor: int
    begin: int
    size: int


class Piece(NamedTuple):
    """A rank's part of a parameter: elements `begin` to `end` of it, which lie from `at` on in the rank's part."""

    tensor: int
    begin: int
    end: int
    at: int


class Bucket:
    """Room for the gradients of some parameters of one dtype.

    Attributes
    ----------
    memory : ndarray
        The gradients in the dtype that travels; after an allreduce, or a gather of parameters, that of all ranks.
    counts : list of int
        The elements that each rank reduces.
    part : ndarray
        After a reduce-scatter, the sums of this rank's elements.
    gathered : ndarray
        Room for parameters on their way between ranks.
    waiting : set of int
        Parameters whose gradients are not here yet.
    pending : Pending or None
        The operation that averages them.
    """

    def __init__(
        self, slots: list[Slot], counts: list[int], own: np.dtype[Any], sent: np.dtype[Any], comm: Comm
    ) -> None:
        self.slots, self.counts, self.own = slots, counts, own
        self.memory = getattr(comm, "zeros", np.zeros)(sum(counts), sent)
        self.rank = comm.rank
        self.part = np.zeros(0, wide(sent))
        self.gathered = self.memory
        self.waiting = {slot.tensor for slot in slots}
        self.pending: Pending | None = None

    @property
    def mine(self) -> slice:
        """The elements that this rank reduces."""
        begin = offsets(self.counts)[self.rank]
        return slice(begin, begin + self.counts[self.rank])

    def fill(self, slot: Slot, gradient: Any, weight: float) -> None:
        """Put a gradient times `weight` in its place; None, or a weight of 0, counts nothing."""
        room = self.memory[slot.begin : slot.begin + slot.size]
        if gradient is None or weight == 0.0:
            room.fill(0)
        elif is_device_array(gradient):
            scaled = gradient.reshape(-1) * weight
            if is_device_array(room):
                room[...] = scaled
            else:
                assign(room, scaled)
        else:
            flat = gradient.reshape(-1)
            if flat.dtype == room.dtype and flat.dtype.kind == "f" and flat.dtype.itemsize > 2:
                np.multiply(flat, flat.dtype.type(weight), out=room)
            else:
                room[...] = flat.astype(wide(flat.dtype)) * np.float32(weight)
        self.waiting.discard(slot.tensor)

    def make_parts(self) -> None:
        """Make room for sums of this rank's elements, and for parameters, where gradients travel otherwise."""
        self.part = np.zeros(self.counts[self.rank], self.part.dtype)
        self.gathered = self.memory if self.memory.dtype == self.own else np.zeros(self.memory.size, self.own)

    def reset(self) -> None:
        """Begin anew, after a step."""
        self.waiting = {slot.tensor for slot in self.slots}
        self.pending = None


def pieces(bucket: Bucket, rank: int) -> list[Piece]:
    """Return a rank's part of each parameter of a bucket, empty where it has none."""
    ends = offsets(bucket.counts)
    low, high = ends[rank], ends[rank + 1]
    found = []
    for slot in bucket.slots:
        begin = min(max(low - slot.begin, 0), slot.size)
        end = max(min(high - slot.begin, slot.size), begin)
        at = max(slot.begin + begin - low, 0) if end > begin else 0
        found.append(Piece(slot.tensor, begin, end, at))
    return found


def _round_up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def lay_out(
    dense: Sequence[Dense | DeviceDense],
    comm: Comm,
    most: int,
    sent: np.dtype[Any] | None,
    owners: Sequence[int] | None = None,
) -> list[Bucket]:
    """Return buckets of at most `most` bytes, last parameters first, whose gradients are known first.

    Parameters
    ----------
    dense
        The parameters.
    sent : dtype, optional
        What float32 gradients travel in.
    owners : list of int, optional
        The rank that is to have all of a parameter; without it ranks have equal parts of each bucket.
    """
    groups: list[list[int]] = []
    room = 0
    for i in reversed(range(len(dense))):
        source = dense[i].source
        same = groups and dense[groups[-1][-1]].source.dtype == source.dtype
        if not same or room + source.nbytes > most:
            groups.append([])
            room = 0
        groups[-1].append(i)
        room += source.nbytes
    buckets = []
    for group in groups:
        own = dense[group[0]].source.dtype
        if owners is not None:
            group.sort(key=lambda i: owners[i])
        slots, begin = [], 0
        counts = [0] * comm.size
        for i in group:
            size = int(dense[i].source.size)
            slots.append(Slot(i, begin, size))
            begin += _round_up(size)
            if owners is not None:
                counts[owners[i]] += _round_up(size)
        if owners is None:
            each = _round_up(-(-begin // comm.size))
            counts = [each] * comm.size
        travels = sent if sent is not None and own == np.float32 else own
        buckets.append(Bucket(slots, counts, own, travels, comm))
    return buckets


def owners_of(sizes: Sequence[int], ranks: int) -> list[int]:
    """Return a rank for each parameter, the largest first to the rank that has least."""
    load = [0] * ranks
    owners = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[i] = min(range(ranks), key=lambda r: (load[r], r))
        load[owners[i]] += sizes[i]
    return owners


def checksum(gradient: npt.NDArray[Any]) -> int:
    """Return a number that tells whether a gradient on the host was changed."""
    return zlib.crc32(np.ascontiguousarray(gradient).reshape(-1).view(np.uint8).data)


def placed(mean: npt.NDArray[Any], dense: Any) -> Any:
    """Return a gradient where its parameter is."""
    shaped = mean.reshape(dense.array.shape)
    if hasattr(dense, "restore"):
        return dense.restore(shaped)
    lib = library(dense.source)
    return lib.unwrap(shaped if is_device_array(shaped) else lib.from_host(shaped, dense.source))
