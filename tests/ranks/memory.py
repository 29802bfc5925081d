"""Bytes of state, and what fewer bytes for gradients and state change: ``mpiexec -n 4 python memory.py OUT.npz``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import distributed


def train(
    comm: Any, settings: dict[str, Any], rule: Any = fo.optim.Adam, **how: Any
) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((500, 300)).astype(np.float32), np.zeros(500, np.float32)
    optimizer = rule([w, b], **{"lr": 1e-2, **settings})
    parallel = distributed.DataParallel(None, optimizer, comm, bucket_bytes=200_000, **how)
    for step in range(3):
        own = np.random.default_rng([step, comm.rank])
        parallel.step(
            [own.standard_normal(w.shape).astype(np.float32), own.standard_normal(500).astype(np.float32)]
        )
    return np.concatenate([w.ravel(), b]), parallel.state_bytes()


if __name__ == "__main__":
    with distributed.world(timeout=120) as ranks:
        results: dict[str, Any] = {}
        for name, settings, how in (
            ("whole", {}, {}),
            ("slices", {}, {"shard_state": True}),
            ("int8", {"state_dtype": "int8"}, {"shard_state": True}),
        ):
            results[f"{name}_trained"], size = train(ranks, settings, **how)
            sizes = np.zeros(ranks.size, np.int64)
            ranks.allgather(np.array([size], np.int64), sizes)
            results[name] = sizes
        np.testing.assert_array_equal(results["slices_trained"], results["whole_trained"])
        results["bytes_trained"], _ = train(ranks, {"state_dtype": "int8"})
        for name, how in (
            ("sums", {}),
            ("reduced", {"gradient_dtype": "bfloat16"}),
            ("reduced_slices", {"gradient_dtype": "bfloat16", "shard_state": True}),
        ):
            results[name], _ = train(ranks, {"lr": 1.0}, fo.optim.SGD, **how)
        if ranks.rank == 0:
            np.savez(sys.argv[1], **results)
