"""Schedules one after the other."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import LRScheduler


class SequentialLR(LRScheduler):
    """Several schedules one after the other; each starts anew at its milestone.

    Parameters
    ----------
    optimizer : Optimizer
    schedulers : list of LRScheduler
        Of this optimizer.
    milestones : list of int
        Where each schedule but the first starts.
    last_epoch : int
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int], last_epoch: int = -1
    ) -> None:
        if not schedulers:
            raise ValueError("SequentialLR: schedulers is empty")
        for i, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"SequentialLR: schedulers[{i}] is {type(scheduler).__name__}, expected an LRScheduler"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"SequentialLR: schedulers[{i}] is of another optimizer")
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: milestones has {len(milestones)} entries, {len(schedulers)} schedulers need "
                f"{len(schedulers) - 1}"
            )
        if sorted(set(milestones)) != list(milestones) or any(m < 1 for m in milestones):
            raise ValueError(
                f"SequentialLR: milestones must be positive and increasing, got {list(milestones)}"
            )
        self._schedulers = schedulers
        self._milestones = list(milestones)
        super().__init__(optimizer, last_epoch)

    def _locate(self, step: float) -> tuple[LRScheduler, float]:
        i = bisect_right(self._milestones, step)
        return self._schedulers[i], step - (self._milestones[i - 1] if i else 0)

    def lr_at(self, step: float) -> list[float]:
        scheduler, local = self._locate(step)
        return scheduler.lr_at(local)

    def _apply(self, step: float) -> None:
        scheduler, local = self._locate(step)
        scheduler._apply(local)
        scheduler._position, scheduler.last_epoch = local, math.floor(local)
        self._last_lr = scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with those of the schedules under ``"_schedulers"``."""
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        saved = state_dict["_schedulers"]
        if len(saved) != len(self._schedulers):
            raise ValueError(
                f"load_state_dict: {len(saved)} schedulers were saved, here are {len(self._schedulers)}"
            )
        for scheduler, state in zip(self._schedulers, saved, strict=True):
            scheduler.load_state_dict(state)
        super().load_state_dict({key: v for key, v in state_dict.items() if key != "_schedulers"})
