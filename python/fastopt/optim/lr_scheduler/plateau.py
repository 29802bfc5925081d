"""A schedule that follows a metric."""

from __future__ import annotations

import math
from typing import Any, Literal

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import all_finite, check_groups, check_optimizer, finite, take_over


class ReduceLROnPlateau:
    """The rate times `factor` when a metric has stopped improving; the only schedule without a closed form.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether a smaller or a larger metric is better.
    factor : float
        In [0, 1).
    patience : int
        Steps without improvement that are borne.
    threshold : float
        What counts as an improvement, relative to the best metric or absolute.
    threshold_mode : {"rel", "abs"}
    cooldown : int
        Steps after a reduction during which none is counted as bad.
    min_lr : float or list of float
    eps : float
        Smaller changes of the rate are left out.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        check_optimizer(optimizer, "ReduceLROnPlateau")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: mode must be min or max, got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"ReduceLROnPlateau: threshold_mode must be rel or abs, got {threshold_mode!r}")
        if not 0.0 <= factor < 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor must be in [0, 1), got {factor}")
        self.optimizer = optimizer
        self.mode = mode
        self.factor = factor
        self.patience = finite("patience", patience, "ReduceLROnPlateau")
        self.threshold = finite("threshold", threshold, "ReduceLROnPlateau")
        self.threshold_mode = threshold_mode
        self.cooldown = finite("cooldown", cooldown, "ReduceLROnPlateau")
        self.min_lrs = all_finite("min_lr", min_lr, optimizer, "ReduceLROnPlateau")
        self.eps = finite("eps", eps, "ReduceLROnPlateau")
        self.best = math.inf if mode == "min" else -math.inf
        self.last_epoch = 0
        self.num_bad_epochs = 0
        self.cooldown_counter: float = 0
        self._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _improves(self, metric: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        bound = self.best * (1.0 + sign * self.threshold)
        if self.threshold_mode == "abs":
            bound = self.best + sign * self.threshold
        return metric < bound if self.mode == "min" else metric > bound

    def step(self, metrics: Any) -> None:
        """Take one value of the metric (a number or a 0-d array); reduce the rate if it is time."""
        metric = float(metrics)
        check_groups(self.optimizer, len(self.min_lrs), "ReduceLROnPlateau")
        self.last_epoch += 1
        if self._improves(metric):
            self.best = metric
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, low in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                lr = max(group["lr"] * self.factor, low)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Return the rates after the last step."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer: numbers, strings and lists."""
        return {
            key: list(value) if isinstance(value, list) else value
            for key, value in self.__dict__.items()
            if key != "optimizer"
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned and set the groups' rates again."""
        rates = state_dict["_last_lr"]
        if len(rates) != len(self.optimizer.param_groups):
            raise ValueError(
                f"load_state_dict: _last_lr has {len(rates)} entries, "
                f"the optimizer has {len(self.optimizer.param_groups)} groups"
            )
        take_over(self, state_dict)
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
