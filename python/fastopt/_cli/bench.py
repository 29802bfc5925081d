"""``fastopt bench``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastopt import _bench, _core, _threads, plot
from fastopt._cli import parser
from fastopt._cli.train import logger, machine

_TEXT = """
Time fastopt on this machine, beside the libraries that are installed: numpy, torch, jax with optax,
scikit-learn.

Each benchmark is one task - an optimizer step, a linear layer, a training step - that all of them do
with the same numbers; one whose result differs is left out. They take turns within one run, so that
what else the machine does falls on all alike; what is shown is the median, how many times as long as
fastopt each peer takes, and the middle 60 % of the rounds. About a minute in all.
"""
_EXAMPLES = """
fastopt bench                               everything
fastopt bench --only train --peers torch    training steps, beside torch alone
fastopt bench --threads 1 --plot bars.png
fastopt bench --json > bench.json
"""


def add(commands: Any) -> None:
    p = parser.add_command(
        commands, "bench", run, "time fastopt on this machine beside its peers", _TEXT, _EXAMPLES
    )
    p.add_argument(
        "--only",
        type=parser.one_of(_bench.GROUPS, "benchmark"),
        metavar="NAME,...",
        help=f"some of {', '.join(_bench.GROUPS)} (default: all)",
    )
    p.add_argument(
        "--peers",
        type=parser.one_of(_bench.PEERS, "peer"),
        metavar="NAME,...",
        help=f"some of {', '.join(_bench.PEERS)} (default: those that are installed)",
    )
    p.add_argument(
        "--rounds", type=parser.count, default=15, metavar="N", help="times that each is timed (default: 15)"
    )
    p.add_argument("--threads", type=parser.count, metavar="N", help="threads of fastopt, BLAS and torch")
    p.add_argument("--plot", type=Path, metavar="F.png", help="draw the bars as a picture")
    p.add_argument("--json", action="store_true", help="print the figures as JSON; the rest goes to stderr")


def run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    parser.check_picture(args.plot)
    log = logger(args.json)
    providers, missing = _bench.find_peers(args.peers)
    for name in args.peers or ():
        if name in missing:
            raise ValueError(f"--peers: {name}: {missing[name]}")
    log(f"{', '.join(f'{p.name} {p.version()}' for p in providers)}; {machine('cpu')}")
    if missing:
        log("without " + "; ".join(f"{name} ({why})" for name, why in missing.items()))
    busy = _bench.busy()
    if busy:
        log(busy)
    modern = _can_print("█µ", sys.stderr if args.json else sys.stdout)
    block, unit = ("█", "µs") if modern else ("#", "us")
    results = []
    for case in _bench.cases(args.only):
        results.append(_bench.measure(case, providers, args.rounds))
        log("\n" + "\n".join(_bench.bar_lines(results[-1], block=block, unit=unit)))
    report = _as_dict(results, providers)
    if args.plot is not None:
        bars = {r.case.title: {n: t.median * 1e6 for n, t in r.times.items()} for r in results}
        plot.plot_bars(bars, args.plot, title=f"microseconds, less is better; {machine('cpu')}")
        report["plot"] = str(args.plot)
        log(f"\nplotted {args.plot}")
    if args.json:
        print(json.dumps(report), flush=True)
    return 0


def _can_print(text: str, stream: Any) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _as_dict(results: list[_bench.Result], providers: list[_bench.Provider]) -> dict[str, Any]:
    return {
        "threads": _core.num_threads(),
        "isa": _core.isa(),
        "versions": {p.name: p.version() for p in providers},
        "benchmarks": [
            {
                "group": r.case.group,
                "title": r.case.title,
                "microseconds": {n: {k: v * 1e6 for k, v in t._asdict().items()} for n, t in r.times.items()},
                "ratios": r.ratios(),
                "left_out": r.left_out,
            }
            for r in results
        ],
    }
