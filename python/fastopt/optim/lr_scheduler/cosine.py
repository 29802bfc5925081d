"""Schedules along a cosine."""

from __future__ import annotations

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import LRScheduler, cosine, finite, in_unit, positive_int


class CosineAnnealingLR(LRScheduler):
    """The rate swings between its base and `eta_min` along a cosine of period ``2 * T_max``.

    References
    ----------
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017 (without the
    restarts).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = positive_int("T_max", T_max, "CosineAnnealingLR")
        self.eta_min = finite("eta_min", eta_min, "CosineAnnealingLR")
        super().__init__(optimizer, last_epoch)

    def lr_at(self, step: float) -> list[float]:
        return [cosine(lr, self.eta_min, step / self.T_max) for lr in self.base_lrs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """The rate falls to `eta_min` along half a cosine, again and again; each fall is `T_mult` times as long.

    Parameters
    ----------
    optimizer : Optimizer
    T_0 : int
        Steps of the first fall.
    T_mult : int
    eta_min : float
    last_epoch : int

    References
    ----------
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_0 = positive_int("T_0", T_0, "CosineAnnealingWarmRestarts")
        self.T_mult = positive_int("T_mult", T_mult, "CosineAnnealingWarmRestarts")
        self.eta_min = finite("eta_min", eta_min, "CosineAnnealingWarmRestarts")
        super().__init__(optimizer, last_epoch)

    def lr_at(self, step: float) -> list[float]:
        if self.T_mult == 1:
            start, length = step - step % self.T_0, self.T_0
        else:
            start, length = 0, self.T_0
            while step >= start + length:
                start, length = start + length, length * self.T_mult
        return [cosine(lr, self.eta_min, (step - start) / length) for lr in self.base_lrs]


class WarmupCosineLR(LRScheduler):
    """A linear rise from ``start_factor * lr`` to the base rate, then half a cosine down to `eta_min`.

    Parameters
    ----------
    optimizer : Optimizer
    warmup_steps : int
        Steps of the rise; 0 for none.
    total_steps : int
        Steps of rise and fall together; the rate stays at `eta_min` after them.
    eta_min : float
    start_factor : float
        In [0, 1].
    last_epoch : int
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int,
        eta_min: float = 0.0,
        start_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = positive_int("total_steps", total_steps, "WarmupCosineLR")
        if not 0 <= warmup_steps <= total_steps:
            raise ValueError(
                f"WarmupCosineLR: warmup_steps must be in [0, {total_steps}], got {warmup_steps}"
            )
        self.warmup_steps = warmup_steps
        self.eta_min = finite("eta_min", eta_min, "WarmupCosineLR")
        self.start_factor = in_unit("start_factor", start_factor, "WarmupCosineLR")
        super().__init__(optimizer, last_epoch)

    def lr_at(self, step: float) -> list[float]:
        if step < self.warmup_steps:
            factor = self.start_factor + (1.0 - self.start_factor) * step / self.warmup_steps
            return [lr * factor for lr in self.base_lrs]
        length = max(1, self.total_steps - self.warmup_steps)
        fraction = min(1.0, (step - self.warmup_steps) / length)
        return [cosine(lr, self.eta_min, fraction) for lr in self.base_lrs]
