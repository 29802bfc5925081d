"""Data sets and batches: IDX (MNIST), CSV, npz, and a seeded loader.

What is read is plain NumPy arrays; a loader takes arrays on CUDA devices too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastopt import _random
from fastopt._arrays import as_view
from fastopt._device import is_device_array, library
from fastopt._files import StrPath, Table, read_csv, read_idx, read_npz
from fastopt.tensor import Tensor, to_array, wrap

__all__ = [
    "DataLoader",
    "Table",
    "TensorDataset",
    "load_digits",
    "load_mnist",
    "read_csv",
    "read_idx",
    "read_npz",
    "train_test_split",
]

Split: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]


def load_mnist(directory: StrPath) -> Split:
    """Load MNIST, or a data set in its format (Fashion-MNIST, KMNIST, EMNIST), from four IDX files.

    Parameters
    ----------
    directory
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``.

    Returns
    -------
    x_train, y_train, x_test, y_test
        Images as float32 in [0, 1], flattened to (n, 784); labels as int64 (n,).

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names the directory and the names tried.
    ValueError
        A damaged file, or images and labels that do not belong together.
    """
    x_train, y_train = _load_images(Path(directory), "train")
    x_test, y_test = _load_images(Path(directory), "t10k")
    if x_train.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"{directory}: train images have {x_train.shape[1]} pixels, test images {x_test.shape[1]}"
        )
    return x_train, y_train, x_test, y_test


def _load_images(directory: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    image_path = _find_idx(directory, f"{part}-images", "idx3-ubyte")
    label_path = _find_idx(directory, f"{part}-labels", "idx1-ubyte")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{image_path}: expected (n, height, width) uint8, got {images.shape} {images.dtype}"
        )
    if labels.ndim != 1 or labels.dtype != np.uint8:
        raise ValueError(f"{label_path}: expected (n,) uint8, got {labels.shape} {labels.dtype}")
    if len(images) != len(labels):
        raise ValueError(f"{image_path} has {len(images)} images, {label_path} has {len(labels)} labels")
    pixels = images.reshape(len(images), math.prod(images.shape[1:]))
    return unit_interval(pixels), labels.astype(np.int64)


def unit_interval(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes as float32 in [0, 1]."""
    scaled: NDArray[np.float32] = np.divide(pixels, np.float32(255), dtype=np.float32)
    return scaled


