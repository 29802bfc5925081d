"""The formulas of the kernels by name, and the ranges of what they take besides arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastopt import _core

Params = tuple[Any, ...]

ACTIVATIONS = _core.activations()
LOSSES = _core.losses()

#: The parameters that an empty ``params`` stands for: torch's defaults.
_DEFAULTS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.01,),
    "elu": (1.0,),
    "softplus": (1.0, 20.0),
    "smooth_l1": (1.0,),
    "huber": (1.0,),
    "bce_with_logits": (1.0,),
    "quantile": (0.5,),
    "sigmoid_focal": (0.25, 2.0),
}

#: Of these the weighted mean is a weighted average, as in torch; of the others the mean of weighted losses.
WEIGHTED_AVERAGE = {"mse", "l1"}

_MAX_SEED = 2**64


class Dropout(NamedTuple):
    """The arguments of `_ops.dropout`, which say what a mask is."""

    p: float
    seed: int
    offset: int


NO_DROPOUT = Dropout(0.0, 0, 0)


def activation_needs(name: str) -> tuple[bool, bool]:
    """Return which of x and y the gradient of an activation reads."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: name is {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    _, needs_x, needs_y = ACTIVATIONS[name]
    return needs_x, needs_y


def check_reduction(call: str, reduction: str, batchmean: bool = False) -> None:
    allowed = ("none", "mean", "sum", "batchmean") if batchmean else ("none", "mean", "sum")
    if reduction not in allowed:
        raise ValueError(f"{call}: reduction must be one of {', '.join(allowed)}, got {reduction!r}")


def check_seed(call: str, seed: int, offset: int) -> None:
    for argument, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < _MAX_SEED:
            raise ValueError(f"{call}: {argument} must be in [0, 2**64), got {value}")


def checked(name: str, params: Params) -> tuple[float, ...]:
    """Return the parameters of a formula, refused where they are out of range."""
    if not params:
        return _DEFAULTS.get(name, ())
    values = tuple(float(value) for value in params)
    names = (ACTIVATIONS.get(name) or LOSSES.get(name) or (values,))[0]
    if len(values) != len(names):
        raise TypeError(f"{name}: params has {len(values)} entries, expected {len(names)}")
    for argument, value in zip(names, values, strict=True):
        if math.isnan(value) or (math.isinf(value) and argument != "threshold"):
            raise ValueError(f"{name}: {argument} must be finite, got {value}")
    if name == "softplus" and values[0] == 0:
        raise ValueError(f"softplus: beta must not be 0, got {values[0]}")
    if name == "smooth_l1" and values[0] < 0:
        raise ValueError(f"smooth_l1: beta must be at least 0, got {values[0]}")
    if name == "huber" and values[0] <= 0:
        raise ValueError(f"huber: delta must be above 0, got {values[0]}")
    if name == "quantile" and not 0 < values[0] < 1:
        raise ValueError(f"quantile: quantile must be in (0, 1), got {values[0]}")
    if name == "sigmoid_focal" and values[0] > 1:
        raise ValueError(f"sigmoid_focal: alpha must be at most 1, got {values[0]}")
    if name == "sigmoid_focal" and values[1] < 0:
        raise ValueError(f"sigmoid_focal: gamma must be at least 0, got {values[1]}")
    return values


def class_axis(call: str, x: Any, target: Any, ignore_index: int) -> tuple[int, bool]:
    """Return the axis of the classes in a loss's input, and whether the target names classes.

    Raises
    ------
    TypeError, ValueError
        The target has another shape or dtype than either classes or probabilities would have.
    """
    if x.ndim == 0:
        raise ValueError(f"{call}: input has shape (), expected (C,), (N, C) or (N, C, d1, ...)")
    axis = 0 if x.ndim == 1 else 1
    by_class = target.dtype.kind in "iu"
    if not by_class and (call == "nll" or target.dtype != x.dtype):
        kinds = "integers" if call == "nll" else f"integers, or {x.dtype} probabilities as the input"
        raise TypeError(f"{call}: target is {target.dtype}, expected {kinds}")
    expected = x.shape[:axis] + x.shape[axis + 1 :] if by_class else x.shape
    if target.shape != expected:
        raise ValueError(
            f"{call}: target has shape {target.shape}, input has shape {x.shape}: expected "
            f"{'classes' if by_class else 'probabilities'} of shape {expected}"
        )
    if not by_class and ignore_index >= 0:
        raise ValueError(f"{call}: ignore_index is {ignore_index}, target has probabilities and not classes")
    return axis, by_class
