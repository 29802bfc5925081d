"""What several ranks are made of, in one process: layouts, hooks of the tape, refusals, NCCL over host memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import _tape, distributed
from fastopt._arrays import Dense
from fastopt.distributed.buckets import ALIGN, lay_out, owners_of, pieces
from fastopt.distributed.comm import offsets, share


class Ranks:
    """So many ranks, seen from one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 100])
def test_shares_are_equal_to_one(n: int, size: int) -> None:
    counts = distributed.shares(n, size)
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)
    parts = [share(n, r, size) for r in range(size)]
    assert [b for b, _ in parts[1:]] == [e for _, e in parts[:-1]]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_element_is_of_one_rank(size: int, whole: bool) -> None:
    shapes = [(3, 50), (7,), (), (0, 4), (40, 40), (129,)]
    dtypes = [np.float32, np.float32, np.float64, np.float32, np.float32, np.float32]
    dense = [Dense(np.zeros(s, d)) for s, d in zip(shapes, dtypes, strict=True)]
    owners = owners_of([d.source.size for d in dense], size) if whole else None
    buckets = lay_out(dense, Ranks(0, size), 3000, None, owners)
    order = [slot.tensor for bucket in buckets for slot in bucket.slots]
    assert sorted(order) == list(range(6))
    if not whole:
        assert order == list(range(5, -1, -1))  # gradients of the last are known first
    for bucket in buckets:
        assert {dense[slot.tensor].source.dtype for slot in bucket.slots} == {bucket.own}
        assert bucket.memory.size == sum(bucket.counts)
        for slot in bucket.slots:
            parts = [next(p for p in pieces(bucket, r) if p.tensor == slot.tensor) for r in range(size)]
            covered = [e for p in parts for e in range(p.begin, p.end)]
            assert covered == list(range(slot.size))
            for r, p in enumerate(parts):
                assert p.begin % ALIGN == 0 or p.begin == p.end
                if p.end > p.begin:
                    assert offsets(bucket.counts)[r] + p.at == slot.begin + p.begin
                if whole and slot.size:
                    assert (p.end > p.begin) == (r == owners[slot.tensor])


def test_large_parameters_go_to_the_rank_that_has_least() -> None:
    assert owners_of([10, 1, 1, 8, 3], 2) == [0, 0, 0, 1, 1]
    assert owners_of([5, 5], 4) == [0, 1]


# Hooks ----------------------------------------------------------------------------------------------------


def test_a_leaf_is_ready_once_when_its_gradient_is_whole() -> None:
    w = fo.tensor([2.0, 3.0], requires_grad=True)
    v = fo.tensor([1.0, 1.0], requires_grad=True)
    seen: list[tuple[str, list[float]]] = []
    names = {id(w): "w", id(v): "v"}
    hooks = dict.fromkeys(names, lambda leaf: seen.append((names[id(leaf)], leaf.grad.numpy().tolist())))
    _tape.ready.update(hooks)
    try:
        hidden = w * w  # w is used three times, first and last
        ((hidden * v).sum() + (w * 4.0).sum()).backward()
    finally:
        for leaf in hooks:
            del _tape.ready[leaf]
    assert dict(seen) == {"w": [8.0, 10.0], "v": [4.0, 9.0]}
    assert len(seen) == 2
    assert seen[-1][0] == "w"


