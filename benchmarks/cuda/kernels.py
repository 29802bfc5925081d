"""Which kernels a call launches, how often and how long each: whether an epilogue is fused, how many nodes a step has.

python benchmarks/cuda/kernels.py [--only linear] [--out DIR]

Names and times are those of torch's profiler, which sees the kernels of the whole process. Writes cuda_kernels.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import clock
import device_data as data
import harness
from harness import Many

CALLS = 4
FIELDS = ("op", "mode", "size", "provider", "kernel", "launches", "us")


def launched(call: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """Return kernels by name with their launches and microseconds per call."""
    if data.dry:
        call()
        return [("dry", 1.0, 0.0)]
    from torch.profiler import ProfilerActivity, profile

    call()
    data.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
        data.synchronize()
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in seen.events():
        counts[event.name] += 1
        times[event.name] += event.device_time
    return [(name, n / CALLS, times[name] / CALLS) for name, n in counts.most_common()]


def rows(only: str, dry: bool) -> Iterator[dict[str, Any]]:
    import device_cases

    chosen = device_cases.DRY_CASES if dry else device_cases.CASES
    for name in ("train", "linear", "losses"):
        for case in chosen[name]():
            if only not in " ".join(case.key):
                continue
            for provider, made in case.build({}).items():
                call = clock.plain(made)
                units = call.units if isinstance(call, Many) else 1
                for kernel, launches, micro in launched(call):
                    values = (
                        *case.key,
                        provider,
                        kernel,
                        round(launches / units, 2),
                        round(micro / units, 2),
                    )
                    yield dict(zip(FIELDS, values, strict=True))
            clock.free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="784-256-10", help="the cases whose names contain this")
    parser.add_argument("--out", type=Path, default=harness.RESULTS)
    parser.add_argument("--dry", action="store_true", help="tiny sizes over host memory; writes nothing")
    args = parser.parse_args()
    data.setup(args.dry)
    table, before = [], None
    for row in rows("" if args.dry else args.only, args.dry):
        table.append(row)
        header = tuple(row[key] for key in FIELDS[:4])
        if header != before:
            print(*header, flush=True)
        before = header
        print(f"    {row['launches']:6g} x {row['us']:9.2f} us  {row['kernel'][:100]}", flush=True)
    if not args.dry:
        with (args.out / "cuda_kernels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
