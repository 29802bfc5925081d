"""Optimizer state to and from other libraries: torch's state dictionaries, optax's trees.

``to_torch(opt)`` is what ``load_state_dict`` of torch's class of the same name takes; ``from_torch(opt, state_dict)``
is the way back. ``to_optax(opt, tx.init(params))`` fills an optax state with ours, ``from_optax(opt, state)`` takes one
over. Whoever goes on from the state goes on where the other stopped, if both have the same settings: those of
`fastopt.compat.optax` have optax's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastopt._arrays import as_view
from fastopt._device import is_device_array
from fastopt._torch_array import TorchArray
from fastopt.optim.base import Optimizer
from fastopt.optim.params import gather
from fastopt.optim.rule import RuleOptimizer
from fastopt.optim.state import RULES


def as_tensors(x: Any) -> Any:
    """Return `x` with its arrays as torch tensors of the same memory.

    Parameters
    ----------
    x : array, or dict, list or tuple of such
        Anything else stays as it is.
    """
    import torch

    if isinstance(x, dict):
        return {key: as_tensors(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(as_tensors(value) for value in x)
    if isinstance(x, np.ndarray):
        if x.dtype.name == "bfloat16":  # of which torch and NumPy only share the bits
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)
    if isinstance(x, TorchArray):
        return x.tensor
    if torch.is_tensor(x) or not hasattr(x, "__cuda_array_interface__"):
        return x
    return torch.utils.dlpack.from_dlpack(x)


def to_torch(optimizer: Optimizer) -> dict[str, Any]:
    """Return a state dictionary of tensors for torch's class of the same name.

    Parameters
    ----------
    optimizer : Optimizer
        Its parameters are in the order of torch's.

    Returns
    -------
    dict
        ``{"state": {i: {...}}, "param_groups": [...]}``; the tensors are copies.
    """
    state: dict[str, Any] = as_tensors(optimizer.state_dict())
    return state


def from_torch(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Take over what ``state_dict()`` of torch's class of the same name returned.

    Raises
    ------
    TypeError, ValueError
        It is of other groups, shapes or state; nothing is changed then.
    """
    optimizer.load_state_dict(state_dict)


# optax ------------------------------------------------------------------------------------------------------

#: The fields of optax's states, and the names that the arrays in them may have here.
_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "ScaleByAdamState": {"mu": ("exp_avg",), "nu": ("exp_avg_sq", "exp_inf")},
    "ScaleByAmsgradState": {"mu": ("exp_avg",), "nu": ("exp_avg_sq",), "nu_max": ("max_exp_avg_sq",)},
    "ScaleByBeliefState": {"mu": ("exp_avg",), "nu": ("exp_avg_var",)},
    "ScaleByLionState": {"mu": ("exp_avg",)},
    "ScaleByRmsState": {"nu": ("square_avg",)},
    "ScaleByRStdDevState": {"mu": ("grad_avg",), "nu": ("square_avg",)},
    "ScaleByRssState": {"sum_of_squares": ("sum",)},
    "ScaleByAdaDeltaState": {"e_g": ("square_avg",), "e_x": ("acc_delta",)},
    "TraceState": {"trace": ("momentum_buffer",)},
}


class _Slot(NamedTuple):
    """One tree of arrays in an optax state, and the name of these arrays in ours."""

    tree: Any
    name: str


def to_optax(optimizer: RuleOptimizer, template: Any) -> Any:
    """Return an optax state with the optimizer's arrays and step counts.

    Parameters
    ----------
    optimizer : Optimizer
        With one group; its parameters have the structure of those that `template` was made for.
    template : optax state
        What ``tx.init(params)`` returned; it is not changed.

    Returns
    -------
    optax state
        A copy of `template`. Arrays are NumPy's, or the optimizer's own on a device; states that hold no more than the
        count of steps, such as a schedule's, get that.

    Raises
    ------
    ValueError
        The optimizer has several groups, parameters with different step counts, or lacks a state of `template`.
    """
    entries = _entries(optimizer)
    step = _common_step(optimizer)

    def fill(slot: _Slot) -> Any:
        spec = optimizer._specs[0]
        factor = _factor(optimizer, slot.name)
        arrays = [entry[slot.name] if entry else None for entry in entries]
        return _replace(slot.tree, spec, [_scaled(a, factor) for a in arrays])

    return _walk(template, optimizer, fill, lambda count: np.asarray(step, np.asarray(count).dtype))


