"""Activations and their gradients over 16M elements into an existing array, beside the copy bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from harness import Aim, Call, Case
from peers import gather

PEERS = ("torch", "numpy")

ELEMENTS = 1 << 24
NAMES = ("relu", "gelu", "sigmoid", "tanh", "silu", "leaky_relu", "elu", "softplus")
AIM = Aim(0.8, share=True)
AIMED = NAMES[:4]


def _arrays(elements: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(elements, dtype=np.float32), rng.standard_normal(elements, dtype=np.float32)


def _forward(name: str, elements: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    return gather(peers, "activation", name, _arrays(elements)[0])


def _backward(name: str, elements: int, peers: Mapping[str, Any]) -> dict[str, Call]:
    from fastopt import functional

    x, dy = _arrays(elements)
    return gather(peers, "activation_grad", name, dy, x, getattr(functional, name)(x))


def case(mode: str, name: str, elements: int = ELEMENTS) -> Case:
    """One activation: forward reads one array and writes one, backward reads two."""
    forward = mode == "forward"
    return Case(
        op=f"activation.{name}",
        mode=mode,
        size="16M" if elements == ELEMENTS else str(elements),
        build=partial(_forward if forward else _backward, name, elements),
        flops=float(elements),
        nbytes=(8.0 if forward else 12.0) * elements,
        aims=(AIM,) if forward and name in AIMED else (),
    )


CASES = [case(mode, name) for mode in ("forward", "backward") for name in NAMES]
