"""``fastopt train``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fastopt import _core, _dataset, _threads, _train, checkpoint, distributed, plot
from fastopt._cli import parser
from fastopt.distributed.comm import together
from fastopt.monitor import GradientMonitor

# Defaults that fit the data: hidden layers and epochs.
_BY_DATASET: dict[str, tuple[tuple[int, ...], int]] = {"digits": ((256,), 60), "mnist": ((256,), 10)}
_FOR_FILES = ((64,), 30)

# Settings of a run that are no part of its result: they may differ when it is resumed.
_FREE_ON_RESUME = ("dataset", "epochs")

_MONITORED_ROWS = 512  # of the training set, whose gradients the monitor measures after each epoch

_TEXT = """
Train a multilayer perceptron on a classification problem.

It prints a line for each epoch, then the confusion matrix and the accuracy on the test set. The same
seed gives the same weights, bit for bit, for any number of threads. With --save a checkpoint is
written after each epoch, and when Ctrl-C stops the run; --resume goes on from it as if nothing had
happened.

Started by mpiexec (mpiexec -n 4 fastopt train ...) the processes share out each batch, and rank 0 prints
and saves. A checkpoint is the same from any number of them, and any number goes on from it.
"""
_EXAMPLES = """
fastopt train                                         digits of scikit-learn, in seconds
fastopt train mnist --data DIR --epochs 10            MNIST from its four IDX files
fastopt train iris.csv --label species --hidden 32,16
fastopt train data.npz --optimizer adamw --lr 3e-4 --scheduler warmup_cosine --dropout 0.2
fastopt train data.csv --save model.safetensors --plot curves.png --monitor
fastopt train --resume model.safetensors --epochs 60
"""


def add(commands: Any) -> None:
    p = parser.add_command(
        commands, "train", run, "train a multilayer perceptron classifier", _TEXT, _EXAMPLES
    )
    parser.add_data(p)
    parser.add_network(p)
    g = p.add_argument_group("training")
    g.add_argument(
        "--optimizer", choices=_train.OPTIMIZERS, help=f"default: adam; {', '.join(_train.OPTIMIZERS)}"
    )
    g.add_argument(
        "--lr", type=parser.positive, metavar="X", help="learning rate (default: the optimizer's own)"
    )
    g.add_argument(
        "--weight-decay", type=parser.nonnegative, metavar="X", help="default: the optimizer's own"
    )
    g.add_argument(
        "--momentum", type=parser.fraction, metavar="X", help="for sgd and rmsprop (default: 0.9 and 0)"
    )
    parser.add_schedule(g)
    g = p.add_argument_group("what it leaves")
    g.add_argument(
        "--save",
        type=Path,
        metavar="F",
        help="write a checkpoint after each epoch and on Ctrl-C (*.safetensors)",
    )
    g.add_argument("--resume", type=Path, metavar="F", help="go on with a saved run, and keep saving to it")
    g.add_argument(
        "--plot",
        type=Path,
        metavar="F.png",
        help="draw loss, accuracy, learning rate where it changes, the confusion matrix and, with --monitor, gradients",
    )
    g.add_argument(
        "--monitor",
        action="store_true",
        help="watch each layer's gradient, and say where it vanishes or explodes and what to try",
    )
    g.add_argument(
        "--json", action="store_true", help="print the result as JSON; the other lines go to stderr"
    )
    g.add_argument(
        "--shard-state",
        action="store_true",
        help="under mpiexec, each process keeps its own part of the optimizer's state",
    )
    parser.add_machine(p)


def run(args: argparse.Namespace) -> int:
    with distributed.world() as comm:
        prepared, error = together(comm, lambda: _prepared(args, comm.rank))
        if prepared is not None:
            return _run(args, *prepared, comm)
    assert error is not None
    raise error


def _prepared(args: argparse.Namespace, rank: int) -> tuple[_train.Config, _dataset.Dataset, str]:
    """Check what was asked for and load what it needs."""
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    if rank == 0:
        parser.check_output(args.save)
    parser.check_picture(args.plot)
    device = _train.open_device(args.device)
    config = _checked_config(args)
    return config, load_dataset(config, args.data), device


def _run(
    args: argparse.Namespace,
    config: _train.Config,
    dataset: _dataset.Dataset,
    device: str,
    comm: distributed.MPIComm | distributed.NullComm,
) -> int:
    """Train on the ranks of `comm`, of which the first alone prints."""
    if comm.size > 1 and args.threads is None and "OMP_NUM_THREADS" not in os.environ:
        _threads.set_num_threads(max(1, _core.num_threads() // comm.neighbours))
    log = logger(args.json) if comm.rank == 0 else lambda line: None
    if comm.size > 1:  # a launcher tells which process was killed, not which rank
        log(f"{comm.size} ranks, processes {' '.join(map(str, comm.processes))}")
    trainer = _train.Trainer(config, dataset, args.save or args.resume, device, comm, args.shard_state)
    monitor = GradientMonitor(trainer.model) if args.monitor else None
    after_epoch = None if monitor is None else lambda: _measure(monitor, trainer)
    try:
        if args.resume:
            trainer.resume(args.resume)
        log(_headline(trainer))
        # With a file to save to, a first Ctrl-C waits a tenth of a second, or one step, for a place to save at.
        with interruptible(trainer.save is not None) as stop:
            trainer.run(log, progress_bar() if comm.rank == 0 else None, stop, after_epoch)
    except KeyboardInterrupt as stop:
        if not isinstance(stop, _train.Stopped):
            comm.fail("KeyboardInterrupt")
        if comm.rank == 0:
            print(_farewell(trainer), file=sys.stderr)
        return parser.INTERRUPTED
    except _train.Diverged:
        if monitor is not None:
            _measure(monitor, trainer)
            log(str(monitor.report()))
        raise
    if comm.rank == 0:
        _report(trainer, args, log, monitor)
    return 0


@contextmanager
def interruptible(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Within it a first Ctrl-C makes the function that is yielded return True, and a second one stops the program."""
    asked = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    if before is signal.SIG_IGN:  # a job in the background
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def logger(as_json: bool) -> Callable[[str], None]:
    """A function that prints a line: to stderr where stdout is for JSON."""
    stream = sys.stderr if as_json else sys.stdout
    return lambda line: print(line, file=stream, flush=True)


