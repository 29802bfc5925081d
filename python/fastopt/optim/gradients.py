"""What is done with gradients before a rule sees them, as settings of an optimizer: adding up and clipping."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

from fastopt.optim.accumulate import Accumulator
from fastopt.optim.base import POSITIVE, Optimizer

Reduction = Literal["mean", "sum"]


class GradientOptimizer(Optimizer):
    """Base class of the optimizers that add up and clip gradients.

    Parameters
    ----------
    params, defaults
        See `Optimizer`.
    max_norm, accumulate, accumulate_reduction
        See `Common`.

    Attributes
    ----------
    grad_norm : float, array of one float64, or None
        The norm of all gradients of the last step, where `max_norm` is set; of parameters on a GPU it stays there.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        max_norm: float | None,
        accumulate: int,
        accumulate_reduction: Reduction,
    ) -> None:
        self.max_norm = max_norm
        self.accumulate = accumulate
        self.accumulate_reduction = accumulate_reduction
        self.grad_norm: Any = None
        self._accumulator = Accumulator()
        super().__init__(params, defaults)

    @property
    def max_norm(self) -> float | None:
        """The limit of the norm of all gradients together, or None."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        if value is not None:
            self._require("max_norm", value, POSITIVE)
        self._max_norm = value

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
        if isinstance(param_group, dict) and "max_norm" in param_group:
            raise ValueError(
                f"{type(self).__name__}: max_norm is one for all groups, give it to the optimizer"
            )
        super().add_param_group(param_group)

    def eager_setting(self) -> str | None:
        """Return the setting whose work lies between gradients and update, which a compiled step leaves to `step`."""
        return "accumulate" if self._accumulate > 1 or self.accumulated else None

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
