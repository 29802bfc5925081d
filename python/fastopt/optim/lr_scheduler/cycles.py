"""Schedules that move the momentum against the rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler.base import (
    LRScheduler,
    all_finite,
    check_optimizer,
    cosine,
    finite,
    in_unit,
    positive_int,
)


class _MomentumCycle(LRScheduler):
    """A schedule that moves the momentum (or beta1) against the rate."""

    cycle_momentum: bool
    use_beta1: bool

    def _start_momentum(self, base: Any, top: Any, optimizer: Optimizer) -> None:
        owner = type(self).__name__
        settings = optimizer.defaults
        if "momentum" not in settings and "betas" not in settings:
            raise ValueError(
                f"{owner}: cycle_momentum needs momentum or betas, {type(optimizer).__name__} has none"
            )
        self.use_beta1 = "betas" in settings
        self.base_momentums = all_finite("base_momentum", base, optimizer, owner)
        self.max_momentums = all_finite("max_momentum", top, optimizer, owner)

    def momentum_at(self, step: float) -> list[float]:
        """Return each group's momentum after `step` steps."""
        raise NotImplementedError

    def _apply(self, step: float) -> None:
        momentums = self.momentum_at(step) if self.cycle_momentum else []
        super()._apply(step)
        for group, momentum in zip(self.optimizer.param_groups, momentums, strict=False):
            if self.use_beta1:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class CyclicLR(_MomentumCycle):
    """The rate goes up and down between two bounds, the momentum down and up.

    Parameters
    ----------
    optimizer : Optimizer
    base_lr, max_lr : float or list of float
        The bounds, for all groups or for each.
    step_size_up, step_size_down : int
        Steps of the rise and of the fall (as many as of the rise when None).
    mode : {"triangular", "triangular2", "exp_range"}
        The height stays, halves with each cycle, or shrinks as ``gamma ** step``.
    gamma : float
    scale_fn : callable, optional
        The height's factor instead of `mode`, as a function of what `scale_mode` says.
    scale_mode : {"cycle", "iterations"}
        The number of the cycle (from 1) or of the step.
    cycle_momentum : bool
    base_momentum, max_momentum : float or list of float
    last_epoch : int

    References
    ----------
    Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer, "CyclicLR")
        if scale_fn is None and mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(f"CyclicLR: mode must be triangular, triangular2 or exp_range, got {mode!r}")
        if scale_mode not in ("cycle", "iterations"):
            raise ValueError(f"CyclicLR: scale_mode must be cycle or iterations, got {scale_mode!r}")
        base_lrs = all_finite("base_lr", base_lr, optimizer, "CyclicLR")
        self.max_lrs = all_finite("max_lr", max_lr, optimizer, "CyclicLR")
        self.step_size_up = positive_int("step_size_up", step_size_up, "CyclicLR")
        if step_size_down is None:
            step_size_down = step_size_up
        self.step_size_down = positive_int("step_size_down", step_size_down, "CyclicLR")
        self.mode = mode
        self.gamma = finite("gamma", gamma, "CyclicLR")
        self.scale_fn = scale_fn
        self.scale_mode = scale_mode
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._start_momentum(base_momentum, max_momentum, optimizer)
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["initial_lr"] = lr
        super().__init__(optimizer, last_epoch)

    def _height_at(self, step: float) -> float:
        """Return where between the lower bound (0) and the upper one (1) the rate is."""
        total = self.step_size_up + self.step_size_down
        cycle, within = divmod(step, total)
        rising = within <= self.step_size_up
        height = within / self.step_size_up if rising else (total - within) / self.step_size_down
        if self.scale_fn is not None:
            return height * self.scale_fn(cycle + 1 if self.scale_mode == "cycle" else step)
        if self.mode == "triangular2":
            return height / float(2.0**cycle)
        return height * float(self.gamma**step) if self.mode == "exp_range" else height

    def lr_at(self, step: float) -> list[float]:
        height = self._height_at(step)
        return [low + (top - low) * height for low, top in zip(self.base_lrs, self.max_lrs, strict=True)]

    def momentum_at(self, step: float) -> list[float]:
        height = self._height_at(step)
        bounds = zip(self.base_momentums, self.max_momentums, strict=True)
        return [top - (top - low) * height for low, top in bounds]


class OneCycleLR(_MomentumCycle):
    """One rise to `max_lr` and a fall far below the start; the momentum moves the other way.

    Parameters
    ----------
    optimizer : Optimizer
    max_lr : float or list of float
        The peak, for all groups or for each.
    total_steps : int, optional
        Length of the cycle; or give `epochs` and `steps_per_epoch`.
    epochs, steps_per_epoch : int, optional
    pct_start : float
        Fraction of the cycle that rises.
    anneal_strategy : {"cos", "linear"}
    cycle_momentum : bool
    base_momentum, max_momentum : float or list of float
    div_factor : float
        The start is ``max_lr / div_factor``.
    final_div_factor : float
        The end is the start over this.
    three_phase : bool
        Fall as fast as the rise was, back to the start, and only then to the end.
    last_epoch : int

    References
    ----------
    Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates,
    2018.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer, "OneCycleLR")
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            epochs = positive_int("epochs", epochs, "OneCycleLR")
            total_steps = epochs * positive_int("steps_per_epoch", steps_per_epoch, "OneCycleLR")
        self.total_steps = positive_int("total_steps", total_steps, "OneCycleLR")
        self.pct_start = in_unit("pct_start", pct_start, "OneCycleLR")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: anneal_strategy must be cos or linear, got {anneal_strategy!r}")
        self.anneal_strategy = anneal_strategy
        self.three_phase = three_phase
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not finite(name, value, "OneCycleLR") > 0.0:
                raise ValueError(f"OneCycleLR: {name} must be above 0, got {value}")
        self.final_div_factor = float(final_div_factor)
        self.max_lrs = all_finite("max_lr", max_lr, optimizer, "OneCycleLR")
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            self._start_momentum(base_momentum, max_momentum, optimizer)
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, self.max_lrs, strict=True):
                group["initial_lr"] = lr / div_factor
        super().__init__(optimizer, last_epoch)

    def _phase_at(self, step: float) -> tuple[int, float]:
        """Return the phase (0 up, 1 down, 2 out) and how much of it is done."""
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR: step {step} is beyond total_steps {self.total_steps}")
        ends = [self.pct_start * self.total_steps - 1.0]
        if self.three_phase:
            ends.append(2.0 * self.pct_start * self.total_steps - 2.0)
        ends.append(self.total_steps - 1.0)
        start = 0.0
        for phase, end in enumerate(ends):
            if step <= end or phase == len(ends) - 1:
                # Without the third phase the fall goes straight to the end.
                number = phase if self.three_phase or phase == 0 else 2
                return number, (step - start) / (end - start) if end != start else 1.0
            start = end
        raise AssertionError

    def _between(self, low: float, top: float, end: float, step: float) -> float:
        """Return the value of a quantity that starts at `low`, peaks at `top` and ends at `end`."""
        phase, fraction = self._phase_at(step)
        a, b = ((low, top), (top, low), (low if self.three_phase else top, end))[phase]
        return cosine(a, b, fraction) if self.anneal_strategy == "cos" else a + (b - a) * fraction

    def lr_at(self, step: float) -> list[float]:
        bounds = zip(self.base_lrs, self.max_lrs, strict=True)
        return [self._between(low, top, low / self.final_div_factor, step) for low, top in bounds]

    def momentum_at(self, step: float) -> list[float]:
        bounds = zip(self.base_momentums, self.max_momentums, strict=True)
        return [self._between(top, low, top, step) for low, top in bounds]
