"""Yogi."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import NONNEGATIVE, Interval
from fastopt.optim.rule import Common


class Yogi(AdamFamily):
    r"""Yogi: Adam whose mean square grows and shrinks by no more than the squared gradient.

    .. math::
        v &\leftarrow v + (1 - \beta_2) \, \mathrm{sign}(g^2 - v) \, g^2 \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \, \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`m` as in `Adam`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean, and :math:`\beta_2`.
    eps : float
        :math:`\epsilon`, outside the root.
    initial_accumulator : float
        What :math:`m` and :math:`v` start from.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam`, where gradients are sparse or change in size abruptly: the mean square falls
    slowly, so the rate cannot jump up after a few small gradients.

    References
    ----------
    Zaheer et al., Adaptive Methods for Nonconvex Optimization, NeurIPS 2018. Bias corrections and the start of the
    averages are those of optax.
    """

    ranges: ClassVar[dict[str, Interval]] = {**AdamFamily.ranges, "initial_accumulator": NONNEGATIVE}
    eager_state = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        initial_accumulator: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {"initial_accumulator": initial_accumulator}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "yogi"

    def initial(self, group: dict[str, Any], state: str) -> float:
        value: float = group["initial_accumulator"]
        return value

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t = s["step"]
        return group["lr"] / (1.0 - beta1**t), beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**t), group["eps"]
