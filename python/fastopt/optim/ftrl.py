"""FTRL-Proximal."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import NONNEGATIVE, POSITIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Ftrl(RuleOptimizer):
    r"""FTRL-Proximal: parameters are what is best for the sum of all gradients so far, exactly 0 under an L1 penalty.

    .. math::
        n' &= n + g^2, \qquad
        z \leftarrow z + g + 2 \lambda_s p - \frac{n'^{-\kappa} - n^{-\kappa}}{\eta} p \\
        p &\leftarrow \frac{\min(\max(z, -\lambda_1), \lambda_1) - z}{n'^{-\kappa} / \eta + 2 \lambda_2 + \beta / \eta}

    The paper's form has :math:`\kappa = -\tfrac12`: the rate of an element is
    :math:`\eta / (\beta + \sqrt{\sum g^2})`. As :math:`z` starts from 0, the first step forgets where the parameters
    were as far as :math:`n` does not start from 0.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`, not 0.
    learning_rate_power : float
        :math:`\kappa`, at most 0; 0 keeps the rate.
    initial_accumulator_value : float
        What :math:`n` starts from.
    l1_regularization_strength, l2_regularization_strength : float
        :math:`\lambda_1` and :math:`\lambda_2`, penalties of the parameters that are solved for.
    l2_shrinkage_regularization_strength : float
        :math:`\lambda_s`, a penalty through the gradient, which :math:`n` does not see.
    beta : float
        :math:`\beta`.
    weight_decay : float
        Adds ``weight_decay * p`` to the gradient.
    decoupled_weight_decay : bool
        Multiply the `p` on the right by ``1 - lr * weight_decay`` instead of changing the gradient.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`. ``l1`` is a penalty through
        the gradient.

    Notes
    -----
    When to use: linear models and embeddings of sparse, one-hot features, one pass over a stream of data; with
    ``l1_regularization_strength`` weights that do not help are exactly 0. Networks of several layers train better
    with Adam.

    References
    ----------
    McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013; names and further penalties are Keras's.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "lr": POSITIVE,
        "learning_rate_power": Interval(float("-inf"), 0.0, "(-inf, 0]"),
        "initial_accumulator_value": NONNEGATIVE,
        "l1_regularization_strength": NONNEGATIVE,
        "l2_regularization_strength": NONNEGATIVE,
        "l2_shrinkage_regularization_strength": NONNEGATIVE,
        "beta": NONNEGATIVE,
    }
    decay_modes: ClassVar[tuple[str, ...]] = ("l2", "decoupled")
    eager_state = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "learning_rate_power": learning_rate_power,
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
            "beta": beta,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, settings, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "ftrl" if group["learning_rate_power"] == -0.5 else "ftrl_power"

    def initial(self, group: dict[str, Any], state: str) -> float:
        value: float = group["initial_accumulator_value"]
        return value if state == "accumulator" else 0.0

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        return 1.0  # the rule decays what it measures the step from

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        rlr = 1.0 / group["lr"]
        l2 = 2.0 * group["l2_regularization_strength"] + group["beta"] * rlr
        shrinkage = 2.0 * group["l2_shrinkage_regularization_strength"]
        penalties = group["l1_regularization_strength"], l2, shrinkage
        power = () if self.rule(group) == "ftrl" else (-group["learning_rate_power"],)
        return 1.0, rlr, *penalties, super().decay(group, s), *power
