"""The settings that Adam and its relatives share."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from fastopt.optim.base import FRACTION, NONNEGATIVE, Interval, one_of
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class AdamFamily(RuleOptimizer):
    """Base class of the rules with betas, an eps and either form of weight decay; `more` are a rule's own settings."""

    #: Where eps may be; a class with a choice has the setting ``eps_mode``.
    eps_modes: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Interval]] = {
        **COMMON_RANGES,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, ...],
        eps: float,
        weight_decay: float,
        decoupled_weight_decay: bool,
        more: dict[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            **(more or {}),
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        if self.eps_modes:
            one_of(type(self).__name__, "eps_mode", group["eps_mode"], self.eps_modes)