def test_a_second_gradient_before_a_step_is_refused_and_no_sync_allows_it() -> None:
    layer = fo.nn.Linear(3, 2)
    optimizer = fo.optim.SGD(layer.parameters(), lr=1.0)
    parallel = distributed.DataParallel(layer, optimizer, Twice(), overlap=True)
    x = np.ones((4, 3), np.float32)
    try:
        before = layer.weight.numpy().copy()
        with parallel.no_sync():
            parallel(x).sum().backward()
        parallel(x).sum().backward()
        parallel.step()
        # Two passes of four ones; of two equal ranks half of each counts.
        np.testing.assert_allclose(layer.weight.numpy(), before - 8.0, rtol=1e-6)
        parallel.zero_grad()
        parallel(x).sum().backward()
        with pytest.raises(RuntimeError, match=r"params\[0\] had a second gradient .* no_sync"):
            layer(x).sum().backward()
    finally:
        parallel.close()
    assert not _tape.ready


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_takes_gradients_as_they_are_then_or_refuses(overlap: bool) -> None:
    layer = fo.nn.Linear(3, 2)
    optimizer = fo.optim.SGD(layer.parameters(), lr=1.0)
    parallel = distributed.DataParallel(layer, optimizer, Twice(), overlap=overlap)
    before = layer.weight.numpy().copy()
    try:
        parallel(np.ones((4, 3), np.float32)).sum().backward()
        layer.weight.grad.numpy()[...] = 0.25
        if overlap:
            with pytest.raises(ValueError, match=r"weight is 0\.5, with overlap"):
                parallel.step(weight=0.5)
            with pytest.raises(RuntimeError, match=r"gradient of params\[0\] was changed after backward"):
                parallel.step()
            np.testing.assert_array_equal(layer.weight.numpy(), before)
        else:
            parallel.step()
            np.testing.assert_allclose(layer.weight.numpy(), before - 0.25, rtol=1e-6)
            parallel.step(weight=2.0)
            np.testing.assert_allclose(layer.weight.numpy(), before - 1.25, rtol=1e-6)
            parallel.step(lambda: layer(np.zeros((1, 3), np.float32)).sum(), weight=0.5)
            np.testing.assert_allclose(layer.weight.numpy(), before - 1.5, rtol=1e-6)
    finally:
        parallel.close()


def backward_and_step(parallel: Any, x: np.ndarray) -> None:
    parallel(x).sum().backward()
    parallel.step()


@pytest.mark.parametrize("overlap", [False, True])
def test_batches_that_are_shared_out_differently_are_not_added_up(overlap: bool) -> None:
    layer = fo.nn.Linear(1, 1)
    optimizer = fo.optim.SGD(layer.parameters(), lr=1.0)
    ranks = Beside(2)
    parallel = distributed.DataParallel(layer, optimizer, ranks, overlap=overlap)
    try:
        with parallel.no_sync():
            parallel(np.ones((2, 1), np.float32)).sum().backward()
        ranks.samples = 0
        before = layer.weight.numpy().copy()
        with pytest.raises(ValueError, match=r"shares 0\.5, 1 of the batches"):
            backward_and_step(parallel, np.ones((1, 1), np.float32))
        np.testing.assert_array_equal(layer.weight.numpy(), before)
    finally:
        parallel.close()


class Twice(distributed.NullComm):
    """Two ranks of which the other always does the same."""

    size = 2

    def start_allreduce(self, a: np.ndarray, key: int = 0) -> Any:
        a *= 2
        return super().start_allreduce(a, key)

    def start_allgather(self, part: np.ndarray, out: np.ndarray, counts: Any = None, key: int = 0) -> Any:
        out[...] = np.concatenate([part.copy(), part])
        return super().start_allreduce(out)


