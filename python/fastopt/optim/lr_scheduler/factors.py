"""Schedules that multiply the base rate by a function of the step number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import (
    LRScheduler,
    check_optimizer,
    finite,
    in_unit,
    per_group,
    positive_int,
)


class LambdaLR(LRScheduler):
    """The base rate times a function of the step number.

    Parameters
    ----------
    optimizer : Optimizer
    lr_lambda : callable or list of callables
        From the step number to the factor; one for all groups, or one for each.
    last_epoch : int
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[float], float] | Sequence[Callable[[float], float]],
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer, "LambdaLR")
        self.lr_lambdas = per_group("lr_lambda", lr_lambda, optimizer, "LambdaLR")
        for g, fn in enumerate(self.lr_lambdas):
            if not callable(fn):
                raise TypeError(f"LambdaLR: lr_lambda[{g}] is {type(fn).__name__}, expected a function")
        super().__init__(optimizer, last_epoch)

    def lr_at(self, step: float) -> list[float]:
        return [lr * fn(step) for lr, fn in zip(self.base_lrs, self.lr_lambdas, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state; of `lr_lambdas` that are objects their attributes, of functions None."""
        kept = [
            None if hasattr(fn, "__code__") else dict(getattr(fn, "__dict__", {})) for fn in self.lr_lambdas
        ]
        return {**super().state_dict(), "lr_lambdas": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; functions stay those of the constructor."""
        saved = state_dict["lr_lambdas"]
        if len(saved) != len(self.lr_lambdas):
            raise ValueError(
                f"load_state_dict: lr_lambdas has {len(saved)} entries, not {len(self.lr_lambdas)}"
            )
        for fn, attributes in zip(self.lr_lambdas, saved, strict=True):
            if attributes:
                fn.__dict__.update(attributes)
        super().load_state_dict({key: v for key, v in state_dict.items() if key != "lr_lambdas"})


class StepLR(LRScheduler):
    """The rate times `gamma` every `step_size` steps: ``lr * gamma ** (t // step_size)``."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = positive_int("step_size", step_size, "StepLR")
        self.gamma = finite("gamma", gamma, "StepLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        return float(self.gamma ** (step // self.step_size))


class MultiStepLR(LRScheduler):
    """The rate times `gamma` at each of `milestones`; a milestone given twice counts twice."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones = sorted(finite("milestones", m, "MultiStepLR") for m in milestones)
        self.gamma = finite("gamma", gamma, "MultiStepLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        return float(self.gamma ** bisect_right(self.milestones, step))


class ConstantLR(LRScheduler):
    """The rate times `factor` for the first `total_iters` steps."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        self.factor = in_unit("factor", factor, "ConstantLR")
        self.total_iters = finite("total_iters", total_iters, "ConstantLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        return self.factor if step < self.total_iters else 1.0


class LinearLR(LRScheduler):
    """The rate's factor goes linearly from `start_factor` to `end_factor` within `total_iters` steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.start_factor = in_unit("start_factor", start_factor, "LinearLR", zero=False)
        self.end_factor = in_unit("end_factor", end_factor, "LinearLR")
        self.total_iters = positive_int("total_iters", total_iters, "LinearLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        fraction = min(step, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * fraction


class ExponentialLR(LRScheduler):
    """The rate times `gamma` at each step: ``lr * gamma ** t``."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = finite("gamma", gamma, "ExponentialLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        return float(self.gamma**step)


class PolynomialLR(LRScheduler):
    """The rate falls to 0 within `total_iters` steps: ``lr * (1 - t / total_iters) ** power``."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self.total_iters = positive_int("total_iters", total_iters, "PolynomialLR")
        self.power = finite("power", power, "PolynomialLR")
        super().__init__(optimizer, last_epoch)

    def factor_at(self, step: float) -> float:
        return float((1.0 - min(step, self.total_iters) / self.total_iters) ** self.power)
