"""What the loss of some samples counts beside that of others."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._reading import Loss
from fastopt._stepping import Block


def targets(block: Block, low: int, high: int) -> Any:
    """Return the targets of some samples of a block's step."""
    rows = slice(block.begin + low, block.begin + high)
    return block.target[rows if block.order is None else block.order[rows]]


def divisor(loss: Loss, target: Any) -> float:
    """Return what the mean of a loss over samples with these targets is divided by, up to a factor of all."""
    if not loss.classes or loss.reduction != "mean" or target.dtype.kind not in "iu":
        return float(len(target))
    used = target[target != loss.ignore_index]
    return float(len(used) if loss.class_weight is None else loss.class_weight[used].sum(dtype=np.float64))
