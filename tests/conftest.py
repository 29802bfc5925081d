"""Fixtures that every test module shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastopt import _core

#: The sizes at which vector bodies, tails and chunks begin and end.
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 1023, 100003]


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each instruction set level that this CPU has."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def threads() -> Iterator:
    """A function that sets the number of threads; the number before the test comes back after it."""
    before = _core.num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with MNIST and the tutorial cases, beside the checkout or where FASTOPT_SHARED says."""
    folder = Path(os.environ.get("FASTOPT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no data at {folder}")
    return folder
