"""The arrays that an optimizer keeps for each parameter: where they come from, and in how many bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import _core
from fastopt._arrays import (
    Array,
    Dense,
    DeviceDense,
    as_view,
    assign,
    place_beside,
    zeros_for,
    zeros_together,
)
from fastopt._device import is_device_array, library

RULES = _core.rules()
STATE_DTYPES = ("float32", "bfloat16", "int8")
ROUNDINGS = ("nearest", "stochastic", "exact")
#: Ends the name of the array of exponents that belongs to a state in bytes.
EXPONENTS = "_exponents"
REMAINDER = "remainder"
_GROUP: int = _core.packing_group()
_SMALL = 2**20  # bytes of a parameter whose state shares memory with others'; a larger one fills pages itself

State = dict[str, Any]


class Storage(NamedTuple):
    """How what belongs to the parameters of a group is stored.

    Attributes
    ----------
    rule : str
        The native rule.
    average : bool
        Averages of the weights are kept.
    state_dtype : str
        Of the averages among the rule's states.
    rounding : str
        Of bfloat16 parameters.
    by_unit : bool
        The native plan counts the units of an array as tensors.
    """

    rule: str
    average: bool = False
    state_dtype: str = "float32"
    rounding: str = "nearest"
    by_unit: bool = False

    def check(self, owner: str, where: str = "") -> None:
        """Raise ValueError where there is no such storage, or nothing that could be stored so."""
        for key, known in (("state_dtype", STATE_DTYPES), ("rounding", ROUNDINGS)):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(f"{owner}: {key} must be one of {', '.join(known)}, got {value!r}{where}")
        info = RULES[self.rule]
        if self.state_dtype != "float32" and info["states"] and not info["packable"]:
            raise ValueError(
                f"{owner}: state_dtype is {self.state_dtype!r}, rule {self.rule!r} needs its state in float32{where}"
            )

    def check_units(self, owner: str, label: str, dense: Dense | DeviceDense, units: int) -> None:
        """Raise ValueError where units of a parameter are no whole groups of bytes that share an exponent."""
        each = dense.source.size // units
        in_bytes = any(self.dtype(name, dense) == np.uint8 for name in RULES[self.rule]["states"])
        if units > 1 and in_bytes and each % _GROUP:
            raise ValueError(
                f"{owner}: adaptive_clip takes units of {each} elements of {label}, state_dtype 'int8' needs a "
                f"multiple of {_GROUP}; 'bfloat16' and 'float32' need none"
            )

    @property
    def packed(self) -> bool:
        """Whether anything may be stored in fewer bytes: then chances depend on the step's number."""
        return self.state_dtype != "float32" or self.rounding != "nearest"

    def dtype(self, name: str, dense: Dense | DeviceDense) -> np.dtype[Any]:
        """Return the dtype that state `name` of a parameter is stored in."""
        plain = computed_dtype(dense)
        if plain == np.float64 or self.state_dtype == "float32" or name not in RULES[self.rule]["packable"]:
            return plain
        return np.dtype(np.uint8) if self.state_dtype == "int8" else bfloat16()

    def arguments(self, state: list[State]) -> dict[str, Any]:
        """Return what a native plan is to know of arrays in fewer bytes, by its arguments' names."""
        names = RULES[self.rule]["states"]
        exponents = [[entry.get(name + EXPONENTS) for entry in state] for name in names]
        remainders = [entry.get(REMAINDER) for entry in state]
        return {
            "exponents": [None if all(a is None for a in arrays) else arrays for arrays in exponents],
            "remainders": None if all(a is None for a in remainders) else remainders,
            "by_chance": self.rounding == "stochastic",
        }


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that ml_dtypes gives NumPy."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("state in bfloat16 needs ml_dtypes: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def computed_dtype(dense: Dense | DeviceDense) -> np.dtype[Any]:
    """Return the dtype that a parameter is updated in."""
    return np.dtype(np.float64 if dense.source.dtype == np.float64 else np.float32)


def is_small(dense: Dense | DeviceDense) -> bool:
    """Tell whether the state of a parameter shares memory with others'."""
    return isinstance(dense, Dense) and dense.plain and dense.source.nbytes < _SMALL


