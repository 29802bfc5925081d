"""RMSprop."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.base import NONNEGATIVE, UNIT, Interval, one_of
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class RMSprop(RuleOptimizer):
    r"""RMSprop: the gradient over its running root mean square.

    .. math::
        v &\leftarrow \alpha v + (1 - \alpha) g^2, \qquad
        u = \frac{g}{\sqrt{v - m^2} + \epsilon} \\
        b &\leftarrow \mu b + u, \qquad
        p \leftarrow p - \eta b

    :math:`m` is the running mean :math:`m \leftarrow \alpha m + (1 - \alpha) g` when `centered`, else 0;
    without `momentum`, :math:`b` is :math:`u`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    alpha : float
        Decay :math:`\alpha` of the averages.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    momentum : float
        :math:`\mu`; 0 keeps no buffer.
    centered : bool
        Divide by the standard deviation instead of the root mean square.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    eps_mode : {"outside", "inside"}
        Where :math:`\epsilon` is added: to the root (torch), or under it (Keras, optax, TensorFlow).
    momentum_form : {"torch", "velocity"}
        As above, or :math:`b \leftarrow \mu b + \eta u` and :math:`p \leftarrow p - b`, where an earlier step keeps
        its own rate (Keras, optax, TensorFlow).
    initial_square_avg : float
        What :math:`v` starts from (TensorFlow 1: 1).
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: for recurrent networks and reinforcement learning, whose recipes often name it, and for noise that
    changes in size over time. `centered` divides by the deviation rather than the size; `momentum` makes it a sibling
    of `Adam`.

    References
    ----------
    Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012; Graves, Generating
    Sequences With Recurrent Neural Networks, 2013 (centered).
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "alpha": UNIT,
        "eps": NONNEGATIVE,
        "momentum": NONNEGATIVE,
        "initial_square_avg": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        eps_mode: Literal["outside", "inside"] = "outside",
        momentum_form: Literal["torch", "velocity"] = "torch",
        initial_square_avg: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "decoupled_weight_decay": decoupled_weight_decay,
            "eps_mode": eps_mode,
            "momentum_form": momentum_form,
            "initial_square_avg": initial_square_avg,
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        one_of("RMSprop", "eps_mode", group["eps_mode"], ("outside", "inside"))
        one_of("RMSprop", "momentum_form", group["momentum_form"], ("torch", "velocity"))

    def initial(self, group: dict[str, Any], state: str) -> float:
        first: float = group["initial_square_avg"] if state == "square_avg" else 0.0
        return first

    def rule(self, group: dict[str, Any]) -> str:
        return (
            "rmsprop"
            + ("_centered" if group["centered"] else "")
            + ("_momentum" if group["momentum"] else "")
        )

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        lr, alpha, momentum = group["lr"], group["alpha"], group["momentum"]
        epsilons = (group["eps"], 0.0) if group["eps_mode"] == "outside" else (0.0, group["eps"])
        if not momentum:
            return lr, alpha, *epsilons
        rate, k = (lr, 1.0) if group["momentum_form"] == "torch" else (1.0, lr)
        return rate, alpha, *epsilons, momentum, k
