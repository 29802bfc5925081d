"""What all optimizers share: parameters and groups, gradients in their structure, state dictionaries."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import is_not
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastopt._arrays import Dense, DeviceDense, as_view
from fastopt._device import is_device_array
from fastopt.optim.groups import matcher
from fastopt.optim.params import Spec, check_distinct, collection, flatten, gather, is_tensor, moved, prepare
from fastopt.optim.placement import place

NDARRAY_ONLY = {np.ndarray}


class Interval(NamedTuple):
    """The range of a hyperparameter; `text` is its bounds in the usual notation."""

    low: float
    high: float
    text: str

    def holds(self, value: float) -> bool:
        """Tell whether `value` lies within; NaN does not."""
        above = value >= self.low if self.text[0] == "[" else value > self.low
        return above and (value <= self.high if self.text[-1] == "]" else value < self.high)


FINITE = Interval(-math.inf, math.inf, "(-inf, inf)")
NONNEGATIVE = Interval(0.0, math.inf, "[0, inf)")
POSITIVE = Interval(0.0, math.inf, "(0, inf)")
COUNT = Interval(1.0, math.inf, "[1, inf)")
FRACTION = Interval(0.0, 1.0, "[0, 1)")
UNIT = Interval(0.0, 1.0, "[0, 1]")
#: How messages call the parts of ``betas``.
BETAS = ("beta1", "beta2", "beta3")


def one_of(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {choices}, got {value!r}")


def number(owner: str, name: str, value: Any, where: str = "") -> float:
    """Return `value` as a float, or raise TypeError."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{owner}: {name} must be a number, got {value!r}{where}")


def _members(group: dict[str, Any], part: list[int]) -> dict[str, Any]:
    """Return a group with some of the members of another."""
    lists: dict[str, Any] = {
        key: [group[key][k] for k in part] for key in ("params", "param_names") if key in group
    }
    return {**group, **lists}


