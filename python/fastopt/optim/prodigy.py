"""Prodigy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import numpy as np

from fastopt import _ops
from fastopt._arrays import Array
from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import FRACTION, POSITIVE, Interval
from fastopt.optim.rule import Common, bare
from fastopt.optim.state import State, Storage, allocate, in_layout
from fastopt.optim.tail import Tail

_ESTIMATE = ("s", "p0")
_NUMBERS = ("d", "d_max", "d_numerator", "k")


class Prodigy(AdamFamily):
    r"""Prodigy: AdamW whose step size is an estimate of the distance from the start to the solution.

    .. math::
        r &\leftarrow \sqrt{\beta_2} \, r + \frac{d}{d_0} \eta d \, \langle g, p_0 - p \rangle, \qquad
        s \leftarrow \sqrt{\beta_2} \, s + \frac{d}{d_0} \eta d \, g \\
        d' &= \max\left(d, \frac{c \, r}{\|s\|_1}\right) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) \, d g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) \, d^2 g^2 \\
        p &\leftarrow (1 - \eta d \lambda) \, p - \eta d \frac{m}{\sqrt{v} + d' \epsilon}

    The product and the norm are over the parameters of all groups; what comes of them is in every group, as ``d``,
    ``d_max``, ``d_numerator`` and the number of steps, ``k``. The learning rate :math:`\eta` is best left at 1, and
    scheduled.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Factor :math:`\eta` of the step size. All groups have the same, or 0, which leaves a group as it is.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the mean square.
    beta3 : float or None
        In place of :math:`\sqrt{\beta_2}`.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`.
    use_bias_correction : bool
        Multiply :math:`\eta` by Adam's :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    safeguard_warmup : bool
        Leave :math:`\eta` out of :math:`s`, for learning rates that begin near 0.
    d0 : float
        First estimate :math:`d_0`; below the distance.
    d_coef : float
        :math:`c`, by which to tune the method.
    growth_rate : float
        Largest factor by which :math:`d` may grow in a step, after its first growth.
    decoupled_weight_decay : bool
        False: add ``weight_decay * p`` to the gradient instead.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Raises
    ------
    ValueError
        Of a step: the learning rates of two groups differ and neither is 0.

    Notes
    -----
    When to use: when no learning rate is known: leave it at 1 and let the estimate grow from `d0`. A cosine schedule on
    top is what its authors use. It keeps four arrays of state.

    References
    ----------
    Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, ICML 2024. A step on a GPU waits
    for the two sums.
    """

    by_element = False
    decay_modes: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Interval]] = {
        **AdamFamily.ranges,
        "d0": POSITIVE,
        "d_coef": POSITIVE,
        "growth_rate": Interval(1.0, math.inf, "[1, inf]"),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        *,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "beta3": beta3,
            "use_bias_correction": use_bias_correction,
            "safeguard_warmup": safeguard_warmup,
            "d0": d0,
            "d_coef": d_coef,
            "growth_rate": growth_rate,
            "d": d0,
            "d_max": d0,
            "d_numerator": 0.0,
            "k": 0,
        }
        self._estimates: list[tuple[Any, list[Array], list[Array]]] = []
        # d and the step size of the step that is being taken, which the groups' d is already ahead of.
        self._moves: tuple[float, float] | None = None
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        if group["beta3"] is not None:
            self._require("beta3", group["beta3"], FRACTION)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the estimate of the others; see `Optimizer.add_param_group`."""
        if isinstance(param_group, dict) and self.param_groups:
            first = self.param_groups[0]
            param_group = {**param_group, **{name: first[name] for name in _NUMBERS}}
        super().add_param_group(param_group)

    def rule(self, group: dict[str, Any]) -> str:
        return "prodigy"

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        if not group["decoupled_weight_decay"] or not group["lr"]:
            return 1.0
        factor: float = 1.0 - self._used(group)[1] * group["weight_decay"]
        return factor

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        if not group["lr"]:
            return 0.0, 1.0, 1.0, 0.0, 0.0, 1.0
        beta1, beta2 = group["betas"]
        d, dlr = self._used(group)
        return dlr, beta1, beta2, d * (1.0 - beta1), d * d * (1.0 - beta2), group["d"] * group["eps"]

    def _used(self, group: dict[str, Any]) -> tuple[float, float]:
        return self._moves or (group["d"], group["d"] * group["lr"])

    def step(self, grads: Any = None, closure: Callable[[], Any] | None = None) -> Any:
        """Update the estimate, then all parameters that have a gradient; see `RuleOptimizer.step`.

        Nothing is updated where all gradients are 0.
        """
        return super().step(grads, closure)

    # The estimate ---------------------------------------------------------------------------------------

    def _build(self, kinds: list[Storage]) -> list[Any]:
        plans = super()._build(kinds)
        storage = Storage("prodigy_estimate")
        self._estimates = []
        for plan in plans:
            dense, state = [self._dense[i] for i in plan.index], [self._state[i] for i in plan.index]
            own: list[State] = [{name: s[name] for name in _ESTIMATE if name in s} for s in state]
            allocate(storage, dense, own, {})
            arrays = {
                name: [in_layout(d, entry, name) for d, entry in zip(dense, own, strict=True)]
                for name in (*_ESTIMATE, "product")
            }
            for s, entry in zip(state, own, strict=True):
                s.update({name: entry[name] for name in _ESTIMATE})
            remainders = storage.arguments(state)["remainders"]
            native = self._placement.plan(
                storage.rule, [d.array for d in dense], list(arrays.values()), None, remainders=remainders
            )
            self._estimates.append((native, arrays["s"], arrays["product"]))
        return plans

    def _prepare(self, plans: list[Any], grads: list[list[Any]], tail: Tail) -> bool:
        """Bring the estimate up to date; tell whether there is a gradient to step along."""
        lr = self._common_lr()
        group = self.param_groups[0]
        d, d0, d_max = group["d"], group["d0"], group["d_max"]
        beta3 = math.sqrt(group["betas"][1]) if group["beta3"] is None else group["beta3"]
        dlr = d * lr * _bias_correction(group)
        product, norm = 0.0, 0.0
        for plan, given, (native, s, products) in zip(plans, grads, self._estimates, strict=True):
            weight = beta3, d / d0 * (d if group["safeguard_warmup"] else dlr)
            coefs = np.array([self._estimate_row(self._rows[r], weight, tail.factor) for r in plan.rows])
            lrs = [self.param_groups[self._rows[r].group]["lr"] for r in plan.rows]
            sets = np.zeros(len(given), np.int32) if plan.sets is None else plan.sets
            moving = [g if lrs[sets[k]] else None for k, g in enumerate(given)]
            self._placement.step(native, moving, coefs, plan.sets, tail)
            for k, g in enumerate(moving):
                if g is not None:
                    product += float(_ops.sum(products[k]))
                    norm += float(_ops.abs_sum(s[k]))
        if norm == 0.0:
            return False
        numerator = beta3 * group["d_numerator"] + d / d0 * dlr * product
        estimate = group["d_coef"] * numerator / norm
        d_max = max(d_max, estimate)
        grown = max(d, estimate) if d == d0 else d
        numbers = (min(d_max, grown * group["growth_rate"]), d_max, numerator, group["k"] + 1)
        for each in self.param_groups:
            each.update(zip(_NUMBERS, numbers, strict=True))
        self._moves = d, dlr
        return True

    def _estimate_row(self, row: Any, weight: tuple[float, float], scale: float) -> tuple[float, ...]:
        """Return the estimate's coefficients: those of the step before the rule, but no step and no average."""
        group = self.param_groups[row.group]
        scaling = self._coefficient_row(group, {**row.scalars, "step": row.scalars["step"] + 1}, scale)[:4]
        return *scaling, *bare(0.0, 0.0, 1.0)[4:], *weight, float(row.scalars["step"] > 0)

    def _common_lr(self) -> float:
        lr: float = max(group["lr"] for group in self.param_groups)
        for g, group in enumerate(self.param_groups):
            if group["lr"] not in (lr, 0.0):
                raise ValueError(
                    f"Prodigy: lr must be the same in all groups or 0, got {group['lr']} in param_groups[{g}] and {lr}"
                )
        return lr

    # State ----------------------------------------------------------------------------------------------

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        for i, entry in enumerate(entries):
            for name in _ESTIMATE:
                if "exp_avg" in entry and name not in entry:
                    raise ValueError(
                        f"load_state_dict: state[{i}] has no {name!r}, it has {sorted(map(str, entry))}"
                    )
        super()._load(groups, entries)
        self._moves = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_estimates": []}


def _bias_correction(group: dict[str, Any]) -> float:
    """Return the factor of the step that `use_bias_correction` asks for."""
    beta1, beta2 = group["betas"]
    t = group["k"] + 1
    if not group["use_bias_correction"]:
        return 1.0
    factor: float = math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    return factor
