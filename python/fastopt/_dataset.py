"""Classification problems out of files: features, labels, classes, and what predictions on them are worth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import data
from fastopt._wording import did_you_mean


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification problem: features float32 (n, d), labels int64 (n,) that index ``classes``."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: list[str]
    mean: NDArray[np.float32] | None = None
    std: NDArray[np.float32] | None = None

    @property
    def features(self) -> int:
        return int(self.x_train.shape[1])


def load_dataset(name: str, directory: str, *, label: int | str, scale: str, test_size: float) -> Dataset:
    """Load ``digits``, ``mnist`` from ``directory``, or a CSV or npz file."""
    if name == "digits":
        parts = data.load_digits(test_size)
    elif name == "mnist":
        parts = data.load_mnist(directory)
    else:
        parts = _load_file(Path(name), label, test_size)
    x_train, y_train, x_test, y_test = parts
    names = [str(value) for value in np.unique(np.concatenate((y_train, y_test))).tolist()]
    if len(names) < 2:
        raise ValueError(f"{name}: labels hold {len(names)} class, training needs at least 2")
    mean = std = None
    if scale == "standard" or (scale == "auto" and Path(name).suffix.lower() == ".csv"):
        mean, std = standard_scale(x_train)
    return Dataset(
        apply_scale(x_train, mean, std),
        encode_labels(y_train, names, name),
        apply_scale(x_test, mean, std),
        encode_labels(y_test, names, name),
        names,
        mean,
        std,
    )


def _load_file(path: Path, label: int | str, test_size: float) -> Any:
    if path.suffix.lower() not in (".csv", ".npz"):
        near = did_you_mean(str(path), ("digits", "mnist"))
        raise ValueError(f"dataset: {str(path)!r} is neither digits nor mnist nor a .csv or .npz file{near}")
    if path.suffix.lower() == ".csv":
        table = data.read_csv(path, label=label)
        arrays: tuple[Any, ...] = (table.x, named_labels(table))
    else:
        arrays = data.read_npz(path)
    if len(arrays) == 1:
        raise ValueError(f"{path}: no labels, expected y beside x")
    arrays = tuple(as_labels(a, path) if i % 2 else as_features(a, path) for i, a in enumerate(arrays))
    if len(arrays) == 2:
        x, y = arrays
        x_train, x_test, y_train, y_test = data.train_test_split(x, y, test_size=test_size, stratify=y)
        return x_train, y_train, x_test, y_test
    if arrays[0].shape[1] != arrays[2].shape[1]:
        raise ValueError(f"{path}: x_train has {arrays[0].shape[1]} features, x_test {arrays[2].shape[1]}")
    return arrays


def named_labels(table: data.Table) -> NDArray[Any]:
    """The labels of a CSV file as it has them: text or numbers."""
    assert table.y is not None
    return table.y if table.classes is None else np.array(table.classes)[table.y]


def as_features(x: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """Check and flatten features to float32 (n, d); bytes become numbers in [0, 1]."""
    if x.ndim < 2 or x.dtype.kind not in "buif":
        raise ValueError(
            f"{path}: features have shape {x.shape} and dtype {x.dtype}, expected (n, features) numbers"
        )
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    if x.dtype == np.uint8:
        return data.unit_interval(flat)
    flat = flat.astype(np.float32, copy=False)
    if not np.isfinite(flat).all():
        row, column = np.argwhere(~np.isfinite(flat))[0]
        raise ValueError(
            f"{path}: row {row + 1}, feature {column + 1} is {flat[row, column]}, expected a finite number"
        )
    return flat


def as_labels(y: NDArray[Any], path: Path) -> NDArray[Any]:
    """Check labels (n,) or (n, 1): text, or whole numbers as int64."""
    flat = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1 or flat.dtype.kind not in "buifU":
        raise ValueError(f"{path}: labels have shape {y.shape} and dtype {y.dtype}, expected (n,) classes")
    if flat.dtype.kind == "U":
        return flat
    whole = flat.astype(np.int64) if np.isfinite(flat).all() else np.zeros(len(flat), np.int64)
    if not np.array_equal(whole, flat):
        row = int(np.flatnonzero(whole != flat)[0])
        raise ValueError(
            f"{path}: label of row {row + 1} is {flat[row]}, expected whole numbers or text for classes"
        )
    return whole


def encode_labels(y: NDArray[Any], classes: Sequence[str], source: object) -> NDArray[np.int64]:
    """Turn labels into indices of ``classes``."""
    index = {name: i for i, name in enumerate(classes)}
    values, inverse = np.unique(y, return_inverse=True)
    unknown = [str(v) for v in values.tolist() if str(v) not in index]
    if unknown:
        raise ValueError(
            f"{source}: label {unknown[0]!r} is none of the {len(index)} classes {shorten(classes)}"
        )
    codes = np.array([index[str(v)] for v in values.tolist()], dtype=np.int64)
    return codes[inverse]


def shorten(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} ..."


def standard_scale(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each feature; 1 for a feature that never changes."""
    std = x.std(axis=0, dtype=np.float64)
    std[std == 0] = 1
    return x.mean(axis=0, dtype=np.float64).astype(np.float32), std.astype(np.float32)


def apply_scale(
    x: NDArray[np.float32], mean: NDArray[np.float32] | None, std: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    return x if mean is None or std is None else (x - mean) / std


def confusion_matrix(y: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are the true classes, columns the predicted ones."""
    return np.bincount(y * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def confusion_lines(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """The matrix (up to 20 classes), the recall of each class and the most frequent confusions as text."""
    lines = []
    total = matrix.sum(axis=1)
    if len(classes) <= 20:
        names = [" ".join(name.split())[:12] for name in classes]
        width = max(len(str(matrix.max())), *map(len, names))
        lines.append("confusion on the test set: rows are true, columns predicted")
        lines.append(" " * (width + 2) + " ".join(f"{name:>{width}}" for name in names) + "  recall")
        for i, name in enumerate(names):
            cells = " ".join(f"{n or '.':>{width}}" for n in matrix[i].tolist())
            recall = f"{matrix[i, i] / total[i]:7.1%}" if total[i] else "      -"
            lines.append(f"{name:>{width}}  {cells} {recall}")
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    worst = [np.unravel_index(k, errors.shape) for k in np.argsort(-errors, axis=None, kind="stable")[:5]]
    short = [" ".join(name.split())[:40] for name in classes]
    text = [f"{short[i]} as {short[j]} ({errors[i, j]})" for i, j in worst if errors[i, j]]
    lines.append(
        f"most confused: {', '.join(text)}" if text else "most confused: none, every test row is right"
    )
    return lines