class Optimizer:
    """Base class of the optimizers.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        Arrays (NumPy, torch CPU, DLPack; float32, float64, float16, bfloat16) or Tensors, updated in place.
        A group is a dict with such a collection under ``"params"`` and settings of its own beside it.
    defaults : dict
        The settings of groups that do not give their own.

    Attributes
    ----------
    param_groups : list of dict
        The groups; settings such as ``"lr"`` may be changed between steps.
    defaults : dict
        As given.

    Raises
    ------
    TypeError
        A parameter is no array, or of another dtype.
    ValueError
        A parameter is read-only, given twice or overlaps another; a setting is out of range.
    """

    #: Ranges of the settings; ``beta1``, ``beta2`` and, where there are three, ``beta3`` are the parts of ``betas``.
    ranges: ClassVar[dict[str, Interval]] = {}
    #: Settings that may be None.
    optional: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        owner = type(self).__name__
        self._lock = threading.RLock()  # a second thread that steps waits
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self._specs: list[Spec] = []
        self._starts = [0]
        self._owners: list[int] = []  # of each parameter, which of the collections it came in
        self._order: list[int] = []  # of the parameters as they were given, their positions
        self._objects: list[Any] = []
        self._paths: list[str] = []
        self._dense: list[Dense | DeviceDense] = []
        self._state: list[dict[str, Any]] = []
        params = collection(params, owner)
        if not params:
            raise ValueError(f"{owner}: params is empty")
        if not isinstance(params, Mapping) and isinstance(params[0], Mapping) and "params" in params[0]:
            for group in params:
                self.add_param_group(group)
        else:
            self.add_param_group({"params": params})

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError when settings of `group` contradict each other."""

    @property
    def state(self) -> dict[int, dict[str, Any]]:
        """The live state of each parameter that has any, by position."""
        return {i: entry for i in range(len(self._objects)) if (entry := self._entry(i))}

    def _entry(self, i: int) -> dict[str, Any]:
        return self._state[i]

    # Groups ------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it lacks are the optimizer's defaults.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing is added then.
        """
        owner = type(self).__name__
        g = len(self.param_groups)
        if not isinstance(param_group, Mapping):
            raise TypeError(
                f"{owner}: a group is {type(param_group).__name__}, expected a dict with 'params'"
            )
        if "params" not in param_group:
            raise ValueError(f"{owner}: a group has no 'params', it has {sorted(map(str, param_group))}")
        params = param_group["params"]
        flat = flatten(
            collection([params] if hasattr(params, "shape") else params, owner), len(self._objects), owner
        )
        given = {**self.defaults, **param_group}
        no_decay = given.pop("no_decay", None)
        group = {**given, "params": flat.arrays}
        if flat.names is not None:
            group["param_names"] = flat.names
        self._validate(group, f" in param_groups[{g}]" if g else "")
        c = len(self._specs)
        prefix = f"params[{c}]" if c else "params"
        labels = [prefix + path for path in flat.paths]
        dense = [prepare(p, label, owner) for p, label in zip(flat.arrays, labels, strict=True)]
        self._accept(group, dense, labels)
        known = [self._label(i) for i in range(len(self._objects))]
        check_distinct([d.source for d in self._dense + dense], known + labels, owner)
        place(self._dense + dense, known + labels, owner)
        parts = [list(range(len(dense)))]
        if no_decay is not None:
            parts = self._decayed_or_not(no_decay, flat.names, dense)

        first = len(self._objects)
        order = [k for part in parts for k in part]
        place_of = {first + k: first + at for at, k in enumerate(order)}
        for part, settings in zip(parts, ({}, {"weight_decay": 0.0}), strict=False):
            if part or len(parts) == 1:
                self.param_groups.append({**_members(group, part), **settings})
                self._starts.append(self._starts[-1] + len(part))
        self._specs.append(flat.spec if len(parts) == 1 else moved(flat.spec, place_of))
        self._order += [place_of[first + k] for k in range(len(order))]
        self._owners += [c] * len(order)
        self._objects += [flat.arrays[k] for k in order]
        self._paths += [flat.paths[k] for k in order]
        self._dense += [dense[k] for k in order]
        self._state += [{} for _ in dense]
        self._index_parameters()

    def _accept(self, group: dict[str, Any], dense: list[Any], labels: list[str]) -> None:
        """Raise where this optimizer does not take a group's parameters; nothing has been added yet."""

    def _decayed_or_not(
        self, no_decay: Any, names: list[str] | None, dense: list[Dense | DeviceDense]
    ) -> list[list[int]]:
        """Return the positions of the parameters that decay, and of those that do not."""
        owner = type(self).__name__
        if "weight_decay" not in self.defaults:
            raise ValueError(f"{owner}: no_decay is for optimizers with a weight_decay")
        match = matcher(no_decay, owner, "no_decay")
        if names is None and not callable(no_decay):
            raise ValueError(
                f"{owner}: no_decay has patterns, but params have no names; give a dict, (name, array) pairs such as "
                "named_parameters(), or a function of a name and an array"
            )
        none = [match(names[k] if names else "", d.source) for k, d in enumerate(dense)]
        return [[k for k, hit in enumerate(none) if hit is wanted] for wanted in (False, True)]

    def _index_parameters(self) -> None:
        """Derive what depends on the list of parameters alone."""
        labels = [self._label(i) for i in range(len(self._objects))]
        self._placement = place(self._dense, labels, type(self).__name__)
        self._plain = all(d.plain for d in self._dense)
        self._copied = [d for d in self._dense if d.copied]
        self._tensors = [p for p in self._objects if is_tensor(p)]
        self._tensor_arrays = [p.data for p in self._tensors]
        self._foreign = [i for i, p in enumerate(self._objects) if hasattr(p, "data_ptr")]
        self._movable = bool(self._tensors or self._foreign)
        spec = self._specs[0] if len(self._specs) == 1 else None
        self._moved = self._order != list(range(len(self._order)))
        flat = isinstance(spec, dict) and all(isinstance(branch, int) for branch in spec.values())
        self._keys = spec.keys() if isinstance(spec, dict) and flat and not self._moved else None

    def _label(self, i: int, argument: str = "params") -> str:
        """Return how messages call parameter i, or its gradient: the path that a user would write."""
        if len(self._specs) == 1:
            return argument + self._paths[i]
        return f"{argument}[{self._owners[i]}]{self._paths[i]}"

    def _require(self, key: str, value: Any, interval: Interval, where: str = "") -> None:
        """Raise unless `value` is a number in `interval`."""
        if not interval.holds(number(type(self).__name__, key, value, where)):
            raise ValueError(f"{type(self).__name__}: {key} must be in {interval.text}, got {value}{where}")

    def _validate(self, group: dict[str, Any], where: str = "") -> None:
        parts = [key for key in BETAS if key in self.ranges]
        for key, interval in self.ranges.items():
            if key in BETAS:
                betas = group["betas"]
                if not isinstance(betas, list | tuple) or len(betas) != len(parts):
                    wanted = "a pair of numbers" if len(parts) == 2 else f"{len(parts)} numbers"
                    raise ValueError(f"{type(self).__name__}: betas must be {wanted}, got {betas!r}{where}")
                self._require(key, betas[parts.index(key)], interval, where)
            elif group[key] is not None or key not in self.optional:
                self._require(key, group[key], interval, where)
        self.check(group)

    # Gradients ---------------------------------------------------------------------------------------------

    def _evaluate(self, closure: Callable[[], Any]) -> tuple[Any, Any]:
        """Call the closure; return the loss and the gradients, None where Tensors hold them."""
        result = closure()
        if isinstance(result, tuple):
            if len(result) != 2:
                raise ValueError(f"step: closure returned {len(result)} values, expected (loss, grads)")
            return result
        if not all(hasattr(p, "grad") for p in self._objects):
            raise TypeError(
                f"step: closure returned {type(result).__name__}, plain arrays need (loss, grads)"
            )
        return result, None

    def _gather(self, grads: Any) -> list[Any]:
        """Return one gradient or None for each parameter, in order."""
        n = len(self._objects)
        if self._movable:
            self._follow()
        if grads is None:
            try:
                flat = [p.grad for p in self._objects]
            except AttributeError:
                i = next(i for i, p in enumerate(self._objects) if not hasattr(p, "grad"))
                raise TypeError(f"step: {self._label(i)} is a plain array, so step needs grads") from None
            if len(self._tensors) == n and any(map(is_tensor, flat)):
                return [None if g is None else g.data for g in flat]
            return flat
        # The common cases need no look at the structure.
        if type(grads) is list and len(grads) == n and set(map(type, grads)) == NDARRAY_ONLY:
            return self._in_order(grads) if self._moved else grads
        if type(grads) is dict and self._keys is not None and grads.keys() == self._keys:
            return [grads[key] for key in self._keys]
        if hasattr(grads, "shape"):
            raise TypeError(
                f"step: grads is a single {type(grads).__name__}, expected the structure of params"
            )
        grads = collection(grads, "step", "grads")
        if not isinstance(grads, Mapping):
            types = set(map(type, grads))
            containers = any(issubclass(t, Mapping | list | tuple) for t in types)
            if len(grads) == n and not containers:
                return self._in_order(grads) if self._moved else list(grads)
            if not containers and type(None) not in types:
                raise ValueError(f"step: grads has {len(grads)} entries, params has {n}")
        flat = [None] * n
        if len(self._specs) == 1:
            gather(grads, self._specs[0], flat)
        else:
            if not isinstance(grads, Mapping):
                grads = [
                    g["params"] if isinstance(g, Mapping) and g.keys() == {"params"} else g for g in grads
                ]
            gather(grads, self._specs, flat)
        return flat

    def _in_order(self, grads: Sequence[Any]) -> list[Any]:
        """Return a flat list of what was given, in the order of the groups."""
        flat: list[Any] = [None] * len(grads)
        for at, g in zip(self._order, grads, strict=True):
            flat[at] = g
        return flat

    def _as_given(self, in_order: list[Any]) -> list[Any]:
        """Return one gradient for each parameter as the flat list that `step` takes."""
        return [in_order[at] for at in self._order] if self._moved else in_order

    def _usable(self, flat: list[Any]) -> list[Any]:
        """Return the gradients as dense ndarrays laid out like their parameters, or raise."""
        return [
            None if g is None else dense.arrange(self._checked(i, g))
            for i, (g, dense) in enumerate(zip(flat, self._dense, strict=True))
        ]

    def _checked(self, i: int, g: Any) -> Any:
        """Return the gradient of parameter i as an ndarray of the same shape and dtype, or raise."""
        if is_tensor(g):
            g = g.data
        elif isinstance(g, np.generic | float):
            g = np.asarray(g)
        name = self._label(i, "grads")
        view = as_view(g, f"step: {name}")
        p = self._dense[i].source
        self._require_place(i, view, name)
        if view.dtype != p.dtype:
            raise TypeError(f"step: {name} is {view.dtype}, {self._label(i)} is {p.dtype}")
        if view.shape != p.shape:
            raise ValueError(f"step: {name} has shape {view.shape}, {self._label(i)} has shape {p.shape}")
        return view

    def _require_place(self, i: int, view: Any, name: str) -> None:
        """Raise where one of an array and parameter i is on the host and the other on a device."""
        p = self._dense[i].source
        if is_device_array(view) != is_device_array(p):
            places = ("the host", "a CUDA device")
            raise TypeError(
                f"step: {name} is on {places[is_device_array(view)]}, {self._label(i)} is on "
                f"{places[is_device_array(p)]}"
            )

    def _follow(self) -> None:
        """Follow Tensors whose array was replaced by another of the same shape and dtype."""
        same = not any(map(is_not, [p.data for p in self._tensors], self._tensor_arrays))
        if same and all(self._objects[i].data_ptr() == self._dense[i].address for i in self._foreign):
            return
        owner = type(self).__name__
        labels = [self._label(i) for i in range(len(self._objects))]
        dense = [prepare(p, label, owner) for p, label in zip(self._objects, labels, strict=True)]
        for old, new, label in zip(self._dense, dense, labels, strict=True):
            a, b = old.source, new.source
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise RuntimeError(f"step: {label} was {a.dtype} {a.shape} and is now {b.dtype} {b.shape}")
        check_distinct([d.source for d in dense], labels, owner)
        self._dense = dense
        self._index_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the Tensors' gradients, or fill them with zeros."""
        for p in self._objects:
            g = getattr(p, "grad", None)
            if g is None:
                continue
            if set_to_none:
                p.grad = None
            else:
                as_view(g.data if is_tensor(g) else g, "zero_grad: grad").fill(0)

    # State dictionaries, pickles ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"state": {i: {...}}, "param_groups": [...]}`` with torch's keys; arrays are copies."""
        groups = []
        for g, group in enumerate(self.param_groups):
            kept = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            groups.append({**kept, "params": list(range(self._starts[g], self._starts[g + 1]))})
        return {"state": copy.deepcopy(self.state), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state, copying into the existing arrays.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` of this class returned, or of torch's class of the same name.

        Raises
        ------
        TypeError, ValueError
            It is of other groups, shapes or state; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise TypeError("load_state_dict: expected a dict with 'state' and 'param_groups'")
        saved = state_dict["param_groups"]
        dicts = {"state": state_dict["state"]}
        dicts |= {f"param_groups[{g}]": group for g, group in enumerate(saved)}
        dicts |= {f"state[{key!r}]": entry for key, entry in dict(state_dict["state"]).items()}
        for where, value in dicts.items():
            if not isinstance(value, Mapping):
                raise TypeError(f"load_state_dict: {where} is {type(value).__name__}, expected a dict")
        if len(saved) != len(self.param_groups):
            raise ValueError(
                f"load_state_dict: state_dict has {len(saved)} parameter groups, "
                f"the optimizer has {len(self.param_groups)}"
            )
        groups, entries = [], []
        for g, (new, group) in enumerate(zip(saved, self.param_groups, strict=True)):
            if "params" not in new:
                raise ValueError(f"load_state_dict: param_groups[{g}] has no 'params'")
            if len(new["params"]) != len(group["params"]):
                raise ValueError(
                    f"load_state_dict: param_groups[{g}] has {len(new['params'])} parameters, "
                    f"the optimizer's has {len(group['params'])}"
                )
            # A betas list is a pair that went through JSON.
            settings = {key: tuple(v) if key == "betas" else copy.deepcopy(v) for key, v in new.items()}
            merged = {**group, **settings, "params": group["params"]}
            self._validate(merged, f" in param_groups[{g}]")
            groups.append(merged)
            entries += [state_dict["state"].get(key, {}) for key in new["params"]]
        unknown = state_dict["state"].keys() - {i for group in saved for i in group["params"]}
        if unknown:
            raise ValueError(f"load_state_dict: state has {min(unknown, key=str)!r}, which no group lists")
        self._load(groups, entries)
        # In place: a scheduler or a caller may hold the group's dict.
        for group, merged in zip(self.param_groups, groups, strict=True):
            group.update(merged)

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        """Take over one entry of state for each parameter, or raise before any change."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # Views and what is derived from them are made anew: the parameters may be other objects then.
        derived = (
            "_dense",
            "_plain",
            "_copied",
            "_tensors",
            "_tensor_arrays",
            "_foreign",
            "_movable",
            "_keys",
            "_moved",
            "_placement",
            "_lock",
        )
        return {key: value for key, value in self.__dict__.items() if key not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        owner = type(self).__name__
        self._dense = [prepare(p, self._label(i), owner) for i, p in enumerate(self._objects)]
        self._index_parameters()

    def __repr__(self) -> str:
        lines = [type(self).__name__ + " ("]
        for g, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {g}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])
