"""``fastopt compare``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fastopt import _compare, _threads, _train, plot
from fastopt._cli import parser
from fastopt._cli.train import fresh_config, interruptible, load_dataset, logger, machine, problem_line

_DEFAULT = "sgd,momentum,adam,adamw"

_TEXT = """
Train the same network with several optimizers, side by side, and say which does best.

All runs have the same data, initial weights, batches and dropout masks; they take turns, an epoch
each. Each has its usual learning rate unless NAME=RATE gives another, and a name may stand there with
several rates. sgd has no momentum here unless --momentum gives it one; momentum and nesterov are sgd
with 0.9. What comes out is a table, best test accuracy first, and with --plot a picture. A run that
diverges stops, and the others go on; after Ctrl-C the table has what was finished.
"""
_EXAMPLES = """
fastopt compare                                                   the defaults on digits
fastopt compare data.csv --optimizers sgd,momentum,adam,lion --plot race.png
fastopt compare mnist --data DIR --optimizers sgd=0.01,sgd=0.1,sgd=1 --epochs 5
fastopt compare data.npz --optimizers adam,adamw=3e-4 --scheduler cosine --json
"""


def add(commands: Any) -> None:
    p = parser.add_command(
        commands, "compare", run, "train with several optimizers side by side", _TEXT, _EXAMPLES
    )
    parser.add_data(p)
    parser.add_network(p)
    g = p.add_argument_group("training")
    g.add_argument(
        "--optimizers",
        type=parser.optimizers,
        default=_DEFAULT,
        metavar="NAME[=RATE],...",
        help=f"optimizers and their learning rates (default: {_DEFAULT}); {', '.join(_train.OPTIMIZERS)}",
    )
    g.add_argument(
        "--weight-decay", type=parser.nonnegative, metavar="X", help="of all (default: each one's own)"
    )
    g.add_argument("--momentum", type=parser.fraction, metavar="X", help="of sgd and rmsprop (default: 0)")
    parser.add_schedule(g)
    g = p.add_argument_group("what it leaves")
    g.add_argument(
        "--plot", type=Path, metavar="F.png", help="draw losses and test accuracy of all runs in one picture"
    )
    g.add_argument("--json", action="store_true", help="print the table as JSON; the rest goes to stderr")
    parser.add_machine(p)


def run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    parser.check_picture(args.plot)
    device = _train.open_device(args.device)
    if args.momentum is not None and not {name for name, _ in args.optimizers} & {
        *_train.MOMENTUM_OPTIMIZERS
    }:
        raise ValueError(f"--momentum is for {' and '.join(_train.MOMENTUM_OPTIMIZERS)}")
    configs = {name: _config(args, optimizer, lr) for name, optimizer, lr in _named(args.optimizers)}
    first = next(iter(configs.values()))
    dataset = load_dataset(first, args.data)
    comparison = _compare.Comparison(configs, dataset, device)
    log = logger(args.json)
    trainer = next(iter(comparison.runs.values())).trainer
    log(f"{problem_line(trainer)}; batch {first.batch_size}, {first.epochs} epochs; {machine(device)}")
    code = 0
    with interruptible(True) as stop:
        try:
            comparison.run(log, stop)
        except KeyboardInterrupt:
            print("interrupted; what follows is what was finished", file=sys.stderr)
            code = parser.INTERRUPTED
    _report(comparison, args, log)
    return code


def _named(chosen: tuple[tuple[str, float | None], ...]) -> list[tuple[str, str, float | None]]:
    """A name for each run: the optimizer, with its learning rate where that was given."""
    return [(name if lr is None else f"{name}={lr!r}", name, lr) for name, lr in chosen]


def _config(args: argparse.Namespace, optimizer: str, lr: float | None) -> _train.Config:
    config = fresh_config(args, optimizer, lr)
    return dataclasses.replace(config, momentum=0.0 if args.momentum is None else args.momentum)


def _report(comparison: _compare.Comparison, args: argparse.Namespace, log: Any) -> None:
    for line in comparison.lines():
        log(line)
    result: dict[str, Any] = {"runs": comparison.rows()}
    if args.plot is not None and any(run.trainer.epoch for run in comparison.runs.values()):
        trainer = next(iter(comparison.runs.values())).trainer
        config = trainer.config
        title = f"{config.dataset} {'-'.join(map(str, trainer.sizes))}, batch {config.batch_size}, seed {config.seed}"
        plot.plot_comparison(comparison.histories(), args.plot, title=title)
        result["plot"] = str(args.plot)
        log(f"plotted {args.plot}")
    if args.json:
        print(json.dumps(result), flush=True)
