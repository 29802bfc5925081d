"""Losses with their gradients, and softmax, against torch and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from harness import Aim, Call, Case
from peers import gather

PEERS = ("torch", "jax")

ELEMENTS = 1 << 24
CLASSES = [(4096, 1000), (1024, 32000)]
ELEMENTWISE = ("mse", "bce_with_logits", "smooth_l1")
#: Against what torch's users call; its kernels into existing arrays ("torch-out") are not public.
CROSS_ENTROPY_AIM = Aim(5.0, ("torch-autograd",))


def _logits(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def _cross_entropy(rows: int, columns: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    target = np.random.default_rng(1).integers(0, columns, rows)
    return gather(peers, "cross_entropy", _logits(rows, columns), target)


def _softmax(name: str, rows: int, columns: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    return gather(peers, "softmax", name, _logits(rows, columns))


def _elementwise(name: str, elements: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(elements, dtype=np.float32)
    return gather(peers, "loss", name, x, rng.random(elements, dtype=np.float32))


def cross_entropy(rows: int, columns: int) -> Case:
    """Loss and gradient by the logits: read once, written once."""
    return Case(
        op="loss.cross_entropy",
        mode="forward+backward",
        size=f"{rows}x{columns}",
        build=partial(_cross_entropy, rows, columns),
        flops=4.0 * rows * columns,
        nbytes=8.0 * rows * columns,
        aims=(CROSS_ENTROPY_AIM,),
    )


def elementwise(name: str, elements: int = ELEMENTS) -> Case:
    """Loss and gradient by the input: two arrays read, one written."""
    return Case(
        op=f"loss.{name}",
        mode="forward+backward",
        size="16M" if elements == ELEMENTS else str(elements),
        build=partial(_elementwise, name, elements),
        flops=4.0 * elements,
        nbytes=12.0 * elements,
    )


def softmax(name: str, rows: int, columns: int) -> Case:
    """Of each row."""
    return Case(
        op=name,
        mode="forward",
        size=f"{rows}x{columns}",
        build=partial(_softmax, name, rows, columns),
        flops=3.0 * rows * columns,
        nbytes=8.0 * rows * columns,
    )


CASES = [
    *(cross_entropy(*size) for size in CLASSES),
    *(elementwise(name) for name in ELEMENTWISE),
    *(softmax(name, *CLASSES[0]) for name in ("softmax", "log_softmax")),
]
