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


@pytest.mark.parametrize("name", ["Muon", "Adafactor", "SOAP"])
def test_matrix_optimizers_read_the_gradients_of_parameters(cp: Any, kind: str, name: str) -> None:
    """In float64, which tells rounding of another library from mistakes."""
    start = [drawn((6, 6), np.float64, 1), drawn((4, 4), np.float64, 2)]
    there = [torch_tensor(kind, a).requires_grad_() for a in start]
    here = [torch.tensor(a, requires_grad=True) for a in start]
    runs = [(params, getattr(fo.torch, name)(params, lr=0.01)) for params in (there, here)]
    for t in range(4):
        for params, opt in runs:
            for i, p in enumerate(params):
                g = drawn(start[i].shape, np.float64, 10 * t + i)
                p.grad = torch_tensor(kind, g) if params is there else torch.tensor(g)
            opt.step()
    for p, q in zip(there, here, strict=True):
        assert p.requires_grad
        np.testing.assert_allclose(p.detach().cpu().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-11)
    assert all(torch.is_tensor(a) for entry in runs[0][1].state.values() for a in entry.values())


def test_rows_of_sparse_gradients(cp: Any, kind: str, fused: None) -> None:
    """As torch's embeddings have them."""
    table, indices, rows = drawn((9, 4), "float32", 1), np.array([5, 1, 5]), drawn((3, 4), "float32", 2)
    there, here = torch_tensor(kind, table), torch.tensor(table)
    for p in (there, here):
        i, r = (indices, rows) if p is here else (torch_tensor(kind, indices), torch_tensor(kind, rows))
        opt = fo.optim.SparseAdam([p], lr=0.1)
        for _ in range(2):
            opt.step([(torch.as_tensor(i), torch.as_tensor(r))])
    np.testing.assert_array_equal(there.cpu().numpy(), here.numpy())
