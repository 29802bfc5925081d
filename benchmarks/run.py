"""Run a benchmark and write benchmarks/results/<name>.csv.

python benchmarks/run.py train [--peers torch,jax] [--only 784-256] [--rounds 15] [--threads 2] [--dry]
"""

from __future__ import annotations

import argparse
import importlib
import os
import time

NAMES = ("linear", "losses", "activations", "batch_norm", "train", "curves", "optim", "tails", "sklearn_fit")


def narrow(threads: int) -> None:
    """Let this process see so many CPUs: every library then starts so many threads. Before any is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--peers", help="comma-separated; by default those that the benchmark is about")
    parser.add_argument("--only", default="", help="measure the cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="by default the CPUs of this process")
    parser.add_argument("--dry", action="store_true", help="print, but keep the results on disk")
    args = parser.parse_args()
    if args.threads:
        narrow(args.threads)

    import fastopt as fo
    import harness
    from peers import NAMES as NAMES_OF_PEERS
    from peers import load

    start = time.perf_counter()
    benchmark = importlib.import_module(args.name)
    if args.threads:
        fo.set_num_threads(args.threads)
    names = args.peers.split(",") if args.peers else benchmark.PEERS
    if unknown := set(names) - set(NAMES_OF_PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))}: expected some of {', '.join(NAMES_OF_PEERS)}")
    peers = load(names, fo.get_num_threads())
    print(f"isa {fo._core.isa()}, threads {fo.get_num_threads()}, {args.rounds} rounds", flush=True)
    if (busy := harness.busy_cpus()) > 0.2:
        print(f"{busy:.1f} CPUs are busy with other work: short calls gain by that", flush=True)
    cases = [case for case in benchmark.CASES if args.only in " ".join(case.key)]
    table = [row for rows in harness.run(cases, peers, args.rounds) for row in rows]
    print(f"{len(table)} rows, {time.perf_counter() - start:.0f} s")
    if args.dry or not table:
        return
    if args.only:
        table = harness.merge(harness.read(args.name), table)
    print("wrote", harness.write(args.name, table))


if __name__ == "__main__":
    main()
