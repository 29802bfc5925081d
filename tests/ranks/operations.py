"""Asserts what every operation of a communicator gives: ``mpiexec -n 3 python operations.py [rank|engine]``."""

from __future__ import annotations

import sys
import time

import ml_dtypes
import numpy as np
import pytest

from fastopt.distributed import MPIComm, shares


def values(rank: int, n: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([7, rank]).standard_normal(n).astype(dtype)


def in_order(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    total = arrays[0].astype(dtype)
    for a in arrays[1:]:
        total = total + a.astype(dtype)
    return total


def check_sums(comm: MPIComm, n: int) -> None:
    for dtype in (np.float32, np.float64, np.int64):
        own = (10 * values(comm.rank, n)).astype(dtype)
        everyone = [(10 * values(r, n)).astype(dtype) for r in range(comm.size)]
        expected = in_order(everyone, dtype)
        a = own.copy()
        comm.allreduce(a)
        if comm.ordered:
            np.testing.assert_array_equal(a, expected)
        else:
            np.testing.assert_allclose(a, expected, rtol=1e-5, atol=1e-4)
        a = own.copy()
        comm.allreduce(a, "max")
        np.testing.assert_array_equal(a, np.max(everyone, axis=0))
        for counts in (None, [n - 2 * (comm.size - 1)] + [2] * (comm.size - 1)):
            if counts is not None and counts[0] < 0:
                continue
            known = counts or shares(n, comm.size)
            begin = sum(known[: comm.rank])
            part = np.empty(known[comm.rank], dtype)
            comm.reduce_scatter(own.copy(), part, counts)
            np.testing.assert_allclose(part, expected[begin : begin + part.size], rtol=1e-5, atol=1e-4)
            whole = np.empty(n, dtype)
            comm.allgather(own[: part.size].copy(), whole, counts)
            np.testing.assert_array_equal(
                whole, np.concatenate([e[:k] for e, k in zip(everyone, known, strict=True)])
            )


def check_bfloat16(comm: MPIComm, n: int) -> None:
    everyone = [values(r, n).astype(ml_dtypes.bfloat16) for r in range(comm.size)]
    expected = in_order(everyone, np.float32)
    a = everyone[comm.rank].copy()
    comm.start_allreduce(a).wait()
    np.testing.assert_array_equal(
        a.astype(np.float32), expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    )
    part = np.empty(shares(n, comm.size)[comm.rank], np.float32)
    comm.reduce_scatter(everyone[comm.rank].copy(), part)
    begin = sum(shares(n, comm.size)[: comm.rank])
    np.testing.assert_array_equal(part, expected[begin : begin + part.size])


def check_under_way(comm: MPIComm, dtype: type) -> None:
    """Operations with keys of their own may be begun before others are done, and asked for in any order."""
    everyone = [[values(r, 1000 * (k + 1)).astype(dtype) for r in range(comm.size)] for k in range(5)]
    arrays = [parts[comm.rank].copy() for parts in everyone]
    pending = [comm.start_allreduce(a, 1 + k) for k, a in enumerate(arrays)]
    if comm.rank % 2:
        time.sleep(0.01)
    for k in reversed(range(5)) if comm.rank % 2 else range(5):
        pending[k].wait()
    for a, parts in zip(arrays, everyone, strict=True):
        expected = in_order(parts, np.float32).astype(dtype).astype(np.float32)
        np.testing.assert_allclose(a.astype(np.float32), expected, rtol=1e-5, atol=1e-5)


def check_broadcast(comm: MPIComm) -> None:
    for root in range(comm.size):
        a = values(comm.rank, 33, np.float64).reshape(3, 11)
        comm.broadcast(a, root)
        np.testing.assert_array_equal(a, values(root, 33, np.float64).reshape(3, 11))
    comm.barrier()


def check_refusals(comm: MPIComm) -> None:
    for call, message in (
        (lambda: comm.allreduce(np.zeros(3), "min"), "op must be 'sum' or 'max'"),
        (lambda: comm.broadcast(np.zeros(3), comm.size), f"root is {comm.size}"),
        (lambda: comm.allgather(np.zeros(1), np.zeros(9), [1] * comm.size), "counts are"),
        (lambda: comm.reduce_scatter(np.zeros(9 * comm.size), np.zeros(8)), "expected 9"),
        (lambda: MPIComm(order="random"), "order must be"),
        (lambda: MPIComm(timeout=-1), "timeout must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


if __name__ == "__main__":
    with MPIComm(timeout=120, order=sys.argv[1]) as ranks:
        for size in (1, 5, 1000, 70001):
            check_sums(ranks, size)
            check_bfloat16(ranks, size)
        for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
            check_under_way(ranks, kind)
        check_broadcast(ranks)
        check_refusals(ranks)
        assert ranks.neighbours == ranks.size
        print(f"rank {ranks.rank} done")