def fresh_config(
    args: argparse.Namespace, optimizer: str | None = None, lr: float | None = None
) -> _train.Config:
    """The settings of a new run, with defaults that fit data and optimizer."""
    name = args.dataset or "digits"
    hidden, epochs = _BY_DATASET.get(name, _FOR_FILES)
    optimizer = optimizer or "adam"
    _, own_lr, weight_decay, _ = _train.OPTIMIZERS[optimizer]
    if args.label is not None and Path(name).suffix.lower() != ".csv":
        raise ValueError(f"--label: is for a CSV file, got {name}")
    if args.batch_norm and args.batch_size == 1:
        raise ValueError("--batch-norm: needs a --batch-size of 2 or more, got 1")
    if args.test_size is not None and name == "mnist":
        raise ValueError("--test-size: mnist has a test set of its own")

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return _train.Config(
        dataset=name,
        hidden=given(args.hidden, hidden),
        activation=given(args.activation, "relu"),
        dropout=given(args.dropout, 0.0),
        optimizer=optimizer,
        lr=given(lr, own_lr),
        weight_decay=given(args.weight_decay, weight_decay),
        momentum=given(args.momentum, 0.9 if optimizer == "sgd" else 0.0),
        scheduler=given(args.scheduler, "none"),
        batch_size=given(args.batch_size, 64),
        epochs=given(args.epochs, epochs),
        seed=given(args.seed, 0),
        label=given(args.label, -1),
        scale=given(args.scale, "auto"),
        test_size=given(args.test_size, 0.2),
        batch_norm=bool(args.batch_norm),
    )


def _checked_config(args: argparse.Namespace) -> _train.Config:
    if args.resume:
        return _resumed_config(args)
    optimizer = args.optimizer or "adam"
    if args.momentum is not None and optimizer not in _train.MOMENTUM_OPTIMIZERS:
        raise ValueError(f"--momentum: {optimizer} has none, only {' and '.join(_train.MOMENTUM_OPTIMIZERS)}")
    return fresh_config(args, optimizer, args.lr)


