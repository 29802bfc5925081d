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
    return values
