"""Linear layers with bias and ReLU: forward, and backward for input, weight and bias, against torch and NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from harness import Aim, Call, Case
from peers import gather

PEERS = ("torch", "numpy")

#: (batch, out, in).
SIZES = [
    (1, 256, 784),
    (8, 1024, 1024),
    (64, 10, 256),
    (64, 256, 784),
    (128, 512, 784),
    (256, 1024, 1024),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (64, 4096, 4096),
]
AIM = Aim(1.0)
#: Of the geometric mean over all sizes and both directions.
MEAN_AIM = 1.25


def _arrays(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((m, k), dtype=np.float32)
    w = rng.standard_normal((n, k), dtype=np.float32) / np.float32(k**0.5)
    return x, w, rng.standard_normal(n, dtype=np.float32)


def _forward(size: tuple[int, int, int], peers: Mapping[str, Any]) -> dict[str, Call]:
    return gather(peers, "linear_forward", *_arrays(*size))


def _backward(size: tuple[int, int, int], peers: Mapping[str, Any]) -> dict[str, Call]:
    x, w, b = _arrays(*size)
    y = np.maximum(x @ w.T + b, 0)
    dy = np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32)
    return gather(peers, "linear_backward", dy, x, w, y)


def case(mode: str, m: int, n: int, k: int) -> Case:
    """The layer of one size; forward makes one product of 2 m n k operations, backward two."""
    forward = mode == "forward"
    elements = m * k + n * k + n + m * n if forward else 2 * (m * k + n * k + m * n) + n
    return Case(
        op="linear",
        mode=mode,
        size=f"{m}x{n}x{k}",
        build=partial(_forward if forward else _backward, (m, n, k)),
        flops=2.0 * m * n * k * (1 if forward else 2),
        nbytes=4.0 * elements,
        unit="GFLOP/s",
        ceilings=("fma", "copy", "stream"),
        aims=(AIM,),
    )


CASES = [case(mode, *size) for size in SIZES for mode in ("forward", "backward")]
