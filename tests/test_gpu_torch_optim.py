"""fastopt.torch with tensors on a device, or over host memory where there is none."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from gpu_tools import cp, drawn, fused, kind
from host_gpu import torch_tensor

__all__ = ["cp", "fused", "kind"]

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def test_steps_and_state_are_those_of_the_host(cp: Any, kind: str, fused: None) -> None:
    start = [drawn((33, 5), "float32", 1), drawn((7,), "float32", 2)]
    grads = [[drawn((33, 5), "float32", 3 + t), drawn((7,), "float32", 13 + t)] for t in range(4)]
    there = [torch_tensor(kind, a).requires_grad_() for a in start]
    here = [torch.tensor(a, requires_grad=True) for a in start]
    runs = [(there, fo.torch.AdamW(there, lr=0.01)), (here, fo.torch.AdamW(here, lr=0.01))]

    def step(t: int) -> None:
        for params, opt in runs:
            for p, g in zip(params, grads[t], strict=True):
                p.grad = torch_tensor(kind, g) if params is there else torch.tensor(g)
            opt.step()

    step(0)
    step(1)
    on_device, on_host = (opt.state_dict()["state"] for _, opt in runs)
    for i, entry in on_host.items():
        for key, value in entry.items():
            assert torch.is_tensor(on_device[i][key])
            np.testing.assert_array_equal(on_device[i][key].cpu().numpy(), value.numpy())
    # The state of one goes to the other.
    saved = copy.deepcopy(runs[1][1].state_dict())
    runs[0][1].load_state_dict(saved)
    step(2)
    step(3)
    for p, q in zip(there, here, strict=True):
        np.testing.assert_array_equal(p.detach().cpu().numpy(), q.detach().numpy())
