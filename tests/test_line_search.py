"""The search of Moré and Thuente: its conditions, its ways out, and functions that are not finite or only rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastopt.optim.line_search import Point, cubic_minimum, more_thuente


def probe_of(phi, seen=None):
    def probe(t):
        if seen is not None:
            seen.append(t)
        return Point(t, *(lambda f, s: (f, None, s))(*phi(t)))

    return probe


#: Value and slope. The first three are (5.1) to (5.3) of Moré and Thuente; the third with l = 39 and beta = 0.01.
FUNCTIONS = {
    "5.1": lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2),
    "5.2": lambda t: ((t + 0.004) ** 5 - 2 * (t + 0.004) ** 4, 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3),
    "5.3": lambda t: (
        (1 - t if t <= 0.99 else t - 1 if t >= 1.01 else (t - 1) ** 2 / 0.02 + 0.005)
        + 2 * 0.99 / (39 * math.pi) * math.sin(39 * math.pi / 2 * t),
        (-1 if t <= 0.99 else 1 if t >= 1.01 else (t - 1) / 0.01) + 0.99 * math.cos(39 * math.pi / 2 * t),
    ),
    "quartic": lambda t: ((t - 0.8) ** 4 - 0.5 * t, 4 * (t - 0.8) ** 3 - 0.5),
    "cosine": lambda t: (math.cos(t) - 0.02 * t - 1, -math.sin(t) - 0.02 if t else -0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("t", [1e-3, 1e-1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_the_point_meets_the_conditions(name, t, c2):
    phi, seen = FUNCTIONS[name], []
    start = probe_of(phi)(0.0)
    point = more_thuente(probe_of(phi, seen), start, t, 30, c1=1e-3, c2=c2, narrow=1e-10)
    assert point is not None
    assert point.t == seen[-1] > 0
    assert point.loss <= start.loss + 1e-3 * point.t * start.slope
    assert abs(point.slope) <= c2 * abs(start.slope)
    assert len(seen) <= 20


def test_it_stops_at_the_longest_distance():
    seen = []
    point = more_thuente(
        probe_of(lambda t: (-t, -1.0), seen), Point(0.0, 0.0, None, -1.0), 1.0, 20, longest=7.0
    )
    assert point is not None
    assert point.t == 7.0
    assert max(seen) == 7.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_it_comes_back_from_where_the_loss_is_not_finite(bad):
    seen = []

    def phi(t):
        return ((t - 1.0) ** 2, 2 * (t - 1.0)) if t < 1.5 else (bad, bad)

    point = more_thuente(probe_of(phi, seen), Point(0.0, 1.0, None, -2.0), 100.0, 20)
    assert point is not None
    assert abs(point.slope) <= 0.9 * 2
    assert point.loss < 1.0


@pytest.mark.parametrize("phi", [lambda t: (t, 1.0), lambda t: (math.nan, math.nan), lambda t: (0.0, -1.0)])
def test_without_a_lower_loss_there_is_no_point(phi):
    seen = []
    assert more_thuente(probe_of(phi, seen), Point(0.0, 0.0, None, -1.0), 1.0, 12) is None
    assert 1 <= len(seen) <= 13


def test_the_best_point_is_gone_back_to_when_the_evaluations_end():
    seen = []
    phi = FUNCTIONS["5.3"]
    start = probe_of(phi)(0.0)
    point = more_thuente(probe_of(phi, seen), start, 1000.0, 3, c2=1e-6)
    assert point is None or (point.t == seen[-1] and point.loss < start.loss)
    assert len(seen) <= 4


def test_slopes_decide_where_the_loss_is_only_rounding():
    def phi(t):
        exact = 1e-9 * (t - 1.0) ** 2
        return np.float32(1.0) + np.float32(exact) + (np.float32(1.2e-7) if t == 1.0 else 0), 2e-9 * (t - 1.0)

    start = Point(0.0, 1.0, None, -2e-9)
    seen = []
    point = more_thuente(probe_of(phi, seen), start, 1.0, 20, noise=1.2e-7)
    assert point is not None
    assert seen == [1.0]
    more_thuente(probe_of(phi, seen), start, 1.0, 20)
    assert len(seen) > 2


def test_cubic_minimum():
    def at(t):
        return Point(t, t**3 - 3 * t, None, 3 * t * t - 3)

    assert cubic_minimum(at(0.0), at(2.0)) == pytest.approx(1.0)
    assert cubic_minimum(at(2.0), at(0.0)) == pytest.approx(1.0)
    assert cubic_minimum(Point(0.0, 0.0, None, -1.0), Point(1.0, -1.0, None, -1.0)) is None
    assert cubic_minimum(Point(0.0, 0.0, None, -1.0), Point(1.0, math.inf, None, 1.0)) is None
