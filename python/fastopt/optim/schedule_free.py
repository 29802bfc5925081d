"""Schedule-free SGD and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np

from fastopt.optim.base import FINITE, FRACTION, NONNEGATIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer, bare
from fastopt.optim.tail import NO_TAIL

INSIDE = Interval(0.0, 1.0, "(0, 1)")
_RANGES = {
    **COMMON_RANGES,
    "warmup_steps": NONNEGATIVE,
    "r": FINITE,
    "weight_lr_power": NONNEGATIVE,
}


class _ScheduleFree(RuleOptimizer):
    """Base class: the sequences y, z and x, and which of y and x the parameters hold."""

    decay_modes: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[dict[str, float]] = {"step": 0, "weight_sum": 0.0, "lr_max": 0.0}
    #: Coefficients of the rule, behind those of the move, with which a gradient of 0 changes no state.
    _rest: ClassVar[tuple[float, ...]] = ()

    def __init__(self, params: Any, settings: dict[str, Any], **common: Unpack[Common]) -> None:
        super().__init__(params, {**settings, "train_mode": True}, **common)

    def _momentum(self, group: dict[str, Any]) -> float:
        """Return how far y is from z on the way to x."""
        raise NotImplementedError

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        return 1.0

    def _move(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        """Return the step size, 1, then what moves y and z in this step: c, k, the learning rate, and `started`."""
        t, warmup = s["step"], group["warmup_steps"]
        lr = group["lr"] * (t / warmup if t < warmup else 1.0)
        s["lr_max"] = max(s["lr_max"], lr)
        weight = t ** group["r"] * s["lr_max"] ** group["weight_lr_power"]
        s["weight_sum"] += weight
        c = weight / s["weight_sum"] if s["weight_sum"] else 0.0
        return 1.0, c, lr * (1.0 - self._momentum(group) * (1.0 - c)), lr, float(t > 1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, in the mode of the others; see `Optimizer.add_param_group`."""
        if isinstance(param_group, Mapping) and self.param_groups:
            param_group = {**param_group, "train_mode": self.param_groups[0]["train_mode"]}
        super().add_param_group(param_group)

    def train(self) -> None:
        """Let the parameters hold y, at which gradients are taken. New optimizers are in this mode."""
        self._switch(True)

    def eval(self) -> None:
        """Let the parameters hold x, the average to evaluate and to save; `step` raises until `train` is called.

        Parameters of 16 bits are rounded each time.
        """
        self._switch(False)

    def _switch(self, train: bool) -> None:
        if all(group["train_mode"] == train for group in self.param_groups):
            return
        super()._require_weights()
        plans = self._refresh()
        for dense in self._copied:
            dense.load()
        for plan in plans:
            rows = [self._rows[r] for r in plan.rows]
            moved = [row.scalars["step"] > 0 and self._mode(row.group) != train for row in rows]
            coefs = np.zeros((len(rows), plan.width))
            for k, row in enumerate(rows):
                momentum = self._momentum(self.param_groups[row.group])
                way = 1.0 - (momentum if train else 1.0 / momentum)
                coefs[k] = (*bare(0.0, 1.0, 1.0, row.scalars["step"]), way, 0.0, 0.0, 1.0, *self._rest)
            # The parameters are their own gradients, times 0.
            arrays = [self._dense[i].array for i in plan.index]
            own = [
                a if moved[0 if plan.sets is None else plan.sets[k]] else None for k, a in enumerate(arrays)
            ]
            self._placement.step(plan.native, own, coefs, plan.sets, NO_TAIL)
        for dense in self._copied:
            dense.store()
        for group in self.param_groups:
            group["train_mode"] = train

    def _mode(self, g: int) -> bool:
        mode: bool = self.param_groups[g]["train_mode"]
        return mode

    def _require_weights(self) -> None:
        super()._require_weights()
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(f"step: {type(self).__name__} is in eval mode, call its train() before")


class SGDScheduleFree(_ScheduleFree):
    r"""Schedule-free SGD: an average of the iterates in place of a falling learning rate.

    .. math::
        z_{t+1} &= z_t - \eta_t g(y_t), \qquad
        x_{t+1} = (1 - c_t) \, x_t + c_t z_{t+1}, \qquad
        y_t = (1 - \mu) z_t + \mu x_t \\
        c_t &= w_t / \sum_{i \le t} w_i, \qquad
        w_t = t^r \left(\max_{i \le t} \eta_i\right)^{q}

    The parameters hold :math:`y` in train mode, in which an optimizer begins, and :math:`x` in eval mode: call `eval`
    before evaluating or saving the model and `train` before going on. :math:`\eta_t` grows linearly to the learning
    rate during `warmup_steps`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate.
    momentum : float
        :math:`\mu` in (0, 1).
    weight_decay : float
        Adds ``weight_decay * y`` to the gradient.
    warmup_steps : int
        Steps in which the learning rate grows.
    r : float
        Power :math:`r` of the step's number in its weight.
    weight_lr_power : float
        Power :math:`q` of the largest learning rate so far in it.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `SGD` with momentum and a schedule, when it is not known beforehand how long training will
    go on. Rates may be larger than with a schedule; remember `eval` before evaluating.

    References
    ----------
    Defazio et al., The Road Less Scheduled, NeurIPS 2024. Steps and weights are counted for each parameter, where the
    authors' code counts them for a group.
    """

    ranges: ClassVar[dict[str, Interval]] = {**_RANGES, "momentum": INSIDE}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "decoupled_weight_decay": False,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "schedule_free_sgd"

    def _momentum(self, group: dict[str, Any]) -> float:
        momentum: float = group["momentum"]
        return momentum

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return self._move(group, s)


class AdamWScheduleFree(_ScheduleFree):
    r"""Schedule-free AdamW: an average of the iterates in place of a falling learning rate, and of Adam's mean.

    The gradient of `SGDScheduleFree` is replaced by

    .. math:: \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda y

    with :math:`v` as in `Adam`, and its :math:`\mu` is :math:`\beta_1`. The parameters hold :math:`y` in train mode and
    :math:`x` in eval mode, as there.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate.
    betas : (float, float)
        :math:`\beta_1` in (0, 1), and decay :math:`\beta_2` of the mean square.
    eps : float
        :math:`\epsilon`, outside the root.
    weight_decay : float
        :math:`\lambda`.
    warmup_steps : int
        Steps in which the learning rate grows.
    r : float
        Power :math:`r` of the step's number in its weight.
    weight_lr_power : float
        Power :math:`q` of the largest learning rate so far in it.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `AdamW` with a schedule, when it is not known beforehand how long training will go on, or
    the model is to be good at every moment of it. Remember `eval` before evaluating.

    References
    ----------
    Defazio et al., The Road Less Scheduled, NeurIPS 2024, as `SGDScheduleFree`.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **_RANGES,
        "beta1": INSIDE,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
    }
    _rest: ClassVar[tuple[float, ...]] = (1.0, 1.0, 1.0, 0.0)

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "schedule_free_adamw"

    def _momentum(self, group: dict[str, Any]) -> float:
        beta1: float = group["betas"][0]
        return beta1

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta2 = group["betas"][1]
        rsqrt_bc2 = 1.0 / math.sqrt(1.0 - beta2 ** s["step"])
        return *self._move(group, s), beta2, rsqrt_bc2, group["eps"], group["weight_decay"]
