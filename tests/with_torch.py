"""What the comparisons with torch share."""

from __future__ import annotations

from typing import Any

import numpy as np


def torch_grad(torch: Any, x: np.ndarray, function: Any) -> tuple[np.ndarray, np.ndarray]:
    t = torch.tensor(x, requires_grad=True)
    loss = function(t)
    loss.sum().backward()
    return loss.detach().numpy(), t.grad.numpy()


def tolerance(dtype: np.dtype) -> dict[str, float]:
    return {"rtol": 2e-5, "atol": 2e-6} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-14}