class Beside(Twice):
    """Two ranks of which the other has so many samples."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def allreduce(self, a: np.ndarray, op: Any = "sum") -> None:
        if a.shape == (1,) and op == "sum":
            a += self.samples


# Refusals -------------------------------------------------------------------------------------------------


def test_data_parallel_refuses() -> None:
    w = np.zeros(4, np.float32)
    layer = fo.nn.Linear(2, 2)
    sgd = fo.optim.SGD([w], lr=0.1)
    step = fo.compile(layer, fo.nn.MSELoss(), fo.optim.SGD(layer.parameters(), lr=0.1))

    fused = fo.compile(layer, fo.nn.MSELoss(), fo.optim.SGD(layer.parameters(), lr=0.1), fuse_update=True)
    over_nccl = distributed.NCCLComm.__new__(distributed.NCCLComm)  # which is refused before it is used
    over_nccl.rank, over_nccl.size = 0, 2

    def make(*arguments: Any, **settings: Any) -> Callable[[], Any]:
        return lambda: distributed.DataParallel(*arguments, **settings)

    for call, error, message in (
        (make(None), TypeError, "optimizer is NoneType"),
        (make(step, sgd), ValueError, "another one than that of the compiled step"),
        (make(fused), ValueError, "the compiled step has fuse_update=True"),
        (
            make(None, sgd, gradient_dtype="int8"),
            ValueError,
            "gradient_dtype must be None or 'bfloat16', got 'int8'",
        ),
        (make(None, sgd, bucket_bytes=0), ValueError, "bucket_bytes must be positive, got 0"),
        (make(None, sgd, overlap=True), ValueError, "overlap is for a model that is called itself"),
        (make(step, overlap=True), ValueError, "overlap is for a model that is called itself"),
        (
            make(None, sgd, over_nccl),
            ValueError,
            r"params\[0\] is on the host, NCCLComm is for parameters on GPUs",
        ),
        (make(None, sgd, over_nccl, shard_state=True), ValueError, "shard_state is not for NCCLComm"),
        (make(None, fo.optim.LBFGS([w]), shard_state=True), ValueError, "not for LBFGS"),
        (make(None, fo.optim.Prodigy([w]), shard_state=True), ValueError, "not for Prodigy"),
        (make(None, fo.optim.SGDScheduleFree([w]), shard_state=True), ValueError, "not for SGDScheduleFree"),
        (
            make(None, fo.optim.SGD([w], lr=0.1, ema_decay=0.9), shard_state=True),
            ValueError,
            r"not for ema_decay, got 0.9 in param_groups\[0\]",
        ),
        (
            make(None, fo.optim.SGD([np.zeros((4, 4), np.float32)[:, ::2]], lr=0.1), shard_state=True),
            ValueError,
            r"dense arrays on the host, params\[0\] is not one",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    parallel = distributed.DataParallel(None, sgd)
    with pytest.raises(TypeError, match="there is no model to call"):
        parallel(w)
    with pytest.raises(TypeError, match="run is for a compiled step"):
        parallel.run(w)
    sgd.add_param_group({"params": [np.zeros(3, np.float32)]})
    with pytest.raises(RuntimeError, match="make a new DataParallel"):
        parallel.step([w, np.zeros(3, np.float32)])


def test_data_parallel_refuses_statistics_of_parts_of_a_batch() -> None:
    model = fo.nn.Sequential(fo.nn.Linear(4, 3), fo.nn.BatchNorm1d(3), fo.nn.Linear(3, 2))
    optimizer = fo.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="module '1' is a BatchNorm1d"):
        distributed.DataParallel(model, optimizer, Ranks(0, 2))
    distributed.DataParallel(model, optimizer, distributed.NullComm()).close()


@pytest.mark.parametrize("shard_state", [False, True])
def test_lbfgs_and_closures_take_averages(shard_state: bool) -> None:
    w = np.array([3.0, -2.0])
    alone = w.copy()
    rule = fo.optim.Adam if shard_state else fo.optim.LBFGS
    optimizer = rule([w], lr=0.5)
    parallel = distributed.DataParallel(None, optimizer, shard_state=shard_state)
    plain = rule([alone], lr=0.5)
    for _ in range(3):
        loss = parallel.step(lambda: (float(w @ w), [2 * w]))
        assert loss == plain.step(lambda: (float(alone @ alone), [2 * alone]))
    np.testing.assert_array_equal(w, alone)


@pytest.mark.parametrize("shard_state", [False, True])
def test_a_step_whose_gradients_are_not_finite_is_left_out(shard_state: bool) -> None:
    w = np.ones(300, np.float32)
    optimizer = fo.optim.Adam([w], lr=0.1)
    parallel = distributed.DataParallel(None, optimizer, shard_state=shard_state)
    g = np.full(300, 8.0, np.float32)
    g[7] = np.inf
    assert parallel.step_scaled([g], 0.25) is False
    assert (w == 1).all()
    g[7] = 8.0
    assert parallel.step_scaled([g], 0.25) is True
    np.testing.assert_allclose(w, 0.9, rtol=1e-6)


# NCCL -----------------------------------------------------------------------------------------------------


class FakeArray(np.ndarray):
    """A host array that says where it lies as CuPy's do."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


