"""Readers of data files: IDX (the format of MNIST), CSV and npz. `fastopt.data` is their public face."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import math
import os
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastopt._wording import did_you_mean

StrPath: TypeAlias = str | os.PathLike[str]

_GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot expand one byte to more than 1032; a header that claims more than that is refused unread.
_MAX_INFLATE = 1032
_READ_CHUNK = 1 << 20
_MAX_NDIM = 64
# Of the members of a zip file; others can expand without a bound.
_NPZ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_METHOD_TEXT = " and ".join(map(str, map(int, _NPZ_METHODS)))
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: StrPath) -> NDArray[Any]:
    """Read an IDX file (the format of MNIST), plain or gzip-compressed.

    Parameters
    ----------
    path
        The file. Compression is recognised by the first two bytes, not by the name.

    Returns
    -------
    ndarray
        A new, writable array in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    ValueError
        Wrong magic number, a truncated or damaged file, bytes after the data, dimensions that the file
        cannot hold. Memory for the data grows with what was read, never with what the header claims.
    OSError
        The file cannot be opened.

    Notes
    -----
    Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "The IDX file format".
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            return _parse_idx(path, raw, size, exact=True)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse_idx(path, cast(BinaryIO, stream), size * _MAX_INFLATE, exact=False)
        except (EOFError, gzip.BadGzipFile, zlib.error) as err:
            raise ValueError(f"{path}: damaged gzip file: {err}") from err


