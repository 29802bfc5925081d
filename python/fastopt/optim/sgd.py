"""Stochastic gradient descent, with momentum in three forms."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.base import FINITE, NONNEGATIVE, Interval, one_of
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer

MomentumForm = Literal["torch", "velocity", "ewma"]
_FORMS = ("torch", "velocity", "ewma")


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent.

    With :math:`g` the gradient and :math:`b` the momentum buffer, the forms of momentum are

    ========== =================================================== ==================================
    torch      :math:`b \leftarrow \mu b + (1 - \tau) g`,          :math:`p \leftarrow p - \eta b`
               and :math:`b \leftarrow g` at the first step
    velocity   :math:`b \leftarrow \mu b + \eta g` (Keras,         :math:`p \leftarrow p - b`
               scikit-learn: an earlier step keeps its own rate)
    ewma       :math:`b \leftarrow \mu b + (1 - \mu) g` (autograd) :math:`p \leftarrow p - \eta b`
    ========== =================================================== ==================================

    Nesterov's form looks one step ahead: it replaces :math:`b` in the second column by
    :math:`c\,g + \mu b`, where :math:`c` is what multiplies :math:`g` in the first.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    momentum : float
        :math:`\mu`; 0 keeps no buffer.
    dampening : float
        :math:`\tau`, of the torch form.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    nesterov : bool
        Look ahead; needs momentum and no dampening.
    momentum_form : {"torch", "velocity", "ewma"}
        See above.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: with momentum 0.9 and a schedule, for convolutional networks and wherever there is time to tune the
    learning rate: one array of state with momentum, none without it. Where gradients of different layers differ much in
    size, `Adam` needs less tuning.

    References
    ----------
    Robbins and Monro, 1951; Polyak, 1964; Nesterov, 1983; Sutskever et al., On the importance of
    initialization and momentum in deep learning, ICML 2013.
    """

    ranges: ClassVar[dict[str, Interval]] = {**COMMON_RANGES, "momentum": NONNEGATIVE, "dampening": FINITE}
    # torch keeps no step count here; a buffer that exists has been started.
    saves_scalars = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        momentum_form: MomentumForm = "torch",
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "momentum_form": momentum_form,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        owner = type(self).__name__
        one_of(owner, "momentum_form", group["momentum_form"], _FORMS)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"{owner}: nesterov needs momentum and no dampening, "
                f"got momentum {group['momentum']} and dampening {group['dampening']}"
            )
        if group["dampening"] != 0 and group["momentum_form"] != "torch":
            raise ValueError(
                f"{owner}: dampening belongs to momentum_form 'torch', "
                f"got {group['dampening']} with {group['momentum_form']!r}"
            )

    def rule(self, group: dict[str, Any]) -> str:
        if not group["momentum"]:
            return "sgd"
        return "nesterov" if group["nesterov"] else "momentum"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        lr, mu = group["lr"], group["momentum"]
        if not mu:
            return (lr,)
        form = group["momentum_form"]
        if form == "velocity":
            rate, k = 1.0, lr
        elif form == "ewma":
            rate, k = lr, 1.0 - mu
        else:
            rate, k = lr, 1.0 if s["step"] == 1 else 1.0 - group["dampening"]
        return (rate, mu, k, k) if group["nesterov"] else (rate, mu, k)
