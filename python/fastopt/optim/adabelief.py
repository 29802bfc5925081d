"""AdaBelief."""

from __future__ import annotations

import math
from typing import Any, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.rule import Common


class AdaBelief(AdamFamily):
    r"""AdaBelief: Adam that divides by how far gradients stray from their average.

    .. math::
        s &\leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \, \frac{m}{\sqrt{s / (1 - \beta_2^t)} + \epsilon}

    with :math:`m` as in `Adam`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the mean square.
    eps : float
        :math:`\epsilon`, added to the mean square of each step and outside the root.
    weight_decay : float
        Multiplies `p` by ``1 - lr * weight_decay``.
    decoupled_weight_decay : bool
        False: add ``weight_decay * p`` to the gradient instead.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam`, where steps should be long as long as gradients agree and short where they scatter.
    It is sensitive to `eps`, which joins the mean square at each step; take the default to begin with.

    References
    ----------
    Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, NeurIPS 2020. The
    update is that of the authors' code without its ``rectify``.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "adabelief"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t = s["step"]
        return group["lr"] / (1.0 - beta1**t), beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**t), group["eps"]