def allocate(
    storage: Storage, dense: list[Dense | DeviceDense], state: list[State], starts: dict[str, float]
) -> None:
    """Make the arrays that parameters lack, those of small C-contiguous parameters in one piece.

    What is there in other storage is converted. `starts` has the states that do not start at zero.
    """
    names = [*RULES[storage.rule]["states"], *(["ema"] if storage.average else [])]
    for name in names:
        for d, entry in zip(dense, state, strict=True):
            if name in entry and name != "ema":
                store(storage, d, entry, name, entry[name], entry.pop(name + EXPONENTS, None))
    lacking = [(i, name) for name in names for i in range(len(dense)) if name not in state[i]]
    dtypes = [
        computed_dtype(dense[i]) if name == "ema" else storage.dtype(name, dense[i]) for i, name in lacking
    ]
    together = [k for k, (i, _) in enumerate(lacking) if is_small(dense[i])]
    arrays = zeros_together(
        [dense[lacking[k][0]].source.shape for k in together],
        [dtypes[k] for k in together],
        [place_beside(dense[lacking[k][0]].source, names.index(lacking[k][1])) for k in together],
    )
    made = dict(zip(together, arrays, strict=True))
    for k, (i, name) in enumerate(lacking):
        new = made[k] if k in made else zeros_for(dense[i], dtypes[k], names.index(name))
        if name == "ema":
            assign(new, dense[i].source)
        elif start := starts.get(name):
            if dtypes[k] == np.uint8:
                store(storage, dense[i], state[i], name, np.full(dense[i].source.shape, start, np.float32))
                continue
            new.fill(start)
        state[i][name] = library(new).unwrap(new) if is_device_array(new) else new
        if dtypes[k] == np.uint8:
            state[i][name + EXPONENTS] = _like(dense[i], (groups(dense[i]),), np.uint8)
    for d, entry in zip(dense, state, strict=True):
        exact = storage.rounding == "exact" and str(d.source.dtype) == "bfloat16"
        if exact and REMAINDER not in entry:
            entry[REMAINDER] = _unwrapped(zeros_for(d, np.dtype(np.int16)))
        elif not exact:
            entry.pop(REMAINDER, None)


def groups(dense: Dense | DeviceDense) -> int:
    """Return how many groups of elements share an exponent."""
    return group_count(int(dense.source.size))


