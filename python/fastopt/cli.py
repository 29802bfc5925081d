"""The command ``fastopt``: train, predict, info."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastopt import _core, _device, _files, _threads, _train, checkpoint, info, plot

_USAGE_ERROR = 2
_INTERRUPTED = 130  # what a shell reports for a program stopped by Ctrl-C

# Defaults that fit the data: hidden layers and epochs.
_BY_DATASET: dict[str, tuple[tuple[int, ...], int]] = {"digits": ((256,), 60), "mnist": ((256,), 10)}
_FOR_FILES = ((64,), 30)

# Settings of a run that are no part of its result: they may differ when it is resumed.
_FREE_ON_RESUME = ("dataset", "epochs")


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE_ERROR, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit code.

    0: done. 2: bad input, explained in one line on stderr. 130: stopped by Ctrl-C.
    """
    parser = _make_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except KeyboardInterrupt:
        print(f"fastopt {args.name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as err:
        if isinstance(err, RuntimeError) and not _device.is_refusal(err):
            raise
        print(f"fastopt {args.name}: error: {_one_line(err)}", file=sys.stderr)
        return _USAGE_ERROR


def _one_line(err: Exception) -> str:
    if isinstance(err, OSError) and err.filename is not None:
        return f"{os.fsdecode(err.filename)}: {err.strerror}"
    return " ".join(str(err).split()) or type(err).__name__


# ------------------------------------------------------------------------------------------- parser


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastopt", description="Train small networks with fastopt's fused kernels.")
    parser.add_argument("--version", action="version", version=f"fastopt {_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_train(commands.add_parser("train", help="train a multilayer perceptron classifier"))
    _add_predict(commands.add_parser("predict", help="classify the rows of a file with a trained model"))
    _add_info(commands.add_parser("info", help="versions, instruction set, threads, GPU"))
    return parser


def _add_train(p: argparse.ArgumentParser) -> None:
    p.description = "Train a multilayer perceptron on a classification problem."
    p.set_defaults(command=_run_train, name="train")
    p.add_argument("dataset", nargs="?", help="digits (default), mnist, a .csv or a .npz file")
    p.add_argument(
        "--data", metavar="DIR", default=".", help="folder of mnist's four IDX files (default: here)"
    )
    p.add_argument(
        "--label",
        type=_column,
        metavar="COLUMN",
        help="label column of a CSV file: name or position (default: the last)",
    )
    p.add_argument(
        "--test-size",
        type=_share,
        metavar="SHARE",
        help="share of the rows kept for testing where no test set is given (default: 0.2)",
    )
    p.add_argument(
        "--scale",
        choices=("auto", "none", "standard"),
        help="standard: mean 0, variance 1 for each feature; auto (default): standard for CSV, else none",
    )
    p.add_argument(
        "--hidden", type=_layers, metavar="N,N", help="hidden layers, e.g. 256,128; none: linear model"
    )
    p.add_argument("--activation", choices=_train.ACTIVATIONS, help="between the layers (default: relu)")
    p.add_argument("--dropout", type=_fraction, metavar="P", help="after each hidden layer (default: 0)")
    p.add_argument("--optimizer", choices=_train.OPTIMIZERS, help="default: adam")
    p.add_argument("--lr", type=_positive, metavar="X", help="learning rate (default: the optimizer's own)")
    p.add_argument("--weight-decay", type=_nonnegative, metavar="X", help="default: the optimizer's own")
    p.add_argument("--momentum", type=_fraction, metavar="X", help="for sgd and rmsprop (default: 0.9 and 0)")
    p.add_argument(
        "--scheduler", choices=_train.SCHEDULERS, help="course of the learning rate (default: none)"
    )
    p.add_argument(
        "--batch-size",
        type=_count,
        metavar="N",
        help="1: stochastic, all rows: batch gradient descent (default: 64)",
    )
    p.add_argument("--epochs", type=_count, metavar="N", help="passes over the training set")
    p.add_argument("--seed", type=_seed, metavar="N", help="the same seed gives the same bits (default: 0)")
    p.add_argument(
        "--threads", type=_count, metavar="N", help="threads of the kernels; results do not depend on it"
    )
    p.add_argument(
        "--device",
        type=_device_name,
        default="cpu",
        metavar="cpu|cuda|cuda:N",
        help="where model and data are kept and computed with (default: cpu)",
    )
    p.add_argument(
        "--save", type=Path, metavar="F", help="write a checkpoint after each epoch (*.safetensors)"
    )
    p.add_argument("--resume", type=Path, metavar="F", help="go on with a saved run, and keep saving to it")
    p.add_argument(
        "--plot", type=Path, metavar="F.png", help="write learning curves and the confusion matrix"
    )
    p.add_argument(
        "--json", action="store_true", help="print the result as JSON; the other lines go to stderr"
    )


def _add_predict(p: argparse.ArgumentParser) -> None:
    p.description = "Classify the rows of a file; with labels, tell the accuracy."
    p.set_defaults(command=_run_predict, name="predict")
    p.add_argument("model", type=Path, help="a checkpoint of fastopt train --save")
    p.add_argument("file", type=Path, help=".csv (with or without the label column), .npz, or IDX images")
    p.add_argument("--labels", type=Path, metavar="F", help="IDX labels that belong to IDX images")
    p.add_argument(
        "--out", type=Path, metavar="F.csv", help="write the predictions there instead of to stdout"
    )
    p.add_argument("--threads", type=_count, metavar="N", help="threads of the kernels")
    p.add_argument("--json", action="store_true", help="print a summary as one line of JSON (needs --out)")


def _add_info(p: argparse.ArgumentParser) -> None:
    p.description = "Show what is installed and what runs."
    p.set_defaults(command=_run_info, name="info")
    p.add_argument("--json", action="store_true", help="print as one line of JSON")


def _number(text: str, kind: type[int] | type[float], holds: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value


def _count(text: str) -> int:
    return int(_number(text, int, lambda v: v >= 1, "a whole number from 1"))


def _seed(text: str) -> int:
    return int(_number(text, int, lambda v: 0 <= v < 2**63, "a whole number from 0"))


def _positive(text: str) -> float:
    return float(_number(text, float, lambda v: 0 < v < float("inf"), "a number above 0"))


def _nonnegative(text: str) -> float:
    return float(_number(text, float, lambda v: 0 <= v < float("inf"), "a number from 0"))


def _fraction(text: str) -> float:
    return float(_number(text, float, lambda v: 0 <= v < 1, "a number in [0, 1)"))


def _share(text: str) -> float:
    return float(_number(text, float, lambda v: 0 < v < 1, "a number in (0, 1)"))


def _device_name(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def _column(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _layers(text: str) -> tuple[int, ...]:
    if text.strip() in ("", "none"):
        return ()
    try:
        return tuple(_count(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected layer sizes such as 256,128 or none, got {text!r}"
        ) from None


# -------------------------------------------------------------------------------------------- train


def _run_train(args: argparse.Namespace) -> int:
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    for path in (args.save, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: no directory {path.parent}")
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: a directory, expected a file")
    if args.plot is not None:
        plot.check_path(args.plot)
    device = _train.open_device(args.device)
    config = _resumed_config(args) if args.resume else _fresh_config(args)
    stream = sys.stderr if args.json else sys.stdout

    def log(line: str) -> None:
        print(line, file=stream, flush=True)

    dataset = _train.load_dataset(config, args.data)
    trainer = _train.Trainer(config, dataset, args.save or args.resume, device)
    try:
        if args.resume:
            trainer.resume(args.resume)
        log(_headline(trainer))
        trainer.run(log, _tqdm())
    except KeyboardInterrupt:
        print(_farewell(trainer), file=sys.stderr)
        return _INTERRUPTED
    _report(trainer, args, log)
    return 0


def _fresh_config(args: argparse.Namespace) -> _train.Config:
    name = args.dataset or "digits"
    hidden, epochs = _BY_DATASET.get(name, _FOR_FILES)
    optimizer = args.optimizer or "adam"
    _, lr, weight_decay, _ = _train.OPTIMIZERS[optimizer]
    if args.momentum is not None and optimizer not in _train.MOMENTUM_OPTIMIZERS:
        raise ValueError(f"--momentum: {optimizer} has none, only {' and '.join(_train.MOMENTUM_OPTIMIZERS)}")
    if args.label is not None and Path(name).suffix.lower() != ".csv":
        raise ValueError(f"--label: is for a CSV file, got {name}")
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
        lr=given(args.lr, lr),
        weight_decay=given(args.weight_decay, weight_decay),
        momentum=given(args.momentum, 0.9 if optimizer == "sgd" else 0.0),
        scheduler=given(args.scheduler, "none"),
        batch_size=given(args.batch_size, 64),
        epochs=given(args.epochs, epochs),
        seed=given(args.seed, 0),
        label=given(args.label, -1),
        scale=given(args.scale, "auto"),
        test_size=given(args.test_size, 0.2),
    )


def _resumed_config(args: argparse.Namespace) -> _train.Config:
    """The saved run's settings; what the command line says about the result must agree with them."""
    extra = _read_model(args.resume)
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


def _read_model(path: Path) -> dict[str, Any]:
    contents = checkpoint.read(path)
    extra = contents["extra"]
    if "model" not in contents or not isinstance(extra, dict) or not _train.SAVED.issubset(extra):
        raise ValueError(f"{path}: a checkpoint, but not one that fastopt train saved")
    try:
        config = _train.Config(**extra["config"])
    except TypeError as err:
        raise ValueError(f"{path}: settings of another version: {err}") from err
    return {**extra, "config": config, "model": contents["model"]}


def _headline(trainer: _train.Trainer) -> str:
    config, dataset = trainer.config, trainer.dataset
    return (
        f"{config.dataset}: {len(dataset.x_train)} training and {len(dataset.x_test)} test rows; "
        f"{'-'.join(map(str, trainer.sizes))} {config.activation}, {trainer.parameters:,} parameters; "
        f"{config.optimizer} lr {config.lr:g}, batch {config.batch_size}; "
        + (trainer.device if trainer.device != "cpu" else f"{_core.num_threads()} threads, {_core.isa()}")
        + (f"; resumed after epoch {trainer.epoch}" if trainer.epoch else "")
    )


def _farewell(trainer: _train.Trainer) -> str:
    where = f"interrupted in epoch {trainer.epoch + 1} of {trainer.config.epochs}"
    if trainer.save is None:
        return f"{where}; nothing was saved (no --save)"
    if trainer.saved_epoch is None:
        return f"{where}; no checkpoint was saved yet"
    return (
        f"{where}; the last checkpoint, after epoch {trainer.saved_epoch}, is {trainer.save}: "
        f"go on with fastopt train --resume {trainer.save}"
    )


def _tqdm() -> Callable[..., Any] | None:
    """tqdm's bar, where it is installed and someone is watching."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar: Callable[..., Any] = tqdm
    return bar


def _report(trainer: _train.Trainer, args: argparse.Namespace, log: Callable[[str], None]) -> None:
    dataset = trainer.dataset
    matrix = _train.confusion_matrix(dataset.y_test, trainer.predictions, len(dataset.classes))
    for line in _train.confusion_lines(matrix, dataset.classes):
        log(line)
    result = trainer.result()
    log(
        f"test accuracy {result['test_accuracy']:.2%} after {result['epochs']} epochs, "
        f"{result['train_seconds']:.2f} s of training, {result['samples_per_second']:,.0f} samples/s"
    )
    if trainer.save is not None:
        result["checkpoint"] = str(trainer.save)
        log(f"saved {trainer.save}")
    if args.plot is not None:
        title = f"{trainer.config.dataset} {'-'.join(map(str, trainer.sizes))}, {trainer.config.optimizer}"
        plot.plot_history(trainer.history, args.plot, confusion=matrix, classes=dataset.classes, title=title)
        result["plot"] = str(args.plot)
        log(f"plotted {args.plot}")
    if args.json:
        print(json.dumps(result), flush=True)


# ------------------------------------------------------------------------------------------ predict


def _run_predict(args: argparse.Namespace) -> int:
    if args.json and args.out is None:
        raise ValueError("--json: stdout holds the predictions, give --out F.csv for them")
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    saved = _read_model(args.model)
    config, classes = saved["config"], saved["classes"]
    x, labels = _read_rows(args, saved["sizes"][0], config.label)
    model = _train.build_model(saved["sizes"], config.activation, config.dropout)
    model.load_state_dict(saved["model"])
    logits = _train.predict_logits(model, _train.apply_scale(x, saved["mean"], saved["std"]))
    predictions = logits.argmax(axis=1)
    # softmax of the largest logit
    shares = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)

    summary: dict[str, Any] = {"rows": len(x)}
    text = f"{len(x)} rows"
    if labels is not None:
        truth = _train.encode_labels(labels, classes, args.labels or args.file)
        summary["accuracy"] = float(np.mean(predictions == truth))
        text += f", accuracy {summary['accuracy']:.2%}"
    rows = _prediction_rows(predictions, shares, classes, labels)
    if args.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        sys.stdout.flush()
        print(text, file=sys.stderr)
        return 0
    with args.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    summary["out"] = str(args.out)
    print(json.dumps(summary) if args.json else f"{text}; predictions in {args.out}")
    return 0


def _read_rows(
    args: argparse.Namespace, features: int, label: int | str
) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """Features (n, d) of the file, checked against the model, and its labels if it has them."""
    path: Path = args.file
    suffix = path.suffix.lower()
    if args.labels is not None and suffix in (".csv", ".npz"):
        raise ValueError(f"--labels: {path} holds its labels itself")
    labels: NDArray[Any] | None = None
    if suffix == ".csv":
        columns = _files.csv_columns(path)
        table = _files.read_csv(path, label=label if columns == features + 1 else None)
        x = _train.as_features(table.x, path)
        labels = None if table.y is None else _train.named_labels(table)
    elif suffix == ".npz":
        arrays = _files.read_npz(path)
        x = _train.as_features(
            arrays[-2] if len(arrays) > 1 else arrays[0], path
        )  # x_test where there is one
        labels = _train.as_labels(arrays[-1], path) if len(arrays) > 1 else None
    else:
        x = _train.as_features(_files.read_idx(path), path)
        if args.labels is not None:
            labels = _train.as_labels(_files.read_idx(args.labels), args.labels)
            if len(labels) != len(x):
                raise ValueError(f"{args.labels} has {len(labels)} labels, {path} has {len(x)} rows")
    if x.shape[1] != features:
        raise ValueError(f"{path} has {x.shape[1]} features, {args.model} takes {features}")
    if len(x) == 0:
        raise ValueError(f"{path}: no rows")
    return x, labels


def _prediction_rows(
    predictions: NDArray[np.int64], shares: NDArray[Any], classes: list[str], labels: NDArray[Any] | None
) -> Iterable[list[Any]]:
    yield ["row", "prediction", "probability"] + (["label"] if labels is not None else [])
    for i, (k, share) in enumerate(zip(predictions.tolist(), shares.tolist(), strict=True), 1):
        yield [i, classes[k], f"{share:.6f}"] + ([str(labels[i - 1])] if labels is not None else [])


# --------------------------------------------------------------------------------------------- info


def _run_info(args: argparse.Namespace) -> int:
    build = info.build_info()
    if args.json:
        print(json.dumps(build))
        return 0
    gpu = build["gpu"]
    isa = f"{build['isa']} (available: {', '.join(build['isas'])})"
    if build["rejected_isa"]:
        isa += f"; FASTOPT_ISA={build['rejected_isa']} is not one of them"
    rows = {
        "fastopt": build["version"],
        "python": build["python"],
        "numpy": f"{build['numpy']} ({build['blas']})",
        "platform": build["platform"],
        "compiler": build["compiler"],
        "instruction set": isa,
        "threads": f"{build['threads']} (of {build['cpus']} CPUs)",
        "gpu": (", ".join(gpu["devices"]) or "usable") if gpu["available"] else f"not used: {gpu['reason']}",
        "cuda": _cuda_parts(gpu),
        "optional": ", ".join(f"{name} {version or '-'}" for name, version in build["optional"].items()),
    }
    for name, value in rows.items():
        print(f"{name:<16}{value}")
    return 0


def _cuda_parts(gpu: dict[str, Any]) -> str:
    """What computing on a GPU takes, and which of it is here."""
    install = "not found: pip install 'fastopt[cuda13]'"
    parts = {
        "kernels": gpu["architectures"] or "not in this build",
        "driver": f"for CUDA {gpu['driver']}" if gpu["driver"] else "not found",
        "CuPy": gpu["cupy"] or install,
        "cuBLASLt": gpu["cublaslt"] or install,
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())
