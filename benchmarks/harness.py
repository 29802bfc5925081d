"""Timing that survives a shared machine: providers take turns within one run, and quantiles are reported."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

import fastopt as fo
from fastopt import _core

#: Longer than idle workers of OpenMP and of our own pool keep spinning.
PAUSE_SECONDS = 0.01
RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One figure: times in microseconds, rate in GB/s or GFLOP/s, share = rate / the ceiling measured beside it."""

    op: str
    provider: str
    mode: str
    dtype: str
    size: str
    p50: float
    p20: float
    p80: float
    rate: float
    unit: str
    share: float
    isa: str
    threads: int
    device: str
    version: str


def interleave(
    providers: Mapping[str, Callable[[], object]], rounds: int = 25, sample_seconds: float = 1e-2
) -> dict[str, np.ndarray]:
    """Time each provider once a round, in turns, and return its seconds per call for every round.

    A sample repeats a short call until it lasts `sample_seconds`. Each round starts with another provider, so
    that none always runs behind the same neighbour, and each sample follows a pause, in which the neighbour's
    threads stop spinning, and a quarter of its calls untimed, which bring its data back into the caches.
    """
    repeats = {}
    for name, call in providers.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(sample_seconds / max(time.perf_counter() - start, 1e-9)))
    names = list(providers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(turn + k) % len(names)]
            call, count = providers[name], repeats[name]
            time.sleep(PAUSE_SECONDS)
            for _ in range(1 + count // 4):
                call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            samples[name].append((time.perf_counter() - start) / count)
    return {name: np.array(values) for name, values in samples.items()}


class Stream:
    """The machine's ceiling for a working set of `nbytes`: y += a x in place, on our pool, over two arrays.

    It takes its turns among the providers, as the bandwidth of a shared machine changes within seconds, and its
    arrays together are as large as the providers', so that they lie in the same cache.
    """

    def __init__(self, nbytes: int) -> None:
        self.x = np.ones(max(nbytes // 8, 1), np.float32)
        self.y = np.ones_like(self.x)
        #: Bytes read and written by a call.
        self.work = 3 * self.x.nbytes

    def __call__(self) -> None:
        _core.axpy(1e-9, self.x, self.y)


def rows(
    op: str,
    mode: str,
    dtype: str,
    size: str,
    samples: Mapping[str, np.ndarray],
    *,
    work: float,
    unit: str,
    ceiling: float,
    versions: Mapping[str, str],
) -> list[Row]:
    """Turn samples into rows; `work` is the bytes or operations of one call, `ceiling` the machine's per second."""
    made = []
    for provider, seconds in samples.items():
        p20, p50, p80 = np.quantile(seconds, [0.2, 0.5, 0.8])
        made.append(
            Row(
                op, provider, mode, dtype, size,
                round(p50 * 1e6, 2), round(p20 * 1e6, 2), round(p80 * 1e6, 2),
                round(work / p50 / 1e9, 2), unit, round(work / p50 / ceiling, 3),
                _core.isa(), fo.get_num_threads(), "cpu", versions.get(provider.split("-")[0], ""),
            )
        )  # fmt: skip
    return made


def write(name: str, table: list[Row]) -> Path:
    """Write the rows to results/`name`.csv, replacing an older run's."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)
    return path


def read(name: str) -> list[dict[str, str]]:
    """Read back what `write` wrote."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
