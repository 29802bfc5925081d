"""Timing on the device: providers take turns as in `harness`, and CUDA events stand where the clock would."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

import device_data as data
import harness
from device_data import Timed
from harness import Call, Case, Many, Row

Calls = dict[str, Any]

SAMPLE_SECONDS = 8e-3
#: Calls of a sample of `Host`, which the driver queues without waiting.
QUEUED = 64


class Host(Many):
    """A call of which the time until it returns counts, not that of what it has queued."""


class Device(Many):
    """A call of which the device's time counts alone: it waits behind other work until all calls are queued."""


# ------------------------------------------------------------------------------------------------ ceilings


class DeviceCopy:
    """The bandwidth of the device's memory: a copy from one large array to another."""

    unit = "GB/s"
    elements = 1 << 28

    def __init__(self, _: float = 0.0) -> None:
        n = 1 << 16 if data.dry else self.elements
        self.x, self.y = data.normal(n), data.xp.empty(n, np.float32)
        self.work = 2.0 * self.x.nbytes

    def __call__(self) -> None:
        data.xp.copyto(self.y, self.x)


class Product:
    """The rate of torch's matrix product of random squares in a dtype."""

    unit = "GFLOP/s"

    def __init__(self, dtype: str) -> None:
        import torch

        n = 64 if data.dry else 4096
        self.x = data.as_torch(data.normal((n, n))).to(getattr(torch, dtype))
        self.out = torch.empty_like(self.x)
        self.work = 2.0 * n**3

    def __call__(self) -> None:
        import torch

        torch.mm(self.x, self.x, out=self.out)


harness.CEILINGS |= {
    "device-copy": DeviceCopy,
    "device-product": lambda _: Product("float32"),
    "device-product-bfloat16": lambda _: Product("bfloat16"),
}


# -------------------------------------------------------------------------------------------------- timing


class _Delay:
    """Work that keeps the device busy for a while."""

    def __init__(self) -> None:
        self.copy = DeviceCopy()
        self.seconds = max(seconds(self.copy, 20), 1e-5)

    def __call__(self, lasting: float) -> None:
        for _ in range(math.ceil(lasting / self.seconds)):
            self.copy()


@cache
def _delay() -> _Delay:
    return _Delay()


def _host_seconds(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    taken = time.perf_counter() - start
    data.synchronize()
    return taken


def seconds(call: Call, count: int) -> float:
    """Return the seconds per call of `count` calls in a row."""
    data.synchronize()
    if data.dry or isinstance(call, Host):
        return _host_seconds(call, count) / count
    begin, end = data.xp.cuda.Event(), data.xp.cuda.Event()
    if isinstance(call, Device):
        _delay()(1.5 * _host_seconds(call, count))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(data.xp.cuda.get_elapsed_time(begin, end)) * 1e-3 / count


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """Time each provider once a round, in an order drawn anew, and return seconds per unit of work."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 3)
        once = seconds(call, 3)
        wanted = max(3, round(SAMPLE_SECONDS / max(once, 1e-7)))
        repeats[name] = (
            QUEUED if isinstance(call, Host) else min(wanted, 16) if isinstance(call, Device) else wanted
        )
    if data.dry:
        repeats = dict.fromkeys(calls, 1)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(calls)).tolist():
            call = calls[name]
            seconds(call, 2)
            units = call.units if isinstance(call, Many) else 1
            samples[name].append(seconds(call, repeats[name]) / units)
    return {name: np.array(values) for name, values in samples.items()}


def plain(made: Any) -> Call:
    """What is timed: of a Timed its call."""
    return made.call if isinstance(made, Timed) else made


def _checked(made: Any) -> Call:
    """What is compared: a call and then its result, on the host."""

    def call() -> list[np.ndarray]:
        returned = made.call()
        result = made.result()
        data.synchronize()
        return [data.as_numpy(part) for part in harness.parts(returned if result is None else result)]

    return call


def measure(case: Case, rounds: int, versions: Mapping[str, str]) -> list[Row]:
    """Compare the providers' results, time them and the ceilings in turns, and return a row for each."""
    made = case.build({})
    harness.compare(case, {name: _checked(m) for name, m in made.items() if isinstance(m, Timed)})
    calls = {name: plain(m) for name, m in made.items()}
    ceilings = {name: harness.CEILINGS[name](case.nbytes) for name in case.ceilings}
    samples = interleave({**calls, **ceilings}, rounds)
    return harness.rows(case, calls, ceilings, samples, versions, data.device_name())


def run(
    cases: Iterable[Case], rounds: int, versions: Mapping[str, str], until: float
) -> Iterator[tuple[Case, list[Row]]]:
    """Measure cases until a time; one that fails or disagrees is named and left out."""
    for case in cases:
        if time.monotonic() > until:
            print(f"{' '.join(case.key)}: left out, no time", flush=True)
            continue
        try:
            table = measure(case, rounds, versions)
        except Exception as error:  # a peer, the driver, memory: the other cases are still worth their time
            if data.dry:
                raise
            print(f"LEFT OUT {' '.join(case.key)}: {type(error).__name__}: {error}", flush=True)
            continue
        finally:
            gc.collect()
            free_memory()
        for comparison in harness.comparisons(table):
            print(comparison.text(case), flush=True)
        yield case, table


def free_memory() -> None:
    """Give cached blocks back, so that one library's cache is not the other's want."""
    if not data.dry:
        import torch

        data.xp.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()
