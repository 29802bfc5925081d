"""CPU seconds that `import fastopt` adds to `import numpy`: medians of fresh interpreters taking turns."""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys


def seconds(code: str) -> float:
    """Run `code` in a fresh interpreter and return the CPU time it took, which no neighbour lengthens much."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--limit", type=float, help="exit with 1 when the difference is larger")
    args = parser.parse_args()
    pairs = [(seconds("import numpy"), seconds("import fastopt")) for _ in range(args.rounds)]
    numpy, fastopt = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"import numpy {numpy:.3f} s, import fastopt {fastopt:.3f} s, difference {fastopt - numpy:.3f} s")
    if args.limit is not None and fastopt - numpy > args.limit:
        sys.exit(1)


if __name__ == "__main__":
    main()
