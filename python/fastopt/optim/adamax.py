"""Adamax."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.rule import Common


class Adamax(AdamFamily):
    r"""Adamax: Adam with the infinity norm of the gradients.

    .. math::
        u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \, \frac{m}{u}

    with :math:`m` as in `Adam`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the norm.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    eps_mode : {"inside", "outside"}
        Whether :math:`\epsilon` is inside the maximum (torch, optax) or added to it in the quotient (Keras).
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: in place of `Adam` where now and then a gradient is very large, or sparse as for embeddings: the
    denominator is a decaying maximum, so one outlier shortens later steps rather than distorting a mean.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, section 7.1.
    """

    eps_modes: ClassVar[tuple[str, ...]] = ("inside", "outside")

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        eps_mode: Literal["inside", "outside"] = "inside",
        **common: Unpack[Common],
    ) -> None:
        extra = {"eps_mode": eps_mode}
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, extra, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "adamax"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        epsilons = (group["eps"], 0.0) if group["eps_mode"] == "inside" else (0.0, group["eps"])
        return group["lr"] / (1.0 - beta1 ** s["step"]), beta1, beta2, *epsilons
