"""Adam and AMSGrad."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Adam(RuleOptimizer):
    r"""Adam: a running mean of the gradient over its running root mean square.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        p \leftarrow p - \frac{\eta}{1 - \beta_1^t} \, \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad`, the largest :math:`v` so far takes the place of :math:`v` in the last formula.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the mean square.
    eps : float
        :math:`\epsilon`, outside the root.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    amsgrad : bool
        Never let the denominator's :math:`v` shrink.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient: AdamW.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015; Reddi, Kale and Kumar, On the
    Convergence of Adam and Beyond, ICLR 2018 (amsgrad).
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t = s["step"]
        return group["lr"] / (1.0 - beta1**t), beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**t), group["eps"]
