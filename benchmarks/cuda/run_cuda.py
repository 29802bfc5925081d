"""Measure on a CUDA device and write results/cuda_<name>.csv; a table of all of them comes last.

python benchmarks/cuda/run_cuda.py [optim losses train linear] [--only 128M] [--rounds 15] [--seconds 240] [--out DIR]

--dry runs everything at sizes of no weight over host memory, without a device, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import clock
import device_data
import harness
from harness import Case, Row

NAMES = ("optim", "train", "losses", "linear")
HEADER = ("what", "size", "fastopt us", "best peer us", "ratio", "of ceiling", "aims")


def versions() -> dict[str, str]:
    found = {}
    for name in ("fastopt", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    import fastopt as fo

    return {**found, "fastopt": fo.__version__}


def line(case: Case, comparison: harness.Comparison) -> tuple[str, ...]:
    """One line of the last table: ours beside the fastest peer, and the aims with what was reached."""
    op, mode, size = comparison.key
    mine, best, ratio = comparison.mine, comparison.best(), comparison.ratio()
    aims = [
        f"{reached:.0%}/{aim.at_least:.0%}"
        if aim.share
        else f"{reached:.2f}/{aim.at_least:g} {'/'.join(aim.peers)}"
        for aim, reached in comparison.aims(case)
    ]
    short = any(reached < aim.at_least for aim, reached in comparison.aims(case))
    return (
        f"{op} {mode}",
        size,
        f"{mine.p50:.1f}" if mine else "-",
        f"{best.p50:.1f} {best.provider}" if best else "-",
        f"{ratio:.2f}" if ratio else "-",
        f"{mine.share:.0%}" if mine else "-",
        ", ".join(aims) + (" SHORT" if short else ""),
    )


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns."""
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in lines]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="name", help=", ".join(NAMES))
    parser.add_argument("--only", default="", help="the cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=600, help="start no case after so many")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--table", type=Path, help="write the last table there too")
    parser.add_argument("--dry", action="store_true", help="tiny sizes over host memory; writes nothing")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(NAMES)}")
    if args.out:
        harness.RESULTS = args.out

    start = time.monotonic()
    device_data.setup(args.dry)
    import device_cases

    print(f"{device_data.device_name()}, {args.rounds} rounds", flush=True)
    lines = [HEADER]
    chosen = device_cases.DRY_CASES if args.dry else device_cases.CASES
    for name in args.names:
        cases = [case for case in chosen[name]() if args.only in " ".join(case.key)]
        table: list[Row] = []
        for case, rows in clock.run(cases, args.rounds, versions(), start + args.seconds):
            table += rows
            lines += [line(case, comparison) for comparison in harness.comparisons(rows)]
            if not args.dry:  # after each case: a run that is cut off has written what it measured
                kept = harness.merge(harness.read(f"cuda_{name}"), table)
                harness.write(f"cuda_{name}", kept)
    text = columns(lines)
    print(f"\n{time.monotonic() - start:.0f} s\n{text}")
    if args.table:
        args.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
