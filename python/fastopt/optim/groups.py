"""Groups of parameters by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

#: A pattern, several of which one has to match, or a function of a parameter's name and its array.
Pattern = str | Sequence[str] | Callable[[str, Any], bool]


def matcher(pattern: Pattern, owner: str, what: str) -> Callable[[str, Any], bool]:
    """Return a function that tells whether a parameter of this name, with this array, is meant.

    Parameters
    ----------
    pattern : str, sequence of str, or callable
        A string is found anywhere in the name, whatever its case; one with a ``*``, ``?`` or ``[`` matches the whole
        name as a file name's pattern does.

    Raises
    ------
    TypeError
        It is none of these.
    """
    if callable(pattern):
        return lambda name, array: bool(pattern(name, array))
    given = [pattern] if isinstance(pattern, str) else pattern
    if not isinstance(given, Iterable) or not all(isinstance(p, str) and p for p in given):
        raise TypeError(
            f"{owner}: {what} must be patterns of names or a function of a name and an array, got {pattern!r}"
        )
    patterns = [p.lower() for p in given]

    def match(name: str, _: Any) -> bool:
        name = name.lower()
        return any(fnmatchcase(name, p) if set(p) & set("*?[") else p in name for p in patterns)

    return match


def param_groups(named: Any, settings: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return groups for an optimizer, by the names of parameters.

    ::

        groups = fo.optim.param_groups(model.named_parameters(), {
            ("bias", "norm"): {"weight_decay": 0.0},
            "head.*": {"lr": 1e-2},
        })
        optimizer = fo.optim.AdamW(groups, lr=1e-3)

    Gradients of plain arrays are then given by group, as for any groups. Where all that differs is the weight decay, an
    optimizer's own `no_decay` keeps the structure.

    Parameters
    ----------
    named : dict, or iterable of (name, array) pairs
        The parameters.
    settings : dict
        From patterns to settings. A pattern is a string found anywhere in the name whatever its case, one with a
        ``*``, ``?`` or ``[`` that matches the whole name, a tuple of such, or a function of name and array. A
        parameter is in the group of the first pattern that matches it.

    Returns
    -------
    list of dict
        A group for the parameters that no pattern matches, then those of the patterns; empty ones are left out.

    Raises
    ------
    TypeError, ValueError
        `named` has no names, or a pattern is none.
    """
    pairs = list(named.items() if isinstance(named, Mapping) else named)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError("param_groups: named must be a dict or (name, array) pairs")
    matchers = [matcher(pattern, "param_groups", "a pattern") for pattern in settings]
    members: list[list[tuple[str, Any]]] = [[] for _ in range(len(matchers) + 1)]
    for name, array in pairs:
        hit = next((k for k, match in enumerate(matchers, 1) if match(name, array)), 0)
        members[hit].append((name, array))
    own: list[Mapping[str, Any]] = [{}, *settings.values()]
    return [{**kept, "params": part} for part, kept in zip(members, own, strict=True) if part]