class FakeNccl:
    """NCCL's communicators among threads of this process, over host memory."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.sends: dict[int, Any] = {}
        self.calls: list[str] = []
        self.NcclCommunicator = lambda n, unique, rank: FakeCommunicator(self, n, unique, rank)

    def get_unique_id(self) -> tuple[int, ...]:
        return (4, 2)

    def groupStart(self) -> None:
        self.calls.append("groupStart")

    def groupEnd(self) -> None:
        self.calls.append("groupEnd")


TYPES = {2: np.int32, 6: np.float16, 7: np.float32, 8: np.float64}


def at(address: int, n: int, kind: int) -> np.ndarray:
    dtype = np.dtype(TYPES[kind])
    return np.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(address), dtype)


class FakeCommunicator:
    def __init__(self, nccl: FakeNccl, size: int, unique: tuple[int, ...], rank: int) -> None:
        assert unique == (4, 2)
        self.nccl, self.size, self.rank = nccl, size, rank

    def _everyone(self, a: np.ndarray) -> list[np.ndarray]:
        self.nccl.sends[self.rank] = a.copy()
        self.nccl.barrier.wait()
        found = [self.nccl.sends[r] for r in range(self.size)]
        self.nccl.barrier.wait()
        return found

    def allReduce(self, send: int, out: int, n: int, kind: int, op: int, stream: int) -> None:
        fold = {0: np.sum, 2: np.max}[op]
        at(out, n, kind)[...] = fold(self._everyone(at(send, n, kind)), axis=0)

    def reduceScatter(self, send: int, out: int, n: int, kind: int, op: int, stream: int) -> None:
        total = np.sum(self._everyone(at(send, n * self.size, kind)), axis=0)
        at(out, n, kind)[...] = total[self.rank * n : (self.rank + 1) * n]

    def allGather(self, send: int, out: int, n: int, kind: int, stream: int) -> None:
        at(out, n * self.size, kind)[...] = np.concatenate(self._everyone(at(send, n, kind)))

    def reduce(self, send: int, out: int, n: int, kind: int, op: int, root: int, stream: int) -> None:
        total = np.sum(self._everyone(at(send, n, kind)), axis=0)
        if self.rank == root:
            at(out, n, kind)[...] = total

    def broadcast(self, send: int, out: int, n: int, kind: int, root: int, stream: int) -> None:
        at(out, n, kind)[...] = self._everyone(at(send, n, kind))[root]


class Meeting(distributed.NullComm):
    """Threads that meet; the unique id is the same for all."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("n", [1, 3])
