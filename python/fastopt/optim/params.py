"""Collections of parameters: flattened once, and gradients of the same structure gathered at each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastopt._arrays import Dense, DeviceDense, as_view, overlaps_itself
from fastopt._device import is_device_array, library

DTYPES = ("float32", "float64", "float16", "bfloat16")

#: A collection's structure: the position of an array, or a list or mapping of such.
Spec = int | list["Spec"] | dict[Any, "Spec"]


class Flat(NamedTuple):
    """A collection laid out flat.

    Attributes
    ----------
    spec : Spec
        The collection's structure with positions in place of arrays.
    arrays : list
        The arrays in order, as they were given.
    paths : list of str
        Where in the collection each one is: ``"['w']"``.
    names : list of str or None
        Dotted names, where the collection has keys or names.
    """

    spec: Spec
    arrays: list[Any]
    paths: list[str]
    names: list[str] | None


def is_tensor(x: Any) -> bool:
    """Tell whether `x` holds an array in `.data` and its gradient in `.grad`, as a fastopt Tensor does."""
    if not hasattr(x, "grad"):
        return False
    data = getattr(x, "data", None)
    return isinstance(data, np.ndarray) or is_device_array(data)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") or hasattr(x, "__dlpack__")


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)


def collection(params: Any, owner: str, what: str = "params") -> Any:
    """Return `params` as a list, tuple or mapping; TypeError for a lone array, a set or no collection."""
    if _is_array(params):
        raise TypeError(
            f"{owner}: {what} is a single {type(params).__name__}, expected a list, dict or tree of arrays"
        )
    if isinstance(params, set | frozenset):
        raise TypeError(
            f"{owner}: {what} is a set, whose order changes between runs; expected a list or dict"
        )
    if isinstance(params, Mapping | list | tuple):
        return params
    if isinstance(params, Iterable) and not isinstance(params, str | bytes):
        return list(params)
    raise TypeError(f"{owner}: {what} is {type(params).__name__}, expected a list, dict or tree of arrays")


def flatten(params: Any, first: int, owner: str) -> Flat:
    """Flatten one group's `params`; positions count from `first`."""
    arrays: list[Any] = []
    paths: list[str] = []
    names: list[str] = []
    keyed = False

    def visit_keyed(items: Iterable[tuple[Any, Any]], path: str, name: str) -> Spec:
        nonlocal keyed
        keyed = True
        spec: dict[Any, Spec] = {}
        for key, value in items:
            if key in spec:
                raise ValueError(f"{owner}: params{path} has the name {key!r} twice")
            spec[key] = visit(value, f"{path}[{key!r}]", f"{name}{key}.")
        return spec

    def visit(node: Any, path: str, name: str) -> Spec:
        if isinstance(node, Mapping):
            return visit_keyed(node.items(), path, name)
        if isinstance(node, list | tuple):
            pairs = sum(map(_is_pair, node))
            if pairs and pairs == len(node):
                return visit_keyed(node, path, name)
            if pairs:
                raise ValueError(f"{owner}: params{path} mixes arrays with and without names")
            return [visit(value, f"{path}[{i}]", f"{name}{i}.") for i, value in enumerate(node)]
        arrays.append(node)
        paths.append(path)
        names.append(name[:-1])
        return first + len(arrays) - 1

    spec = visit(params, "", "")
    return Flat(spec, arrays, paths, names if keyed else None)


def moved(spec: Spec, place_of: dict[int, int]) -> Spec:
    """Return a structure whose arrays lie at other positions."""
    if isinstance(spec, int):
        return place_of[spec]
    if isinstance(spec, dict):
        return {key: moved(branch, place_of) for key, branch in spec.items()}
    return [moved(branch, place_of) for branch in spec]


