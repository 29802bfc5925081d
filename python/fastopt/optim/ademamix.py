"""AdEMAMix."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import COUNT, FRACTION, NONNEGATIVE, Interval
from fastopt.optim.rule import Common


class AdEMAMix(AdamFamily):
    r"""AdEMAMix: Adam with a second, slow mean of the gradients.

    .. math::
        n &\leftarrow \beta_3(t) \, n + (1 - \beta_3(t)) \, g \\
        p &\leftarrow (1 - \eta \lambda) \, p - \eta \,
        \frac{m / (1 - \beta_1^t) + \alpha(t) \, n}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`m` and :math:`v` as in `Adam`. During its first `t_alpha` steps :math:`\alpha(t)` grows linearly from 0
    to `alpha`; during its first `t_beta3` steps the half-life of :math:`n` grows linearly from that of :math:`\beta_1`
    to that of :math:`\beta_3`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float, float)
        Decay :math:`\beta_1` of the mean, :math:`\beta_2` of the mean square and :math:`\beta_3` of the slow mean.
    alpha : float
        Weight of the slow mean.
    t_alpha, t_beta3 : float or None
        The lengths of the schedules, in steps; None uses none.
    eps : float
        :math:`\epsilon`, outside the root.
    weight_decay : float
        :math:`\lambda`.
    decoupled_weight_decay : bool
        False: add ``weight_decay * p`` to the gradient instead.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: for long runs of large models, where gradients of thousands of steps ago still help. It needs one more
    array of state than `AdamW`, and `t_alpha` and `t_beta3` set to the number of steps, or it may diverge early on.

    References
    ----------
    Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older, ICLR 2025.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **AdamFamily.ranges,
        "beta3": FRACTION,
        "alpha": NONNEGATIVE,
        "t_alpha": COUNT,
        "t_beta3": COUNT,
    }
    optional: ClassVar[tuple[str, ...]] = (*AdamFamily.optional, "t_alpha", "t_beta3")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        t_alpha: float | None = None,
        t_beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        settings = {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "ademamix"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2, beta3 = group["betas"]
        t, t_alpha, t_beta3 = s["step"], group["t_alpha"], group["t_beta3"]
        alpha = group["alpha"] * (1.0 if t_alpha is None else min(1.0, t / t_alpha))
        if t_beta3 is not None and t < t_beta3:
            beta3 = _between(beta1, beta3, t / t_beta3)
        bc1 = 1.0 - beta1**t
        rsqrt_bc2 = 1.0 / math.sqrt(1.0 - beta2**t)
        return group["lr"] / bc1, beta1, beta2, beta3, alpha * bc1, rsqrt_bc2, group["eps"]


def _between(first: float, last: float, part: float) -> float:
    """Return the decay whose half-life lies this part of the way between those of two decays."""
    start, end = (1.0 / math.log(beta) if beta else 0.0 for beta in (first, last))
    inverse = start + part * (end - start)
    return math.exp(1.0 / inverse) if inverse else 0.0