def _parse_idx(path: Path, stream: BinaryIO, limit: int, *, exact: bool) -> NDArray[Any]:
    """Parse an IDX stream of at most ``limit`` bytes (of exactly ``limit`` bytes when ``exact``)."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: truncated IDX header: expected 4 bytes of magic, got {len(magic)}")
    dtype = _IDX_DTYPES.get(magic[2])
    if magic[:2] != b"\0\0" or dtype is None:
        types = " ".join(f"{code:02x}" for code in _IDX_DTYPES)
        raise ValueError(
            f"{path}: not an IDX file: magic is {magic.hex(' ')}, expected 00 00, one of {types}, dimensions"
        )
    ndim = magic[3]
    if ndim > _MAX_NDIM:
        raise ValueError(f"{path}: {ndim} dimensions, NumPy has at most {_MAX_NDIM}")
    header = stream.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(
            f"{path}: truncated IDX header: expected {4 * ndim} bytes of dimensions, got {len(header)}"
        )
    shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    available = limit - 4 - 4 * ndim
    what = f"{path}: shape {shape} of {np.dtype(dtype).newbyteorder('=')} needs {expected} bytes"
    if expected > available or (exact and expected != available):
        raise ValueError(f"{what}, the file holds {available if exact else f'at most {available}'}")

    data = bytearray()
    while chunk := stream.read(min(_READ_CHUNK, expected + 1 - len(data))):
        data += chunk
    if len(data) != expected:
        raise ValueError(f"{what}, the file holds {'more' if len(data) > expected else len(data)}")
    try:
        array = np.frombuffer(data, dtype=dtype).reshape(shape)
    except ValueError as err:  # an empty array whose other dimensions overflow
        raise ValueError(f"{path}: shape {shape}: {err}") from err
    if array.dtype.isnative:
        return array
    return array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


class Table(NamedTuple):
    """What `read_csv` returns.

    Attributes
    ----------
    x
        Features, float32, (rows, columns without the label).
    y
        Labels (rows,): int64 class indices or whole numbers, float32 where any is not whole; None without
        a label column.
    classes
        Names of the classes when labels are text: ``classes[y[i]]``; else None.
    features
        Column names of ``x``; None without a header.
    label
        Position of the label column in the file, None without.
    """

    x: NDArray[np.float32]
    y: NDArray[Any] | None
    classes: list[str] | None
    features: list[str] | None
    label: int | None


def read_csv(
    path: StrPath,
    *,
    label: int | str | None = -1,
    header: bool | None = None,
    delimiter: str | None = None,
) -> Table:
    """Read numbers and a label column from a CSV file.

    Parameters
    ----------
    path
        UTF-8 text; quoted cells are understood, blank lines are skipped.
    label
        The label column: its position (negative counts from the end), its name in the header, or None when
        the file has no label.
    header
        Whether the first line holds names. None: it does when a cell outside the label column is no number.
    delimiter
        None: the most frequent of comma, semicolon and tab in the first line.

    Returns
    -------
    Table
        ``(x, y, classes, features, label)``. Text labels become indices into the sorted ``classes``.

    Raises
    ------
    ValueError
        No rows, no such column, a row of another length, an empty or non-numeric cell: the message names
        file, line and column.
    """
    path = Path(path)
    try:
        return _read_csv(path, label, header, delimiter)
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: not UTF-8 text: {err}") from err
    except csv.Error as err:
        raise ValueError(f"{path}: {err}") from err


def csv_columns(path: Path) -> int:
    """Number of columns in the first row that is not blank; 0 for an empty file."""
    try:
        first = _first_row(path, None)
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: not UTF-8 text: {err}") from err
    except csv.Error as err:
        raise ValueError(f"{path}: {err}") from err
    return 0 if first is None else len(first[0])


def _read_csv(path: Path, label: int | str | None, header: bool | None, delimiter: str | None) -> Table:
    first = _first_row(path, delimiter)
    if first is None:
        raise ValueError(f"{path}: empty file")
    names, skip, end, delimiter = first
    column = _label_column(path, label, names, header)
    if header is None:
        header = isinstance(label, str) or any(
            not _is_number(cell) for i, cell in enumerate(names) if i != column
        )
    if len(names) - (column is not None) == 0:
        raise ValueError(f"{path}: no feature column: the only column is the label")

    labels: list[str] = []

    def keep_label(cell: str) -> float:
        labels.append(cell.strip())
        return 0.0

    if header:
        skip = end
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # "input contained no data"
            table = np.loadtxt(
                path,
                dtype=np.float64,
                comments=None,
                delimiter=delimiter,
                skiprows=skip,
                converters=None if column is None else {column: keep_label},
                ndmin=2,
                encoding="utf-8-sig",
                quotechar='"',
            )
    except UnicodeDecodeError:
        raise
    except ValueError as err:
        problem = _csv_problem(path, delimiter, skip, names, column, header)
        raise ValueError(problem or f"{path}: {err}") from err
    if table.shape[0] == 0 or table.shape[1] != len(names):
        problem = _csv_problem(path, delimiter, skip, names, column, header)
        raise ValueError(problem or f"{path}: no rows of data")

    x = table if column is None else np.delete(table, column, axis=1)
    y, classes = (None, None) if column is None else _encode_labels(path, labels)
    features = [name for i, name in enumerate(names) if i != column] if header else None
    if not (np.abs(x) <= _MAX_FLOAT32).all():  # a NaN or an infinity may be what the file says
        problem = _csv_problem(path, delimiter, skip, names, column, header)
        if problem is not None:
            raise ValueError(problem)
    return Table(np.ascontiguousarray(x, dtype=np.float32), y, classes, features, column)


def _beyond_float32(cell: str) -> bool:
    """Tell whether a number's digits say more than float32 can hold."""
    return abs(float(cell)) > _MAX_FLOAT32 and any(c.isdigit() for c in cell)


def _first_row(path: Path, delimiter: str | None) -> tuple[list[str], int, int, str] | None:
    """First row that is not blank, the numbers of lines before it and up to its end, and the delimiter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for before, line in enumerate(file):
            if line.strip():
                delimiter = delimiter or max(",;\t", key=line.count)
                rows = csv.reader(itertools.chain([line], file), delimiter=delimiter)
                cells = next(rows)
                return [cell.strip() for cell in cells], before, before + rows.line_num, delimiter
    return None


def _label_column(path: Path, label: int | str | None, names: list[str], header: bool | None) -> int | None:
    if label is None:
        return None
    if isinstance(label, str):
        if header is False:
            raise ValueError(f"label: {label!r} is a name, {path} has no header")
        if names.count(label) != 1:
            near = "" if label in names else did_you_mean(label, names)
            raise ValueError(
                f"label: {names.count(label)} columns named {label!r} in {path}: {', '.join(names)}{near}"
            )
        return names.index(label)
    if not -len(names) <= label < len(names):
        raise ValueError(f"label: column {label} is out of range, {path} has {len(names)} columns")
    return label % len(names)


def _is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return "_" not in cell  # Python's float takes 1_000, a CSV file does not
    return False


def _csv_problem(
    path: Path, delimiter: str, skip: int, names: list[str], column: int | None, header: bool
) -> str | None:
    """Say where the first bad cell stands; the fast reader does not tell line and column of the file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for _ in range(skip):
            next(file)
        rows = csv.reader(file, delimiter=delimiter)
        for row in rows:
            line = skip + rows.line_num
            if not any(cell.strip() for cell in row) and len(row) <= 1:
                continue
            if len(row) != len(names):
                return f"{path}: line {line} has {len(row)} columns, expected {len(names)}"
            for i, cell in enumerate(row):
                if i != column and not _is_number(cell):
                    name = f"{i + 1} ({names[i]!r})" if header else f"{i + 1}"
                    return f"{path}: line {line}, column {name}: expected a number, got {cell!r}"
                if i != column and _beyond_float32(cell):
                    return f"{path}: line {line}, column {i + 1}: {cell!r} is beyond the range of float32"
    return None


