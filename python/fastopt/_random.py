"""The random numbers of the package: one generator, and the counter that dropout draws its masks by."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_SEED_LIMIT = 1 << 64


class _Source:
    """The generator and dropout's counter, both set by one seed.

    The generator is made on first use, for `numpy.random` is not yet imported by ``import numpy``.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seed(int.from_bytes(os.urandom(8), "little"))

    def seed(self, seed: int) -> None:
        self.dropout_seed = seed
        self.dropout_offset = 0
        self.generator: np.random.Generator | None = None


_source = _Source()


def manual_seed(seed: int) -> np.random.Generator:
    """Start every random number of the package anew from `seed`.

    Parameters
    ----------
    seed : int
        In [0, 2**64). The same seed gives the same numbers on every machine and for every number of threads.

    Returns
    -------
    numpy.random.Generator
        The generator that `randn`, `nn.init` and the rest draw from.

    Raises
    ------
    TypeError
        `seed` is no integer.
    ValueError
        `seed` is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"manual_seed: seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"manual_seed: seed must be in [0, 2**64), got {seed}")
    with _source.lock:
        _source.seed(int(seed))
    return generator()


def generator() -> np.random.Generator:
    """Return the package's generator (Philox, seeded by `manual_seed` or by the system)."""
    with _source.lock:
        if _source.generator is None:
            _source.generator = np.random.Generator(np.random.Philox(_source.dropout_seed))
        return _source.generator


def next_dropout(count: int = 1) -> tuple[int, int]:
    """Return the (seed, offset) of the next dropout mask; the offset counts the masks drawn, `count` here."""
    with _source.lock:
        offset = _source.dropout_offset
        _source.dropout_offset = (offset + count) % _SEED_LIMIT
        return dropout_seed_here(_source.dropout_seed), offset


_SPREAD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: seeds of ranks far apart
_stream = 0


def set_stream(stream: int) -> None:
    """Draw dropout masks from a stream of its own: of ranks with equal generators, each has other masks."""
    global _stream
    _stream = stream


@contextlib.contextmanager
def keep_stream() -> Iterator[None]:
    """After the block, draw dropout masks from the stream of before it."""
    before = _stream
    try:
        yield
    finally:
        set_stream(before)


def dropout_seed_here(seed: int) -> int:
    """Return the seed of a dropout mask in this process's stream; stream 0 is the seed itself."""
    return (seed + _stream * _SPREAD) % _SEED_LIMIT


def get_rng_state() -> dict[str, Any]:
    """Return the state of the generator and of dropout's counter, made of dicts, lists, strings and ints.

    It survives a round trip through JSON; `set_rng_state` continues from it bit by bit.
    """
    state = generator().bit_generator.state
    with _source.lock:
        return {
            "generator": _plain(state),
            "dropout_seed": _source.dropout_seed,
            "dropout_offset": _source.dropout_offset,
        }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue from a state that `get_rng_state` returned.

    Raises
    ------
    ValueError
        `state` is no such state; nothing was changed.
    """
    try:
        bits = np.random.Philox(0)
        inner = state["generator"]
        arrays = {key: np.array(inner["state"][key], np.uint64) for key in ("counter", "key")}
        buffer = np.array(inner["buffer"], np.uint64)
        bits.state = {**inner, "state": arrays, "buffer": buffer}  # type: ignore[typeddict-item]
        seed, offset = int(state["dropout_seed"]), int(state["dropout_offset"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"set_rng_state: state is not one of get_rng_state's: {error!r}") from error
    if not (0 <= seed < _SEED_LIMIT and 0 <= offset < _SEED_LIMIT):
        raise ValueError(
            f"set_rng_state: dropout_seed {seed} or dropout_offset {offset} is not in [0, 2**64)"
        )
    with _source.lock:
        _source.generator = np.random.Generator(bits)
        _source.dropout_seed, _source.dropout_offset = seed, offset


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [int(item) for item in value]
    return int(value) if isinstance(value, (int, np.integer)) else value
