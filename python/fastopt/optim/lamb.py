"""LAMB."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, POSITIVE, Interval
from fastopt.optim.layerwise import LayerwiseOptimizer
from fastopt.optim.plans import Plan
from fastopt.optim.rule import COMMON_RANGES, Common


class LAMB(LayerwiseOptimizer):
    r"""LAMB: Adam whose rate is scaled for each parameter by its norm over that of its update.

    .. math::
        u &= \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda p, \qquad
        r = \frac{\phi(\lVert p \rVert)}{\lVert u \rVert}, \qquad
        p \leftarrow p - \eta \, r \, u

    with :math:`\hat m` and :math:`\hat v` the moments of `Adam`. The ratio is 1 where a norm is 0.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`. Each array is a layer.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay rates of the moments.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`.
    bias_correction : bool
        Divide the moments by :math:`1 - \beta^t`.
    use_nvlamb : bool
        Scale groups without weight decay too, as the paper and optax do; NVIDIA's LAMB leaves their ratio at 1.
    max_param_norm : float or None
        The largest norm that counts, :math:`\phi(x) = \min(x, \cdot)`; 10 in the paper's first version.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`. NVIDIA's LAMB has a
        ``max_norm`` of 1.

    Notes
    -----
    When to use: for transformers with very large batches, the purpose it was made for, BERT with 32 thousand samples.
    With ordinary batches take `AdamW`.

    References
    ----------
    You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, ICLR 2020.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
        "max_param_norm": POSITIVE,
    }
    optional = (*LayerwiseOptimizer.optional, "max_param_norm")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        bias_correction: bool = True,
        use_nvlamb: bool = False,
        max_param_norm: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "use_nvlamb": use_nvlamb,
            "max_param_norm": max_param_norm,
            "decoupled_weight_decay": False,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "lamb"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        corrected = group["bias_correction"]
        rsqrt_bc2 = 1.0 / math.sqrt(1.0 - beta2 ** s["step"]) if corrected else 1.0
        rbc1 = 1.0 / (1.0 - beta1 ** s["step"]) if corrected else 1.0
        return group["lr"], beta1, beta2, rsqrt_bc2, group["eps"], rbc1, group["weight_decay"]

    def _coefficient_row(self, group: dict[str, Any], s: dict[str, float], scale: float) -> tuple[float, ...]:
        row = super()._coefficient_row(group, s, scale)
        return *row[:3], 0.0, *row[4:]  # the rule decays, not the gradient

    def factors(self, plan: Plan, grads: list[Any], update: Any, param: Any) -> tuple[Any, Any, Any]:
        limit = self._each(plan, "max_param_norm", lambda group: group["max_param_norm"] or math.inf)
        norm = self._placement.where(param < limit, param, limit)
        scaled = self._each(
            plan, "use_nvlamb", lambda group: group["use_nvlamb"] or group["weight_decay"] != 0
        )
        ratio = self._trust(norm, update, update, param)
        return 1.0, 1.0, self._placement.where(scaled > 0, ratio, 1.0)
