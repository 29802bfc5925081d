"""Checks that results do not depend on threads or on the instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastopt import _core

Results = dict[str, Any]


def assert_same_bits(a: Results, b: Results) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def check_threads(threads: Callable[[int], None], run: Callable[[], Results]) -> None:
    """Hold `run` to the same results with one, two and three threads."""
    threads(1)
    alone = run()
    for n in (2, 3):
        threads(n)
        assert_same_bits(alone, run())


def check_levels(run: Callable[[], Results]) -> None:
    """Hold `run` to the same results on every level with fused multiply-adds."""
    levels = [level for level in _core.isas() if level != "v2"]
    if len(levels) < 2:
        pytest.skip("this CPU has one level with FMA")
    before, results = _core.isa(), []
    try:
        for level in levels:
            _core.set_isa(level)
            results.append(run())
    finally:
        _core.set_isa(before)
    for other in results[1:]:
        assert_same_bits(results[0], other)
