"""Timing that survives a shared machine: providers take turns within one run, and quantiles are reported."""

from __future__ import annotations

import csv
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import _core
from fastopt._bench import settle

RESULTS = Path(__file__).parent / "results"

#: Calls before a sample that go untimed take at least this long.
WARM_SECONDS = 0.03

Call = Callable[[], Any]


@dataclass
class Row:
    """One figure: times in microseconds, rate in GB/s or GFLOP/s.

    share (of the ceiling) and ratio (of the time to our own) are medians over the rounds of what each of them
    shows: a machine that is slower for some of the rounds is so for all that were timed in them. Files
    older than the ratio have none: 0.
    """

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
    ratio: float = 0.0


# ------------------------------------------------------------------------------------------------ ceilings


class Stream:
    """The bandwidth of a working set of `nbytes`: y += a x in place, on our pool, over two arrays.

    The two together are as large as the providers' arrays, so that they lie in the same level of cache.
    """

    unit = "GB/s"

    def __init__(self, nbytes: float) -> None:
        self.x = np.ones(max(int(nbytes) // 8, 1), np.float32)
        self.y = np.ones_like(self.x)
        #: Bytes read and written by a call.
        self.work = 3.0 * self.x.nbytes

    def __call__(self) -> None:
        _core.axpy(1e-9, self.x, self.y)


class Copy:
    """The bandwidth of memory: y = x with stores past the caches, on our pool, over arrays larger than them."""

    unit = "GB/s"
    elements = 1 << 24

    def __init__(self) -> None:
        self.x = np.ones(self.elements, np.float32)
        self.y = np.ones_like(self.x)
        self.work = 2.0 * self.x.nbytes

    def __call__(self) -> None:
        _core.copy(self.x, self.y)


class MultiplyAdds:
    """The peak of arithmetic: fused multiply-adds in registers, on our pool."""

    unit = "GFLOP/s"

    def __init__(self) -> None:
        self.work = _core.fma_peak(1) * 1000

    def __call__(self) -> None:
        _core.fma_peak(1000)


#: By name, made for a working set of so many bytes.
CEILINGS: dict[str, Callable[[float], Any]] = {
    "stream": Stream,
    "copy": lambda _: Copy(),
    "fma": lambda _: MultiplyAdds(),
}


# --------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Aim:
    """What a comparison has to show: the time of the best of some peers over ours, or a share of the ceiling.

    `peers` are beginnings of providers' names, none for all of them; `mode` is the case's own unless given.
    """

    at_least: float
    peers: tuple[str, ...] = ()
    share: bool = False
    mode: str = ""

    def __str__(self) -> str:
        if self.share:
            return f"{self.at_least:.0%} of the ceiling"
        return f"{self.at_least:g}x" + (f" {'/'.join(self.peers)}" if self.peers else "")


@dataclass(frozen=True)
class Case:
    """One comparison: what is computed, how each provider computes it, and what it is held to.

    build(peers) returns {provider: call}, ours among them as "fastopt" or "fastopt-...". What a call returns
    - arrays, or a number - is compared between all of them before anything is timed.
    """

    op: str
    mode: str
    size: str
    build: Callable[[Mapping[str, Any]], dict[str, Call]]
    #: The least that a call must do: floating-point operations, and bytes read and written.
    flops: float
    nbytes: float
    unit: str = "GB/s"
    #: Those measured in the same rounds; the first is what shares refer to.
    ceilings: tuple[str, ...] = ("copy",)
    aims: tuple[Aim, ...] = ()
    dtype: str = "float32"
    #: Providers are compared after so many calls, to this relative tolerance; 0: their results say nothing.
    calls: int = 1
    tolerance: float = 1e-4
    #: The arrays that "stream" goes through; 0: as many bytes as the call moves.
    stream_bytes: float = 0.0
    #: The memory that it needs, where that is much.
    memory: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.op, self.mode, self.size

    @property
    def work(self) -> float:
        return self.flops if self.unit == "GFLOP/s" else self.nbytes


@dataclass
class Many:
    """A call that does several units of work, and whose time is divided by their number: a mode of its own."""

    call: Call
    units: int
    mode: str = "run"

    def __call__(self) -> Any:
        return self.call()


# -------------------------------------------------------------------------------------------------- timing


def interleave(
    providers: Mapping[str, Call], rounds: int = 25, sample_seconds: float = 2e-2
) -> dict[str, np.ndarray]:
    """Time each provider once a round, in turns, and return its seconds per unit of work for every round.

    A sample repeats a short call until it lasts `sample_seconds`. Each round has an order of its own, so that
    none always runs behind the same neighbour, and each sample follows a pause, in which the neighbour's
    threads stop spinning, and calls that go untimed: sleeping threads and a virtual machine's idle CPUs take
    tens of milliseconds to come to speed, which in a training loop happens once.
    """
    repeats = {}
    for name, call in providers.items():
        settle()
        repeats[name] = max(1, round(sample_seconds / max(warm_up(call), 1e-9)))
    names = list(providers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(names).tolist():
            call, count = providers[name], repeats[name]
            settle()
            warm_up(call)
            start = time.perf_counter()
            for _ in range(count):
                call()
            units = count * (call.units if isinstance(call, Many) else 1)
            samples[name].append((time.perf_counter() - start) / units)
    return {name: np.array(values) for name, values in samples.items()}


def warm_up(call: Call) -> float:
    """Make calls for WARM_SECONDS, two at least, and return the seconds that the last one took."""
    begin = last = time.perf_counter()
    for calls in itertools.count(1):
        call()
        now = time.perf_counter()
        if calls > 1 and now - begin >= WARM_SECONDS:
            return now - last
        last = now
    raise AssertionError


class Differs(Exception):
    """A provider's result is not that of the others: its time would mean nothing."""


def compare(case: Case, calls: Mapping[str, Call]) -> None:
    """Make every provider do its work, and raise Differs where one's result is not the first's.

    Those that do many units of work in a call are tested on their own, as they are ahead of the others.
    """
    single = {name: call for name, call in calls.items() if not isinstance(call, Many)}
    results = {}
    for name, call in single.items() if case.calls else ():
        for _ in range(case.calls):
            result = call()
        results[name] = [np.array(part, np.float64) for part in parts(result)]
    first = next(iter(results), "")
    for name in list(results)[1:]:
        for ours, theirs in zip(results[first], results[name], strict=True):
            where = f"{' '.join(case.key)}: {name}"
            if ours.shape != theirs.shape:
                raise Differs(f"{where} has shape {theirs.shape}, {first} has {ours.shape}")
            scale = max(float(np.abs(ours).max(initial=0.0)), 1e-30)
            error = float(np.abs(ours - theirs).max(initial=0.0)) / scale
            if not error <= case.tolerance:
                raise Differs(f"{where} differs from {first} by {error:.1e}")


def parts(result: Any) -> Sequence[Any]:
    """Return what a call returned as a sequence of arrays or numbers."""
    return result if isinstance(result, tuple | list) else [result]


def measure(case: Case, peers: Mapping[str, Any], rounds: int) -> list[Row]:
    """Compare the providers' results, time them and the ceilings in turns, and return a row for each."""
    calls = case.build(peers)
    compare(case, calls)
    ceilings = {name: CEILINGS[name](case.stream_bytes or case.nbytes) for name in case.ceilings}
    samples = interleave({**calls, **ceilings}, rounds)
    versions = {"fastopt": fo.__version__, **{name: peer.version() for name, peer in peers.items()}}
    return rows(case, calls, ceilings, samples, versions)


def rows(
    case: Case,
    calls: Mapping[str, Any],
    ceilings: Mapping[str, Any],
    samples: Mapping[str, np.ndarray],
    versions: Mapping[str, str],
    device: str = "cpu",
) -> list[Row]:
    """Return a row for each of the calls and of the ceilings, whose samples were taken in the same rounds."""
    peaks = {name: ceiling.work / samples[name] for name, ceiling in ceilings.items()}
    modes = {name: call.mode if isinstance(call, Many) else case.mode for name, call in calls.items()}
    table = []
    for provider, mode in modes.items():
        mine = samples.get(name_of_ours(name for name in calls if modes[name] == mode))
        peak = peaks[case.ceilings[0]]
        row = figures(case, provider, samples[provider], case.work, case.unit, peak, device, mine)
        row.version = versions.get(provider.split("-")[0], "")
        row.mode = mode
        table.append(row)
    for name, ceiling in ceilings.items():
        table.append(figures(case, name, samples[name], ceiling.work, ceiling.unit, peaks[name], device))
    return table


def name_of_ours(providers: Iterable[str]) -> str:
    """Return which provider stands for us: the one called fastopt, else the first of ours, else none."""
    ours = [name for name in providers if name.startswith("fastopt")]
    return "fastopt" if "fastopt" in ours else next(iter(ours), "")


def figures(
    case: Case,
    provider: str,
    seconds: np.ndarray,
    work: float,
    unit: str,
    ceiling: float | np.ndarray,
    device: str = "cpu",
    mine: np.ndarray | None = None,
) -> Row:
    """Return the figures of a provider's samples; ceiling: a rate, or that of each round; mine: our samples."""
    p20, p50, p80 = (float(q) for q in np.quantile(seconds, [0.2, 0.5, 0.8]))
    return Row(
        case.op, provider, case.mode, case.dtype, case.size,
        round(p50 * 1e6, 2), round(p20 * 1e6, 2), round(p80 * 1e6, 2),
        round(work / p50 / 1e9, 2), unit, round(1.0 / float(np.median(seconds * ceiling / work)), 3),
        _core.isa(), fo.get_num_threads(), device, "",
        0.0 if mine is None else round(float(np.median(seconds / mine)), 4),
    )  # fmt: skip


def run(cases: Iterable[Case], peers: Mapping[str, Any], rounds: int) -> Iterator[list[Row]]:
    """Measure the cases one after the other, say how each comes out, and yield its rows.

    A case whose providers disagree, or that needs more memory than there is, is named and left out.
    """
    for case in cases:
        if case.memory > available_memory():
            print(f"{' '.join(case.key)}: left out, it needs {case.memory / 2**30:.0f} GiB", flush=True)
            continue
        try:
            table = measure(case, peers, rounds)
        except Differs as error:
            print(f"LEFT OUT: {error}", flush=True)
            continue
        finally:
            gc.collect()
        for comparison in comparisons(table):
            print(comparison.text(case), flush=True)
        yield table


def busy_cpus(seconds: float = 1.0) -> float:
    """Return how many CPUs work while this process sleeps; 0 where the system does not tell."""

    def used() -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system = (int(ticks) for ticks in fields[:3])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")

    try:
        before = used()
        time.sleep(seconds)
        return (used() - before) / seconds
    except OSError:
        return 0.0


def available_memory() -> float:
    """Bytes that can be used without swapping; unlimited where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")
    return 1024.0 * next(int(line.split()[1]) for line in text.splitlines() if "MemAvailable" in line)


# ------------------------------------------------------------------------------------------------- results


@dataclass
class Comparison:
    """The rows of one case."""

    rows: list[Row]
    ours: dict[str, Row] = field(init=False)
    peers: dict[str, Row] = field(init=False)
    ceilings: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        self.ours = {r.provider: r for r in self.rows if r.provider.startswith("fastopt")}
        self.ceilings = {r.provider: r for r in self.rows if r.provider in CEILINGS}
        apart = self.ours.keys() | self.ceilings.keys()
        self.peers = {r.provider: r for r in self.rows if r.provider not in apart}

    @property
    def key(self) -> tuple[str, str, str]:
        row = self.rows[0]
        return row.op, row.mode, row.size

    @cached_property
    def mine(self) -> Row | None:
        """The row that stands for us."""
        return self.ours.get(name_of_ours(self.ours))

    def best(self, names: Sequence[str] = ()) -> Row | None:
        """Return the fastest peer, of those whose names begin with one of `names`."""
        chosen = [r for r in self.peers.values() if not names or r.provider.startswith(tuple(names))]
        return min(chosen, key=self._over_ours, default=None)

    def ratio(self, names: Sequence[str] = ()) -> float | None:
        """Return the time of the fastest peer over ours; None where either was not measured."""
        best = self.best(names)
        return self._over_ours(best) if best and self.mine else None

    def _over_ours(self, row: Row) -> float:
        return row.ratio or row.p50 / (self.mine.p50 if self.mine else 1.0)

    def aims(self, case: Case) -> list[tuple[Aim, float]]:
        """Return the aims of a case that these rows can be held to, each with what was reached."""
        found = []
        for aim in case.aims:
            if (aim.mode or case.mode) != self.key[1]:
                continue
            reached = self.mine.share if aim.share and self.mine else self.ratio(aim.peers)
            if reached is not None:
                found.append((aim, reached))
        return found

    def text(self, case: Case) -> str:
        """Return the comparison in a few lines: medians, and what was reached beside the aims."""
        times = "  ".join(f"{r.provider} {r.p50:.0f}" for r in self.rows if r.provider not in CEILINGS)
        lines = [f"{' '.join(self.key)} | us: {times}"]
        facts = []
        if self.mine:
            facts.append(f"{self.mine.rate:.1f} {self.mine.unit}, {self.mine.share:.0%} of the ceiling")
        facts += [f"{r.provider} {r.rate:.0f} {r.unit}" for r in self.ceilings.values()]
        if facts:
            lines.append("    " + ", ".join(facts))
        for aim, reached in self.aims(case):
            shown = f"{reached:.0%}" if aim.share else f"{reached:.2f}x"
            lines.append(f"    {shown}, aim {aim}: {'ok' if reached >= aim.at_least else 'SHORT'}")
        return "\n".join(lines)


def comparisons(table: Iterable[Row]) -> list[Comparison]:
    """Group rows by case, in their order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in table:
        groups.setdefault((row.op, row.mode, row.size), []).append(row)
    return [Comparison(group) for group in groups.values()]


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean, 1 of nothing."""
    logs = np.log(list(values))
    return float(np.exp(logs.mean())) if logs.size else 1.0


def write(name: str, table: Sequence[Row]) -> Path:
    """Write the rows to results/`name`.csv, replacing an older run's."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)
    return path


def read(name: str) -> list[Row]:
    """Read back what `write` wrote; nothing where there is no such file."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    kinds = {
        "p50": float,
        "p20": float,
        "p80": float,
        "rate": float,
        "share": float,
        "threads": int,
        "ratio": float,
    }
    with path.open(newline="") as file:
        return [Row(**{k: kinds.get(k, str)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def merge(old: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Return the rows with those of re-measured cases replaced in place, and new cases at the end."""
    fresh = {c.key: c.rows for c in comparisons(new)}
    merged = []
    for comparison in comparisons(old):
        merged += fresh.pop(comparison.key, comparison.rows)
    for rows in fresh.values():
        merged += rows
    return merged