def test_nccl_operations_over_host_memory(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.distributed.nccl.broadcast_object", lambda comm, obj: (4, 2))
    nccl = FakeNccl(n)
    device = SimpleNamespace(use=lambda: None)
    cupy = SimpleNamespace(
        ndarray=FakeArray,
        cuda=SimpleNamespace(
            nccl=nccl,
            runtime=SimpleNamespace(getDeviceCount=lambda: 8),
            Device=lambda index: device,
            get_current_stream=lambda: SimpleNamespace(ptr=0, synchronize=lambda: None),
        ),
    )
    values = [np.arange(12, dtype=np.float32) * (r + 1) for r in range(n)]
    total = np.sum(values, axis=0)
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            comm = distributed.NCCLComm(Meeting(rank, n), cupy=cupy)
            assert (comm.rank, comm.size) == (rank, n)
            for op, expected in (("sum", total), ("max", values[-1])):
                a = values[rank].copy().view(FakeArray)
                comm.allreduce(a, op)
                np.testing.assert_array_equal(a, expected)
            for counts in (None, [12 - 2 * (n - 1)] + [2] * (n - 1)):
                known = counts or distributed.shares(12, n)
                begin = sum(known[:rank])
                part = np.zeros(known[rank], np.float32).view(FakeArray)
                comm.reduce_scatter(values[rank].copy().view(FakeArray), part, counts)
                np.testing.assert_array_equal(part, total[begin : begin + part.size])
                out = np.zeros(12, np.float32).view(FakeArray)
                comm.allgather(part, out, counts)
                np.testing.assert_array_equal(out, total)
            a = values[rank].copy().view(FakeArray)
            comm.broadcast(a, n - 1)
            np.testing.assert_array_equal(a, values[n - 1])
            with pytest.raises(TypeError, match="out is float64, NCCL adds in the dtype of a, float32"):
                comm.reduce_scatter(
                    a, np.zeros(12, np.float64).view(FakeArray)[: distributed.shares(12, n)[rank]]
                )
        except BaseException as error:
            failures.append(error)
            nccl.barrier.abort()

    threads = [threading.Thread(target=run, args=(r,)) for r in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert nccl.calls.count("groupStart") == nccl.calls.count("groupEnd") == (2 * n if n > 1 else 0)


def test_missing_engines_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'pip install "fastopt\[mpi\]"'):
        distributed.MPIComm()
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(ImportError, match="NCCLComm needs CuPy with NCCL"):
        distributed.NCCLComm(distributed.NullComm())


def test_a_loader_shares_out_the_batches_of_one_process() -> None:
    x = np.arange(50)
    whole = list(fo.data.DataLoader(x, batch_size=8, shuffle=True, seed=3))
    parts = [
        list(fo.data.DataLoader(x, batch_size=8, shuffle=True, seed=3, comm=Meeting(r, 3))) for r in range(3)
    ]
    for i, batch in enumerate(whole):
        shared = [part[i] for part in parts]
        np.testing.assert_array_equal(np.concatenate(shared), batch)
        assert [len(s) for s in shared] == distributed.shares(len(batch), 3)


def test_null_comm_is_a_comm_of_one() -> None:
    comm = distributed.NullComm()
    assert isinstance(comm, distributed.Comm)
    a, out = np.arange(3.0), np.zeros(3)
    comm.allreduce(a)
    comm.reduce_scatter(a, out)
    np.testing.assert_array_equal(out, [0, 1, 2])
    comm.allgather(a, out, [3])
    comm.barrier()
    with pytest.raises(ValueError, match="root is 1, there is only rank 0"):
        comm.broadcast(a, 1)
    with pytest.raises(ValueError, match="counts are"):
        comm.allgather(a, out, [2])
    assert distributed.current().size == 1
    with distributed.use(Meeting(1, 2)) as ranks:
        assert distributed.current() is ranks
    assert distributed.current().size == 1


class Recorded(Twice):
    """Notes which gradients there were when a sum was begun."""

    def __init__(self, given: Callable[[], int]) -> None:
        self.given, self.begun = given, []

    def start_allreduce(self, a: np.ndarray, key: int = 0) -> Any:
        if key:
            self.begun.append((key, self.given()))
        return super().start_allreduce(a, key)


@pytest.mark.parametrize("compiled", [False, True])
def test_sums_begin_while_gradients_are_still_to_come(compiled: bool) -> None:
    model = fo.nn.Sequential(*[fo.nn.Linear(8, 8, bias=False) for _ in range(4)])
    parameters = list(model.parameters())
    optimizer = fo.optim.SGD(parameters, lr=0.1)
    loss_fn = fo.nn.MSELoss()
    x, y = np.ones((4, 8), np.float32), np.zeros((4, 8), np.float32)
    step = fo.compile(model, loss_fn, optimizer) if compiled else None

    def given() -> int:
        """The gradients that are there: of a compiled step, those that were put into buckets."""
        if step is not None:
            return sum(slot.tensor not in b.waiting for b in parallel.buckets for slot in b.slots)
        return sum(p.grad is not None for p in parameters)

    comm = Recorded(given)
    parallel = distributed.DataParallel(
        step or model, optimizer, comm, bucket_bytes=8 * 8 * 4, overlap=not compiled
    )
    try:
        if compiled:
            parallel(x, y)
        else:
            loss_fn(parallel(x), y).backward()
            parallel.step()
    finally:
        parallel.close()
    assert comm.begun == [(1, 1), (2, 2), (3, 3), (4, 4)]
