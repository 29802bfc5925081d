"""The safetensors file format: arrays and one string dictionary, no code.

Written here rather than with the ``safetensors`` package because that one writes a file of its own and
renames it (mode 0600, no fsync), or needs every array twice in memory; the tests hold both to the same files.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header
``{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}``, then the data without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastopt._device import on_host

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES = {code: name for name, code in _CODES.items()}
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # the format's own limit


def can_hold(array: Any) -> bool:
    """Whether the format has a code for the dtype of ``array``."""
    return array.dtype.name in _CODES


def write(file: BinaryIO, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file to ``file``.

    Arrays go out one by one, copied only when they are not contiguous or on a device.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    # Wide items first: every array then starts at a multiple of its item size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    offset = 0
    for name in order:
        a = arrays[name]
        header[name] = {
            "dtype": _CODES[a.dtype.name],
            "shape": list(a.shape),
            "data_offsets": [offset, offset + a.nbytes],
        }
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        a = on_host(arrays[name])
        # Bytes rather than the array itself: ml_dtypes' bfloat16 does not offer the buffer protocol.
        dense = np.ascontiguousarray(a.astype(a.dtype.newbyteorder("<"), copy=False))
        file.write(dense.reshape(-1).view(np.uint8).data)


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read ``(arrays, metadata)``; nothing is allocated before the header fits the size of the file.

    Raises
    ------
    ValueError
        The file is no safetensors file or is damaged; the message names it.
    ImportError
        It holds bfloat16 and ``ml_dtypes`` is not installed.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _read_header(path, file, size)
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError(f"{path}: damaged safetensors header: metadata is not a dictionary of strings")
        spans = {name: _check_entry(path, name, entry) for name, entry in header.items()}
        order = sorted(spans, key=lambda name: spans[name][2:])
        offset = 0
        for name in order:
            begin, end = spans[name][2:]
            if begin != offset:
                raise ValueError(f"{path}: {name!r} begins at byte {begin} of the data, expected {offset}")
            offset = end
        if start + offset != size:
            raise ValueError(f"{path}: the header describes {start + offset} bytes, the file holds {size}")
        arrays = {}
        for name in order:
            dtype, shape, begin, end = spans[name]
            data = np.empty(end - begin, dtype=np.uint8)
            if file.readinto(data.data) != len(data):
                raise ValueError(f"{path}: {name!r}: the file ended before {end - begin} bytes were read")
            native = data.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
            try:
                arrays[name] = native.reshape(shape)
            except ValueError as err:  # no items, and other dimensions too large for NumPy
                raise ValueError(f"{path}: {name!r} has shape {shape}: {err}") from err
        return arrays, metadata


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError(f"{path}: not a safetensors file: header of {length} bytes, the file holds {size}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: not a safetensors file: {err}") from err
    if not isinstance(header, dict):
        raise ValueError(
            f"{path}: not a safetensors file: the header is {type(header).__name__}, expected object"
        )
    return header, 8 + length


def _check_entry(path: Path, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as err:
        raise ValueError(f"{path}: {name!r}: damaged safetensors header: {entry!r}") from err
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{path}: {name!r}: shape {shape} and offsets {begin}, {end} must be whole numbers")
    if not isinstance(code, str) or code not in _NAMES:
        raise ValueError(f"{path}: {name!r} has dtype {code!r}, expected one of {', '.join(_NAMES)}")
    dtype = _dtype(_NAMES[code], path)
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{path}: {name!r}: shape {shape} of {dtype} does not fill bytes {begin} to {end}")
    return dtype, shape, begin, end


def _dtype(name: str, path: Path) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as err:
        raise ImportError(f'{path} holds bfloat16: pip install "fastopt[lowp]"') from err
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
