"""ASGD."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import NONNEGATIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class ASGD(RuleOptimizer):
    r"""Averaged stochastic gradient descent, with a learning rate that falls.

    .. math::
        \eta_t &= \eta \, (1 + \lambda \eta (t - 1))^{-\alpha}, \qquad
        \mu_t = \frac{1}{\max(1, t - 1 - t_0)} \\
        p &\leftarrow (1 - \lambda \eta_t) \, p - \eta_t g, \qquad
        a \leftarrow a + \mu_t (p - a)

    The average :math:`a` is ``state[i]["ax"]``; the parameters hold :math:`p`. A learning rate that is changed between
    steps takes effect one step later, as in torch.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    lambd : float
        :math:`\lambda`, which shrinks the parameters and sets how soon the learning rate falls.
    alpha : float
        Power :math:`\alpha` of the learning rate's fall.
    t0 : float
        :math:`t_0`, the step after which the parameters are averaged; until then :math:`a` is a copy.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: for convex problems with much noise, such as linear models on a stream of data: the average of the
    weights is a better answer than the last of them. For networks ``ema_decay`` of any optimizer or `SGDScheduleFree`
    serves better.

    References
    ----------
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the schedules are those of Bottou,
    Stochastic Gradient Descent Tricks, 2012, as torch has them.
    """

    decay_modes: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "lambd": NONNEGATIVE,
        "alpha": NONNEGATIVE,
        "t0": NONNEGATIVE,
    }
    #: `eta` and `mu` are those of the next step; of the first they are not read.
    scalars: ClassVar[dict[str, float]] = {"step": 0, "eta": 0.0, "mu": 1.0}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": False,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "asgd"

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        factor: float = 1.0 - group["lambd"] * (group["lr"] if s["step"] == 1 else s["eta"])
        return factor

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        lr, lambd, t = group["lr"], group["lambd"], s["step"]
        decay = self.decay(group, s)
        eta, mu = (lr, 1.0) if t == 1 else (s["eta"], s["mu"])
        s["eta"] = lr / (1.0 + lambd * lr * t) ** group["alpha"]
        s["mu"] = 1.0 / max(1.0, t - group["t0"])
        return eta, eta, decay, mu
