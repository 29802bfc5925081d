"""Checkpoints: one safetensors file with arrays, hyperparameters, schedules and random states; no pickle.

The arrays of the states stand in the tensor section under readable names (``model.0.weight``,
``optimizer.state.0.exp_avg``); everything else is JSON in the metadata, where a number keeps all its bits.
A file does not say on which device its arrays were: it is loaded to wherever those of the objects are.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastopt import _random, _safetensors
from fastopt._device import device_view

__all__ = ["load", "load_object", "read", "save", "save_object"]

StrPath: TypeAlias = str | os.PathLike[str]
Arrays: TypeAlias = dict[str, NDArray[Any]]

_FORMAT = 1
_METADATA = "fastopt"
# What JSON cannot say is an object with one of these keys.
_ARRAY, _SCALAR, _FLOAT, _TUPLE, _PAIRS = "__array__", "__scalar__", "__float__", "__tuple__", "__pairs__"
_MARKS = frozenset({_ARRAY, _SCALAR, _FLOAT, _TUPLE, _PAIRS})


def save(
    path: StrPath,
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    epoch: int | None = None,
    rng: bool = True,
    extra: Any = None,
) -> None:
    """Save a training run to one file, whole or not at all.

    The file is written under a temporary name in the same directory, flushed to the disk and then renamed,
    so that a save which fails or is killed leaves the previous file as it was.

    Parameters
    ----------
    path
        The file, by convention ``*.safetensors``.
    model, optimizer, scheduler, loader
        Objects with a ``state_dict()``; None: left out.
    epoch
        Any number you want back from `load`.
    rng
        Save the state of fastopt's random generator and of dropout.
    extra
        Anything made of dict, list, tuple, str, int, float, bool, None, arrays and NumPy scalars.

    Raises
    ------
    TypeError
        A state holds something a checkpoint cannot; the message says where.
    OSError
        The file cannot be written.
    """
    generator = _Generator() if rng else None
    objects = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loader": loader,
        "rng": generator,
    }
    contents: dict[str, Any] = {k: obj.state_dict() for k, obj in objects.items() if obj is not None}
    contents["epoch"] = epoch
    contents["extra"] = extra
    arrays: Arrays = {}
    tree = {name: _pack(value, name, arrays) for name, value in contents.items()}
    text = json.dumps({"format": _FORMAT, "contents": tree}, allow_nan=False, separators=(",", ":"))
    with _replacing(Path(path)) as file:
        _safetensors.write(file, arrays, {_METADATA: text})


def load(
    path: StrPath,
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    rng: bool = True,
) -> dict[str, Any]:
    """Load a checkpoint into the objects given; a refused load has changed none of them.

    Parameters
    ----------
    path
        A file that `save` wrote.
    model, optimizer, scheduler, loader
        Objects with ``state_dict()`` and ``load_state_dict()``; None: not loaded.
    rng
        Restore fastopt's random generator and dropout where the file holds them.

    Returns
    -------
    dict
        ``epoch`` and ``extra`` as they were saved.

    Raises
    ------
    ValueError
        Not a checkpoint, a part that the file does not hold, keys, shapes or dtypes that do not fit.
    OSError
        The file cannot be read.
    """
    contents = read(path)
    small = {
        "scheduler": scheduler,
        "loader": loader,
        "rng": _Generator() if rng and "rng" in contents else None,
    }
    large = {"optimizer": optimizer, "model": model}
    wanted = {name: obj for name, obj in (small | large).items() if obj is not None}
    for name in wanted:
        if name not in contents:
            raise ValueError(f"load: {path} holds no {name}, only {', '.join(sorted(contents))}")
    if model is not None:
        _check_model(path, model.state_dict(), contents["model"])

    undo: list[tuple[Any, Any]] = []
    try:
        for name, obj in wanted.items():
            # An optimizer refuses before it changes anything, and the model was checked: no copy of these.
            if name in small:
                undo.append((obj, copy.deepcopy(obj.state_dict())))
            obj.load_state_dict(contents[name])
    except BaseException as err:
        for obj, before in undo:
            obj.load_state_dict(before)
        # A state that lacks or mixes up things, or has numbers that nobody can compute with.
        if isinstance(err, (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)):
            told = str(err) if type(err) is ValueError else repr(err)
            raise ValueError(f"load: {name} in {path} does not fit: {told}") from err
        raise
    return {"epoch": contents["epoch"], "extra": contents["extra"]}


def save_object(obj: Any, path: StrPath) -> None:
    """Save one object, such as ``model.state_dict()``, to a file; ``fastopt.save`` is the same.

    Parameters
    ----------
    obj
        Anything made of dict, list, tuple, str, int, float, bool, None, arrays, Tensors and NumPy scalars.
    path
        The file; written as by `save`, whole or not at all.

    Raises
    ------
    TypeError
        `obj` holds something a checkpoint cannot; the message says where.
    OSError
        The file cannot be written.
    """
    save(path, extra=obj, rng=False)


def load_object(path: StrPath) -> Any:
    """Return what `save_object` wrote; ``fastopt.load`` is the same. Tensors come back as arrays.

    Raises
    ------
    ValueError
        Not a file of `save_object`.
    OSError
        The file cannot be read.
    """
    contents = read(path)
    if parts := sorted(contents.keys() - {"epoch", "extra"}):
        raise ValueError(f"{path}: a training run ({', '.join(parts)}): load it with checkpoint.load")
    return contents["extra"]


class _Generator:
    """fastopt's random state as an object with a state dictionary."""

    state_dict = staticmethod(_random.get_rng_state)
    load_state_dict = staticmethod(_random.set_rng_state)


