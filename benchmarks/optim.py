"""Optimizer steps: ours against torch's best implementation of the same class, on four sets of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import fastopt as fo
from harness import Aim, Call, Case

PEERS = ("torch",)

#: Sets of shapes: where memory decides, a deep network's many tensors, a small network, and many small tensors.
SETS = {
    "1 x 64M": [(64_000_000,)],
    "161 x 29M": [(64, 3, 7, 7), *[(512, 352)] * 160],
    "mlp 784-256-10": [(256, 784), (256,), (10, 256), (10,)],
    "1000 x 64x64": [(64, 64)] * 1000,
}
#: The target of the ratio (best of torch / ours) for classes that torch fuses; twice that for the others.
TARGETS = {"1 x 64M": 0.95, "161 x 29M": 1.0, "mlp 784-256-10": 2.0, "1000 x 64x64": 3.5}
FUSED = {"SGD", "Adam", "AdamW", "Adagrad"}

#: Class -> options.
OPTIMIZERS = {
    "AdamW": {"lr": 1e-3},
    "Adam": {"lr": 1e-3},
    "SGD": {"lr": 1e-3, "momentum": 0.9},
    "Adagrad": {"lr": 1e-2},
    "RMSprop": {"lr": 1e-2},
    "NAdam": {"lr": 2e-3},
    "Adadelta": {"lr": 1.0},
}
STATES = {"AdamW": 2, "Adam": 2, "NAdam": 2, "Adadelta": 2, "SGD": 1, "Adagrad": 1, "RMSprop": 1}


def _build(size: str, name: str, peers: Mapping[str, Any]) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in SETS[size]]
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in SETS[size]]
    calls: dict[str, Call] = {}
    for peer in peers.values():
        calls |= peer.steppers(name, OPTIMIZERS[name], arrays, grads)
    return {"fastopt": partial(getattr(fo.optim, name)(arrays, **OPTIMIZERS[name]).step, grads), **calls}


def case(size: str, name: str) -> Case:
    """A class on a set: parameter and state are read and written, the gradient is read."""
    elements = sum(int(np.prod(shape)) for shape in SETS[size])
    return Case(
        op=f"optim.{name}",
        mode="step",
        size=size,
        build=partial(_build, size, name),
        flops=10.0 * elements,
        nbytes=4.0 * elements * (3 + 2 * STATES[name]),
        ceilings=("stream",),
        stream_bytes=4.0 * elements * (2 + STATES[name]),
        aims=(Aim(TARGETS[size] * (1 if name in FUSED else 2)),),
        calls=0,
    )


CASES = [case(size, name) for size in SETS for name in OPTIMIZERS]
