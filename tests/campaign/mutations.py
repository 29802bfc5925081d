"""Damage to files: bytes cut, flipped, moved and replaced, and JSON whose values are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator

_WORDS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]
_NUMBERS = [
    *[b"-1", b"0", b"00", b"1e999", b"-0.0", b"nan", b"inf", b"1_0", b"0x10", b"18446744073709551616", b""],
    *[b"9" * 400, b"1" * 5000, b"1.5", b"true", b"null", b"1e308", b"\xef\xbc\x91", b"--1", b"1 2", b"'"],
]


def _cut(data: bytearray, rng: Rng) -> None:
    del data[rng.integers(len(data) + 1) :]


def _flip(data: bytearray, rng: Rng) -> None:
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def _set(data: bytearray, rng: Rng) -> None:
    at = rng.integers(len(data))
    data[at : at + 1] = bytes([rng.choice([0, 255, 127, 128, 10, 34, 44, 92, int(rng.integers(256))])])


def _word(data: bytearray, rng: Rng) -> None:
    size = int(rng.choice([2, 4, 8]))
    value = _WORDS[rng.integers(len(_WORDS))] % 2 ** (8 * size)
    at = rng.integers(max(1, min(len(data), 64) if rng.random() < 0.5 else len(data)))
    data[at : at + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")


def _span(data: bytearray, rng: Rng) -> slice:
    begin = int(rng.integers(len(data)))
    return slice(begin, begin + int(rng.integers(1, 65)))


def _remove(data: bytearray, rng: Rng) -> None:
    del data[_span(data, rng)]


def _repeat(data: bytearray, rng: Rng) -> None:
    span = _span(data, rng)
    data[span.start : span.start] = data[span] * int(rng.integers(1, 20))


def _insert(data: bytearray, rng: Rng) -> None:
    at = rng.integers(len(data) + 1)
    data[at:at] = rng.bytes(int(rng.integers(1, 33)))


def _swap(data: bytearray, rng: Rng) -> None:
    a, b = _span(data, rng), _span(data, rng)
    first, second = data[a], data[b]
    data[a], data[b] = second, first


def _number(data: bytearray, rng: Rng) -> None:
    """Replace a run of digits."""
    at = int(rng.integers(len(data)))
    while at < len(data) and not 48 <= data[at] <= 57:
        at += 1
    end = at
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    data[at:end] = _NUMBERS[rng.integers(len(_NUMBERS))]


_DAMAGE: list[Callable[[bytearray, Rng], None]] = [
    *[_cut, _flip, _flip, _set, _set, _word, _word, _remove, _repeat, _insert, _swap, _number, _number]
]


def damage(content: bytes, rng: Rng) -> bytes:
    """Return the content with one to three kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if data:
            _DAMAGE[rng.integers(len(_DAMAGE))](data, rng)
    return bytes(data)


# --- JSON ---------------------------------------------------------------------------------------------


def _nest(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


_HOSTILE: list[Any] = [
    *[
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**63,
        2**64,
        10**30,
        10**400,
        -(10**400),
        0.5,
        -0.0,
        1e308,
        1e-320,
    ],
    *[
        "",
        "a",
        "F32",
        "F64",
        "BOOL",
        "__array__",
        "../../etc/passwd",
        "\0",
        "\ud800",
        "9" * 5000,
        "nan",
        "inf",
    ],
    *[
        [],
        {},
        [[]],
        [None],
        [1, 2, 3],
        [0, 8],
        [8, 0],
        [-1, 7],
        [2**62, 2**62],
        [0, 2**63],
        _nest(60),
        _nest(200),
    ],
    *[{"__array__": "nothing"}, {"__array__": []}, {"__array__": {}}, {"__array__": 3}, {"__scalar__": []}],
    *[
        {"__scalar__": ["a"]},
        {"__scalar__": [{"__array__": "x"}]},
        {"__float__": "x"},
        {"__float__": 10**400},
    ],
    *[{"__float__": "nan"}, {"__float__": None}, {"__tuple__": 5}, {"__tuple__": {}}, {"__tuple__": "abc"}],
    *[
        {"__pairs__": [[[], 1]]},
        {"__pairs__": [[1]]},
        {"__pairs__": 7},
        {"__pairs__": [[{"__tuple__": [1]}, 2]]},
    ],
    {"dtype": "F64", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]},
    {"dtype": "U8", "shape": [1] * 70, "data_offsets": [0, 1]},
    {"dtype": "F32", "shape": [10**300] * 50, "data_offsets": [0, 0]},
    {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """All containers in a JSON value, with each key or index."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        found += _places(item)
    return found


def distort(value: Any, rng: Rng) -> Any:
    """Change one to three places of a JSON value, which is returned: other values, keys, orders, and none."""
    for _ in range(rng.integers(1, 4)):
        places = _places(value)
        if not places:
            return value
        container, key = places[rng.integers(len(places))]
        other, its_key = places[rng.integers(len(places))]
        kind = rng.integers(10)
        if kind < 5:
            container[key] = _copy(_HOSTILE[rng.integers(len(_HOSTILE))])
        elif kind == 5:
            del container[key]
        elif kind == 6:
            container[key] = _copy(other[its_key])
        elif kind == 7 and isinstance(container, dict):
            container[["", "__array__", "__float__", "x", "0"][rng.integers(5)]] = container.pop(key)
        elif kind == 8 and isinstance(container, list):
            container.insert(key, _copy(other[its_key]))
        elif isinstance(container[key], (int, float)) and abs(container[key]) < 1e300:
            container[key] += [1, -1, 2**32, 0.5][rng.integers(4)]
    return value


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))