def _encode_labels(path: Path, labels: list[str]) -> tuple[NDArray[Any], list[str] | None]:
    if "" in labels:
        raise ValueError(f"{path}: row {labels.index('') + 1} of data has an empty label")
    try:
        values = np.array(labels, dtype=np.float64)
    except ValueError:
        classes = sorted(set(labels))  # NumPy's strings would lose a NUL at their end
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[name] for name in labels], np.int64), classes
    if np.all(values == np.rint(values)) and np.all(np.abs(values) < 2**53):
        return values.astype(np.int64), None
    for row, label in enumerate(labels):
        if _beyond_float32(label):
            raise ValueError(
                f"{path}: row {row + 1} of data has the label {label}, which is beyond the range of float32"
            )
    return values.astype(np.float32), None


def read_npz(path: StrPath) -> tuple[NDArray[Any], ...]:
    """Read the arrays of a data set from a NumPy ``.npz`` file.

    Parameters
    ----------
    path
        Holds ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``x`` alone.
        Pickled objects are refused.

    Returns
    -------
    (x, y) or (x_train, y_train, x_test, y_test) or (x,)
        The arrays with the dtypes of the file.

    Raises
    ------
    ValueError
        Not an npz file, missing keys, object arrays, different numbers of rows, an array that claims more
        bytes than the file can hold.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: not an npz file")
        try:
            with zipfile.ZipFile(file) as archive:
                keys, arrays = _read_members(archive)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from err
        # The file is open, so that an OSError is of what its directory says.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as err:
            raise ValueError(f"{path}: damaged npz file: {err}") from err
    for i in range(0, len(arrays) - 1, 2):
        if len(arrays[i]) != len(arrays[i + 1]):
            raise ValueError(
                f"{path}: {keys[i]} has {len(arrays[i])} rows, {keys[i + 1]} has {len(arrays[i + 1])}"
            )
    return arrays


def _read_members(archive: zipfile.ZipFile) -> tuple[tuple[str, ...], tuple[NDArray[Any], ...]]:
    """Return the names and the arrays of the data set in an archive; errors do not name the file."""
    found = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
    for keys in (("x_train", "y_train", "x_test", "y_test"), ("x", "y"), ("x",)):
        if all(key in found for key in keys):
            return keys, tuple(_read_npy_member(archive, key, found[key]) for key in keys)
    raise ValueError(
        "expected x and y, or x_train, y_train, x_test and y_test; "
        f"the file has {', '.join(sorted(found)) or 'nothing'}"
    )


def _read_npy_member(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type not in _NPZ_METHODS:
        raise ValueError(
            f"{name} is compressed by method {info.compress_type}, NumPy writes {_METHOD_TEXT} alone"
        )
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
    except (ValueError, tokenize.TokenError, MemoryError) as err:  # of a text that no Python object has
        raise ValueError(f"{name}: {err}") from err
    if dtype.hasobject:
        raise ValueError(f"{name} has dtype object, which only pickle can read")
    if not shape:
        raise ValueError(f"{name} is 0-d, expected one row per sample")
    if not dtype.itemsize:
        raise ValueError(f"{name} has dtype {dtype}, whose items have no bytes")
    claimed = math.prod(shape) * dtype.itemsize
    available = min(info.file_size, info.compress_size * _MAX_INFLATE)
    if claimed > available:
        raise ValueError(f"{name} claims {claimed} bytes, the file holds at most {available}")
    try:
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from err
