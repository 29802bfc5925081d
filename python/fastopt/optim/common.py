"""The settings that all rule optimizers have."""

from __future__ import annotations

from typing import Literal, TypedDict

from fastopt.optim.base import FRACTION, NONNEGATIVE, POSITIVE


class Common(TypedDict, total=False):
    """The keyword arguments that all of these optimizers take.

    Attributes
    ----------
    maximize : bool
        Ascend instead of descend.
    l1 : float
        Strength of the L1 penalty: ``l1 * sign(p)`` is added to the gradient.
    max_norm : float or None
        Scale all gradients together by ``min(1, max_norm / (norm + 1e-6))``, `norm` being their L2 norm over
        all groups.
    clip_value : float or None
        Limit every gradient element to ``[-clip_value, clip_value]``, after `max_norm`.
    ema_decay : float or None
        Keep ``ema = ema_decay * ema + (1 - ema_decay) * p``, starting from the parameters at the first step;
        see `RuleOptimizer.swap_ema`.
    accumulate : int
        How many calls of `step` make one update, with the mean of their gradients; the others only add theirs. A
        parameter that had none in a call counts it as zeros, and is skipped where it had none in all of them.
    accumulate_reduction : {"mean", "sum"}
        The sum is for losses that were divided by `accumulate` already, as torch's recipes do.
    foreach, fused : bool or None
        Accepted for torch's sake and ignored: every step is fused.
    """

    maximize: bool
    l1: float
    max_norm: float | None
    clip_value: float | None
    ema_decay: float | None
    accumulate: int
    accumulate_reduction: Literal["mean", "sum"]
    foreach: bool | None
    fused: bool | None


#: Ranges of the settings that all of these optimizers have.
COMMON_RANGES = {
    "lr": NONNEGATIVE,
    "weight_decay": NONNEGATIVE,
    "l1": NONNEGATIVE,
    "clip_value": POSITIVE,
    "ema_decay": FRACTION,
}
