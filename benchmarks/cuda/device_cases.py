"""What is compared on the device, and what it has to show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import clock
import device_data as data
import ours
import train as cpu_train
from harness import Aim, Case, Many

#: Sets of shapes: nearly no work, what lies in a small part of the L2 cache, and where memory decides.
SETS: dict[str, list[tuple[int, ...]]] = {
    "1 x 0.1M": [(100_000,)],
    "1 x 1M": [(1_000_000,)],
    "1 x 10M": [(10_000_000,)],
    "1 x 128M": [(128_000_000,)],
    "100 x 1M": [(1000, 1000)] * 100,
    "1 x 1B": [(1_000_000_000,)],
    "1000 x 64x64": [(64, 64)] * 1000,
    "mlp 784-256-10": [(256, 784), (256,), (10, 256), (10,)],
}
ADAMW = {"lr": 1e-3, "weight_decay": 0.01}
LARGE = (Aim(0.9, share=True), Aim(1.0, ("torch-fused",)))
SMALL = (Aim(3.0, ("torch-fused",)),)
OPTIM_AIMS = {"1 x 128M": LARGE, "100 x 1M": LARGE, "1 x 1M": SMALL, "1000 x 64x64": SMALL}

CLASSES = [(4096, 1000), (1024, 32000), (8192, 128256)]
#: (batch, out, in).
LINEAR = [
    (64, 256, 784),
    (64, 10, 256),
    (64, 4096, 4096),
    (1024, 128, 128),
    (1024, 1024, 1024),
    (8192, 256, 256),
    (8192, 512, 512),
    (8192, 1024, 1024),
    (8192, 4096, 4096),
]
DTYPES = ("float32", "tf32", "bfloat16")
BATCHES = 32


def _torch() -> Any:
    try:
        import with_torch_cuda
    except ImportError as error:
        print(f"torch: left out, {error}", flush=True)
        return None
    with_torch_cuda.set_tf32(False)
    return with_torch_cuda


def _gather(task: str, *inputs: Any) -> dict[str, Any]:
    peer = _torch()
    return {**getattr(ours, task)(*inputs), **(getattr(peer, task)(*inputs) if peer else {})}


# ---------------------------------------------------------------------------------------------- optimizers


def _arrays(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Any]:
    """The parameters or gradients of a set, cut out of one array of random numbers."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    whole, ends = data.normal(sum(sizes), seed), np.cumsum(sizes)
    return [
        whole[end - size : end].reshape(shape).copy()
        for shape, size, end in zip(shapes, sizes, ends.tolist(), strict=True)
    ]


def _optimizer(shapes: Sequence[tuple[int, ...]], _: Mapping[str, Any]) -> dict[str, Any]:
    resident = 16.0 * sum(int(np.prod(shape)) for shape in shapes)
    arrays = _arrays(shapes, 1)
    return _gather("optimizer", "AdamW", ADAMW, [arrays] * data.copies(resident), _arrays(shapes, 2))


def optimizer(size: str, shapes: Sequence[tuple[int, ...]]) -> Case:
    """AdamW: parameter and two states are read and written, the gradient is read."""
    elements = sum(int(np.prod(shape)) for shape in shapes)
    aims = OPTIM_AIMS.get(size, ())
    return Case(
        op="optim.AdamW",
        mode="step",
        size=size,
        build=partial(_optimizer, shapes),
        flops=10.0 * elements,
        nbytes=28.0 * elements,
        ceilings=("device-copy",),
        aims=aims,
        calls=2,
    )


def _part(kind: type[Many], shapes: Sequence[tuple[int, ...]], _: Mapping[str, Any]) -> dict[str, Any]:
    calls = _optimizer(shapes, {})
    calls.pop("torch-graph", None)
    return {name: kind(timed.call, 1, kind.__name__.lower()) for name, timed in calls.items()}


def part(kind: type[Many], size: str, shapes: Sequence[tuple[int, ...]]) -> Case:
    """How long a step keeps the caller's thread busy, or the device."""
    like = optimizer(size, shapes)
    return replace(like, mode=kind.__name__.lower(), build=partial(_part, kind, shapes), calls=0, aims=())


# -------------------------------------------------------------------------------------------------- losses


def _cross_entropy(rows: int, classes: int, _: Mapping[str, Any]) -> dict[str, Any]:
    sets = data.copies(8.0 * rows * classes)
    logits = [data.normal((rows, classes), seed) for seed in range(sets)]
    return _gather("cross_entropy", logits, data.labels(rows, classes))


def cross_entropy(rows: int, classes: int) -> Case:
    """Loss and gradient by the logits: read once, written once."""
    return Case(
        op="loss.cross_entropy",
        mode="forward+backward",
        size=f"{rows}x{classes}",
        build=partial(_cross_entropy, rows, classes),
        flops=4.0 * rows * classes,
        nbytes=8.0 * rows * classes,
        ceilings=("device-copy",),
        aims=(Aim(0.85, share=True), Aim(1.2, ("torch-compile",))),
    )


# -------------------------------------------------------------------------------------------------- linear


