"""What else an optimizer's step does, and what it stores: scaled losses, clipping and averages in the same pass,
state in fewer bytes, every rule against the bytes that it has to move, and the optimizers of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import fastopt as fo
from harness import Aim, Call, Case
from optim import OPTIMIZERS, SETS

PEERS = ("torch", "jax", "sklearn", "thinc", "bitsandbytes")
DEEP, LARGE = "161 x 29M", "1 x 64M"
MAX_NORM, EMA_DECAY = 1.0, 0.999

#: Rules without a matrix step that benchmarks/optim.py does not have: their options, and how many arrays of state.
RULES: dict[str, tuple[dict[str, Any], int]] = {
    "ADOPT": ({}, 2),
    "ASGD": ({}, 1),
    "AdEMAMix": ({}, 3),
    "AdaBelief": ({}, 2),
    "Adamax": ({}, 2),
    "Adan": ({}, 4),
    "Ftrl": ({}, 2),
    "Lion": ({}, 1),
    "RAdam": ({}, 2),
    "Rprop": ({}, 2),
    "Yogi": ({}, 2),
}
#: Bytes of state an element, and the least of the speed of float32 state that they are to have.
_BYTES = 2.0 + 2.0 / 128
STATES = {"bfloat16": (4.0, 1.25), "int8": (_BYTES, 1.4)}


def _drawn(size: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    first, second = ([rng.standard_normal(s, dtype=np.float32) for s in SETS[size]] for _ in range(2))
    return first, second


def _elements(size: str) -> int:
    return sum(int(np.prod(shape)) for shape in SETS[size])


def _case(op: str, size: str, build: Any, bytes_each: float, arrays: float, *aims: Aim) -> Case:
    elements = _elements(size)
    return Case(
        op=op,
        mode="step",
        size=size,
        build=build,
        flops=10.0 * elements,
        nbytes=bytes_each * elements,
        ceilings=("stream",),
        stream_bytes=4.0 * elements * arrays,
        aims=aims,
        calls=0,
    )


def _tail(peers: Mapping[str, Any]) -> dict[str, Call]:
    arrays, grads = _drawn(DEEP)
    calls: dict[str, Call] = {}
    for peer in peers.values():
        if hasattr(peer, "tails"):
            calls |= peer.tails(arrays, grads, MAX_NORM, EMA_DECAY)
    optimizer = fo.optim.AdamW(arrays, max_norm=MAX_NORM, ema_decay=EMA_DECAY)
    scaler = fo.optim.GradScaler(init_scale=1.0, growth_interval=2**30)

    def step() -> None:
        scaler.get_scale()  # as the loss of these gradients would have asked
        scaler.step(optimizer, grads)
        scaler.update()

    return {"fastopt": step, **calls}


def _packed(state_dtype: str, peers: Mapping[str, Any]) -> dict[str, Call]:
    arrays, grads = _drawn(LARGE)
    packed = fo.optim.AdamW(arrays, state_dtype=state_dtype)
    plain = fo.optim.AdamW([a.copy() for a in arrays])
    return {"fastopt": partial(packed.step, grads), "float32-state": partial(plain.step, grads)}


def _rule(name: str, options: Mapping[str, Any], peers: Mapping[str, Any]) -> dict[str, Call]:
    arrays, grads = _drawn(LARGE)
    return {"fastopt": partial(getattr(fo.optim, name)(arrays, **options).step, grads)}


def _library(name: str, peers: Mapping[str, Any]) -> dict[str, Call]:
    arrays, grads = _drawn(DEEP)
    calls: dict[str, Call] = {}
    for library, peer in peers.items():
        if library != "torch" and hasattr(peer, "steppers"):
            calls |= peer.steppers(name, OPTIMIZERS[name], arrays, grads)
    return {"fastopt": partial(getattr(fo.optim, name)(arrays, **OPTIMIZERS[name]).step, grads), **calls}


def _in_bytes(peers: Mapping[str, Any]) -> dict[str, Call]:
    arrays, grads = _drawn(LARGE)
    calls: dict[str, Call] = {}
    for peer in peers.values():
        if hasattr(peer, "byte_steppers"):
            calls |= peer.byte_steppers(OPTIMIZERS["Adam"], arrays, grads)
    ours = fo.optim.Adam(arrays, **OPTIMIZERS["Adam"], state_dtype="int8")
    return {"fastopt": partial(ours.step, grads), **calls}


CASES = [
    # The gradient is read twice: the norm needs all of it first.
    _case("tail.AdamW", DEEP, _tail, 4.0 * (2 + 2 + 4 + 2), 5, Aim(1.5, ("torch",))),
    *[
        _case(
            f"state.{kind}",
            LARGE,
            partial(_packed, kind),
            12.0 + 2 * each,
            2 + each / 4,
            Aim(aim, ("float32",)),
        )
        for kind, (each, aim) in STATES.items()
    ],
    *[
        _case(
            f"rule.{name}",
            LARGE,
            partial(_rule, name, options),
            4.0 * (3 + 2 * n),
            2 + n,
            Aim(0.8, share=True),
        )
        for name, (options, n) in RULES.items()
    ],
    *[
        _case(f"library.{name}", DEEP, partial(_library, name), 4.0 * (3 + 2 * n), 2 + n, Aim(1.0))
        for name, n in (("Adam", 2), ("SGD", 1))
    ],
    _case("library.Adam8bit", LARGE, _in_bytes, 12.0 + 2 * _BYTES, 2 + _BYTES / 4, Aim(1.0)),
]
