"""``fastopt predict``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _dataset, _files, _threads, _train
from fastopt._cli import parser
from fastopt._cli.train import read_model

_TEXT = """
Classify the rows of a file with a model that fastopt train --save has written.

Prints a CSV of row, predicted class and its probability; with labels in the file, those too, and the
accuracy on stderr.
"""
_EXAMPLES = """
fastopt predict model.safetensors new.csv --out predictions.csv
fastopt predict model.safetensors new.csv | head
fastopt predict model.safetensors t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz
"""


def add(commands: Any) -> None:
    p = parser.add_command(
        commands, "predict", run, "classify the rows of a file with a trained model", _TEXT, _EXAMPLES
    )
    p.add_argument("model", type=Path, help="a checkpoint of fastopt train --save")
    p.add_argument("file", type=Path, help=".csv (with or without the label column), .npz, or IDX images")
    p.add_argument("--labels", type=Path, metavar="F", help="IDX labels that belong to IDX images")
    p.add_argument(
        "--out", type=Path, metavar="F.csv", help="write the predictions there instead of to stdout"
    )
    p.add_argument("--threads", type=parser.count, metavar="N", help="threads of the kernels")
    p.add_argument("--json", action="store_true", help="print a summary as one line of JSON (needs --out)")


def run(args: argparse.Namespace) -> int:
    if args.json and args.out is None:
        raise ValueError("--json: stdout holds the predictions, give --out F.csv for them")
    parser.check_output(args.out)
    if args.threads is not None:
        _threads.set_num_threads(args.threads)
    saved = read_model(args.model)
    config, classes = saved["config"], saved["classes"]
    x, labels = _read_rows(args, saved["sizes"][0], config.label)
    model = _train.build_model(saved["sizes"], config.activation, config.dropout, config.batch_norm)
    model.load_state_dict(saved["model"])
    logits = _train.predict_logits(model, _dataset.apply_scale(x, saved["mean"], saved["std"]))
    predictions = logits.argmax(axis=1)
    # softmax of the largest logit
    shares = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)

    summary: dict[str, Any] = {"rows": len(x)}
    text = f"{len(x)} rows"
    if labels is not None:
        truth = _dataset.encode_labels(labels, classes, args.labels or args.file)
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
        x = _dataset.as_features(table.x, path)
        labels = None if table.y is None else _dataset.named_labels(table)
    elif suffix == ".npz":
        arrays = _files.read_npz(path)
        x = _dataset.as_features(
            arrays[-2] if len(arrays) > 1 else arrays[0], path
        )  # x_test where there is one
        labels = _dataset.as_labels(arrays[-1], path) if len(arrays) > 1 else None
    else:
        x = _dataset.as_features(_files.read_idx(path), path)
        if args.labels is not None:
            labels = _dataset.as_labels(_files.read_idx(args.labels), args.labels)
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