def _linear(mode: str, m: int, n: int, k: int, kind: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """Random arrays of one kind for both libraries; "tf32" rounds the factors of float32 products."""
    forward = mode == "forward"
    bf16 = kind == "bfloat16"
    sets = data.copies((2.0 if bf16 else 4.0) * (m * k + n * k + m * n))
    moving = [data.normal((m, k) if forward else (m, n), seed) for seed in range(sets)]
    x, w, b = data.normal((m, k), 90), data.normal((n, k), 91, k**-0.5), data.normal(n, 92)
    y = data.xp.maximum(data.normal((m, n), 93), 0)
    peer, give = _torch(), _as_bfloat16 if bf16 else _as_is
    options = {"precision": "tf32"} if kind == "tf32" else {}
    mine = [give(a) for a in moving]
    if forward:
        calls = ours.linear_forward(mine, give(w), give(b), _room(give(y)), options)
    else:
        room = tuple(_room(give(a)) for a in (x, w, b))
        calls = ours.linear_backward(mine, give(x), give(w), give(y), room, _room(give(y)), options)
    if peer:
        peer.set_tf32(kind == "tf32")
        theirs = [_tensor(a, bf16) for a in moving]
        tx, tw, tb, ty = (_tensor(a, bf16) for a in (x, w, b, y))
        calls |= peer.linear_forward(theirs, tw, tb) if forward else peer.linear_backward(theirs, tx, tw, ty)
    return calls


def _as_is(x: Any) -> Any:
    return x


def _as_bfloat16(x: Any) -> Any:
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16)


def _room(x: Any) -> Any:
    return data.xp.zeros(x.shape, x.dtype)


def _tensor(x: Any, bf16: bool) -> Any:
    t = data.as_torch(x)
    return t.bfloat16() if bf16 else t


def linear(mode: str, m: int, n: int, k: int, kind: str) -> Case:
    """The layer with bias and ReLU; forward makes one product of 2 m n k operations, backward two."""
    forward, item = mode == "forward", 2.0 if kind == "bfloat16" else 4.0
    elements = m * k + n * k + n + m * n if forward else 2 * (m * k + n * k + m * n) + n
    return Case(
        op=f"linear.{kind}",
        mode=mode,
        size=f"{m}x{n}x{k}",
        build=partial(_linear, mode, m, n, k, kind),
        flops=2.0 * m * n * k * (1 if forward else 2),
        nbytes=item * elements,
        unit="GFLOP/s",
        ceilings=("device-product-bfloat16" if kind == "bfloat16" else "device-product", "device-copy"),
        aims=(Aim(1.2 if k <= 512 else 1.0, ("torch",)),),
        dtype="bfloat16" if kind == "bfloat16" else "float32",
        tolerance={"float32": 1e-4, "tf32": 5e-3, "bfloat16": 3e-2}[kind],
    )


# ------------------------------------------------------------------------------------------------ training


def _train(
    sizes: Sequence[int], batch: int, batches: int, optimizer: str, _: Mapping[str, Any]
) -> dict[str, Any]:
    return _gather("train", replace(cpu_train.net(sizes, batch, batches), optimizer=optimizer))


def train(
    sizes: Sequence[int],
    batch: int,
    batches: int = BATCHES,
    aims: tuple[Aim, ...] = (),
    optimizer: str = "Adam",
) -> Case:
    """Forward, cross-entropy, backward, update; one step a call with its loss as a number, and many in a call."""
    like = cpu_train.case(sizes, batch)
    return Case(
        op="train" if optimizer == "Adam" else f"train.{optimizer}",
        mode="step",
        size=like.size,
        build=partial(_train, sizes, batch, batches, optimizer),
        flops=like.flops,
        nbytes=like.nbytes,
        unit="GFLOP/s",
        ceilings=("device-product", "device-copy"),
        aims=aims,
        calls=3,
        tolerance=2e-3,
    )


MNIST_AIMS = (
    Aim(3.0, ("torch-graph",), mode="run"),
    Aim(10.0, ("torch-eager",), mode="run"),
    Aim(3.0, ("torch-graph",)),
    Aim(10.0, ("torch-eager",)),
)

#: Name of the results -> cases. A dry run has the same at sizes of no weight.
CASES: dict[str, Callable[[], list[Case]]] = {
    "optim": lambda: [
        part(clock.Host, "mlp 784-256-10", SETS["mlp 784-256-10"]),
        *(optimizer(size, SETS[size]) for size in SETS),
        *(part(clock.Device, size, SETS[size]) for size in ("1 x 0.1M", "1 x 1M", "1000 x 64x64")),
    ],
    "losses": lambda: [cross_entropy(*size) for size in CLASSES],
    "train": lambda: [
        train((784, 256, 10), 64, aims=MNIST_AIMS),
        train((784, 512, 512, 10), 128),
        train((784, 1024, 1024, 10), 1024, batches=8),
        train((784, 1024, 1024, 10), 128, optimizer="SGD"),
    ],
    "linear": lambda: [
        linear(mode, *size, kind) for kind in DTYPES for size in LINEAR for mode in ("forward", "backward")
    ],
}
DRY_CASES: dict[str, Callable[[], list[Case]]] = {
    "optim": lambda: [
        part(clock.Host, "dry", [(5, 3), (3,)]),
        optimizer("dry", [(1003,), (4, 5)]),
        part(clock.Device, "dry", [(5, 3), (3,)]),
    ],
    "losses": lambda: [cross_entropy(5, 17)],
    "train": lambda: [
        train((12, 9, 8, 4), 6, batches=3),
        train((12, 9, 8, 4), 6, batches=3, optimizer="SGD"),
    ],
    "linear": lambda: [linear(mode, 5, 7, 19, kind) for kind in DTYPES for mode in ("forward", "backward")],
}
