"""Training on several ranks: each has a share of every batch, and all take the step of the whole batch."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from fastopt import _random, nn
from fastopt._arrays import as_view
from fastopt._device import is_device_array
from fastopt._stepping import Block, Stepping
from fastopt._tape import is_grad_enabled, ready
from fastopt.distributed.buckets import checksum, lay_out, owners_of, placed
from fastopt.distributed.comm import Comm, any_rank, current, share, telling
from fastopt.distributed.losses import divisor, targets
from fastopt.distributed.nccl import NCCLComm
from fastopt.distributed.sharded import Shards, Slices, Whole, kind_of
from fastopt.optim.base import Optimizer
from fastopt.optim.state import bfloat16
from fastopt.program import CompiledStep

BUCKET_BYTES = 2**22


class DataParallel:
    """A model and its optimizer on several ranks that have the same parameters and different samples.

    Gradients are averaged over the samples of all ranks, so that every rank takes the step that a single process
    would take with the whole batch. Buckets of a compiled step's gradients are on their way while its backward pass
    goes on.

    Parameters
    ----------
    model_or_step : Module, CompiledStep or None
        What is trained; None where gradients come from elsewhere and are given to `step`.
    optimizer : Optimizer, optional
        Of its parameters; that of a compiled step where none is given.
    comm : Comm, optional
        The ranks; by default those of `use`.
    shard_state : bool
        Each rank keeps, and steps with, its own part of the optimizer's state (ZeRO, stage 1); parameters are
        gathered after it. Rules that update element by element take slices, LAMB, LARS and NovoGrad with norms of
        whole parameters summed over ranks, Muon, SOAP and Adafactor whole parameters.
    bucket_bytes : int
        Gradients that travel together.
    gradient_dtype : {None, "bfloat16"}
        What float32 gradients travel in; they are added in float32.
    overlap : bool
        Of a model that is called itself: buckets leave during ``backward()``, each gradient times this rank's share of
        the samples. Gradients must then be left alone between ``backward()`` and `step`, which takes no `weight`;
        parameters are on the host. Without it `step` reads the gradients.

    Attributes
    ----------
    model, step_fn, optimizer, comm
        As given; `step_fn` is the compiled step.
    rank, size : int
        Of `comm`.

    Raises
    ------
    TypeError, ValueError
        On every rank: ranks have other parameters or settings, by the name of the rank; an optimizer, or a loss,
        that cannot be shared out.

    Notes
    -----
    Parameters are those of rank 0 to begin with. The sum of gradients is added in the order of ranks where the
    communicator is ``ordered``, and its bits follow from the number of ranks and the batch alone.

    A model that is called itself counts each rank's gradients by its share of the samples. That is the step of a single
    process where the loss is the mean over samples. What other losses need is `step` with a `weight`:

    - ``reduction="sum"``: ``weight=1.0``;
    - class weights, ``ignore_index``, or another mean whose divisor is not the number of samples:
      ``weight=parallel.share_of(divisor)``, with what this rank's loss was divided by.

    A compiled step knows its loss and does so itself.

    A step takes whole steps only: an error on one rank is told to the others and ends them all with `RankError`.

    References
    ----------
    Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training, 2020; Rajbhandari et al.,
    ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2020.
    """

    def __init__(
        self,
        model_or_step: nn.Module | CompiledStep | None,
        optimizer: Optimizer | None = None,
        comm: Comm | None = None,
        *,
        shard_state: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
        gradient_dtype: Literal["bfloat16"] | None = None,
        overlap: bool = False,
    ) -> None:
        self.comm: Comm = current() if comm is None else comm
        self.step_fn = model_or_step if isinstance(model_or_step, CompiledStep) else None
        self.model = model_or_step.model if isinstance(model_or_step, CompiledStep) else model_or_step
        own = None if self.step_fn is None else self.step_fn.optimizer
        if optimizer is None:
            optimizer = own
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"DataParallel: optimizer is {type(optimizer).__name__}, expected a fastopt optimizer"
            )
        if own is not None and optimizer is not own:
            raise ValueError("DataParallel: optimizer is another one than that of the compiled step")
        if self.step_fn is not None and self.step_fn._stepping._fuse is True:
            raise ValueError(
                "DataParallel: the compiled step has fuse_update=True, and gradients are averaged first"
            )
        if gradient_dtype not in (None, "bfloat16"):
            raise ValueError(
                f"DataParallel: gradient_dtype must be None or 'bfloat16', got {gradient_dtype!r}"
            )
        if bucket_bytes < 1:
            raise ValueError(f"DataParallel: bucket_bytes must be positive, got {bucket_bytes}")
        if isinstance(self.comm, NCCLComm):
            if shard_state:
                raise ValueError("DataParallel: shard_state is not for NCCLComm")
            for i, dense in enumerate(optimizer._dense):
                if not is_device_array(dense.source):
                    raise ValueError(
                        f"DataParallel: {optimizer._label(i)} is on the host, NCCLComm is for parameters on GPUs"
                    )
        if shard_state and getattr(optimizer, "_shadows", None) is not None:
            raise ValueError("DataParallel: shard_state is not for keep_shadow")
        if overlap and (self.step_fn is not None or self.model is None):
            raise ValueError("DataParallel: overlap is for a model that is called itself")
        if overlap and any(is_device_array(dense.source) for dense in optimizer._dense):
            raise ValueError("DataParallel: overlap is for parameters on the host")
        self.optimizer: Any = optimizer
        self.rank, self.size = self.comm.rank, self.comm.size
        if self.size > 1 and self.model is not None:
            for name, module in self.model.named_modules():
                if isinstance(module, nn.BatchNorm1d):
                    raise ValueError(
                        f"DataParallel: module {name!r} is a BatchNorm1d, whose statistics would be those of each "
                        "rank's part of a batch"
                    )
        kind = kind_of(optimizer) if shard_state else ""
        self._agree()
        self._dense = optimizer._dense
        owners = owners_of([d.source.size for d in self._dense], self.size) if kind == "whole" else None
        sent = None if gradient_dtype is None else bfloat16()
        self.buckets = lay_out(self._dense, self.comm, bucket_bytes, sent, owners)
        self._slots = {slot.tensor: (bucket, slot) for bucket in self.buckets for slot in bucket.slots}
        self._begun = 0  # buckets whose averaging has begun
        for dense in self._dense:
            self._broadcast(dense.source)
        self._shards: Shards | None = None
        if kind:
            for bucket in self.buckets:
                bucket.make_parts()
            if owners is not None:
                self._shards = Whole(optimizer, self.comm, self.buckets, owners)
            else:
                self._shards = Slices(optimizer, self.comm, self.buckets)
        self._share = self._weight = 1.0 / self.size  # of the samples, and what gradients count
        self._seen: list[float] = []  # of the batches since the last step
        self._taken: dict[int, int] = {}  # checksums of gradients in buckets before `step`
        self._overlap = overlap
        self._syncing, self._armed = True, False
        self._hook = self._take if self.size > 1 else None
        self._leaves = {id(p): i for i, p in enumerate(optimizer._objects) if hasattr(p, "_accumulate")}
        if self.step_fn is not None:
            self.step_fn._stepping.peers = self
        elif self.size > 1 and overlap:
            ready.update(dict.fromkeys(self._leaves, self._ready))
        _random.set_stream(self.rank)

    def close(self) -> None:
        """Let go of model, step and optimizer: they work on this process alone again."""
        for leaf in self._leaves:
            ready.pop(leaf, None)
        if self.step_fn is not None:
            self.step_fn._stepping.peers = None
        _random.set_stream(0)

    def _agree(self) -> None:
        """Raise, on all ranks, unless all have the same parameters and settings."""
        arrays = [(d.source.shape, d.source.dtype.name) for d in self.optimizer._dense]
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        text = repr((type(self.optimizer).__name__, arrays, groups))
        sums = np.empty(self.size, np.int64)
        self.comm.allgather(np.array([zlib.crc32(text.encode())], np.int64), sums, [1] * self.size)
        other = np.flatnonzero(sums != sums[0])
        if other.size:
            raise ValueError(
                f"DataParallel: rank {other[0]} has other parameters, or another optimizer or settings, than rank 0"
            )

    def _broadcast(self, a: Any) -> None:
        if is_device_array(a) or a.flags.c_contiguous:
            self.comm.broadcast(a)
        else:
            copy = np.ascontiguousarray(a)
            self.comm.broadcast(copy)
            a[...] = copy

    def __repr__(self) -> str:
        what = type(self.step_fn or self.model).__name__
        shard = ", shard_state=True" if self._shards else ""
        return (
            f"DataParallel({what}, {type(self.optimizer).__name__}, rank {self.rank} of {self.size}{shard})"
        )

    # Models ---------------------------------------------------------------------------------------------

    def __call__(self, x: Any, y: Any = None) -> Any:
        """Return the model's output for this rank's share of a batch; of a compiled step, take one and return its loss.

        Parameters
        ----------
        x : array, shape (n, ...)
            This rank's samples; ranks may have different numbers of them, and none.
        y : array, optional
            Of a compiled step, the targets of these samples.

        Returns
        -------
        Tensor, or float
            Of a compiled step, the mean loss of all ranks' samples before the update.
        """
        with telling(self.comm):
            if self.step_fn is not None:
                return self._step_with(x, y)
            if self.model is None:
                raise TypeError("DataParallel: there is no model to call, give gradients to step")
            if is_grad_enabled() and getattr(self.model, "training", True):
                self._share = self._weight = self.share_of(len(x))
                self._seen.append(self._share)
                self._armed = self._overlap and self._syncing
        if self._armed:
            self._check_shares()
        with telling(self.comm):
            return self.model(x)

    def share_of(self, own: float) -> float:
        """Return this rank's part of the sum of all ranks' numbers, as `step` takes it; all ranks call it.

        Parameters
        ----------
        own : float
            Such as the samples, or the sum of their weights, that the mean of this rank's loss was divided by.

        Returns
        -------
        float
            In [0, 1]; 0 where the sum is 0.
        """
        with telling(self.comm):
            total = np.array([float(own)])
            self.comm.allreduce(total)
            return float(own) / float(total[0]) if total[0] else 0.0

    def _check_shares(self) -> None:
        """Raise, on all ranks, where gradients of batches that were shared out differently are added up."""
        if len(self._seen) > 1 and self.any(len(set(self._seen)) > 1):
            shares = ", ".join(f"{share:g}" for share in self._seen)
            self._seen = []
            raise ValueError(
                f"DataParallel: this rank had the shares {shares} of the batches since the last step, on some rank "
                "they differ; accumulate batches that are shared out alike, or give step a weight"
            )

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only add up gradients inside: with `overlap`, the backward passes before the one whose `step` averages."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def mean(self, value: Any, weight: float | None = None) -> float:
        """Return the mean of a number, such as a loss, over the samples of all ranks' last batch.

        `weight` is what this rank's counts in the sum over ranks, as for `step`.
        """
        weight = self._weight if weight is None else weight
        total = np.array([float(value) * weight if weight else 0.0])
        self.comm.allreduce(total)
        return float(total[0])

    def run(self, x: Any, y: Any = None, *arguments: Any, **settings: Any) -> Any:
        """Take the steps of whole epochs; see `CompiledStep.run`.

        Every rank gives all samples, or a `DataLoader` of all; each takes its share of every batch, so that the
        batches are those of a single process. The losses are those of whole batches.
        """
        if self.step_fn is None:
            raise TypeError("DataParallel: run is for a compiled step")
        with telling(self.comm):
            return self.step_fn.run(x, y, *arguments, **settings)

    def _step_with(self, x: Any, y: Any) -> float:
        """One step with this rank's samples."""
        assert self.step_fn is not None
        stepping = self.step_fn._stepping
        if not len(x):
            self.share_of(0.0)
            return self._nothing()
        data = self.step_fn._data("step", x, y)
        n = len(data.x)
        factors = self.step_fn._loss_factors("step", data.shape)
        block = Block("step", data.x, data.target, None, 0, n, n, 1, *factors)
        weight = self.share_of(divisor(stepping._loss, data.target))
        if stepping._loss.reduction == "sum":
            weight = 1.0
        return float(self.step(stepping.evaluation(block, self._hook), weight=weight))

    def _nothing(self) -> float:
        """Take a step to which this rank adds no samples."""
        return float(self.step(lambda: (0.0, [None] * len(self._dense)), weight=0.0))

    # What a compiled step asks of its peers -----------------------------------------------------------------

    def first(self, value: int) -> int:
        """Return rank 0's number."""
        number = np.array([value], np.int64)
        self.comm.broadcast(number)
        return int(number[0])

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return any_rank(self.comm, flag)

    def step_block(self, stepping: Stepping, block: Block) -> float:
        """Take the one step of a block, with this rank's share of its samples; return the loss of all."""
        evaluate, weight = self._share_of(stepping, block)
        loss = float(self.step(evaluate, weight=weight))
        self._share_squares(block)
        return loss

    def evaluation(self, block: Block) -> Callable[[], tuple[float, list[Any]]]:
        """Return a function that computes the loss, or the objective, of a block and its gradients, shared out."""
        assert self.step_fn is not None
        evaluate, weight = self._share_of(self.step_fn._stepping, block)

        def together() -> tuple[float, list[Any]]:
            with telling(self.comm):
                self._weight = weight
                loss, grads = evaluate()
                means = self._averaged(self._flat(grads), loss)
                self._share_squares(block)
                return self._loss, self.optimizer._as_given(means)

        return together

    def _share_of(
        self, stepping: Stepping, block: Block
    ) -> tuple[Callable[[], tuple[float, list[Any]]], float]:
        """Return what evaluates this rank's share of a block's samples, and what its gradients count."""
        n = min(block.end - block.begin, block.batch)
        low, high = share(n, self.rank, self.size)
        if high == low:
            return lambda: (0.0, [None] * len(self._dense)), 0.0
        own: dict[str, Any] = {
            key: a if a is None or block.gather_weight else a[low:high]
            for key, a in (("weight", block.weight), ("pos_weight", block.pos_weight))
        }
        part = block._replace(begin=block.begin + low, end=block.begin + high, batch=high - low, **own)
        if block.objective is not None:
            if self.rank:
                part = part._replace(objective=block.objective._replace(l2=0.0))  # which rank 0 adds
            return stepping.evaluation(part), 1.0
        loss = stepping._loss
        if loss.reduction == "sum":
            return stepping.evaluation(part, self._hook), 1.0
        whole = divisor(loss, targets(block, 0, n))
        weight = divisor(loss, targets(block, low, high)) / whole if whole else 0.0
        return stepping.evaluation(part, self._hook), weight

    def _share_squares(self, block: Block) -> None:
        """Give the weights' squares to ranks that had no samples to compute them beside."""
        n = min(block.end - block.begin, block.batch)
        if block.objective is not None and block.objective.squares is not None and n < self.size:
            self.comm.broadcast(block.objective.squares)

    # Steps ----------------------------------------------------------------------------------------------

    def step(
        self, grads: Any = None, closure: Callable[[], Any] | None = None, *, weight: float | None = None
    ) -> Any:
        """Average the gradients of all ranks and update; all ranks call it.

        Parameters
        ----------
        grads, closure
            This rank's, as the optimizer's own ``step`` takes them.
        weight : float, optional
            What this rank's gradients count in the sum over ranks. Without it, what the share of samples was that
            the model was last called with, or equal parts of 1; see the notes of the class.

        Returns
        -------
        The closure's loss times `weight`, summed over ranks; None without a closure.

        Raises
        ------
        ValueError
            Gradients of batches that were shared out differently were added up, and there is no `weight`; or there is
            one with `overlap`.
        RuntimeError
            With `overlap`, a gradient was changed after ``backward()``.
        """
        if callable(grads):
            grads, closure = None, grads
        with telling(self.comm):
            if weight is not None and self._overlap:
                raise ValueError(
                    f"step: weight is {weight}, with overlap gradients have been weighted before"
                )
            if closure is not None:
                return self._step_closure(closure, weight)
        if weight is None and grads is None:
            self._check_shares()
        with telling(self.comm):
            self._weight = self._share if weight is None else weight
            self._update(self._averaged(self._flat(grads)))
        return None

    def _step_closure(self, closure: Callable[[], Any], weight: float | None) -> Any:
        if weight is not None:
            self._weight = weight  # of the gradients that a compiled step's closure puts into buckets

        def averaged() -> tuple[float, list[Any]]:
            loss, own = self.optimizer._evaluate(closure)
            if weight is None:
                self._check_shares()
            self._weight = self._share if weight is None else weight
            means = self._averaged(self._flat(own), float(loss))
            return self._loss, self.optimizer._as_given(means) if means else means

        if self._shards is None:
            return self.optimizer.step(averaged)
        averaged()
        self._update([])
        return self._loss

    def step_scaled(self, grads: Any, inverse: float) -> bool:
        """Step with gradients times `inverse`; False, on all ranks, where some rank's are not all finite."""
        self._check_shares()
        with telling(self.comm):
            self._weight = self._share
            means = self._averaged(self._flat(grads))
            if self._shards is None:
                return bool(self.optimizer.step_scaled(self.optimizer._as_given(means), inverse))
            self._shards.follow()
            stepped = bool(self._shards.part.step_scaled(self._shards.gradients(self._given), inverse))
            if stepped:
                self._gather()
            return stepped

    def _update(self, means: list[Any]) -> None:
        if self._shards is None:
            self.optimizer.step(self.optimizer._as_given(means))
            return
        self._shards.follow()
        self._shards.part.step(self._shards.gradients(self._given))
        self._gather()

    def _gather(self) -> None:
        """Give all ranks the parameters that each has updated."""
        assert self._shards is not None
        pending = []
        for k, bucket in enumerate(self.buckets):
            self._shards.publish(bucket)
            mine = bucket.gathered[bucket.mine]
            pending.append(self.comm.start_allgather(mine, bucket.gathered, bucket.counts, 1 + k))
        for bucket, operation in zip(self.buckets, pending, strict=True):
            operation.wait()
            self._shards.receive(bucket)

    @property
    def grad_norm(self) -> Any:
        """The norm of all averaged gradients of the last step, as the optimizer's ``grad_norm``."""
        return (self.optimizer if self._shards is None else self._shards.part).grad_norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the Tensors' gradients, or fill them with zeros."""
        self.optimizer.zero_grad(set_to_none)

    # Averaging ------------------------------------------------------------------------------------------

    def _flat(self, grads: Any) -> list[Any]:
        """Return this rank's gradients as the kernels lay parameters out, or raise."""
        if len(self.optimizer._objects) != len(self._slots) or (
            self._shards is not None and self.optimizer._dense is not self._dense
        ):
            raise RuntimeError("DataParallel: parameters were added or moved, make a new DataParallel")
        flat: list[Any] = self.optimizer._usable(self.optimizer._gather(grads))
        self._dense = self.optimizer._dense
        return flat

    def _ready(self, leaf: Any) -> None:
        """Take the gradient of a parameter that a backward pass has just completed."""
        if self._armed and self._syncing:
            with telling(self.comm):
                i, gradient = self._leaves[id(leaf)], as_view(leaf._grad._data, "grad")
                self._take(i, gradient)
                self._taken[i] = checksum(self.optimizer._dense[i].arrange(gradient))

    def _take(self, i: int, gradient: Any) -> None:
        """Put a gradient that is whole into its bucket; begin with buckets that are full now."""
        bucket, slot = self._slots[i]
        if i not in bucket.waiting:
            raise RuntimeError(
                f"DataParallel: {self.optimizer._label(i)} had a second gradient before step; "
                "put all but the last backward pass into no_sync()"
            )
        bucket.fill(slot, self.optimizer._dense[i].arrange(gradient), self._weight)
        self._begin_ready()
        for under_way in self.buckets[: self._begun]:
            if under_way.pending is not None:
                under_way.pending.test()  # a moment to move messages on

    def _begin_ready(self) -> None:
        """Begin with the next buckets that are full, in the one order that all ranks keep."""
        while self._begun < len(self.buckets) and not self.buckets[self._begun].waiting:
            bucket, key = self.buckets[self._begun], 1 + self._begun
            if self._shards is None:
                bucket.pending = self.comm.start_allreduce(bucket.memory, key)
            else:
                bucket.pending = self.comm.start_reduce_scatter(
                    bucket.memory, bucket.part, bucket.counts, key
                )
            self._begun += 1

    def _averaged(self, flat: list[Any], loss: float = 0.0) -> list[Any]:
        """Return all ranks' gradients averaged, in the parameters' shapes; with `shard_state` they stay in buckets.

        The average of the loss is left behind, and which parameters have a gradient on some rank.
        """
        for i, known in self._taken.items():
            if flat[i] is None or checksum(flat[i]) != known:
                raise RuntimeError(
                    f"DataParallel: the gradient of {self.optimizer._label(i)} was changed after backward, which "
                    "overlap does not allow"
                )
        for bucket in self.buckets:
            for slot in bucket.slots:
                if slot.tensor in bucket.waiting:
                    bucket.fill(slot, flat[slot.tensor], self._weight)
            self._begin_ready()
        told = np.array([g is not None for g in flat] + [loss * self._weight if self._weight else 0.0])
        self.comm.allreduce(told)
        self._given: list[bool] = (told[:-1] > 0).tolist()
        self._loss = float(told[-1])
        for bucket in self.buckets:
            assert bucket.pending is not None
            bucket.pending.wait()
            bucket.reset()
        self._begun, self._armed = 0, False
        self._seen, self._taken = [], {}
        return [] if self._shards is not None else [self._mean(i) for i in range(len(flat))]

    def _mean(self, i: int) -> Any:
        """Return the averaged gradient of a parameter, in its own layout and dtype."""
        if not self._given[i]:
            return None
        bucket, slot = self._slots[i]
        dense = self._dense[i]
        mean = bucket.memory[slot.begin : slot.begin + slot.size].astype(bucket.own, copy=False)
        return placed(mean, dense)

    # State ----------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the whole optimizer, as a single process has it; all ranks call it."""
        with telling(self.comm):
            state: dict[str, Any] = (self._shards or self.optimizer).state_dict()
            return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state of a whole optimizer, whatever number of ranks it was saved on."""
        (self._shards or self.optimizer).load_state_dict(state_dict)

    def state_bytes(self) -> int:
        """Return the bytes of optimizer state that this rank keeps."""
        optimizer = self.optimizer if self._shards is None else self._shards.part
        return sum(
            int(a.nbytes) for entry in optimizer.state.values() for a in entry.values() if np.ndim(a) > 0
        )
