"""NAdam."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class NAdam(RuleOptimizer):
    r"""NAdam: Adam with Nesterov's look-ahead and a schedule of the momentum.

    .. math::
        \mu_t &= \beta_1 \left(1 - \tfrac12 \, 0.96^{t \psi}\right) \\
        p &\leftarrow p - \eta \left(
        \frac{1 - \mu_t}{1 - \prod_{i=1}^{t} \mu_i} \, g + \frac{\mu_{t+1}}{1 - \prod_{i=1}^{t+1} \mu_i} \, m
        \right) \Big/ \left(\sqrt{v / (1 - \beta_2^t)} + \epsilon\right)

    with :math:`m` and :math:`v` as in `Adam`.

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
    momentum_decay : float or None
        :math:`\psi`; None keeps :math:`\mu_t = \beta_1` (optax).
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam`, where looking one step ahead brings the loss down in fewer steps; it costs nothing
    besides. The momentum's schedule makes the first steps shorter.

    References
    ----------
    Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
        "momentum_decay": NONNEGATIVE,
    }
    optional: ClassVar[tuple[str, ...]] = (*RuleOptimizer.optional, "momentum_decay")
    scalars: ClassVar[dict[str, float]] = {"step": 0, "mu_product": 1.0}

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float | None = 4e-3,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "nadam"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t, decay = s["step"], group["momentum_decay"]
        if decay is None:
            mu = mu_next = beta1
            s["mu_product"] = beta1**t
        else:
            mu = beta1 * (1.0 - 0.5 * 0.96 ** (t * decay))
            mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((t + 1.0) * decay))
            s["mu_product"] *= mu
        c_g = (1.0 - mu) / (1.0 - s["mu_product"])
        c_m = mu_next / (1.0 - s["mu_product"] * mu_next)
        return group["lr"], beta1, beta2, 1.0 / math.sqrt(1.0 - beta2**t), group["eps"], c_g, c_m
