"""bitsandbytes: Adam with 8-bit averages, of torch parameters on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import numpy as np
import torch

Calls = dict[str, Callable[[], Any]]


def version() -> str:
    return bitsandbytes.__version__


def set_threads(n: int) -> None:
    torch.set_num_threads(n)


def byte_steppers(options: dict[str, Any], arrays: list[np.ndarray], grads: list[np.ndarray]) -> Calls:
    """Its Adam8bit."""
    params = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.from_numpy(g)
    return {"bitsandbytes": bitsandbytes.optim.Adam8bit(params, **options).step}
