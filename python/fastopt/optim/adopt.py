"""ADOPT."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import NONNEGATIVE, Interval
from fastopt.optim.rule import Common


class ADOPT(AdamFamily):
    r"""ADOPT: Adam that divides by the mean square of the step before, and takes the mean of the quotients.

    .. math::
        u &= \frac{g}{\max(\sqrt{v}, \epsilon)} \text{ limited to } \pm (t - 1)^{c}, \qquad
        m \leftarrow \beta_1 m + (1 - \beta_1) u \\
        p &\leftarrow p - \eta m, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2

    The first step only sets :math:`v = g^2`.

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
    clip_exponent : float or None
        :math:`c`; None limits nothing.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient, from the second step on.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam` where :math:`\beta_2` is hard to choose: it converges for any value of it, in theory
    and in the paper's examples on which Adam does not. The limit keeps first steps short.

    References
    ----------
    Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate, NeurIPS 2024, with the
    limit of the authors' code.
    """

    decay_modes: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Interval]] = {**AdamFamily.ranges, "clip_exponent": NONNEGATIVE}
    optional: ClassVar[tuple[str, ...]] = (*AdamFamily.optional, "clip_exponent")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exponent: float | None = 0.25,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {"clip_exponent": clip_exponent}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "adopt"

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        return 1.0 if s["step"] == 1 else super().decay(group, s)

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        if s["step"] == 1:
            return 0.0, beta1, 0.0, 1.0, 0.0
        exponent = group["clip_exponent"]
        clip = math.inf if exponent is None else (s["step"] - 1.0) ** exponent
        return group["lr"], beta1, beta2, group["eps"], clip
