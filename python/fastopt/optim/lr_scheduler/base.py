"""What all schedules share."""

from __future__ import annotations

import math
import operator
from typing import Any

from fastopt.optim.base import Optimizer, number
from fastopt.optim.wrapper import Wrapper


def check_optimizer(optimizer: Any, owner: str) -> None:
    if not isinstance(optimizer, Optimizer | Wrapper):
        raise TypeError(f"{owner}: optimizer is {type(optimizer).__name__}, expected a fastopt optimizer")


def per_group(name: str, value: Any, optimizer: Optimizer, owner: str) -> list[Any]:
    """Return one value for each group."""
    n = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{owner}: {name} has {len(value)} entries, the optimizer has {n} groups")
    return list(value)


def positive_int(name: str, value: Any, owner: str) -> int:
    try:
        n = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        n = 0
    if n < 1:
        raise ValueError(f"{owner}: {name} must be an integer of at least 1, got {value!r}")
    return n


def in_unit(name: str, value: Any, owner: str, *, zero: bool = True) -> float:
    result = number(owner, name, value)
    if not (0.0 <= result <= 1.0 if zero else 0.0 < result <= 1.0):
        raise ValueError(f"{owner}: {name} must be in {'[' if zero else '('}0, 1], got {value}")
    return result


def finite(name: str, value: Any, owner: str) -> float:
    result = number(owner, name, value)
    if not math.isfinite(result):
        raise ValueError(f"{owner}: {name} must be finite, got {value}")
    return result


def all_finite(name: str, value: Any, optimizer: Optimizer, owner: str) -> list[float]:
    """Return one finite number for each group."""
    return [finite(name, v, owner) for v in per_group(name, value, optimizer, owner)]


def take_over(scheduler: Any, state: dict[str, Any]) -> None:
    """Set the attributes of a schedule that a state dictionary has; what else is in it, as torch's has, stays out."""
    own = scheduler.__dict__
    for key, value in state.items():
        if key in own and key != "optimizer" and not callable(own[key]):
            own[key] = list(value) if isinstance(value, list) else value


def check_groups(optimizer: Optimizer, n: int, owner: str) -> None:
    if len(optimizer.param_groups) != n:
        raise RuntimeError(
            f"{owner}: the optimizer has {len(optimizer.param_groups)} groups, the schedule was made for {n}"
        )


def cosine(start: float, end: float, fraction: float) -> float:
    """Go from `start` to `end` along half a cosine."""
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2.0


class LRScheduler:
    """Base class of the schedules. A subclass gives `factor_at`, or `lr_at` where no common factor exists.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' ``"lr"`` is set, now and at each `step`.
    last_epoch : int
        -1 to start. To continue, the number of the last step taken; the groups have ``"initial_lr"`` then.

    Attributes
    ----------
    last_epoch : int
        How many times `step` was called.
    base_lrs : list of float
        The groups' rates before scheduling.

    Raises
    ------
    TypeError, ValueError
        `optimizer` is none of fastopt's, or a setting is out of range.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        owner = type(self).__name__
        check_optimizer(optimizer, owner)
        self.optimizer = optimizer
        for g, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{owner}: last_epoch is {last_epoch} and param_groups[{g}] has no 'initial_lr'"
                )
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._position: float = last_epoch
        self._last_lr: list[float] = []
        self.step()

    def factor_at(self, step: float) -> float:
        """Return what multiplies each group's base rate after `step` steps."""
        raise NotImplementedError

    def lr_at(self, step: float) -> list[float]:
        """Return each group's rate after `step` steps."""
        factor = self.factor_at(step)
        return [lr * factor for lr in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Advance by one step, or to `epoch` (fractions lie between steps), and set the groups' rates."""
        target = self.last_epoch + 1 if epoch is None else epoch
        if target < 0:
            raise ValueError(f"{type(self).__name__}: epoch must be at least 0, got {epoch}")
        check_groups(self.optimizer, len(self.base_lrs), type(self).__name__)
        self._apply(target)
        self._position = target
        self.last_epoch = math.floor(target)

    def _apply(self, step: float) -> None:
        """Set the groups' rates to those after `step` steps."""
        rates = self.lr_at(step)
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self._last_lr = rates

    def get_last_lr(self) -> list[float]:
        """Return the rates that were set last."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer and functions: numbers, strings and lists."""
        return {
            key: list(value) if isinstance(value, list) else value
            for key, value in self.__dict__.items()
            if key != "optimizer" and not callable(value)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned and set the groups' rates again."""
        lrs = state_dict["base_lrs"]
        if len(lrs) != len(self.optimizer.param_groups):
            raise ValueError(
                f"load_state_dict: base_lrs has {len(lrs)} entries, "
                f"the optimizer has {len(self.optimizer.param_groups)} groups"
            )
        take_over(self, state_dict)
        self._position = state_dict.get("_position", self.last_epoch)  # torch has whole steps only
        self._apply(self._position)
        self.last_epoch = math.floor(self._position)
