"""The settings that all rule optimizers have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

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
        Scale gradients by ``min(1, max_norm / (norm + 1e-6))``.
    clip_scope : {"global", "group", "parameter"}
        What `norm` is of: all gradients, those of a group, or each by itself. Groups may have a `max_norm` of their
        own but for "global".
    norm_type : {2.0, 1.0, inf}
        The order of a global norm; the others are of order 2.
    adaptive_clip : float or None
        Scale the gradient of each unit by ``min(1, adaptive_clip * max(norm of its weights, adaptive_clip_eps) / norm
        of its gradient)``. A unit is what has the same first index, an output of a linear or convolutional layer in
        torch's layout; arrays with fewer than two axes longer than 1 are one unit. With state in "int8" units are
        multiples of 128 elements; bfloat16 weights are measured as they are stored. Brock et al., High-Performance
        Large-Scale Image Recognition Without Normalization, ICML 2021; groups of final layers set it to None there.
    adaptive_clip_eps : float
        See there.
    clip_value : float or None
        Limit every gradient element to ``[-clip_value, clip_value]``, after the kinds above.
    ema_decay : float or None
        Keep ``ema = ema_decay * ema + (1 - ema_decay) * p``, starting from the parameters at the first step;
        see `RuleOptimizer.swap_ema`.
    weight_decay_mode : {"l2", "decoupled", "decoupled_after", "fixed"}, optional
        What ``weight_decay`` does: ``weight_decay * p`` is added to the gradient ("l2"), or `p` is multiplied by
        ``1 - lr * weight_decay`` before the step ("decoupled") or after it ("decoupled_after"), or by
        ``1 - weight_decay``, whatever the rate ("fixed"). None: one of the first two, as the optimizer's
        ``decoupled_weight_decay`` says.
    state_dtype : {"float32", "bfloat16", "int8"}
        How the rule's running averages are stored: in 4, 2 or 1 bytes (and one more for each 128 elements) an
        element. They are computed in float32 and rounded by chance, which keeps them unbiased; the chances
        depend on the step's number alone. Of float64 parameters they stay float64.
    rounding : {"nearest", "stochastic", "exact"}
        How bfloat16 parameters are rounded after a step: to the nearest, by chance, or not at all: ``"exact"``
        keeps the 16 bits that they lack of float32 as state.
    no_decay : str, sequence of str, callable or None
        Parameters that get a weight decay of 0, in a group of their own behind the others: those in whose names one
        of the strings is found, whatever its case (one with a ``*``, ``?`` or ``[`` matches the whole name), or for
        which the function of name and array holds, as ``("bias", "norm")`` or ``lambda name, p: p.ndim < 2``.
        Gradients keep the structure in which the parameters were given. A group may have its own.
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
    clip_scope: Literal["global", "group", "parameter"]
    norm_type: float
    adaptive_clip: float | None
    adaptive_clip_eps: float
    clip_value: float | None
    ema_decay: float | None
    weight_decay_mode: str | None
    state_dtype: str
    rounding: str
    no_decay: str | Sequence[str] | Callable[[str, Any], bool] | None
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
    "adaptive_clip": POSITIVE,
    "adaptive_clip_eps": POSITIVE,
    "ema_decay": FRACTION,
}
