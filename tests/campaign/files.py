"""Truncated, bit-flipped and hostile files: a clear error or a right result, no crash, no code run, bounded memory.

The formats are IDX, CSV, npz, and checkpoints, which are also loaded into a training run that must be as it was after
a refusal. What a reader returns is compared with other readers: a few lines over `struct` and `csv`, NumPy's and
the safetensors package's.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import struct
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors

from campaign import batches, file_seeds, training
from campaign.counts import Counts
from fastopt import _safetensors, checkpoint
from fastopt.data import read_csv, read_idx, read_npz

#: What a child may take beyond its imports: files are smaller than 200 KB.
_MEMORY = 256 << 20

Rng = np.random.Generator


def run(count: int, seed: int) -> Counts:
    """Read so many damaged files."""
    return batches.run("campaign.files", count, seed, _MEMORY)


# --- code that must not run ---------------------------------------------------------------------------

_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.putenv")
_watching = False
_seen: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_watch)


# --- cases --------------------------------------------------------------------------------------------


def case(rng: Rng, folder: Path) -> str:
    """Read one file with the reader of its kind, and now and then with that of another."""
    global _watching
    kind = file_seeds.KINDS[rng.integers(len(file_seeds.KINDS))]
    content = file_seeds.damaged(kind, rng, str(folder))
    reader = kind if rng.random() < 0.97 else file_seeds.KINDS[rng.integers(len(file_seeds.KINDS))]
    path = folder / f"input.{reader}"
    path.write_bytes(content)
    prepared = _PREPARE.get(reader, lambda rng: None)(rng)
    before = training.state_of(_target()) if reader == "run" else ""
    _seen.clear()
    _watching = True
    result = error = None
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", message="Reading `.npy`")  # of headers of Python 2
        try:
            result = _READ[reader](path, prepared)
        except (ValueError, OSError) as err:
            error = err
        finally:
            _watching = False
    if error is not None:
        assert str(path) in str(error), f"{reader}: a message without the file: {error!r}"
        assert reader != "run" or training.state_of(_target()) == before, (
            f"a refusal has changed the run: {error!r}"
        )
        outcome = f"refused ({reader})"
    else:
        outcome = f"{_CHECK[reader](content, result, prepared) or 'right'} ({reader})"
    assert not _seen, f"{reader}: code was run: {_seen}"
    return outcome


@cache
def _target() -> training.Run:
    """The run that checkpoints are loaded into."""
    run = training.make(seed=4)
    training.train(run, 2)
    return run


def _read_run(path: Path, _: Any) -> Any:
    run = _target()
    loaded = checkpoint.load(path, **run)
    assert loaded.keys() == {"epoch", "extra"}
    return checkpoint.read(path)


def _check_run(content: bytes, contents: Any, _: Any) -> str | None:
    """The run has what the file holds, and goes on, or says what it cannot compute with."""
    run = _target()
    for name, value in run["model"].state_dict().items():
        np.testing.assert_array_equal(np.asarray(value), contents["model"][name])
    assert run["loader"].state_dict()["epoch"] == contents["loader"]["epoch"]
    _check_object(content, contents, None)
    del run["loader"].going
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            training.train(run, 1)
    except (ValueError, TypeError, ArithmeticError):
        return "loaded, and refused by the next step"
    finally:
        _target.cache_clear()
    return None


def _check_object(content: bytes, contents: Any, _: Any) -> None:
    """Arrays are those that the safetensors package finds, where it takes the file."""
    try:
        theirs = load_safetensors(content)
    except Exception:
        return
    size = int.from_bytes(content[:8], "little")
    for name, array in _tensors(content, size).items():
        assert array.dtype == theirs[name].dtype
        assert array.tobytes() == theirs[name].tobytes(), name


def _tensors(content: bytes, size: int) -> dict[str, Any]:
    path = Path(f"/proc/self/fd/{_memory()}")
    os.ftruncate(_memory(), 0)
    os.pwrite(_memory(), content, 0)
    return _safetensors.read(path)[0]


@cache
def _memory() -> int:
    return os.memfd_create("again")


def _check_idx(content: bytes, array: Any, _: Any) -> None:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    code, ndim = content[2:4]
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    expected = np.frombuffer(content, kinds[code], offset=4 + 4 * ndim).reshape(shape)
    assert array.dtype == expected.dtype.newbyteorder("=")
    assert array.astype(expected.dtype).tobytes() == expected.tobytes()


def _check_npz(content: bytes, arrays: Any, _: Any) -> None:
    names = ("x_train", "y_train", "x_test", "y_test") if len(arrays) == 4 else ("x", "y")
    with np.load(io.BytesIO(content), allow_pickle=False) as theirs:
        for name, array in zip(names, arrays, strict=False):
            assert array.dtype == theirs[name].dtype
            assert array.shape == theirs[name].shape
            assert array.tobytes() == theirs[name].tobytes()


def _csv_options(rng: Rng) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["label"] = [None, 0, -1, 2, "label", "a"][rng.integers(6)]
    if rng.random() < 0.2:
        options["header"] = bool(rng.integers(2))
    if rng.random() < 0.2:
        options["delimiter"] = [",", ";", "\t", "|", " "][rng.integers(5)]
    return options


def _check_csv(content: bytes, table: Any, options: dict[str, Any]) -> None:
    """Cells are those of Python's reader."""
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    first = next(line for line in text.split("\n") if line.strip())
    delimiter = options.get("delimiter") or max(",;\t", key=first.count)
    rows = [
        row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if "".join(row).strip()
    ]
    rows = rows[len(rows) - len(table.x) :]
    for i, row in enumerate(rows):
        cells = [cell for j, cell in enumerate(row) if j != table.label]
        expected = np.array([float(cell) for cell in cells]).astype(np.float32)
        np.testing.assert_array_equal(table.x[i], expected)
        if table.label is not None:
            said = row[table.label].strip()
            if table.classes is not None:
                assert table.classes[table.y[i]] == said
            else:
                np.testing.assert_array_equal(table.y[i], np.array(float(said)).astype(table.y.dtype))


_PREPARE = {"csv": _csv_options}
_READ: dict[str, Any] = {
    "idx": lambda path, _: read_idx(path),
    "csv": lambda path, options: read_csv(path, **options),
    "npz": lambda path, _: read_npz(path),
    "run": _read_run,
    "object": lambda path, _: checkpoint.load_object(path),
}
_CHECK: dict[str, Any] = {
    "idx": _check_idx,
    "csv": _check_csv,
    "npz": _check_npz,
    "run": _check_run,
    "object": _check_object,
}