def read(path: StrPath) -> dict[str, Any]:
    """Read what a checkpoint holds, without loading it into anything.

    Returns
    -------
    dict
        ``epoch``, ``extra`` and those of ``model``, ``optimizer``, ``scheduler``, ``loader`` and ``rng`` that
        were saved, as their ``state_dict()`` gave them (arrays are ndarrays).

    Raises
    ------
    ValueError
        Not a checkpoint of fastopt, or of a newer version.
    """
    path = Path(path)
    arrays, metadata = _safetensors.read(path)
    if _METADATA not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but no checkpoint of fastopt (metadata has no {_METADATA!r})"
        )
    try:
        document = json.loads(metadata[_METADATA])
        if document["format"] != _FORMAT:
            raise ValueError(f"format is {document['format']!r}, this version reads {_FORMAT}")
        contents = {name: _unpack(value, arrays) for name, value in document["contents"].items()}
        if missing := {"epoch", "extra"} - contents.keys():
            raise ValueError(f"no {' and '.join(sorted(missing))}")
        return contents
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise ValueError(f"{path}: damaged checkpoint: {err!r}") from err


def _check_model(path: StrPath, current: Mapping[str, Any], saved: Any) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"load: the model in {path} is {type(saved).__name__}, expected arrays by name")
    missing = [name for name in current if name not in saved]
    unexpected = [name for name in saved if name not in current]
    if missing or unexpected:
        raise ValueError(f"load: {path} does not fit the model: missing {missing}, unexpected {unexpected}")
    for name, value in current.items():
        ours, theirs = _as_array(value), _as_array(saved[name])
        if ours is None:
            continue
        if theirs is None:
            raise ValueError(f"load: model[{name!r}] is no array in {path}")
        for what in ("shape", "dtype"):
            a, b = getattr(ours, what), getattr(theirs, what)
            if a != b:
                raise ValueError(f"load: model[{name!r}] has {what} {a}, {path} has {b}")


def _as_array(value: Any) -> Any:
    """The array in ``value``, on the host or a device, if it is an array or a Tensor around one; else None."""
    if isinstance(value, np.ndarray):
        return value
    data = getattr(value, "data", None)
    if isinstance(data, np.ndarray):
        return data
    if hasattr(value, "shape"):
        return device_view(data if hasattr(data, "shape") else value, "array")
    return None


def _pack(value: Any, where: str, arrays: Arrays) -> Any:
    """Turn a state into JSON; its arrays go to ``arrays`` under the name of the place where they stood."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic) and not isinstance(value, (float, np.void)):
        return {_SCALAR: [_pack(np.asarray(value), where, arrays)]}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    array = _as_array(value)
    if array is not None:
        if not _safetensors.can_hold(array):
            raise TypeError(f"save: {where} has dtype {array.dtype}, which a checkpoint cannot hold")
        name = where
        while name in arrays:  # {"a.b": x, "a": {"b": y}}
            name += "'"
        arrays[name] = array
        return {_ARRAY: name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not _MARKS.intersection(value):
            return {key: _pack(item, f"{where}.{key}", arrays) for key, item in value.items()}
        return {
            _PAIRS: [
                [_pack(key, where, arrays), _pack(item, f"{where}.{key}", arrays)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{where}.{i}", arrays) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    raise TypeError(f"save: {where} is {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, arrays: Arrays) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value)) if len(value) == 1 else None
    if mark not in _MARKS:
        return {key: _unpack(item, arrays) for key, item in value.items()}
    inner = value[mark]
    if mark == _ARRAY:
        return arrays[inner]
    if mark == _SCALAR:
        return _unpack(inner[0], arrays)[()]
    if mark == _FLOAT:
        return float(inner)
    if mark == _TUPLE:
        return tuple(_unpack(item, arrays) for item in inner)
    return {_unpack(key, arrays): _unpack(item, arrays) for key, item in inner}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place once it is written and on the disk."""
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    if target.exists() and not target.is_file():
        raise OSError(f"save: {path} is not a regular file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: {path}: no directory {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must reach the disk, too, where the folder can be read
        with contextlib.suppress(PermissionError):
            directory = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
