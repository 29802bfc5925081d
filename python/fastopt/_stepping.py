"""A model, a loss and an optimizer bound to a native program, and its steps with the optimizer's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter, is_not
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastopt import _core, _random, nn
from fastopt._arrays import place_beside, zeros_together
from fastopt._device import library
from fastopt._device_program import DeviceProgram
from fastopt._reading import Loss, Model, key_of
from fastopt.optim.base import Optimizer
from fastopt.optim.plans import Numbers, Plan, parts, take_over
from fastopt.optim.rule import RuleOptimizer

Array = npt.NDArray[Any]
Losses = npt.NDArray[np.float64]

_L2 = 3  # of the coefficients that all rules share
# The number of a gradient among the arrays that a step walks: after four states and an average.
_BESIDE_STATES = 5
_data_of = attrgetter("_data")
_flag_of = attrgetter("_requires_grad")


class Objective(NamedTuple):
    """What steps minimise in place of their loss: (factor * loss + l2 / 2 * squares) / divisor.

    `squares` are those of the parameters in groups with a true ``"penalised"``, and receive their sum before each
    step; `divisors` has a number for each step.
    """

    factor: float
    l2: float
    divisors: Losses
    squares: Losses | None = None

    def part(self, begin: int, end: int) -> Objective:
        """That of some of the steps."""
        squares = None if self.squares is None else self.squares[begin:end]
        return self._replace(divisors=self.divisors[begin:end], squares=squares)

    def scale(self, coefs: Array, penalised: Array) -> None:
        """Put the factors of gradient and penalty into the coefficients (steps, rows, width) of a plan."""
        coefs[..., 0] *= (self.factor / self.divisors)[:, None]
        coefs[..., _L2] += self.l2 / self.divisors[:, None] * penalised


class Block(NamedTuple):
    """Steps of one native call: samples from `begin` on, in batches of `batch`, in the order given.

    With `gather_weight` the loss's weight has a number for each element of all samples' targets. `masks` is the seed
    of dropout masks and the offset of the first; without it they are the package's next ones.
    """

    call: str
    x: Array
    target: Array
    order: npt.NDArray[np.int64] | None
    begin: int
    end: int
    batch: int
    steps: int
    weight: Array | None
    pos_weight: Array | None
    gather_weight: bool = False
    objective: Objective | None = None
    masks: tuple[int, int] | None = None


class Peers(Protocol):
    """Ranks that share out the samples of every step."""

    def step_block(self, stepping: Stepping, block: Block) -> float:
        """Take the one step of a block, with this rank's share of its samples; return the loss of all."""
        ...

    def first(self, value: int) -> int:
        """Return rank 0's number."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        ...


class Stepping:
    """The native side of a compiled step.

    A program is made for arrays, plans and what is to be trained, and made anew where those have changed.
    """

    def __init__(
        self,
        read: Model,
        loss: Loss,
        optimizer: Optimizer,
        fuse: bool | str,
        precision: str | None,
        batch_size: int | None,
    ) -> None:
        self._read, self._loss, self._optimizer = read, loss, optimizer
        self._fuse, self._precision, self._batch_size = fuse, precision, batch_size
        self._on_device = read.device != "cpu"
        #: Other ranks that take every step together with this one; see `fastopt.distributed`.
        self.peers: Peers | None = None
        self._is_rule = (
            isinstance(optimizer, RuleOptimizer)
            and type(optimizer).step is RuleOptimizer.step
            and optimizer.by_element
        )
        self._dropouts, self._norms = read.dropouts, read.norms
        self._plain = not (read.dropouts or read.norms) and loss.weight is None and loss.pos_weight is None
        self._native: _core.Program | DeviceProgram | None = None
        self._bound: list[Any] | None = None
        self._place()
        self._check_fusing()

    @property
    def rule(self) -> bool:
        """Whether the program updates with the optimizer's rules; otherwise the optimizer gets its gradients."""
        if not self._is_rule or self.peers is not None:
            return False
        assert isinstance(self._optimizer, RuleOptimizer)
        return self._optimizer.eager_setting() is None

    # Binding --------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Find the optimizer's parameters among the model's, and those to train."""
        self._read.check_arrays()
        optimizer, parameters = self._optimizer, self._read.parameters
        known = {key_of(p.data): p for p in parameters}
        sources = [dense.source for dense in optimizer._dense]
        for i, source in enumerate(sources):
            if key_of(source) not in known:
                raise ValueError(
                    f"compile: the optimizer's {optimizer._label(i)} is not a parameter of the model"
                )
        given = [known[key_of(source)].requires_grad for source in sources]
        if not any(given):
            raise ValueError("compile: no parameter of the optimizer requires grad")
        tensors = self._tensors()
        self._arrays = list(map(_data_of, tensors))
        self._flags = list(map(_flag_of, tensors))
        self._count = len(sources)
        self._given = None if all(given) else np.array(given)
        self._trained = {key_of(s): i for i, (s, g) in enumerate(zip(sources, given, strict=True)) if g}
        self._native = self._bound = None

    def _tensors(self) -> list[Any]:
        """Parameters and running statistics as they are now; how many there are stays."""
        if not self._norms:
            return self._read.parameters
        buffers = [(n.running_mean, n.running_var, n.num_batches_tracked) for n in self._norms]
        return [*self._read.parameters, *[b for three in buffers for b in three if b is not None]]

    def _watch(self) -> None:
        """Notice parameters and running statistics in other arrays, frozen ones, and new groups of the optimizer."""
        tensors = self._tensors()
        if (
            any(map(is_not, map(_data_of, tensors), self._arrays))
            or list(map(_flag_of, tensors)) != self._flags
            or len(self._optimizer._objects) != self._count
        ):
            if self._optimizer._movable:
                self._optimizer._follow()
            self._place()

    def _check_fusing(self) -> None:
        """Raise where a fused update is required and cannot be."""
        reason = ""
        if not self._is_rule:
            reason = f"{type(self._optimizer).__name__} is no rule optimizer"
        elif self.peers is not None:
            reason = "several ranks average all gradients before an update"
        elif not self.rule:
            reason = f"{self._optimizer.eager_setting()} needs all gradients before an update"  # type: ignore[attr-defined]
        elif getattr(self._optimizer, "max_norm", None) is not None:
            reason = "max_norm needs all gradients before the first update"
        elif max(self._read.uses().values()) > 1:
            reason = "a parameter is used by several layers"
        if reason and self._fuse is True:
            raise ValueError(f"compile: fuse_update is True, but {reason}")

    def inference(self) -> _core.Program | DeviceProgram:
        """A native program that can predict: the bound one, or one without updates."""
        self._watch()
        if self._native is None:
            self._native = self._make({}, {}, [])
        return self._native

    def _bind(self, plans: list[Any], whole: bool) -> _core.Program | DeviceProgram:
        """The native program for these plans, with all gradients stored where they are needed `whole`."""
        wanted: list[Any] = [whole]
        for plan in plans:
            wanted += (plan.native, plan.rows)
        bound = self._bound or []
        if self._native is not None and len(wanted) == len(bound) and not any(map(is_not, wanted, bound)):
            return self._native
        # A piece of a packed array begins where a tile's gradient does not.
        whole = whole or any(plan.packed for plan in plans)
        if whole:
            self._check_fusing()
        uses = self._read.uses()
        stored = {
            key: a
            for key, a in [(key_of(a), a) for a in self._arrays]
            if key in self._trained and (whole or self._fuse is False or uses[key] > 1)
        }
        own = list(stored.values())
        if not self._on_device:
            arrays = zeros_together(
                [a.shape for a in own], [a.dtype for a in own], [place_beside(a, _BESIDE_STATES) for a in own]
            )
        elif plans:  # the program has memory of its own for what nobody else sees
            stored, arrays = {}, []
        else:
            arrays = [library(a).zeros(a, a.shape, a.dtype) for a in own]
        grads = dict(zip(stored, arrays, strict=True))
        self._grads = [grads.get(key_of(dense.source)) for dense in self._optimizer._dense]
        where = {i: (n, t) for n, plan in enumerate(plans) for t, i in enumerate(plan.index)}
        placed = {key: where.get(i, (-1, 0)) for key, i in self._trained.items()}
        self._native = self._make(grads, placed, plans)
        self._bound = wanted
        return self._native

    def _make(
        self, grads: dict[Any, Array], placed: dict[Any, tuple[int, int]], plans: list[Any]
    ) -> _core.Program | DeviceProgram:
        """A native program whose parameters have these gradients and places in the plans."""
        seen: dict[Any, int] = {}

        def parameter(p: nn.Parameter | None) -> Any:
            if p is None:
                return None
            key = key_of(p.data)
            seen[key] = seen.get(key, -1) + 1
            return p.data, grads.get(key), *placed.get(key, (-1, 0)), seen[key]

        layers = [
            (
                layer.kind,
                layer.width_in,
                layer.width_out,
                parameter(layer.weight),
                parameter(layer.bias),
                layer.activation,
                layer.params,
                layer.dropout is not None,
                None if layer.norm is None else _norm(layer.norm),
            )
            for layer in self._read.layers
        ]
        loss = self._loss
        numbers = (
            loss.kind,
            loss.params,
            loss.reduction,
            loss.class_weight,
            loss.ignore_index,
            loss.smoothing,
        )
        updates = [(plan.native, len(plan.rows), plan.sets) for plan in plans]
        native: _core.Program | DeviceProgram
        if self._on_device:
            fuse = self._fuse is not False
            native = DeviceProgram(self._arrays[0], self._precision, layers, numbers, updates, fuse)
        else:
            native = _core.Program(self._read.dtype.name, self._precision == "bf16", layers, numbers, updates)
        if self._batch_size is not None:
            native.reserve(self._batch_size)
        return native

    # Steps ----------------------------------------------------------------------------------------------

    def check_batches(self, call: str, sizes: set[int]) -> None:
        """Refuse batches of one row where a batch normalisation would need their variance."""
        if 1 in sizes and any(norm.uses_batch for norm in self._norms):
            raise ValueError(
                f"{call}: a batch has 1 row, batch normalisation needs more in training: leave it out "
                "(drop_last=True) or choose another batch_size"
            )

    def _rates(self) -> list[float]:
        """The probability of each dropout as it is now, 0 outside training; of each batch norm whether it trains."""
        rates = [m.p if m.training else 0.0 for m in self._dropouts]
        for p in rates:
            if not 0 <= p <= 1:
                raise ValueError(f"dropout: p must be in [0, 1], got {p}")
        return rates + [float(m.training) for m in self._norms]

    def step_plain(self, x: Any, target: Any) -> float | None:
        """Take one step where everything is as the kernels want it; else None, and nothing has changed."""
        optimizer = self._optimizer
        if not self._plain or not self.rule or optimizer.max_norm is not None:  # type: ignore[attr-defined]
            return None
        assert isinstance(optimizer, RuleOptimizer)
        optimizer._require_weights()
        self._watch()
        plans = optimizer._refresh()
        active = None if self._given is None else optimizer._split(self._given)
        native = self._bind(plans, False)
        advanced = optimizer._advance(plans, active, 1.0)
        coefs = [plan.coefs for plan in plans]
        before = native.steps
        try:
            return native.step_plain(
                x, target, coefs[0] if len(coefs) == 1 else np.concatenate([a.ravel() for a in coefs])
            )
        finally:
            if native.steps != before:
                optimizer.grad_norm = None
                take_over(advanced)

    def steps(self, block: Block, scheduler: Any = None) -> Losses:
        """Run a block of steps natively, with the coefficients of all of them worked out before.

        Whatever happens on the way, step counts and the schedule end where the updates do. The block ends
        early where the schedule turns an optimizer's rule into another.
        """
        optimizer = self._optimizer
        assert isinstance(optimizer, RuleOptimizer)
        optimizer._require_weights()
        self._watch()
        rates = self._rates()
        plans = optimizer._refresh()
        active = None if self._given is None else optimizer._split(self._given)
        max_norm = optimizer.max_norm
        native = self._bind(plans, max_norm is not None)
        before = native.steps
        began = [(row, row.scalars) for row in optimizer._rows]
        schedule = None if scheduler is None else _Schedule(scheduler, optimizer)
        tables: list[Array] = []
        numbers: list[Numbers] = []
        try:
            while len(numbers) < block.steps:
                table, ahead = optimizer._ahead(plans, active, block.steps if schedule is None else 1)
                tables.append(table)
                numbers += ahead
                if schedule is not None:
                    take_over(ahead[-1])
                    schedule.step()
                    # What follows the last step is checked when a step is taken with it.
                    if schedule.steps < block.steps and optimizer._refresh() is not plans:
                        block = block._replace(steps=schedule.steps)
                        break
            coefs = tables[0] if len(tables) == 1 else np.concatenate(tables)
            unit = 1.0
            if block.objective is not None:
                self._scale(block.objective, plans, coefs)
                if max_norm is not None:
                    unit = block.objective.divisors[0] / block.objective.factor
            losses, norm = self._run(native, block, rates, coefs, max_norm and max_norm * unit)
            optimizer.grad_norm = None if max_norm is None else norm / unit
            return losses
        finally:
            done = native.steps - before
            take_over(numbers[done - 1] if done else began)
            if schedule is not None and done < schedule.steps:
                schedule.back_to(done)

    def _scale(self, objective: Objective, plans: list[Plan], coefs: Array) -> None:
        """Put an objective into the coefficients of a block; with `max_norm` its steps have one divisor."""
        optimizer = self._optimizer
        assert isinstance(optimizer, RuleOptimizer)
        for plan, part in zip(plans, parts(plans, coefs), strict=True):
            groups = [optimizer.param_groups[optimizer._rows[r].group] for r in plan.rows]
            objective.scale(part, np.array([float(group.get("penalised", False)) for group in groups]))

    def closure_step(self, block: Block) -> float:
        """One step of an optimizer that evaluates the model itself, or of several ranks."""
        if self.peers is not None:
            return self.peers.step_block(self, block)
        step: Callable[..., Any] = self._optimizer.step  # type: ignore[attr-defined]
        return float(step(self.evaluation(block)))

    def evaluation(
        self, block: Block, ready: Callable[[int, Array], None] | None = None
    ) -> Callable[[], tuple[float, list[Array | None]]]:
        """A function that computes a block's loss, or its objective, and the gradients for the optimizer's parameters.

        The gradients are in the same arrays each time. Of a loss, `ready` is called with a parameter's position and its
        gradient while those of earlier layers are still to come.
        """
        self._watch()
        native = self._bind([], True)
        told = None
        if ready is not None and block.objective is None and not self._on_device:
            told = partial(self._tell, ready)
        rates = self._rates()
        penalised = [
            dense.source if group.get("penalised", False) else None
            for group, begin, end in zip(
                self._optimizer.param_groups,
                self._optimizer._starts,
                self._optimizer._starts[1:],
                strict=False,
            )
            for dense in self._optimizer._dense[begin:end]
        ]

        def evaluate() -> tuple[float, list[Array | None]]:
            losses, _ = self._run(native, block, rates, np.empty(0), None, told)
            loss = float(losses[0])
            if block.objective is not None:
                factor, l2, (divisor,), squares = block.objective
                loss = factor * loss / divisor
                for g, p in zip(self._grads, penalised, strict=True):
                    if g is not None:
                        g *= factor / divisor
                        if p is not None and l2:
                            g += l2 / divisor * p
                if squares is not None:
                    loss += 0.5 * l2 * float(squares[0]) / divisor
                elif l2:
                    loss += (
                        0.5 * l2 * sum([float((p * p).sum()) for p in penalised if p is not None]) / divisor
                    )
            return loss, self._optimizer._as_given(self._grads)

        return evaluate

    def _tell(self, ready: Callable[[int, Array], None], layer: int) -> None:
        """Hand over the gradients of a layer that the native program has stored."""
        for p in (self._read.layers[layer].weight, self._read.layers[layer].bias):
            i = None if p is None else self._trained.get(key_of(p.data))
            if i is not None and (gradient := self._grads[i]) is not None:
                ready(i, gradient)

    def _run(
        self,
        native: _core.Program | DeviceProgram,
        block: Block,
        rates: list[float],
        coefs: Losses,
        max_norm: float | None,
        ready: Callable[[int], None] | None = None,
    ) -> tuple[Losses, float]:
        masks = sum([rate > 0 for rate in rates[: len(self._dropouts)]])
        seed, offset = (0, 0)
        if masks:
            if block.masks is None:
                seed, offset = _random.next_dropout(block.steps * masks)
            else:
                seed, offset = _random.dropout_seed_here(block.masks[0]), block.masks[1]
        limit = math.inf if max_norm is None else max_norm
        squares = None if block.objective is None else block.objective.squares
        more: dict[str, Any] = {} if ready is None else {"ready": ready}
        return native.run(
            *block[:10], rates, seed, offset, coefs, limit, block.gather_weight, squares, **more
        )


def _norm(norm: nn.BatchNorm1d) -> tuple[Any, ...]:
    """A batch normalisation as a program takes it."""
    buffers = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    momentum = -1.0 if norm.momentum is None else float(norm.momentum)
    return float(norm.eps), momentum, *[None if b is None else b.data for b in buffers]


class _Schedule:
    """A scheduler that runs ahead of the steps, and can be taken back to where they are."""

    def __init__(self, scheduler: Any, optimizer: Optimizer) -> None:
        self._scheduler, self._optimizer = scheduler, optimizer
        self._state = scheduler.state_dict()
        self._groups = [dict(group) for group in optimizer.param_groups]
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self._scheduler.step()

    def back_to(self, steps: int) -> None:
        self._scheduler.load_state_dict(self._state)
        for group, saved in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(saved)
        for _ in range(steps):
            self._scheduler.step()
