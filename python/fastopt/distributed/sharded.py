"""Optimizer state that is shared out among ranks: each keeps, and steps with, its own part (ZeRO, stage 1).

Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020. Rules that update each
element by its own numbers take equal slices of the parameters laid end to end; what they need of whole parameters or
of all gradients, norms, is summed over ranks. Optimizers of whole matrices take whole parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt._arrays import Array, Dense, as_view
from fastopt.distributed.buckets import Bucket, Piece, pieces
from fastopt.distributed.comm import Comm, broadcast_object
from fastopt.optim.base import Optimizer
from fastopt.optim.matrix import MatrixOptimizer
from fastopt.optim.placement import Host
from fastopt.optim.prodigy import Prodigy
from fastopt.optim.rule import RuleOptimizer
from fastopt.optim.sophia import Sophia
from fastopt.optim.sparse_adam import SparseAdam
from fastopt.optim.state import EXPONENTS, group_count
from fastopt.optim.tail import Range, Tail, joined, known_factors, known_tail


def kind_of(optimizer: Optimizer) -> str:
    """Return how an optimizer's state can be shared out: "slices" or "whole" parameters.

    Raises
    ------
    ValueError
        It cannot, or a setting stands against it.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, MatrixOptimizer):
        return "whole"
    alone = isinstance(optimizer, Prodigy | Sophia | SparseAdam) or hasattr(optimizer, "train")
    if not isinstance(optimizer, RuleOptimizer) or alone:
        raise ValueError(f"DataParallel: shard_state is not for {name}, whose step needs all of its state")
    if type(optimizer).step is not RuleOptimizer.step:
        raise ValueError(f"DataParallel: shard_state is not for {name}, which has a step of its own")
    for g, group in enumerate(optimizer.param_groups):
        for key in ("ema_decay", "adaptive_clip"):
            if group[key] is not None:
                raise ValueError(
                    f"DataParallel: shard_state is not for {key}, got {group[key]} in param_groups[{g}]"
                )
    return "slices"


class SharedNorms(Host):
    """The host, where norms are those of all ranks' parts together.

    Every rank has a part, which may be empty, of each parameter, and so the same plans.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def tail(
        self,
        plans: list[Any],
        grads: list[list[Any]],
        max_norm: float | None,
        inverse: float | None,
        order: float = 2.0,
    ) -> Tail | None:
        """Return how all ranks' gradients are scaled together; None, on all, where the step is to be skipped."""
        order = np.inf if max_norm is None else order
        each = np.zeros(self._comm.size)
        each[self._comm.rank] = joined(self._norms(plans, grads, order), order)
        self._comm.allreduce(each)
        return known_tail(joined(each.tolist(), order), max_norm, inverse)

    def tails(
        self, plans: list[Any], grads: list[list[Any]], ranges: list[list[Range]], inverse: float | None
    ) -> list[Tail] | None:
        """Return how each plan's gradients are scaled, by norms of whole parameters."""
        norms = [self.norms(plan, gs) for plan, gs in zip(plans, grads, strict=True)]
        if inverse is not None:
            if not all(np.isfinite(each).all() for each in norms):
                return None
            norms = [each * inverse for each in norms]
        total = joined(np.concatenate(norms).tolist(), 2.0)
        return [
            Tail(1.0 if inverse is None else inverse, total, factors=known_factors(each, own, None))
            for each, own in zip(norms, ranges, strict=True)
        ]

    def norms(self, plan: Any, grads: list[Any], n: int | None = None) -> Any:
        """Return the L2 norm of each whole gradient of a plan."""
        return self._whole(plan, super().norms(plan, grads, n))

    def param_norms(self, plan: Any, n: int) -> Any:
        """Return the L2 norms of a plan's whole parameters."""
        return self._whole(plan, super().param_norms(plan, n))

    def measure(
        self, plan: Any, grads: list[Any], coefs: Array, sets: Array | None, tail: Tail
    ) -> tuple[Any, Tail]:
        """Run the first pass of a step in two; return norms of whole directions and parameters."""
        out, tail = super().measure(plan, grads, coefs, sets, tail)
        return np.stack([self._whole(plan, row) for row in out]), tail

    def _whole(self, plan: Any, own: Array) -> Array:
        """Return the norms of arrays of which all ranks have parts with these norms."""
        everyone = np.zeros((self._comm.size, len(own)))
        everyone[self._comm.rank] = own
        self._comm.allreduce(everyone)
        return np.array([joined(column.tolist(), 2.0) for column in everyone.T])


