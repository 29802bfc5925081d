"""Lion."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Lion(RuleOptimizer):
    r"""Lion: steps of one size in the direction that an average of gradients has by sign.

    .. math::
        p &\leftarrow (1 - \eta \lambda) \, p - \eta \, \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`, about a tenth of Adam's.
    betas : (float, float)
        :math:`\beta_1` weighs the average in the step, :math:`\beta_2` is its decay.
    weight_decay : float
        :math:`\lambda`, which shrinks the parameters themselves.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: to keep one array of state where `Adam` keeps two, with large batches. Its steps have one size, so the
    learning rate is about a tenth of AdamW's and the weight decay stronger by as much; a schedule has to bring it to
    zero.

    References
    ----------
    Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "lion"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return group["lr"], *group["betas"]