def prepare(param: Any, label: str, owner: str) -> Dense | DeviceDense:
    """Return the dense form of one parameter after checking that it can be updated in place.

    Raises
    ------
    TypeError
        It is no array, or not of a dtype that the kernels update.
    ValueError
        It is on another kind of device, read-only, overlapping itself, or a Tensor that is no leaf.
    """
    if is_tensor(param):
        if not getattr(param, "is_leaf", True):
            raise ValueError(f"{owner}: {label} is the result of an operation, expected a leaf Tensor")
        param = param.data
    view = as_view(param, f"{owner}: {label}")
    if view.dtype.name not in DTYPES or not view.dtype.isnative:
        raise TypeError(f"{owner}: {label} is {view.dtype}, expected one of {', '.join(DTYPES)}")
    if is_device_array(view):
        return DeviceDense(view, f"{owner}: {label}")
    if not view.flags.writeable:
        raise ValueError(f"{owner}: {label} is read-only")
    if overlaps_itself(view):
        raise ValueError(f"{owner}: {label} has elements that share memory (strides {view.strides})")
    return Dense(view)


def check_distinct(views: list[Any], labels: list[str], owner: str) -> None:
    """Raise ValueError when two parameters share memory."""
    ranges = sorted((*_bounds(view), i) for i, view in enumerate(views) if view.size)
    active: list[tuple[int, int]] = []
    for begin, end, i in ranges:
        active = [(other_end, j) for other_end, j in active if other_end > begin]
        for _, j in active:
            if _share_memory(views[i], views[j]):
                same = _bounds(views[i]) == _bounds(views[j]) and _strides(views[i]) == _strides(views[j])
                a, b = sorted((i, j))
                what = "is the same array as" if same else "overlaps"
                raise ValueError(f"{owner}: {labels[b]} {what} {labels[a]}")
        active.append((end, i))


def _bounds(view: Any) -> tuple[int, int]:
    """The first byte of an array, and the first behind it. Addresses of host and devices do not meet."""
    if is_device_array(view):
        begin = library(view).address(view)
        return begin, begin + view.nbytes
    return byte_bounds(view)


def _share_memory(a: Any, b: Any) -> bool:
    """Whether two arrays whose bounds overlap have a byte in common; those of a device are dense."""
    return is_device_array(a) or is_device_array(b) or np.shares_memory(a, b)


def _strides(view: Any) -> Any:
    return None if is_device_array(view) else view.strides


def gather(grads: Any, spec: Spec, out: list[Any], label: str = "grads") -> None:
    """Write the gradients of a collection with structure `spec` to their positions in `out`.

    None in place of a branch means that nothing in it has a gradient.

    Raises
    ------
    TypeError, ValueError
        The structures differ; the message names where.
    """
    if grads is None:
        return
    if isinstance(spec, int):
        if isinstance(grads, Mapping | list | tuple):
            raise TypeError(f"step: {label} is a {type(grads).__name__}, its parameter is an array")
        out[spec] = grads
    elif isinstance(spec, dict):
        if isinstance(grads, list | tuple) and all(map(_is_pair, grads)):
            grads = dict(grads)
        if not isinstance(grads, Mapping):
            raise TypeError(f"step: {label} is {_kind(grads)}, params has the keys {_keys(spec)}")
        for key in spec:
            if key not in grads:
                raise ValueError(f"step: {label} has no {key!r}, params has the keys {_keys(spec)}")
        for key in grads:
            if key not in spec:
                raise ValueError(f"step: {label} has {key!r}, params has only the keys {_keys(spec)}")
        for key, branch in spec.items():
            gather(grads[key], branch, out, f"{label}[{key!r}]")
    else:
        if not isinstance(grads, list | tuple):
            raise TypeError(f"step: {label} is {_kind(grads)}, params has a list of {len(spec)} there")
        if len(grads) != len(spec):
            raise ValueError(f"step: {label} has {len(grads)} entries, params has {len(spec)}")
        for i, branch in enumerate(spec):
            gather(grads[i], branch, out, f"{label}[{i}]")


def _kind(x: Any) -> str:
    return f"a {type(x).__name__}" + (f" of {len(x)}" if isinstance(x, Mapping | list | tuple) else "")


def _keys(spec: dict[Any, Spec]) -> str:
    shown = [repr(key) for key in spec]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
