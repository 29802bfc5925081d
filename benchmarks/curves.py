"""Cost against size: training steps over batch and width, Adam over the number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import train
from harness import Call, Case
from peers import gather

PEERS = ("torch", "jax")

BATCHES = [1, 4, 16, 64, 256, 1024, 4096]
WIDTHS = [16, 64, 256, 1024, 4096]
PARAMETERS = [10**4, 10**5, 10**6, 10**7, 10**8, 3 * 10**8, 10**9]
#: From here on no peer fits into memory beside us.
ALONE = 10**9
#: Four bytes a parameter each: its gradient, and for each provider itself and two moments.
ARRAYS = 1 + 3 * 3
ARRAYS_ALONE = 1 + 3


def _adam(parameters: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    peers = {} if parameters >= ALONE else peers
    arrays = [np.full(parameters, 0.5, np.float32)]
    grads = [np.full(parameters, 0.01, np.float32)]
    return gather(peers, "adam", arrays, grads)


def adam(parameters: int) -> Case:
    """One array of so many parameters."""
    return Case(
        op="adam",
        mode="step",
        size=f"{parameters:.0e}".replace("e+0", "e"),
        build=partial(_adam, parameters),
        flops=12.0 * parameters,
        nbytes=28.0 * parameters,
        calls=2,
        memory=4.0 * parameters * (ARRAYS_ALONE if parameters >= ALONE else ARRAYS),
    )


CASES = [
    *(train.case((784, 256, 10), b, op="batch", batches=4, compile=False) for b in BATCHES),
    *(train.case((784, w, 10), 64, op="width", batches=8, compile=False) for w in WIDTHS),
    *(adam(n) for n in PARAMETERS),
]