def _resumed_config(args: argparse.Namespace) -> _train.Config:
    """The saved run's settings; what the command line says about the result must agree with them."""
    extra = read_model(args.resume)
    config: _train.Config = extra["config"]
    done = len(extra["history"]["epoch"])
    for field in dataclasses.fields(config):
        value, saved = getattr(args, field.name), getattr(config, field.name)
        if value is not None and value != saved and field.name not in _FREE_ON_RESUME:
            option = "--" + field.name.replace("_", "-")
            raise ValueError(f"{option}: {value} differs from {saved} in {args.resume}")
    epochs = args.epochs or config.epochs
    if epochs != config.epochs and config.scheduler in _train.PLANNED_SCHEDULERS:
        planned = f"the {config.scheduler} schedule in {args.resume} was planned for {config.epochs}"
        raise ValueError(f"--epochs: {planned}, got {epochs}")
    if done >= epochs:
        raise ValueError(f"{args.resume}: all {done} epochs are done, give more --epochs than {done}")
    return dataclasses.replace(config, epochs=epochs, dataset=args.dataset or config.dataset)


def read_model(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint that a run has saved."""
    contents = checkpoint.read(path)
    extra = contents["extra"]
    if "model" not in contents or not isinstance(extra, dict) or not _train.SAVED.issubset(extra):
        raise ValueError(f"{path}: a checkpoint, but not one that fastopt train saved")
    try:
        config = _train.Config(**extra["config"])
    except TypeError as err:
        raise ValueError(f"{path}: settings of another version: {err}") from err
    return {**extra, "config": config, "model": contents["model"]}


def load_dataset(config: _train.Config, directory: str) -> _dataset.Dataset:
    """The data that the settings name."""
    return _dataset.load_dataset(
        config.dataset, directory, label=config.label, scale=config.scale, test_size=config.test_size
    )


def _headline(trainer: _train.Trainer) -> str:
    config = trainer.config
    return (
        f"{problem_line(trainer)}; {config.optimizer} lr {config.lr:g}, batch {config.batch_size}; "
        + machine(trainer.device)
        + (f"; resumed {trainer.place()}" if trainer.begun else "")
    )


def problem_line(trainer: _train.Trainer) -> str:
    """Data and network in a few words."""
    config, dataset = trainer.config, trainer.dataset
    return (
        f"{config.dataset}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows; "
        f"{'-'.join(map(str, trainer.sizes))} {config.activation}, {trainer.parameters:,} parameters"
    )


def machine(device: str) -> str:
    """What it computes with."""
    return device if device != "cpu" else f"{_core.num_threads()} threads, {_core.isa()}"


def _farewell(trainer: _train.Trainer) -> str:
    where = f"interrupted in epoch {trainer.epoch + 1} of {trainer.config.epochs}"
    if trainer.save is None:
        return f"{where}; nothing was saved (no --save)"
    if trainer.saved is None:
        return f"{where}; no checkpoint was saved yet"
    return (
        f"{where}; the last checkpoint, {trainer.saved}, is {trainer.save}: "
        f"go on with fastopt train --resume {trainer.save}"
    )


def progress_bar() -> Callable[..., Any] | None:
    """tqdm's bar, where it is installed and someone is watching."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar: Callable[..., Any] = tqdm
    return bar


def _measure(monitor: GradientMonitor, trainer: _train.Trainer) -> None:
    x, y = trainer.train_set
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
        monitor.measure(trainer.loss_fn, x[:_MONITORED_ROWS], y[:_MONITORED_ROWS], step=trainer.epoch)


def _report(
    trainer: _train.Trainer,
    args: argparse.Namespace,
    log: Callable[[str], None],
    monitor: GradientMonitor | None,
) -> None:
    dataset = trainer.dataset
    matrix = _dataset.confusion_matrix(dataset.y_test, trainer.predictions, len(dataset.classes))
    for line in _dataset.confusion_lines(matrix, dataset.classes):
        log(line)
    result = trainer.result()
    if monitor is not None:
        log(str(monitor.report()))
        result["gradients"] = monitor.report().as_dict()
    log(
        f"test accuracy {result['test_accuracy']:.2%} after {result['epochs']} epochs, "
        f"{result['train_seconds']:.2f} s of training, {result['samples_per_second']:,.0f} samples/s"
    )
    if trainer.save is not None:
        result["checkpoint"] = str(trainer.save)
        log(f"saved {trainer.save}")
    if args.plot is not None:
        title = f"{trainer.config.dataset} {'-'.join(map(str, trainer.sizes))}, {trainer.config.optimizer}"
        plot.plot_history(
            trainer.history,
            args.plot,
            confusion=matrix,
            classes=dataset.classes,
            gradients=None if monitor is None else monitor.gradients,
            title=title,
        )
        result["plot"] = str(args.plot)
        log(f"plotted {args.plot}")
    if args.json:
        print(json.dumps(result), flush=True)
