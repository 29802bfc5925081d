"""Batch normalisation in training: result, running statistics and all gradients, against torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from harness import Call, Case
from peers import gather

PEERS = ("torch",)

SIZES = [(64, 256), (256, 1024), (4096, 1024), (65536, 64)]


def _build(rows: int, columns: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(columns, dtype=np.float32) for _ in range(2))
    return gather(peers, "batch_norm", x, dy, weight, bias)


def case(rows: int, columns: int) -> Case:
    """The input is read twice and the result written, then both gradients' inputs are read twice and one is written."""
    return Case(
        op="batch_norm",
        mode="forward+backward",
        size=f"{rows}x{columns}",
        build=partial(_build, rows, columns),
        flops=16.0 * rows * columns,
        nbytes=32.0 * rows * columns,
    )


CASES = [case(*size) for size in SIZES]