def group_count(elements: int) -> int:
    """Return how many groups so many elements make."""
    return -(-elements // _GROUP)


def _like(dense: Dense | DeviceDense, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return zeros of any shape where a parameter is."""
    if isinstance(dense, Dense):
        return np.zeros(shape, dtype)
    return _unwrapped(library(dense.source).zeros(dense.source, shape, np.dtype(dtype)))


def _unwrapped(a: Any) -> Any:
    return library(a).unwrap(a) if is_device_array(a) else a


def store(
    storage: Storage, dense: Dense | DeviceDense, entry: State, name: str, value: Any, exponents: Any = None
) -> None:
    """Put `value` into `entry` as state `name`, in this storage and where the parameter is.

    Parameters
    ----------
    value : array
        In any storage; bytes come with their `exponents`.
    """
    dtype = storage.dtype(name, dense)
    view = as_view(value, name)
    if view.dtype == dtype and (exponents is not None) == (dtype == np.uint8):
        entry[name] = value
        if exponents is not None:
            entry[name + EXPONENTS] = exponents
        return
    # Conversions are rare: they happen on the host.
    floats = _floats(storage, dense, name, view, exponents)
    if dtype == np.uint8:
        walked = _host_dense(dense, floats)
        codes, new_exponents = _core.encode(walked.ravel(), _signed(storage, name))
        put = _from_dense(dense, codes.reshape(walked.shape))
        entry[name + EXPONENTS] = _placed(dense, new_exponents)
    else:
        put = floats.astype(dtype)
    entry[name] = _placed(dense, put, parameter=True)


def _signed(storage: Storage, name: str) -> bool:
    return name in RULES[storage.rule]["signed"]


def _floats(storage: Storage, dense: Dense | DeviceDense, name: str, view: Any, exponents: Any) -> Array:
    """Return a state on the host in the dtype that it is computed in."""
    host = _on_host(view)
    if exponents is None:
        return host.astype(computed_dtype(dense))
    codes = _host_dense(dense, host)
    decoded = _core.decode(codes.ravel(), _on_host(as_view(exponents, name)), _signed(storage, name))
    return _from_dense(dense, decoded.reshape(codes.shape))


def _on_host(view: Any) -> Array:
    host: Array = library(view).to_host(view) if is_device_array(view) else view
    return host


def _host_dense(dense: Dense | DeviceDense, a: Array) -> Array:
    """Return `a`, of the parameter's shape, in the layout that the kernels walk."""
    return dense.arrange(a) if isinstance(dense, Dense) else np.ascontiguousarray(a)


def _from_dense(dense: Dense | DeviceDense, a: Array) -> Array:
    return dense.restore(a) if isinstance(dense, Dense) else a


def _placed(dense: Dense | DeviceDense, a: Array, parameter: bool = False) -> Any:
    """Return `a` where the parameter is; one of its shape in the parameter's layout."""
    if isinstance(dense, Dense):
        if not parameter:
            return a
        new = zeros_for(dense, a.dtype)
        new[...] = a
        return new
    return _unwrapped(library(dense.source).from_host(a, dense.source))


def in_layout(dense: Dense | DeviceDense, entry: State, name: str) -> Array:
    """Return a state in the kernels' layout, laid out anew in `entry` where it has another."""
    array = entry[name]
    if not isinstance(dense, Dense):
        on_device: Array = array
        return on_device
    arranged: Array = dense.arrange(array)
    if np.may_share_memory(arranged, array) or not array.size:
        return arranged
    new = zeros_for(dense, array.dtype)
    new[...] = array
    entry[name] = new
    return dense.arrange(new)


def load_entry(storage: Storage, dense: Dense | DeviceDense, entry: State, label: str, where: str) -> State:
    """Return copies of the arrays of a state dictionary's entry, in this storage.

    Raises
    ------
    TypeError, ValueError
        One is not of the parameter's shape, or of no real dtype.
    """
    state: State = {}
    shape = dense.source.shape
    for name, value in entry.items():
        if value is None or name.endswith(EXPONENTS):
            continue
        here = f"load_state_dict: {where}[{name!r}]"
        view = np.asarray(value) if isinstance(value, float | int | list) else as_view(value, here)
        if view.dtype.kind in "cOSUMm":
            raise TypeError(f"{here} is {view.dtype}, expected real numbers")
        if view.shape != shape:
            raise ValueError(f"{here} has shape {view.shape}, {label} has shape {shape}")
        exponents = entry.get(name + EXPONENTS)
        if exponents is not None and np.shape(exponents) != (groups(dense),):
            raise ValueError(
                f"load_state_dict: {where}[{name + EXPONENTS!r}] has shape {np.shape(exponents)}, "
                f"{label} has {groups(dense)} groups of {_GROUP}"
            )
        if name in ("ema", REMAINDER):
            own = zeros_for(dense, np.dtype(np.int16) if name == REMAINDER else computed_dtype(dense))
            assign(own, view)
            state[name] = _unwrapped(own)
        else:
            store(storage, dense, state, name, _copied(dense, view), _copied(dense, exponents))
    return state


def _copied(dense: Dense | DeviceDense, a: Any) -> Any:
    """Return a copy of an array where the parameter is, None of None."""
    if a is None:
        return None
    view = as_view(a, "state")
    if isinstance(dense, Dense):
        return np.array(_on_host(view))
    new = library(dense.source).zeros(dense.source, view.shape, view.dtype)
    assign(new, view)
    return _unwrapped(new)


def settle(
    copied: list[Any], plans: list[Any], before: list[int], rows: list[Any], advanced: list[Any]
) -> None:
    """Store and count what native steps have updated: Ctrl-C is heard as soon as one of them returns.

    `before`: the steps that each plan had taken; `advanced`: the rows whose numbers are to be others, and those.
    """
    for dense in copied:
        dense.store()
    taken = [plan for plan, steps in zip(plans, before, strict=True) if plan.native.steps != steps]
    counted = {id(rows[r]) for plan in taken for r in plan.rows}
    for row, scalars in advanced:
        if id(row) in counted:
            row.scalars = scalars