def from_optax(optimizer: RuleOptimizer, state: Any) -> None:
    """Take over an optax state: its arrays, and its count of steps.

    Parameters
    ----------
    optimizer : Optimizer
        With one group; its parameters have the structure of those that optax updated.
    state : optax state
        NumPy's arrays or JAX's.

    Raises
    ------
    TypeError, ValueError
        The optimizer has several groups, or `state` is of other arrays; nothing is changed then.
    """
    entries = _entries(optimizer)
    found: list[dict[str, Any]] = [{} for _ in entries]
    counts: list[int] = []

    def read(slot: _Slot) -> Any:
        flat: list[Any] = [None] * len(entries)
        gather(slot.tree, optimizer._specs[0], flat, "state")
        factor = _factor(optimizer, slot.name)
        for entry, array in zip(found, flat, strict=True):
            given = np.asarray(array) if isinstance(array, np.generic) else array
            entry[slot.name] = _scaled(as_view(given, f"from_optax: {slot.name}"), 1.0 / factor)
        return slot.tree

    def count(value: Any) -> Any:
        counts.append(int(value))
        return value

    _walk(state, optimizer, read, count)
    if len(set(counts)) > 1:
        raise ValueError(f"from_optax: state has different counts of steps, {sorted(set(counts))}")
    # States without a count do not need it, but one that has begun is not a first step.
    step = counts[0] if counts else int(any(np.any(a) for entry in found for a in entry.values()))
    groups = optimizer.state_dict()["param_groups"]
    loaded = {i: {**entry, "step": step} for i, entry in enumerate(found)}
    optimizer.load_state_dict({"state": loaded, "param_groups": groups})


def _entries(optimizer: RuleOptimizer) -> list[dict[str, Any]]:
    """Return the state of each parameter of the optimizer's only group."""
    if len(optimizer.param_groups) != 1:
        raise ValueError(
            f"optax has no groups of parameters, the optimizer has {len(optimizer.param_groups)}"
        )
    if optimizer.param_groups[0]["state_dtype"] == "int8":
        raise ValueError("optax has no state in bytes, the optimizer's state_dtype is 'int8'")
    state = optimizer.state
    return [state.get(i, {}) for i in range(len(optimizer._objects))]


def _common_step(optimizer: RuleOptimizer) -> int:
    steps = {int(row.scalars["step"]) for row in optimizer._rows}
    if len(steps) > 1:
        raise ValueError(f"to_optax: parameters have different counts of steps, {sorted(steps)}")
    return steps.pop() if steps else 0


def _factor(optimizer: RuleOptimizer, name: str) -> float:
    """Return what optax's array is of ours: its RMSprop keeps a momentum of steps, with the rate and downhill."""
    group = optimizer.param_groups[0]
    form = group.get("momentum_form", "torch")
    if name != "momentum_buffer":
        return 1.0
    if "alpha" in group:
        return -1.0 if form == "velocity" else -float(group["lr"])
    return 1.0 / float(group["lr"]) if form == "velocity" else 1.0


def _scaled(array: Any, factor: float) -> Any:
    """Return a copy of an array times `factor`, in its own dtype; None for None."""
    if array is None or is_device_array(array):
        return None if array is None else array * factor
    return np.array(array if factor == 1.0 else array * factor, array.dtype)


def _walk(
    node: Any, optimizer: RuleOptimizer, arrays: Callable[[_Slot], Any], count: Callable[[Any], Any]
) -> Any:
    """Rebuild an optax state with `arrays` in place of each tree of arrays that is known, and `count` of counts."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        known = _FIELDS.get(type(node).__name__, {})
        changed = {}
        for field in node._fields:
            value = getattr(node, field)
            if field in known:
                changed[field] = arrays(_Slot(value, _name(optimizer, known[field], type(node).__name__)))
            elif field == "count":
                changed[field] = count(value)
            else:
                changed[field] = _walk(value, optimizer, arrays, count)
        return type(node)(**changed)
    if isinstance(node, tuple | list):
        return type(node)(_walk(part, optimizer, arrays, count) for part in node)
    if isinstance(node, dict):
        return {key: _walk(part, optimizer, arrays, count) for key, part in node.items()}
    return node


def _name(optimizer: RuleOptimizer, names: tuple[str, ...], state: str) -> str:
    """Return which of `names` the optimizer's rule has."""
    has = RULES[optimizer.rule(optimizer.param_groups[0])]["states"]
    for name in names:
        if name in has:
            return name
    raise ValueError(
        f"{state} has {' or '.join(names)}, {type(optimizer).__name__} has {', '.join(has) or 'no state'}"
    )


def _replace(tree: Any, spec: Any, arrays: list[Any]) -> Any:
    """Return `tree` with the arrays that `spec` has the positions of; None leaves what is there."""
    if isinstance(spec, int):
        return tree if arrays[spec] is None else arrays[spec]
    if isinstance(spec, dict):
        if not isinstance(tree, Mapping) or tree.keys() != spec.keys():
            raise ValueError(
                f"to_optax: the template's tree is not of the parameters' keys {sorted(map(str, spec))}"
            )
        rebuilt = {key: _replace(tree[key], branch, arrays) for key, branch in spec.items()}
        return rebuilt if type(tree) is dict else type(tree)(rebuilt)  # type: ignore[call-arg]
    if not isinstance(tree, list | tuple) or len(tree) != len(spec):
        raise ValueError(
            f"to_optax: the template's tree has no list of {len(spec)} where the parameters have one"
        )
    return type(tree)(_replace(part, branch, arrays) for part, branch in zip(tree, spec, strict=True))