def _find_idx(directory: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: none of {', '.join(names)}")


def load_digits(test_size: float | int = 0.2, seed: int = 0) -> Split:
    """Load scikit-learn's bundled 8x8 handwritten digits, split into training and test part.

    Parameters
    ----------
    test_size, seed
        As in `train_test_split`; every class has the same share in both parts.

    Returns
    -------
    x_train, y_train, x_test, y_test
        Images as float32 in [0, 1], (n, 64); labels as int64 (n,).

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled_digits
    except ImportError as err:
        raise ImportError('digits needs scikit-learn: pip install "fastopt[demo]"') from err
    images, labels = bundled_digits(return_X_y=True)
    x = np.divide(images, 16, dtype=np.float64).astype(np.float32)
    y = labels.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_size, seed=seed, stratify=y)
    return x_train, y_train, x_test, y_test


def train_test_split(
    *arrays: NDArray[Any],
    test_size: float | int = 0.25,
    seed: int = 0,
    shuffle: bool = True,
    stratify: ArrayLike | None = None,
) -> list[NDArray[Any]]:
    """Split arrays along the first axis into a training and a test part.

    Parameters
    ----------
    *arrays
        One or more arrays with the same number of rows.
    test_size
        A share in (0, 1) or a number of rows; both parts keep at least one row.
    seed
        The same seed gives the same split.
    shuffle
        False: the last rows are the test part.
    stratify
        Labels (n,); each class is split in the same proportion.

    Returns
    -------
    list
        ``[a_train, a_test, b_train, b_test, ...]``, scikit-learn's order.

    Raises
    ------
    ValueError
        No arrays, different lengths, a ``test_size`` out of range.
    """
    if not arrays:
        raise ValueError("train_test_split: no arrays given")
    n = _common_length("train_test_split", arrays)
    n_test = _test_rows(test_size, n)
    if not shuffle:
        if stratify is not None:
            raise ValueError("train_test_split: stratify needs shuffle=True")
        return [part for a in arrays for part in (a[: n - n_test], a[n - n_test :])]
    order = np.random.default_rng(seed).permutation(n)
    if stratify is not None:
        order = _stratified(order, np.asarray(stratify), n_test)
    test, train = order[:n_test], order[n_test:]
    return [part for a in arrays for part in (np.take(a, train, axis=0), np.take(a, test, axis=0))]


def _test_rows(test_size: float | int, n: int) -> int:
    if isinstance(test_size, (float, np.floating)):
        if not 0 < test_size < 1:
            raise ValueError(f"train_test_split: test_size as a share must be in (0, 1), got {test_size}")
        n_test = max(1, round(n * test_size))
    else:
        n_test = int(test_size)
    if not 1 <= n_test < n:
        raise ValueError(
            f"train_test_split: cannot take {n_test} test rows out of {n} and leave a training row"
        )
    return n_test


def _stratified(order: NDArray[np.int64], labels: NDArray[Any], n_test: int) -> NDArray[np.int64]:
    """Reorder so that the first ``n_test`` of ``order`` take the same share of every class.

    Each row is ranked by its place within its class, (k + 1/2) / class size; the lowest ranks come first.
    """
    if labels.shape != order.shape:
        raise ValueError(f"train_test_split: stratify has shape {labels.shape}, expected {order.shape}")
    shuffled = labels[order]
    rank = np.empty(len(order))
    for value in np.unique(shuffled):
        member = np.flatnonzero(shuffled == value)
        rank[member] = (np.arange(len(member)) + 0.5) / len(member)
    chosen = np.argsort(rank, kind="stable")
    # Back to the shuffled order inside both parts, so that classes stay mixed.
    chosen[:n_test].sort()
    chosen[n_test:].sort()
    return order[chosen]


def _common_length(caller: str, arrays: tuple[Any, ...]) -> int:
    for i, a in enumerate(arrays):
        if np.ndim(a) == 0:
            raise ValueError(f"{caller}: array {i} is 0-d, expected one row per sample")
        if len(a) != len(arrays[0]):
            raise ValueError(f"{caller}: array {i} has {len(a)} rows, array 0 has {len(arrays[0])}")
    return len(arrays[0])


class TensorDataset:
    """Arrays or Tensors that belong together row by row, for `DataLoader`.

    ``len(dataset)`` is the number of rows and ``dataset[index]`` the tuple of what the arrays have there.

    Parameters
    ----------
    *tensors
        One or more arrays or Tensors with the same number of rows.

    Raises
    ------
    ValueError
        No arrays, or different numbers of rows.
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ValueError("TensorDataset: no arrays given")
        _common_length("TensorDataset", tensors)
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple([t[index] for t in self.tensors])


class DataLoader:
    """Iterate over arrays in batches.

    ``batch_size=1`` is stochastic gradient descent, ``batch_size=len(x)`` (or None) is batch gradient
    descent, anything between is mini-batch gradient descent: one optimizer step per batch.

    Parameters
    ----------
    x
        An array (n, ...), or a tuple of arrays or a `TensorDataset` that are batched together. Tensors give
        batches that are Tensors, arrays on a CUDA device give arrays of their library that are gathered there, and
        everything else gives NumPy arrays.
    y
        Labels or targets (n, ...); None: the batches are ``xb`` alone.
    batch_size
        Rows per batch; None: all rows.
    shuffle
        A new permutation in each epoch, a function of ``(seed, epoch)`` alone.
    drop_last
        Leave out the last batch when it is smaller than ``batch_size``.
    seed
        None: taken from the generator that `fastopt.manual_seed` seeds.
    comm
        Ranks of `fastopt.distributed` that share out each batch of ``batch_size`` rows: this one's is ``xb, yb``. All
        ranks have the same arrays, and the seed of rank 0; of a batch smaller than the ranks some have no rows.

    Yields
    ------
    xb, yb
        Arrays of (batch_size, ...). Without ``shuffle`` they are views of ``x`` and ``y``; with it they are
        copies of their own, which stay valid after the next batch was made.

    Notes
    -----
    `state_dict` holds seed, epoch and the number of batches already given out, so that a run that is
    resumed in the middle of an epoch sees exactly the batches that were left.

    Raises
    ------
    ValueError
        Arrays of different lengths, no rows, ``batch_size`` below 1.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        comm: Any = None,
    ) -> None:
        joined = x.tensors if isinstance(x, TensorDataset) else x
        parts = joined if isinstance(joined, tuple) else (joined,)
        if y is not None:
            parts = (*parts, y)
        self._tensors = [isinstance(a, Tensor) for a in parts]
        self.arrays = tuple(as_rows(a, f"DataLoader: array {i}") for i, a in enumerate(parts))
        if not self.arrays:
            raise ValueError("DataLoader: x is an empty tuple")
        self._n = _common_length("DataLoader", self.arrays)
        if self._n == 0:
            raise ValueError("DataLoader: x has 0 rows")
        self.dataset = x if isinstance(x, TensorDataset) else TensorDataset(*parts)
        whole = isinstance(batch_size, (int, float, np.integer)) and not batch_size % 1
        if batch_size is not None and (isinstance(batch_size, bool) or not whole):
            raise TypeError(f"DataLoader: batch_size must be an integer, got {batch_size!r}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        self.batch_size = self._n if batch_size is None else int(batch_size)
        if drop_last and self.batch_size > self._n:
            raise ValueError(
                f"DataLoader: drop_last with batch_size {self.batch_size} leaves none of {self._n} rows"
            )
        self.shuffle = shuffle
        self.drop_last = drop_last
        if seed is not None and operator.index(seed) < 0:
            raise ValueError(f"DataLoader: seed must not be negative, got {seed}")
        self.seed = int(_random.generator().integers(2**63)) if seed is None else int(seed)
        self._rank: int = 0 if comm is None else comm.rank
        self._ranks: int = 1 if comm is None else comm.size
        if comm is not None:
            shared = np.array([self.seed], np.int64)
            comm.broadcast(shared)
            self.seed = int(shared[0])
        self.epoch = 0
        self._batch = 0  # batches of this epoch already given out
        self._resume = False  # the next pass goes on in the middle of this epoch
        self._single = y is None and not isinstance(joined, tuple)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._n // self.batch_size if self.drop_last else -(-self._n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return self._batches(*self.begin_pass())

    def begin_pass(self) -> tuple[int, int]:
        """Return the epoch of a new pass, and its first batch: not 0 only after `load_state_dict`."""
        if self._batch and not self._resume:  # the last pass was left early: this one is a new epoch
            self.set_epoch(self.epoch + 1)
        self._resume = False
        return self.epoch, self._batch

    def gave(self, batches: int) -> None:
        """Take note that so many batches of this epoch were given out; after the last the next epoch begins."""
        if batches == len(self):
            self.set_epoch(self.epoch + 1)
        else:
            self._batch = batches

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        order = self.order(epoch)
        orders = [_beside(a, order) for a in self.arrays]
        for i in range(first, len(self)):
            rows = self._share(i * self.batch_size, min((i + 1) * self.batch_size, self._n))
            batch = [_batch(a, its_order, rows) for a, its_order in zip(self.arrays, orders, strict=True)]
            parts = [wrap(b) if tensor else b for b, tensor in zip(batch, self._tensors, strict=True)]
            self._batch = i + 1
            yield parts[0] if self._single else tuple(parts)
        self.set_epoch(epoch + 1)

    def _share(self, begin: int, end: int) -> slice:
        """Return this rank's rows of a batch: equal parts, the first ranks one more where it does not divide."""
        each, more = divmod(end - begin, self._ranks)
        first = begin + self._rank * each + min(self._rank, more)
        return slice(first, first + each + (self._rank < more))

    def order(self, epoch: int) -> NDArray[np.int64] | None:
        """The rows in the order of their batches in `epoch`; None: as they lie."""
        return np.random.default_rng([self.seed, epoch]).permutation(self._n) if self.shuffle else None

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass at the start of ``epoch``."""
        if epoch < 0:
            raise ValueError(f"set_epoch: epoch must not be negative, got {epoch}")
        self.epoch, self._batch, self._resume = int(epoch), 0, False

    def state_dict(self) -> dict[str, int]:
        """``seed``, ``epoch`` and ``batch``, the number of batches of this epoch already given out."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken: the next pass gives the batches that were left.

        Raises
        ------
        ValueError
            A key is missing or no whole number, or ``batch`` is more than this loader has.
        """
        missing = {"seed", "epoch", "batch"} - set(state)
        if missing:
            raise ValueError(f"DataLoader.load_state_dict: {', '.join(sorted(missing))} missing in the state")
        for name in ("seed", "epoch", "batch"):
            if not isinstance(state[name], (int, np.integer)) or state[name] < 0:
                raise ValueError(
                    f"DataLoader.load_state_dict: {name} is {state[name]!r}, expected a whole number from 0 on"
                )
        if not 0 <= state["batch"] <= len(self):
            raise ValueError(
                f"DataLoader.load_state_dict: batch is {state['batch']}, this loader has {len(self)}"
            )
        seed = int(state["seed"])
        self.set_epoch(state["epoch"])
        self.seed, self._batch, self._resume = seed, int(state["batch"]), True


def _beside(a: Any, order: NDArray[np.int64] | None) -> Any:
    """Return the order in the memory where `a` is."""
    return library(a).from_host(order, a) if order is not None and is_device_array(a) else order


def _batch(a: Any, order: Any, rows: slice) -> Any:
    """Return one batch of an array, as its library knows it."""
    if is_device_array(a):
        lib = library(a)
        return lib.unwrap(lib.rows(a, rows if order is None else lib.rows(order, rows)))
    return a[rows] if order is None else a.take(order[rows], axis=0)


def as_rows(a: Any, name: str) -> Any:
    """What a loader takes as an array."""
    if isinstance(a, (Tensor, list)):
        return to_array(a, name)
    if is_device_array(a) or hasattr(a, "__dlpack__") or hasattr(a, "__cuda_array_interface__"):
        return as_view(a, name)
    return np.asarray(a)  # pandas and whatever else NumPy takes
