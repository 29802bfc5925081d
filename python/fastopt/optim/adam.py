"""Adam and AMSGrad."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, Interval, one_of
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer

EpsMode = Literal["outside", "hat", "inside"]
AmsgradMax = Literal["biased", "corrected"]


class Adam(RuleOptimizer):
    r"""Adam: a running mean of the gradient over its running root mean square.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \frac{\eta}{1 - \beta_1^t} \, \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad`, the largest :math:`v` so far takes the place of :math:`v` in the last formula.

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
    amsgrad : bool
        Never let the denominator's :math:`v` shrink.
    decoupled_weight_decay : bool
        Multiply `p` by ``1 - lr * weight_decay`` instead of changing the gradient: AdamW.
    eps_mode : {"outside", "hat", "inside"}
        The denominator: :math:`\sqrt{\hat v} + \epsilon` with :math:`\hat v = v / (1 - \beta_2^t)`;
        :math:`(\sqrt v + \epsilon) / \sqrt{1 - \beta_2^t}`, the paper's :math:`\hat\epsilon` (Keras, scikit-learn,
        thinc); or :math:`\sqrt{\hat v + \epsilon}` (optax's ``eps_root``).
    amsgrad_max : {"biased", "corrected"}
        Whether `amsgrad` takes the largest :math:`v` (torch, Keras) or the largest :math:`\hat v` (optax).
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: as the first choice for a new problem; the default learning rate is seldom far off. With weight decay
    take `AdamW`. If a run becomes unstable late, try `amsgrad`, a smaller :math:`\beta_2` or a larger `eps`.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015; Reddi, Kale and Kumar, On the
    Convergence of Adam and Beyond, ICLR 2018 (amsgrad).
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "outside",
        amsgrad_max: AmsgradMax = "biased",
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": decoupled_weight_decay,
            "eps_mode": eps_mode,
            "amsgrad_max": amsgrad_max,
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        owner = type(self).__name__
        one_of(owner, "eps_mode", group["eps_mode"], ("outside", "hat", "inside"))
        one_of(owner, "amsgrad_max", group["amsgrad_max"], ("biased", "corrected"))
        if group["amsgrad"] and group["amsgrad_max"] == "corrected" and group["eps_mode"] == "hat":
            raise ValueError(
                f"{owner}: eps_mode 'hat' is of uncorrected moments, got amsgrad_max 'corrected'"
            )

    def rule(self, group: dict[str, Any]) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t, eps, mode = s["step"], group["eps"], group["eps_mode"]
        lr, bc2, max_scale = group["lr"] / (1.0 - beta1**t), 1.0 - beta2**t, 1.0
        if group["amsgrad"] and group["amsgrad_max"] == "corrected":
            bc2, max_scale = 1.0, 1.0 / bc2
        root = math.sqrt(bc2)
        if mode == "hat":
            denominator = (1.0, eps, 0.0)
            lr *= root
        elif mode == "inside":
            denominator = (1.0 / root, 0.0, eps * bc2)
        else:
            denominator = (1.0 / root, eps, 0.0)
        return (lr, beta1, beta2, *denominator, *([max_scale] if group["amsgrad"] else []))