def _over(optimizer: Any, groups: list[list[Any]]) -> Any:
    """Return an optimizer of the same class and settings over other arrays, without state."""
    new = copy.copy(optimizer)
    for name in ("_specs", "_owners", "_order", "_objects", "_paths", "_dense", "_state"):
        setattr(new, name, [])
    new.param_groups, new._starts = [], [0]
    new.defaults = dict(optimizer.defaults)
    for name, empty in (("_rows", []), ("_adamw", {}), ("_numbers", {})):
        if hasattr(optimizer, name):
            setattr(new, name, empty)
    if hasattr(optimizer, "_row_of"):
        new._row_of = np.empty(0, np.int32)
        new._accumulator = type(optimizer._accumulator)()
    if hasattr(optimizer, "_given"):
        new._given = None
    new._index_parameters()
    for group, arrays in zip(optimizer.param_groups, groups, strict=True):
        kind = {"use_muon": False} if group.get("use_muon") is False else {}
        new.add_param_group({**kind, "params": arrays})
        new.param_groups[-1].update({k: v for k, v in group.items() if k not in ("params", "param_names")})
    return new


class Shards:
    """One rank's part of an optimizer: the optimizer over it, and the way from and to whole arrays.

    Parameters
    ----------
    optimizer : Optimizer
        Of the whole parameters, whose settings count.
    comm : Comm
    buckets : list of Bucket
        In which the ranks' parts of parameters lie.

    Attributes
    ----------
    part : Optimizer
        The optimizer over this rank's arrays.
    own : dict
        This rank's piece of each parameter.
    """

    part: Any

    def __init__(self, optimizer: Any, comm: Comm, buckets: list[Bucket]) -> None:
        self.optimizer, self.comm = optimizer, comm
        self._dense: list[Any] = optimizer._dense
        for i, dense in enumerate(self._dense):
            if not isinstance(dense, Dense) or dense.copied:
                raise ValueError(
                    f"DataParallel: shard_state is for dense arrays on the host, {optimizer._label(i)} is not one"
                )
        self._all: list[dict[int, Piece]] = [
            {p.tensor: p for bucket in buckets for p in pieces(bucket, rank)} for rank in range(comm.size)
        ]
        self._home = {slot.tensor: bucket for bucket in buckets for slot in bucket.slots}
        self.own = self._all[comm.rank]

    def _grouped(self, arrays: list[Any]) -> list[list[Any]]:
        """Return arrays of parameters by group, without those that are None."""
        starts = self.optimizer._starts
        return [[a for a in arrays[begin:end] if a is not None] for begin, end in pairwise(starts)]

    def take_over(self) -> None:
        """Move here the state that the optimizer has already, which keeps its settings alone."""
        if self.optimizer.state:
            self.load_state_dict(self.optimizer.state_dict())

    def follow(self) -> None:
        """Take over the settings that schedules and callers have changed."""
        own = ("params", "param_names")
        for group, part in zip(self.optimizer.param_groups, self.part.param_groups, strict=True):
            part.update({key: value for key, value in group.items() if key not in own})
        for name in ("_max_norm", "_accumulate", "_accumulate_reduction"):
            if hasattr(self.optimizer, name):
                setattr(self.part, name, getattr(self.optimizer, name))

    def _flat(self, i: int) -> Array:
        flat: Array = self._dense[i].array.reshape(-1)
        return flat

    def _sums(self, i: int) -> Array:
        """Return the averaged gradient of this rank's piece of a parameter, in the parameter's dtype."""
        piece, part = self.own[i], self._home[i].part
        return part[piece.at : piece.at + piece.end - piece.begin].astype(
            self._dense[i].source.dtype, copy=False
        )

    def gradients(self, given: Sequence[bool]) -> list[Any]:
        """Return the gradients for `part`, of what ranks have reduced; None where no rank has given one."""
        raise NotImplementedError

    def publish(self, bucket: Bucket) -> None:
        """Put this rank's updated elements into a bucket, from which all ranks' are gathered."""
        mine = bucket.gathered[bucket.mine]
        for slot in bucket.slots:
            piece = self.own[slot.tensor]
            mine[piece.at : piece.at + piece.end - piece.begin] = self._flat(slot.tensor)[
                piece.begin : piece.end
            ]

    def receive(self, bucket: Bucket) -> None:
        """Write all ranks' updated elements into the parameters."""
        for slot in bucket.slots:
            self._flat(slot.tensor)[...] = bucket.gathered[slot.begin : slot.begin + slot.size]

    def state_dict(self) -> dict[str, Any]:
        """Return the whole optimizer's state dictionary; all ranks call it."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over this rank's part of a whole state dictionary, and its settings."""
        raise NotImplementedError

    def _load_settings(self, state_dict: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})


