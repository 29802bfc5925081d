"""Arrays of every shape, stride, alignment, dtype and kind of number, each in memory whose every byte is watched."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

Rng = np.random.Generator

COMPUTED = (np.dtype(np.float32), np.dtype(np.float64))
_HALF = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
_OTHER = [
    *["<i8", "<i4", "u1", "?", "<c8", "<c16", ">f4", ">f8", ">i4", "<U3", "<M8[s]", "g", "O", "V4"],
]
_SIDES = [0, 1, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 100]
_SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 50.0, -50.0, 1e3, -1e3]
_MARGIN = 64  # bytes before and behind what an array's elements span

#: More than 2**31 elements, of one.
HUGE = [(2**31 + 5,), (2**20, 2**12), (3, 2**31), (2**33, 2), (2**58,)]


class Given:
    """An array and the memory that it lies in, as both were when it was made."""

    def __init__(self, array: Any, base: Any = None, offset: int = 0) -> None:
        self.array, self.base, self.offset = array, base, offset
        self.before = None if base is None else base.copy()
        self.values = _copy(array)

    def untouched(self) -> bool:
        """Whether every byte is as it was."""
        return self.base is None or bool((self.base == self.before).all())

    def kept_within(self, *others: Given) -> bool:
        """Whether every byte that is no element's, of this or of others in the same memory, is as it was."""
        if self.base is None:
            return True
        expected = self.before.copy()
        for given in (self, *others):
            a = given.array
            if given.base is self.base:
                np.ndarray(a.shape, a.dtype, expected, given.offset, a.strides)[...] = a
        return bool((self.base == expected).all())

    def shifted(self, elements: int) -> Given:
        """An array of the same layout in the same memory, so many elements further."""
        a = self.array
        offset = self.offset + elements * a.dtype.itemsize
        offset = min(max(offset, 0), self.offset + _MARGIN // 2)
        low = sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True) if s < 0 and n)
        other = np.ndarray(a.shape, a.dtype, self.base, max(offset, -low), a.strides)
        return Given(other, self.base, max(offset, -low))


def _copy(array: Any) -> Any:
    if array.size > 2**24:
        return None
    return np.array(array, order="C")


def shape(rng: Rng, ndim: int | None = None) -> tuple[int, ...]:
    """A shape of few elements; now and then of some thousands, of none, or of one element without axes."""
    if ndim is None:
        ndim = int(rng.choice([0, 1, 1, 1, 2, 2, 2, 3, 4]))
    if ndim == 1 and rng.random() < 0.03:
        return (int(rng.choice([1023, 8193, 20011])),)
    sides = _SIDES if ndim < 3 else _SIDES[:7]
    return tuple(int(rng.choice(sides)) for _ in range(ndim))


def dtype(rng: Rng) -> np.dtype[Any]:
    kind = rng.random()
    if kind < 0.55:
        return COMPUTED[0]
    if kind < 0.85:
        return COMPUTED[1]
    return _HALF[rng.integers(2)] if kind < 0.92 else np.dtype(_OTHER[rng.integers(len(_OTHER))])


def like(rng: Rng, of: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Mostly the shape and dtype of an array, and at times others."""
    kind = rng.random()
    if kind < 0.9:
        return of.shape, of.dtype
    if kind < 0.93:
        return of.shape, dtype(rng)
    if kind < 0.96 and of.ndim:
        return of.shape[::-1] if rng.random() < 0.5 else of.shape[1:], of.dtype
    return shape(rng), of.dtype


def _numbers(rng: Rng, size: int, of: np.dtype[Any], special: bool) -> Any:
    values = 2 * rng.standard_normal(size)
    if special and size and rng.random() < 0.3:
        at = rng.integers(size, size=max(1, size // 8))
        values[at] = rng.choice(_SPECIAL, len(at))
    if of.kind in "iub":
        values = np.abs(np.nan_to_num(values, posinf=3.0, neginf=0.0)) % 100
    elif of.kind not in "fc" and of not in _HALF:
        values = np.zeros(size)
    with np.errstate(all="ignore"):
        return values.astype(of) if of.kind != "V" or of in _HALF else np.zeros(size, of)


def draw(
    rng: Rng, size: tuple[int, ...], of: np.dtype[Any], *, special: bool = True, plain: float = 0.4
) -> Given:
    """An array of that shape and dtype, with a layout by chance; read-only or broadcast at times."""
    if of.kind == "O":
        return Given(np.full(size, None, dtype=object))
    values = _numbers(rng, math.prod(size), of, special).reshape(size)
    steps, signs, order = [1] * len(size), [1] * len(size), list(range(len(size)))
    shift, spread, writeable = 0, None, True
    if rng.random() >= plain:
        if rng.random() < 0.4:
            order = [int(i) for i in rng.permutation(len(size))]
        if rng.random() < 0.4:
            steps = [int(rng.choice([1, 1, 2, 3])) for _ in size]
        if rng.random() < 0.3:
            signs = [int(rng.choice([1, -1])) for _ in size]
        if rng.random() < 0.15 and of.itemsize > 1:
            shift = int(rng.integers(1, of.itemsize))
        if rng.random() < 0.1 and size:
            spread = int(rng.integers(len(size)))
        writeable = rng.random() >= 0.05
    strides, extent = [0] * len(size), of.itemsize
    for axis in reversed(order):
        if axis == spread:
            continue
        strides[axis] = extent * steps[axis] * signs[axis]
        extent *= max(1, size[axis] * steps[axis])
    base = np.frombuffer(bytearray(rng.bytes(extent + 2 * _MARGIN + 16)), np.uint8)
    offset = _MARGIN - base.ctypes.data % 16 + 16 + shift
    offset -= sum((n - 1) * s for n, s in zip(size, strides, strict=True) if s < 0 and n)
    array = np.ndarray(size, of, base, offset, strides)
    array[...] = values
    array.flags.writeable = writeable and (spread is None or rng.random() < 0.2)
    return Given(array, base, offset)


def huge(rng: Rng, of: np.dtype[Any]) -> Given:
    """More than 2**31 elements, all of them one, without memory."""
    one = np.ones((), of if of.kind != "V" or of in _HALF else COMPUTED[0])
    size = HUGE[rng.integers(len(HUGE))]
    return Given(np.lib.stride_tricks.as_strided(one, size, (0,) * len(size), writeable=False))


def shares(a: Any) -> bool:
    """Whether two elements are one in memory."""
    return bool(a.size) and any(n > 1 and not stride for n, stride in zip(a.shape, a.strides, strict=True))


def overlap(a: Given, b: Given) -> bool:
    """Whether two arrays that share their memory might share elements."""
    return a.base is not None and a.base is b.base and bool(np.may_share_memory(a.array, b.array))
