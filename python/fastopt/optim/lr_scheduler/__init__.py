"""Learning rate schedules, each with a closed form of the step number.

torch's classes step recursively from the rate before; here the rate is computed from the step number alone,
so that the same step gives the same rate however training got there, and a resumed run continues exactly. The
values agree with torch's to rounding. A schedule owns the rate: what a caller sets between its steps lasts
until the next one.
"""

from fastopt.optim.lr_scheduler.base import LRScheduler
from fastopt.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts, WarmupCosineLR
from fastopt.optim.lr_scheduler.cycles import CyclicLR, OneCycleLR
from fastopt.optim.lr_scheduler.factors import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from fastopt.optim.lr_scheduler.param import ParamScheduler
from fastopt.optim.lr_scheduler.plateau import ReduceLROnPlateau
from fastopt.optim.lr_scheduler.sequential import SequentialLR

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ParamScheduler",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "WarmupCosineLR",
]
