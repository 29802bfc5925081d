"""NovoGrad."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, Interval
from fastopt.optim.layerwise import LayerwiseOptimizer
from fastopt.optim.plans import Plan
from fastopt.optim.rule import COMMON_RANGES, Common


class NovoGrad(LayerwiseOptimizer):
    r"""NovoGrad: momentum of gradients that are divided by a running norm, one number for each parameter.

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) \lVert g \rVert^2, \qquad v \leftarrow \lVert g \rVert^2
        \text{ where it is } 0 \\
        m &\leftarrow \beta_1 m + \frac{g}{\sqrt{v} + \epsilon} + \lambda p, \qquad p \leftarrow p - \eta m

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`. Each array is a layer.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        :math:`\beta_1` and :math:`\beta_2`. The paper's :math:`\beta_2` is 0.98 for speech and 0.25 elsewhere.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`.
    grad_averaging : bool
        Multiply what is added to :math:`m` by :math:`1 - \beta_1`.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`. Gradients are measured after
        clipping and the L1 penalty.

    Notes
    -----
    When to use: to save memory: the second moment is one number a layer. Made for speech recognition and used with
    large batches; learning rates are near those of `SGD`.

    References
    ----------
    Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks,
    2019; NVIDIA's code for Jasper.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
    }
    numbers = ("exp_avg_sq",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_averaging: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "decoupled_weight_decay": False,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "momentum"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1 = group["betas"][0]
        return group["lr"], beta1, 1.0 - beta1 if group["grad_averaging"] else 1.0

    def factors(self, plan: Plan, grads: list[Any], update: Any, param: Any) -> tuple[Any, Any, Any]:
        beta2 = self._each(plan, "betas", lambda group: group["betas"][1])
        squares = update**2

        def second(v: Any) -> Any:
            return self._placement.where(v == 0, squares, beta2 * v + (1.0 - beta2) * squares)

        v = self._updated(plan, "exp_avg_sq", grads, second)
        return 1.0 / (v**0.5 + self._each(plan, "eps")), 1.0, 1.0
