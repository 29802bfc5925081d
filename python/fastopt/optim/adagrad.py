"""Adagrad."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.base import NONNEGATIVE, Interval, one_of
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Adagrad(RuleOptimizer):
    r"""Adagrad: the step of each coordinate shrinks with the sum of its squared gradients.

    .. math::
        s \leftarrow s + g^2, \qquad
        p \leftarrow p - \frac{\eta}{1 + (t - 1)\,lr\_decay} \, \frac{g}{\sqrt{s} + \epsilon}

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    lr_decay : float
        Decay of the learning rate.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    initial_accumulator_value : float
        What :math:`s` starts from.
    eps : float
        :math:`\epsilon`.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    eps_mode : {"outside", "inside"}
        The denominator: :math:`\sqrt s + \epsilon` (torch), or :math:`\sqrt{s + \epsilon}` (Keras, optax).
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: for sparse features and convex problems, where rarely seen coordinates are to keep large steps. The sum
    never shrinks, so long trainings of networks come to a halt; there `RMSprop` or `Adam` goes on.

    References
    ----------
    Duchi, Hazan and Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
    JMLR 2011.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "lr_decay": NONNEGATIVE,
        "initial_accumulator_value": NONNEGATIVE,
        "eps": NONNEGATIVE,
    }
    eager_state = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        decoupled_weight_decay: bool = False,
        eps_mode: Literal["outside", "inside"] = "outside",
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "decoupled_weight_decay": decoupled_weight_decay,
            "eps_mode": eps_mode,
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        one_of("Adagrad", "eps_mode", group["eps_mode"], ("outside", "inside"))

    def rule(self, group: dict[str, Any]) -> str:
        return "adagrad"

    def initial(self, group: dict[str, Any], state: str) -> float:
        value: float = group["initial_accumulator_value"]
        return value

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        epsilons = (group["eps"], 0.0) if group["eps_mode"] == "outside" else (0.0, group["eps"])
        return group["lr"] / (1.0 + (s["step"] - 1.0) * group["lr_decay"]), *epsilons
