"""Data-parallel training on 1, 2 and 4 ranks: speed and memory, and a cost model of what was measured.

    python benchmarks/scaling.py                     measure; results/scaling.csv, docs/scaling.md
    python benchmarks/scaling.py --predict           the tables alone, from the last results

Each rank computes with one thread, so that on a machine of two cores 1 and 2 ranks are a fair pair and 4 ranks show
what sharing cores costs.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt import _core, distributed

RESULTS = Path(__file__).parent / "results" / "scaling.csv"
DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"
FIELDS = (
    "op", "mode", "size", "ranks", "p50", "p20", "p80", "parameters", "batch", "state_bytes", "rss_bytes",
    "isa", "threads", "cores", "version",
)  # fmt: skip

#: Widths and global batch.
MODELS = {"784-256-10": ((784, 256, 10), 256), "784-2048-2048-10": ((784, 2048, 2048, 10), 256)}
MODES: dict[str, dict[str, Any]] = {
    "compiled": {},
    "compiled-sharded": {"shard_state": True},
    "eager": {"overlap": True},
    "compiled-bf16": {"gradient_dtype": "bfloat16"},
}
BYTES = (4, 4096, 65536, 2**20, 2**23)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return microseconds."""
    low, middle, high = np.quantile(seconds, [0.2, 0.5, 0.8]) * 1e6
    return {"p50": round(middle, 2), "p20": round(low, 2), "p80": round(high, 2)}


def sample(comm: Any, call: Any, seconds: float) -> list[float]:
    """Return times of calls that all ranks make together, for about so many seconds."""
    for _ in range(3):
        call()
    times: list[float] = []
    going = np.ones(1)
    while going[0]:
        comm.barrier()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
        going[0] = sum(times) < seconds or len(times) < 5
        comm.broadcast(going)
    return times


def measure_step(comm: Any, seconds: float, size: str, mode: str) -> dict[str, Any]:
    widths, batch = MODELS[size]
    fo.manual_seed(0)
    layers: list[Any] = []
    for a, b in pairwise(widths):
        layers += [fo.nn.Linear(a, b), fo.nn.ReLU()]
    model, loss_fn = fo.nn.Sequential(*layers[:-1]), fo.nn.CrossEntropyLoss()
    optimizer = fo.optim.Adam(list(model.parameters()), lr=1e-4)
    trained = fo.compile(model, loss_fn, optimizer) if mode.startswith("compiled") else model
    parallel = distributed.DataParallel(trained, optimizer, comm, **MODES[mode])
    low, high = distributed.share(batch, comm.rank, comm.size)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, widths[0])).astype(np.float32)[low:high]
    y = rng.integers(widths[-1], size=batch)[low:high]

    def step() -> None:
        if parallel.step_fn is not None:
            parallel(x, y)
            return
        parallel.zero_grad()
        loss_fn(parallel(x), y).backward()
        parallel.step()

    times = sample(comm, step, seconds)
    numbers = np.array([parallel.state_bytes(), 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])
    comm.allreduce(numbers, "max")
    return {
        "op": "step",
        "mode": mode,
        "size": size,
        **quantiles(times),
        "parameters": sum(int(np.prod(p.shape)) for p in model.parameters()),
        "batch": batch,
        "state_bytes": int(numbers[0]),
        "rss_bytes": int(numbers[1]),
    }