class Slices(Shards):
    """A slice of every bucket: of each parameter one piece, which may be empty."""

    def __init__(self, optimizer: Any, comm: Comm, buckets: list[Bucket]) -> None:
        super().__init__(optimizer, comm, buckets)
        parts = [self._piece(i, dense.source.ndim) for i, dense in enumerate(self._dense)]
        self.part = _over(optimizer, self._grouped(parts))
        self.part._placement = SharedNorms(comm)
        self.take_over()

    def _piece(self, i: int, ndim: int) -> Array:
        """Return this rank's elements of a parameter with as many axes, by which some rules tell matrices."""
        return _column(self._flat(i)[self.own[i].begin : self.own[i].end], ndim)

    def gradients(self, given: Sequence[bool]) -> list[Any]:
        """Return the gradients for `part`, of what ranks have reduced; None where no rank has given one."""
        return [
            _column(self._sums(i), self._dense[i].source.ndim) if wanted else None
            for i, wanted in enumerate(given)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the whole optimizer's state dictionary; all ranks call it."""
        saved = self.part.state_dict()
        found = {**self.optimizer.state_dict(), "state": {}}
        for i, entry in saved["state"].items():
            found["state"][i] = {name: self._joined(i, name, a) for name, a in entry.items()}
        if "accumulated" in saved:
            sums = {i: self._joined(i, "sum", a) for i, a in saved["accumulated"]["sums"].items()}
            found["accumulated"] = {**saved["accumulated"], "sums": sums}
        return found

    def _numbers(self) -> set[str]:
        """Return the names of what is one number of a parameter, and the same on all ranks."""
        return {*self.part.scalars, *getattr(self.part, "numbers", ())}

    def _joined(self, i: int, name: str, a: Any) -> Any:
        """Return the whole of an array of parameter i of which ranks have parts; a number as it is."""
        if name in self._numbers():
            return a
        counts = [ranks[i].end - ranks[i].begin for ranks in self._all]
        if name.endswith(EXPONENTS):
            counts = [group_count(n) for n in counts]
        out = np.empty(sum(counts), a.dtype)
        self.comm.allgather(np.ascontiguousarray(a).reshape(-1), out, counts)
        if name.endswith(EXPONENTS):
            return out
        dense = self._dense[i]
        return dense.restore(out.reshape(dense.array.shape))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over this rank's part of a whole state dictionary, and its settings."""

        def cut(arrays: Mapping[Any, Any]) -> dict[Any, Any]:
            return {
                i: {name: self._cut(i, name, a) for name, a in entry.items()} for i, entry in arrays.items()
            }

        own = {**state_dict, "state": cut(state_dict["state"])}
        if waiting := state_dict.get("accumulated"):
            sums = cut({i: {"sum": a} for i, a in waiting["sums"].items()})
            own["accumulated"] = {**waiting, "sums": {i: entry["sum"] for i, entry in sums.items()}}
        self.part.load_state_dict(own)
        self._load_settings(state_dict)

    def _cut(self, i: Any, name: str, a: Any) -> Any:
        """Return this rank's part of an array of parameter i; what is none is left to the optimizer to refuse."""
        if name in self._numbers() or i not in self.own:
            return a
        piece, dense = self.own[i], self._dense[i]
        if name.endswith(EXPONENTS):
            begin = group_count(piece.begin)
            return a[begin : begin + group_count(piece.end - piece.begin)]
        view = as_view(a, f"load_state_dict: state[{i}][{name!r}]")
        if view.shape != dense.source.shape:
            raise ValueError(
                f"load_state_dict: state[{i}][{name!r}] has shape {view.shape}, "
                f"{self.optimizer._label(i)} has shape {dense.source.shape}"
            )
        return _column(dense.arrange(view).reshape(-1)[piece.begin : piece.end], view.ndim)


def _column(flat: Array, ndim: int) -> Array:
    """Return elements as the first of `ndim` axes."""
    return flat.reshape(-1, *[1] * (ndim - 1)) if flat.size else flat.reshape(0, *[1] * (ndim - 1))


class Whole(Shards):
    """Whole parameters, each of one rank."""

    def __init__(self, optimizer: Any, comm: Comm, buckets: list[Bucket], owners: Sequence[int]) -> None:
        super().__init__(optimizer, comm, buckets)
        self._mine = [i for i, owner in enumerate(owners) if owner == comm.rank]
        mine = set(self._mine)
        arrays = [dense.source if i in mine else None for i, dense in enumerate(self._dense)]
        self.part = _over(optimizer, self._grouped(arrays))
        self.take_over()

    def gradients(self, given: Sequence[bool]) -> list[Any]:
        """Return the gradients for `part`, of what ranks have reduced; None where no rank has given one."""
        found = []
        for i in self._mine:
            dense = self._dense[i]
            found.append(dense.restore(self._sums(i).reshape(dense.array.shape)) if given[i] else None)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the whole optimizer's state dictionary; all ranks call it."""
        entries = {self._mine[k]: entry for k, entry in self.part.state_dict()["state"].items()}
        state: dict[int, Any] = {}
        for rank in range(self.comm.size):
            state |= broadcast_object(self.comm, entries, rank)
        return {**self.optimizer.state_dict(), "state": dict(sorted(state.items()))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over this rank's part of a whole state dictionary, and its settings."""
        known, groups = state_dict["state"], self.part.state_dict()["param_groups"]
        state = {k: known[i] for k, i in enumerate(self._mine) if i in known}
        settings = [
            {**{k: v for k, v in new.items() if k != "param_names"}, "params": group["params"]}
            for new, group in zip(state_dict["param_groups"], groups, strict=True)
        ]
        self.part.load_state_dict({"state": state, "param_groups": settings})
        self._load_settings(state_dict)
