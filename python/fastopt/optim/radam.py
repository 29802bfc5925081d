"""RAdam."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import Interval
from fastopt.optim.rule import Common


class RAdam(AdamFamily):
    r"""RAdam: Adam that waits for its mean square to mean something.

    .. math::
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \cdot \begin{cases}
        r_t \sqrt{1 - \beta_2^t} \; m / (\sqrt{v} + \epsilon) & \rho_t > 5 \\
        m & \text{otherwise}
        \end{cases}, \qquad
        r_t^2 = \frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}

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
        :math:`\epsilon`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    eps_mode : {"hat", "outside"}
        Whether :math:`\epsilon` is added to :math:`\sqrt v` as above (torch, thinc) or to the root of the moment
        that is corrected for bias, :math:`\sqrt{v / (1 - \beta_2^t)}` (optax).
    threshold : float
        What :math:`\rho_t` has to exceed.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam` without warm-up: it starts as momentum and turns adaptive when enough gradients have
    been seen. Those first steps are not divided by anything, so a learning rate that suits Adam can be too large for
    them.

    References
    ----------
    Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020.
    """

    eps_modes: ClassVar[tuple[str, ...]] = ("hat", "outside")
    ranges: ClassVar[dict[str, Interval]] = {
        **AdamFamily.ranges,
        "threshold": Interval(4.0, math.inf, "[4, inf)"),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        eps_mode: Literal["hat", "outside"] = "hat",
        threshold: float = 5.0,
        **common: Unpack[Common],
    ) -> None:
        extra = {"eps_mode": eps_mode, "threshold": threshold}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, extra, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "radam"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t = s["step"]
        lr, bc2 = group["lr"] / (1.0 - beta1**t), 1.0 - beta2**t
        most = 2.0 / (1.0 - beta2) - 1.0
        rho = most - 2.0 * t * beta2**t / bc2
        eps = group["eps"] * (math.sqrt(bc2) if group["eps_mode"] == "outside" else 1.0)
        if rho <= group["threshold"]:
            return lr, beta1, beta2, eps, 0.0
        rectified = math.sqrt((rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho))
        return lr * rectified * math.sqrt(bc2), beta1, beta2, eps, 1.0