def measure_sums(comm: Any, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for nbytes in BYTES:
        a = np.zeros(nbytes // 4, np.float32)
        times = sample(comm, lambda a=a: comm.start_allreduce(a).wait(), seconds / 2)
        rows.append({"op": "allreduce", "mode": "rank", "size": nbytes, **quantiles(times)})
    return rows


def child(path: str, seconds: float, what: list[str]) -> None:
    """What each rank does: sums, or steps of one network in one mode, whose memory is then its own."""
    _core.set_num_threads(1)
    with distributed.world() as comm:
        rows = [measure_step(comm, seconds, *what)] if what else measure_sums(comm, seconds)
        common = {
            "ranks": comm.size,
            "isa": _core.isa(),
            "threads": 1,
            "cores": len(os.sched_getaffinity(0)),
            "version": fo.__version__,
        }
        if comm.rank == 0:
            with Path(path).open("a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerows([{**row, **common} for row in rows])


def measure(ranks: list[int], seconds: float, path: Path) -> None:
    mpiexec = shutil.which(
        "mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if mpiexec is None:
        raise SystemExit('no mpiexec: pip install "fastopt[mpi]" mpich')
    with path.open("w", newline="") as file:
        csv.DictWriter(file, FIELDS).writeheader()
    for n in ranks:
        parts = [[size, mode] for size in MODELS for mode in MODES]
        for what in [*([[]] if n > 1 else []), *parts]:
            command = [mpiexec, "-n", str(n), sys.executable, __file__, "--child", str(path), *what]
            subprocess.run([*command, "--seconds", str(seconds)], check=True)


# ----------------------------------------------------------------------------------------------- the model


class Link(NamedTuple):
    """What a message costs: seconds to begin it, and bytes a second that a rank sends."""

    latency: float
    bandwidth: float


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def sum_seconds(link: Link, ranks: int, nbytes: float, rounds: int | None = None) -> float:
    """Return what a sum over ranks takes: two rounds of messages to all others, of 2 (n - 1) / n of the bytes."""
    messages = 2 * (ranks - 1) if rounds is None else rounds
    return messages * link.latency + 2 * (ranks - 1) / ranks * nbytes / link.bandwidth


def fit(rows: list[dict[str, Any]]) -> Link:
    """Return the link that explains the sums on two ranks best, by their relative errors."""
    sums = [
        (float(r["size"]), float(r["p50"]) * 1e-6)
        for r in rows
        if r["op"] == "allreduce" and r["ranks"] == "2"
    ]
    nbytes, seconds = np.array(sums).T
    columns = np.stack([np.full_like(nbytes, 2.0), nbytes], axis=1) / seconds[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones_like(nbytes), rcond=None)
    return Link(float(latency), float(1 / per_byte))


def step_table(rows: list[dict[str, Any]]) -> list[str]:
    link = fit(rows)
    steps = {(r["size"], r["mode"], r["ranks"]): r for r in rows if r["op"] == "step"}
    lines = [
        f"Fit on two ranks: {link.latency * 1e6:.0f} us a message, {link.bandwidth / 1e9:.1f} GB/s.",
        "",
        "| network | mode | ranks | ms a step | samples/s | model, ms | state, MB a rank | peak memory, MB a rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (size, mode, ranks), r in steps.items():
        alone = float(steps[size, mode, "1"]["p50"]) * 1e-6
        n, cores = int(ranks), int(r["cores"])
        width = 2 if mode.endswith("bf16") else 4
        # Ranks that share cores share the time, too.
        busy = max(1.0, n / cores)
        model = alone / n * busy + (
            sum_seconds(link, n, width * int(r["parameters"])) * busy if n > 1 else 0.0
        )
        p50 = float(r["p50"])
        lines.append(
            f"| {size} | {mode} | {n} | {p50 / 1e3:.2f} | {int(r['batch']) / p50 * 1e6:,.0f} | {model * 1e3:.2f} "
            f"| {int(r['state_bytes']) / 1e6:.2f} | {int(r['rss_bytes']) / 1e6:.0f} |"
        )
    return lines


#: Assumed, not measured: a rank's link, what a GPU computes, and samples (rows) of a step on each.
NVLINK, NETWORK = Link(10e-6, 300e9), Link(20e-6, 40e9)
GPU_FLOPS, GPU_MEMORY, ROWS = 2e14, 80e9, 4096
_BACKWARD = 2 / 3  # of a step, beside which gradients travel


def prediction(parameters: float, ranks: int, link: Link, width: int) -> tuple[float, float, float]:
    """Return seconds of computing and of a sum, and the share of the time that a step computes, if all overlaps."""
    compute = 6 * parameters * ROWS / GPU_FLOPS
    rounds = 2 * int(np.ceil(np.log2(ranks)))  # the engine's trees, not messages to all
    traffic = sum_seconds(link, ranks, width * parameters, rounds)
    return compute, traffic, compute / max(compute, compute * (1 - _BACKWARD) + traffic)


def prediction_table() -> list[str]:
    lines = [
        "| parameters | GPUs | compute, ms | float32 sum, ms | efficiency | bfloat16 sum, ms | efficiency "
        "| state whole / shared, GB | fits 80 GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for parameters in (1e7, 1e8, 1e9, 5e9):
        for ranks, link in ((8, NVLINK), (64 * 8, NETWORK), (1024 * 8, NETWORK)):
            compute, wide, share_wide = prediction(parameters, ranks, link, 4)
            _, narrow, share_narrow = prediction(parameters, ranks, link, 2)
            kept = 12 * parameters  # parameter, gradient, bucket
            fits = [kept + 8 * parameters / n < GPU_MEMORY for n in (1, ranks)]
            lines.append(
                f"| {parameters:.0e} | {ranks} | {compute * 1e3:.2f} | {wide * 1e3:.2f} | {share_wide:.0%} "
                f"| {narrow * 1e3:.2f} | {share_narrow:.0%} | {8 * parameters / 1e9:.2g} / "
                f"{8 * parameters / ranks / 1e9:.2g} | {' / '.join('yes' if f else 'no' for f in fits)} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument(
        "--predict", action="store_true", help="tables from the last results, measure nothing"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        path, *what = args.child
        child(path, args.seconds, what)
        return
    if not args.predict:
        measure([int(n) for n in args.ranks.split(",")], args.seconds, RESULTS)
    write(DOCS, {"measured": step_table(read(RESULTS)), "predicted": prediction_table()})


def write(path: Path, tables: dict[str, list[str]]) -> None:
    """Put tables between their marks in a page."""
    text = path.read_text()
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1]
    path.write_text(text)


if __name__ == "__main__":
    main()
