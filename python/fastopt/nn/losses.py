"""Losses as modules: the functions of `functional` with their options set once."""

from __future__ import annotations

from typing import Any

from fastopt import functional
from fastopt._losses import KL_REDUCTIONS, REDUCTIONS, check_reduction
from fastopt.nn.module import Module
from fastopt.tensor import Tensor


class _Loss(Module):
    """A loss with a `reduction`."""

    reductions: tuple[str, ...] = REDUCTIONS

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(type(self).__name__, reduction, self.reductions)
        self.reduction = reduction


class CrossEntropyLoss(_Loss):
    """Logits against classes or probabilities: see `fastopt.functional.cross_entropy`."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be in [0, 1], got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Any, target: Any) -> Any:
        return functional.cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class NLLLoss(_Loss):
    """Log-probabilities against classes: see `fastopt.functional.nll_loss`."""

    weight: Tensor | None

    def __init__(self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Any, target: Any) -> Any:
        return functional.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class BCELoss(_Loss):
    """Probabilities against probabilities, element by element: see `fastopt.functional.binary_cross_entropy`."""

    weight: Tensor | None

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Any, target: Any) -> Any:
        return functional.binary_cross_entropy(input, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Logits against probabilities: see `fastopt.functional.binary_cross_entropy_with_logits`."""

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Any, target: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, self.reduction, self.pos_weight
        )


class MSELoss(_Loss):
    """The squared difference: see `fastopt.functional.mse_loss`."""

    def forward(self, input: Any, target: Any) -> Any:
        return functional.mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """The absolute difference: see `fastopt.functional.l1_loss`."""

    def forward(self, input: Any, target: Any) -> Any:
        return functional.l1_loss(input, target, self.reduction)


class SmoothL1Loss(_Loss):
    """Squared below `beta`, absolute above: see `fastopt.functional.smooth_l1_loss`."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if not beta >= 0:
            raise ValueError(f"SmoothL1Loss: beta must be at least 0, got {beta}")
        self.beta = beta

    def forward(self, input: Any, target: Any) -> Any:
        return functional.smooth_l1_loss(input, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """Squared up to `delta`, absolute above: see `fastopt.functional.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss: delta must be above 0, got {delta}")
        self.delta = delta

    def forward(self, input: Any, target: Any) -> Any:
        return functional.huber_loss(input, target, self.reduction, self.delta)


class KLDivLoss(_Loss):
    """The Kullback-Leibler divergence: see `fastopt.functional.kl_div`, also for "mean" and "batchmean"."""

    reductions = KL_REDUCTIONS

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, input: Any, target: Any) -> Any:
        return functional.kl_div(input, target, self.reduction, self.log_target)


class PoissonNLLLoss(_Loss):
    """Logarithms of means against counts: see `fastopt.functional.poisson_nll_loss`."""

    def forward(self, input: Any, target: Any) -> Any:
        return functional.poisson_nll_loss(input, target, self.reduction)


class QuantileLoss(_Loss):
    """The pinball loss: see `fastopt.functional.quantile_loss`."""

    def __init__(self, quantile: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not 0 < quantile < 1:
            raise ValueError(f"QuantileLoss: quantile must be in (0, 1), got {quantile}")
        self.quantile = quantile

    def forward(self, input: Any, target: Any) -> Any:
        return functional.quantile_loss(input, target, self.reduction, self.quantile)


class SigmoidFocalLoss(_Loss):
    """Logits against probabilities, the sure ones counting less: see `fastopt.functional.sigmoid_focal_loss`."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not alpha <= 1:
            raise ValueError(f"SigmoidFocalLoss: alpha must be at most 1, got {alpha}")
        if not gamma >= 0:
            raise ValueError(f"SigmoidFocalLoss: gamma must be at least 0, got {gamma}")
        self.alpha, self.gamma = alpha, gamma

    def forward(self, input: Any, target: Any) -> Any:
        return functional.sigmoid_focal_loss(input, target, self.alpha, self.gamma, self.reduction)
