"""Adan."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import FRACTION, Interval
from fastopt.optim.rule import Common


class Adan(AdamFamily):
    r"""Adan: Adam with Nesterov's look-ahead by a mean of the gradients' differences.

    .. math::
        \delta &= g - g_{t-1}, \qquad
        d \leftarrow \beta_2 d + (1 - \beta_2) \, \delta, \qquad
        v \leftarrow \beta_3 v + (1 - \beta_3) (g + \beta_2 \delta)^2 \\
        p &\leftarrow \frac{1}{1 + \eta \lambda} \left( p - \eta \,
        \frac{m / (1 - \beta_1^t) + \beta_2 \, d / (1 - \beta_2^t)}{\sqrt{v / (1 - \beta_3^t)} + \epsilon} \right)

    with :math:`m` as in `Adam`, and :math:`\delta = 0` in the first step.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float, float)
        Decay :math:`\beta_1` of the mean, :math:`\beta_2` of the mean difference and :math:`\beta_3` of the mean
        square.
    eps : float
        :math:`\epsilon`, outside the root.
    weight_decay : float
        :math:`\lambda`.
    no_prox : bool
        Multiply `p` by ``1 - lr * weight_decay`` before the step, as AdamW does, instead of dividing after it.
    decoupled_weight_decay : bool
        False: add ``weight_decay * p`` to the gradient instead of either.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: for vision models and transformers with large batches, for which its authors advise learning
    rates of 5 to 10 times Adam's. It keeps four arrays of state, so memory counts.

    References
    ----------
    Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022. Betas are those of
    the authors' code, which are 1 minus the paper's.
    """

    decay_modes: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Interval]] = {**AdamFamily.ranges, "beta3": FRACTION}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        *,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        settings = {"no_prox": no_prox}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "adan"

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        return super().decay(group, s) if group["no_prox"] else self._prox(group)

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2, beta3 = group["betas"]
        t = s["step"]
        bc1, bc2 = 1.0 - beta1**t, 1.0 - beta2**t
        lr = group["lr"] / bc1 * (1.0 if group["no_prox"] else self._prox(group))
        rsqrt_bc3 = 1.0 / math.sqrt(1.0 - beta3**t)
        return lr, beta1, beta2, beta3, beta2 * bc1 / bc2, rsqrt_bc3, group["eps"], float(t > 1)

    @staticmethod
    def _prox(group: dict[str, Any]) -> float:
        """Return what the proximal form multiplies by after the step."""
        if not group["decoupled_weight_decay"]:
            return 1.0
        factor: float = 1.0 / (1.0 + group["lr"] * group["weight_decay"])
        return factor
