"""LARS."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

import numpy as np

from fastopt.optim.base import NONNEGATIVE, POSITIVE, Interval
from fastopt.optim.layerwise import LayerwiseOptimizer
from fastopt.optim.plans import Plan
from fastopt.optim.rule import Common, RuleOptimizer
from fastopt.optim.sgd import SGD, MomentumForm

_RATIOS = ("paper", "joint")


class LARS(LayerwiseOptimizer, SGD):
    r"""LARS: momentum whose rate is scaled for each parameter by its norm over that of its gradient.

    .. math::
        r &= \frac{\kappa \, \lVert p \rVert}{\lVert g \rVert + \lambda \lVert p \rVert + \epsilon} \\
        b &\leftarrow \mu b + \eta \, r \, (g + \lambda p), \qquad p \leftarrow p - b

    The ratio is 1 where a norm is 0.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`. Each array is a layer.
    lr : float
        Learning rate :math:`\eta`.
    momentum, dampening, nesterov, momentum_form
        As for `SGD`. The paper's form is "velocity"; "torch" leaves the rate out of the buffer.
    weight_decay : float
        :math:`\lambda`.
    trust_coefficient : float
        :math:`\kappa`.
    eps : float
        :math:`\epsilon`.
    ratio : {"paper", "joint"}
        "joint" divides by :math:`\lVert g + \lambda p \rVert + \epsilon` instead, as optax does.
    skip_1d : bool
        Parameters of fewer than two dimensions (biases, gains) have a ratio of 1 and no decay.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`. Gradients are measured after
        clipping and the L1 penalty.

    Notes
    -----
    When to use: for convolutional networks with very large batches (thousands of samples), where one learning rate for
    all layers fails. With ordinary batches `SGD` with momentum does as well.

    References
    ----------
    You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **SGD.ranges,
        "trust_coefficient": POSITIVE,
        "eps": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        ratio: Literal["paper", "joint"] = "paper",
        skip_1d: bool = True,
        momentum_form: MomentumForm = "velocity",
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "ratio": ratio,
            "skip_1d": skip_1d,
            "momentum_form": momentum_form,
            "decoupled_weight_decay": False,
        }
        RuleOptimizer.__init__(self, params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        SGD.check(self, group)
        if group["ratio"] not in _RATIOS:
            raise ValueError(f"LARS: ratio must be one of {_RATIOS}, got {group['ratio']!r}")

    def _decays_first(self, group: dict[str, Any]) -> bool:
        return bool(group["ratio"] == "joint")

    def factors(self, plan: Plan, grads: list[Any], update: Any, param: Any) -> tuple[Any, Any, Any]:
        apart = self._each(
            plan, "ratio", lambda group: 0.0 if self._decays_first(group) else group["weight_decay"]
        )
        denominator = update + apart * param + self._each(plan, "eps")
        ratio = self._trust(self._each(plan, "trust_coefficient") * param, denominator, update, param)
        adapted, where = self._adapted(plan), self._placement.where
        return where(adapted, ratio, 1.0), where(adapted, ratio, 0.0), 1.0

    def _adapted(self, plan: Plan) -> Any:
        """Return for each parameter whether its rate is scaled."""
        vectors = np.array([self._dense[i].source.ndim < 2 for i in plan.index])
        groups = [self.param_groups[self._rows[self._row_of[i]].group] for i in plan.index]
        skipped = vectors & [bool(group["skip_1d"]) for group in groups]
        return self._kept(plan, "adapted", ~skipped)
