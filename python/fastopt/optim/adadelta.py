"""Adadelta."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import NONNEGATIVE, UNIT, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Adadelta(RuleOptimizer):
    r"""Adadelta: steps in the units of the parameters, from two running root mean squares.

    .. math::
        v &\leftarrow \rho v + (1 - \rho) g^2, \qquad
        d = \frac{\sqrt{a + \epsilon}}{\sqrt{v + \epsilon}} \, g \\
        a &\leftarrow \rho a + (1 - \rho) d^2, \qquad
        p \leftarrow p - \eta d

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    rho : float
        Decay :math:`\rho` of both averages.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: to do without a learning rate: 1 is the paper's. The first steps are tiny and grow by themselves.
    `Adam` has mostly taken its place; it is here for recipes that were made with it.

    References
    ----------
    Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012.
    """

    ranges: ClassVar[dict[str, Interval]] = {**COMMON_RANGES, "rho": UNIT, "eps": NONNEGATIVE}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "adadelta"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return group["lr"], group["rho"], group["eps"]
