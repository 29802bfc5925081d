"""The campaigns of faults at a length for every change; ``python -m tests.campaign`` is the long form."""

from __future__ import annotations

import importlib

import pytest

from campaign import LONG, SHORT
from campaign.counts import Counts


@pytest.mark.parametrize("name", SHORT)
def test_nothing_fails(name):
    counts = importlib.import_module(f"campaign.{name}").run(SHORT[name], seed=1)
    assert not counts.failures, "\n".join(counts.failures)
    assert sum(counts.outcomes.values()) >= min(SHORT[name], 1000)


def test_every_campaign_has_both_lengths():
    assert LONG.keys() == SHORT.keys()


def test_measurements_are_no_outcomes():
    counts, total = Counts(), Counts()
    counts.add("right", 2)
    counts.measure("ms", 500)
    total.merge(counts.as_dict())
    assert sum(total.outcomes.values()) == 2
    assert str(total) == "2 right, 500 ms"
