"""Run a benchmark and write benchmarks/results/<name>.csv.

python benchmarks/run.py optim [--sets ...] [--optimizers ...] [--rounds 15] [--threads N]
"""

from __future__ import annotations

import argparse

import fastopt as fo
import harness
import optim


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["optim"])
    parser.add_argument("--sets", nargs="+", choices=list(optim.SETS), metavar="SET")
    parser.add_argument("--optimizers", nargs="+", choices=list(optim.OPTIMIZERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dry", action="store_true", help="print, but keep the committed results")
    args = parser.parse_args()
    if args.threads:
        fo.set_num_threads(args.threads)
    table = optim.run(args.sets, args.optimizers, args.rounds)
    if not args.dry:
        print("wrote", harness.write(args.name, table))


if __name__ == "__main__":
    main()
