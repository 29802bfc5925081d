"""Schedules of any setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import check_groups, check_optimizer, per_group

_NOT_SETTINGS = ("params", "param_names", "initial_lr")


class ParamScheduler:
    """Set any settings of an optimizer's groups to functions of the step number.

    ::

        schedule = ParamScheduler(optimizer, {
            "weight_decay": lambda t: 0.1 * min(1.0, t / 1000),
            "betas": lambda t: (0.95 if t < 500 else 0.9, 0.999),
            "lr": [lambda t: 1e-3, None],        # one for each group; None leaves its own
        })

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' settings are set, now and at each `step`.
    settings : dict
        From names of settings to functions of the number of steps taken, which return the value itself; a list has one
        for each group, or None.
    last_epoch : int
        -1 to start. To continue, the number of the last step taken.

    Attributes
    ----------
    last_epoch : int
        How many times `step` was called.

    Raises
    ------
    TypeError, ValueError
        `optimizer` is none of fastopt's, it has no such setting, or a value is out of range. Nothing is changed then.
    """

    def __init__(self, optimizer: Optimizer, settings: Mapping[str, Any], last_epoch: int = -1) -> None:
        check_optimizer(optimizer, "ParamScheduler")
        self.optimizer = optimizer
        self._functions: dict[str, list[Callable[[float], Any] | None]] = {}
        for key, given in settings.items():
            functions = per_group(key, given, optimizer, "ParamScheduler")
            for g, (function, group) in enumerate(zip(functions, optimizer.param_groups, strict=True)):
                if key in _NOT_SETTINGS or key not in group:
                    known = sorted(group.keys() - set(_NOT_SETTINGS))
                    raise ValueError(
                        f"ParamScheduler: param_groups[{g}] has no setting {key!r}, it has {known}"
                    )
                if function is not None and not callable(function):
                    raise TypeError(
                        f"ParamScheduler: {key} is {function!r}, expected a function of the step number"
                    )
            self._functions[key] = functions
        self._groups = len(optimizer.param_groups)
        self.last_epoch = last_epoch
        self._position: float = last_epoch
        self.step()

    def values_at(self, step: float) -> list[dict[str, Any]]:
        """Return the settings of each group after `step` steps."""
        return [
            {key: function(step) for key, own in self._functions.items() if (function := own[g]) is not None}
            for g in range(self._groups)
        ]

    def step(self, epoch: float | None = None) -> None:
        """Advance by one step, or to `epoch` (fractions lie between steps), and set the groups' settings."""
        target = self.last_epoch + 1 if epoch is None else epoch
        if target < 0:
            raise ValueError(f"ParamScheduler: epoch must be at least 0, got {epoch}")
        self._apply(target)
        self._position = target
        self.last_epoch = math.floor(target)

    def _apply(self, step: float) -> None:
        check_groups(self.optimizer, self._groups, "ParamScheduler")
        values = self.values_at(step)
        for g, (group, own) in enumerate(zip(self.optimizer.param_groups, values, strict=True)):
            self.optimizer._validate({**group, **own}, f" in param_groups[{g}] after {step} steps")
        for group, own in zip(self.optimizer.param_groups, values, strict=True):
            group.update(own)

    def get_last_values(self) -> list[dict[str, Any]]:
        """Return the settings that were set last, of each group."""
        return [
            {key: group[key] for key, own in self._functions.items() if own[g] is not None}
            for g, group in enumerate(self.optimizer.param_groups)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule stands; functions are not part of it."""
        return {"last_epoch": self.last_epoch, "_position": self._position}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned and set the groups' settings again."""
        position = state_dict.get("_position", state_dict["last_epoch"])
        self._apply(position)
        self.last_epoch, self._position = state_dict["last_epoch"], position
