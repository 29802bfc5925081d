"""Optimizer steps: ours against torch's best implementation of the same class, on four sets of parameters."""

from __future__ import annotations

from functools import partial

import numpy as np

import fastopt as fo
from fastopt import _core
from harness import Row, Stream, interleave, rows
from peers import torch_optim

#: Sets of shapes: where memory decides, a deep network's many tensors, a small network, and many small tensors.
SETS = {
    "1 x 64M": [(64_000_000,)],
    "161 x 29M": [(64, 3, 7, 7), *[(512, 352)] * 160],
    "mlp 784-256-10": [(256, 784), (256,), (10, 256), (10,)],
    "1000 x 64x64": [(64, 64)] * 1000,
}
#: The target of the ratio (best of torch / ours) for classes that torch fuses; twice that for the others.
TARGETS = {"1 x 64M": 0.95, "161 x 29M": 1.0, "mlp 784-256-10": 2.0, "1000 x 64x64": 3.5}

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


def run(sets: list[str] | None = None, optimizers: list[str] | None = None, rounds: int = 15) -> list[Row]:
    """Time every optimizer on every set and return the rows."""
    threads = fo.get_num_threads()
    print(f"isa {_core.isa()}, threads {threads}")
    versions = {"fastopt": fo.__version__, "torch": torch_optim.version()}
    table: list[Row] = []
    for size in sets or list(SETS):
        for name in optimizers or list(OPTIMIZERS):
            rng = np.random.default_rng(0)
            arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in SETS[size]]
            grads = [rng.standard_normal(shape, dtype=np.float32) for shape in SETS[size]]
            elements = sum(a.size for a in arrays)
            calls = torch_optim.steppers(name, OPTIMIZERS[name], arrays, grads, threads)
            ours = getattr(fo.optim, name)(arrays, **OPTIMIZERS[name])
            stream = Stream(elements * 4 * (2 + STATES[name]))
            calls = {"fastopt": partial(ours.step, grads), **calls, "stream": stream}
            samples = interleave(calls, rounds)
            stream_seconds = float(np.median(samples.pop("stream")))
            # Parameter and state are read and written, the gradient is read.
            table += rows(
                f"optim.{name}",
                "step",
                "float32",
                size,
                samples,
                work=elements * 4 * (3 + 2 * STATES[name]),
                unit="GB/s",
                ceiling=stream.work / stream_seconds,
                versions=versions,
            )
            report(
                table[-len(samples) :], 2 * TARGETS[size] if name not in torch_optim.FUSED else TARGETS[size]
            )
    return table


def report(group: list[Row], target: float) -> None:
    """Print one comparison: medians, and the ratio of the best peer to ours beside its target."""
    ours = group[0]
    best = min(group[1:], key=lambda row: row.p50)
    ratio = best.p50 / ours.p50
    times = "  ".join(f"{row.provider} {row.p50:.0f}" for row in group)
    print(
        f"{ours.op:16s} {ours.size:15s} us: {times}  | {ours.rate:.1f} GB/s {ours.share:.0%} of the stream"
        f" | {ratio:.2f}x (target {target:g}) {'ok' if ratio >= target else 'SHORT'}",
        flush=True,
    )
