"""Tensors made from data, filled and random; the state of the random numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastopt import _dtypes
from fastopt._random import get_rng_state, manual_seed, next_dropout, set_rng_state
from fastopt.creation import (
    arange,
    empty,
    eye,
    full,
    full_like,
    linspace,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)


def test_filled_tensors() -> None:
    assert zeros(2, 1).tolist() == [[0.0], [0.0]]
    assert ones((1, 2)).tolist() == [[1.0, 1.0]]
    assert zeros().shape == ()
    assert full((2,), 7).tolist() == [7, 7]
    assert full((2,), 7).dtype == np.int64
    assert full((2,), 7.0).dtype == np.float32
    assert full(2, 1.5, dtype=_dtypes.float64).tolist() == [1.5, 1.5]
    assert empty(2, 3).shape == (2, 3)
    assert eye(2).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert arange(3).tolist() == [0, 1, 2]
    assert arange(1, 2, 0.25).tolist() == [1.0, 1.25, 1.5, 1.75]
    assert arange(1, 2, 0.25).dtype == np.float32
    assert linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert zeros_like(tensor([1, 2])).tolist() == [0, 0]
    assert ones_like(np.zeros(2)).dtype == np.float64
    assert ones(2, requires_grad=True).requires_grad


def test_the_seed_fixes_every_random_number() -> None:
    def draw() -> list:
        manual_seed(3)
        return [
            randn(2, 3).tolist(),
            rand(2).tolist(),
            randint(0, 10, (5,)).tolist(),
            randperm(5).tolist(),
            next_dropout(),
        ]

    first = draw()
    assert first == draw()
    assert first[4] == (3, 0)
    manual_seed(4)
    assert randn(2, 3).tolist() != first[0]


def test_random_numbers_have_their_distributions() -> None:
    manual_seed(0)
    x = randn(100, 1000)
    assert x.dtype == np.float32
    assert abs(x.mean().item()) < 0.01
    assert abs(x.std().item() - 1) < 0.01
    u = rand(100_000, dtype=_dtypes.float64)
    assert 0 <= u.min().item() < 1e-3
    assert 1 - 1e-3 < u.max().item() < 1
    assert abs(u.mean().item() - 0.5) < 0.01
    counts = np.bincount(randint(2, 5, (30_000,)).data)
    assert counts[:2].tolist() == [0, 0]
    np.testing.assert_allclose(counts[2:], 10_000, rtol=0.05)
    assert randint(4, (3,)).shape == (3,)
    assert sorted(randperm(50).tolist()) == list(range(50))
    assert randn(3, dtype=_dtypes.float16).dtype == np.float16
    mine = np.random.default_rng(1)
    assert (
        randn(3, generator=mine).tolist() == np.random.default_rng(1).standard_normal(3, np.float32).tolist()
    )


def test_random_state_survives_json() -> None:
    manual_seed(5)
    randn(3)
    randint(0, 5, (3,))
    next_dropout()
    state = json.loads(json.dumps(get_rng_state()))
    expected = [randn(4).tolist(), next_dropout(), rand(3).tolist()]
    manual_seed(99)
    set_rng_state(state)
    assert [randn(4).tolist(), next_dropout(), rand(3).tolist()] == expected


def test_random_errors() -> None:
    with pytest.raises(ValueError, match=r"manual_seed: seed must be in \[0, 2\*\*64\), got -1"):
        manual_seed(-1)
    with pytest.raises(TypeError, match="manual_seed: seed must be an int, got float"):
        manual_seed(1.5)
    with pytest.raises(ValueError, match="randint: high must be above low, got low 5 and high 5"):
        randint(5, 5, (2,))
    with pytest.raises(TypeError, match="size is missing"):
        randint(5)
    with pytest.raises(TypeError, match="dtype must be floating-point, got int64"):
        randn(2, dtype=_dtypes.int64)
    manual_seed(1)
    before = get_rng_state()
    for bad in (
        {},
        {**before, "generator": {}},
        {**before, "dropout_offset": -1},
        {**before, "dropout_seed": "x"},
    ):
        with pytest.raises(ValueError, match="set_rng_state"):
            set_rng_state(bad)
    assert get_rng_state() == before


def test_like_another() -> None:
    x = zeros(2, 3, dtype=_dtypes.float64)
    filled = full_like(x, 2.5)
    assert (filled.tolist(), filled.dtype) == ([[2.5] * 3] * 2, np.float64)
    assert full_like(tensor([1, 2]), 7).dtype == np.int64
    manual_seed(3)
    drawn = randn_like(x), rand_like(x, dtype=_dtypes.float32)
    manual_seed(3)
    np.testing.assert_array_equal(drawn[0].data, randn(2, 3, dtype=_dtypes.float64).data)
    np.testing.assert_array_equal(drawn[1].data, rand(2, 3).data)


def test_normal() -> None:
    manual_seed(4)
    x = normal(1.0, 0.5, size=(200, 100), requires_grad=True)
    assert (x.shape, x.dtype, x.requires_grad) == ((200, 100), np.float32, True)
    assert abs(x.data.mean() - 1) < 0.02  # 5 standard errors: 5 * 0.5 / sqrt(20000)
    assert abs(x.data.std() - 0.5) < 0.0125
    exact = normal(tensor([[1.0], [2.0]]), np.zeros(3))
    assert exact.tolist() == [[1, 1, 1], [2, 2, 2]]
    with pytest.raises(ValueError, match="normal: std must be at least 0, got -1"):
        normal(0, -1.0, 3)
    with pytest.raises(TypeError):
        randint(0.5, 3, (2,))
