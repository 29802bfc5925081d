"""What is done with gradients before a rule sees them, as settings of an optimizer: adding up and clipping."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Literal

from fastopt.optim.accumulate import Accumulator
from fastopt.optim.base import POSITIVE, Optimizer
from fastopt.optim.tail import Range

Reduction = Literal["mean", "sum"]
Scope = Literal["global", "group", "parameter"]
SCOPES = ("global", "group", "parameter")


class GradientOptimizer(Optimizer):
    """Base class of the optimizers that add up and clip gradients.

    Parameters
    ----------
    params, defaults
        See `Optimizer`.
    clipping
        ``max_norm``, ``clip_scope`` and ``norm_type`` of `Common`.
    accumulate, accumulate_reduction
        See `Common`.

    Attributes
    ----------
    grad_norm : float, array of one float64, or None
        The norm of all gradients of the last step, where `max_norm` or `adaptive_clip` is set; of parameters on a GPU
        it stays there.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        clipping: tuple[float | None, Scope, float],
        accumulate: int,
        accumulate_reduction: Reduction,
    ) -> None:
        max_norm, self._clip_scope, self._norm_type = clipping
        self._check_clipping()
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.accumulate_reduction = accumulate_reduction
        self.grad_norm: Any = None
        self._accumulator = Accumulator()
        own = {} if self._clip_scope == "global" else {"max_norm": max_norm}
        super().__init__(params, {**defaults, **own})

    def _check_clipping(self) -> None:
        """Raise ValueError for a scope or a norm that there is not."""
        owner = type(self).__name__
        if self._clip_scope not in SCOPES:
            raise ValueError(
                f"{owner}: clip_scope must be one of {', '.join(SCOPES)}, got {self._clip_scope!r}"
            )
        if self._norm_type not in (1.0, 2.0, math.inf):
            raise ValueError(f"{owner}: norm_type must be 1, 2 or inf, got {self._norm_type!r}")
        if self._norm_type != 2.0 and self._clip_scope != "global":
            raise ValueError(
                f"{owner}: norm_type {self._norm_type} is for clip_scope 'global', got {self._clip_scope!r}"
            )

    @property
    def clip_scope(self) -> Scope:
        """What `max_norm` limits the norm of."""
        return self._clip_scope

    @property
    def norm_type(self) -> float:
        """The order of the norm that `max_norm` limits."""
        return self._norm_type

    @property
    def max_norm(self) -> float | None:
        """The limit of the norm of gradients, or None; setting it sets that of groups that have their own."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        groups = getattr(self, "param_groups", [])
        if value is not None:
            self._require("max_norm", value, POSITIVE)
            for group in groups:
                self._check_adaptive(group, value, "")
        self._max_norm = value
        if self._clip_scope != "global":
            for group in [*groups, *([self.defaults] if groups else [])]:
                group["max_norm"] = value

    def _check_adaptive(self, group: dict[str, Any], max_norm: Any, where: str) -> None:
        if max_norm is not None and group.get("adaptive_clip") is not None:
            raise ValueError(
                f"{type(self).__name__}: adaptive_clip is another kind of clipping than max_norm, got "
                f"{group['adaptive_clip']} and {max_norm}{where}"
            )

    def _validate(self, group: dict[str, Any], where: str = "") -> None:
        super()._validate(group, where)
        max_norm = self._max_norm if self._clip_scope == "global" else group["max_norm"]
        if max_norm is not None:
            self._require("max_norm", max_norm, POSITIVE, where)
        self._check_adaptive(group, max_norm, where)

    @property
    def accumulate(self) -> int:
        """How many calls of `step` make one update."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: int) -> None:
        try:
            count = 0 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            count = 0
        if count < 1:
            raise ValueError(
                f"{type(self).__name__}: accumulate must be an integer of at least 1, got {value!r}"
            )
        self._accumulate = count

    @property
    def accumulate_reduction(self) -> Reduction:
        """What of the gradients makes an update, their "mean" or their "sum"."""
        return self._accumulate_reduction

    @accumulate_reduction.setter
    def accumulate_reduction(self, value: Reduction) -> None:
        if value not in ("mean", "sum"):
            raise ValueError(
                f"{type(self).__name__}: accumulate_reduction must be 'mean' or 'sum', got {value!r}"
            )
        self._accumulate_reduction: Reduction = value

    @property
    def accumulated(self) -> int:
        """How many calls of `step` wait for an update; 0 right after one."""
        return self._accumulator.count

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it lacks are the optimizer's defaults.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing is added then.
        """
        if self._clip_scope == "global" and isinstance(param_group, dict) and "max_norm" in param_group:
            raise ValueError(
                f"{type(self).__name__}: max_norm is one for all groups, give it to the optimizer; or give that "
                "clip_scope='group' or 'parameter'"
            )
        super().add_param_group(param_group)

    def eager_setting(self) -> str | None:
        """Return the setting whose work lies between gradients and update, which a compiled step leaves to `step`."""
        if self._accumulate > 1 or self.accumulated:
            return "accumulate"
        if self._clip_scope != "global":
            return "clip_scope"
        if self._clips_by_units():
            return "adaptive_clip"
        return "norm_type" if self._norm_type != 2.0 and self._max_norm is not None else None

    def _ranges(self, groups: list[int], sizes: list[int]) -> list[Range]:
        """Return how a plan's tensors are clipped. They are in `groups`, in order, and each counts as so many."""
        ranges: list[Range] = []
        last = -1
        for g, size in zip(groups, sizes, strict=True):
            begin = ranges[-1].end if ranges else 0
            if g == last:
                ranges[-1] = ranges[-1]._replace(end=begin + size)
                continue
            last, group = g, self.param_groups[g]
            share = group["adaptive_clip"]
            adaptive = None if share is None else (share, group["adaptive_clip_eps"])
            max_norm, together = group.get("max_norm"), self._clip_scope == "group"
            ranges.append(Range(begin, begin + size, max_norm, together, adaptive))
        return ranges

    def _clips_by_units(self) -> bool:
        return any(group["adaptive_clip"] is not None for group in self.param_groups)

    def _units(self, i: int) -> int:
        """Return of how many units parameter i is, for adaptive clipping.

        Raises
        ------
        ValueError
            They do not lie one after the other.
        """
        dense = self._dense[i]
        shape = dense.source.shape
        if dense.source.size == 0 or sum([n > 1 for n in shape]) < 2:
            return 1
        strides = [] if dense.plain or dense.copied else list(map(abs, dense.source.strides))
        if strides and strides[0] < max(strides):
            raise ValueError(
                f"{type(self).__name__}: adaptive_clip takes units along the first axis, which is not the outermost in "
                f"memory of {self._label(i)} (strides {dense.source.strides})"
            )
        return int(shape[0])

    def _index_parameters(self) -> None:
        super()._index_parameters()
        self._accumulator.unbind()

    def _add(self, grads: list[Any], inverse: float | None) -> list[Any] | None:
        """Add gradients, in the layouts of the parameters, to those that wait; return what makes an update now.

        That is to be multiplied by `inverse` as the gradients themselves were: half precision keeps what a scale of the
        loss is for.
        """
        undo = 1.0 if inverse is None else inverse
        calls = self.accumulated + 1
        last = None
        if calls >= self._accumulate:
            last = 1.0 / (undo * calls) if self._accumulate_reduction == "mean" else 1.0 / undo
        return self._accumulator.add(self._dense, self._placement, grads, undo, last)

    # State ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"state": {i: {...}}, "param_groups": [...]}`` with torch's keys; arrays are copies.

        Gradients that wait for an update are there as ``"accumulated"``.
        """
        waiting = self._accumulator.state()
        return super().state_dict() | ({} if waiting is None else {"accumulated": waiting})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state, copying into the existing arrays.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` of this class returned, or of torch's class of the same name.

        Raises
        ------
        TypeError, ValueError
            It is of other groups, shapes or state; nothing is changed then.
        """
        saved = state_dict.get("accumulated") if isinstance(state_dict, Mapping) else None
        labels = [self._label(i) for i in range(len(self._objects))]
        waiting = self._accumulator.checked(saved, self._dense, labels)
        super().load_state_dict(state_dict)
        self._accumulator.take(*waiting, self._dense, self._placement)
