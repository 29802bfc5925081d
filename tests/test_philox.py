"""csrc/formulas/philox.hpp against a plain Python Philox4x32-10 and the published known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastopt import _core
from native.build import run_check

MASK = 0xFFFFFFFF


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. (2011), ten rounds, as printed in the paper."""
    for _ in range(10):
        p, q = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [(q >> 32) ^ counter[1] ^ key[0], q & MASK, (p >> 32) ^ counter[3] ^ key[1], p & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return counter


def expected(seed: int, offset: int, n: int) -> np.ndarray:
    """Words 0 ... n - 1 of the stream: index / 4 below, offset above, in the counter; seed as the key."""
    key = [seed & MASK, seed >> 32]
    blocks = [philox4x32([b & MASK, b >> 32, offset & MASK, offset >> 32], key) for b in range((n + 3) // 4)]
    return np.array(blocks, np.uint32).ravel()[:n]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MASK] * 4, [MASK] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_oracle_gives_the_known_answers(counter: list[int], key: list[int], words: str) -> None:
    assert philox4x32(counter, key) == [int(word, 16) for word in words.split()]


def test_native_known_answers_and_blocks(isa: str, tmp_path: Path) -> None:
    run_check("philox", isa, tmp_path)


@pytest.mark.parametrize(
    ("seed", "offset"),
    [(0, 0), (1, 0), (0, 1), (2**64 - 1, 2**64 - 1), (0x299F31D0A4093822, 0x0370734413198A2E)],
)
def test_words_of_the_built_module(seed: int, offset: int) -> None:
    want = expected(seed, offset, 1023)
    for n in (0, 1, 3, 4, 5, 16, 33, 1023):
        got = _core.philox(seed, offset, n)
        assert got.dtype == np.uint32
        np.testing.assert_array_equal(got, want[:n])


def test_words_are_uniform() -> None:
    """Each of the 32 bits of a million words is set half of the time, within six standard deviations."""
    n = 1_000_000
    words = _core.philox(1234, 7, n)
    set_bits = [int(np.count_nonzero(words >> np.uint32(bit) & np.uint32(1))) for bit in range(32)]
    assert max(abs(count - n / 2) for count in set_bits) < 6 * np.sqrt(n / 4)
