"""The campaigns of faults at a length for every change; ``python -m tests.campaign`` is the long form."""

from __future__ import annotations

import importlib

import pytest

from campaign import LONG, SHORT


@pytest.mark.parametrize("name", SHORT)
def test_nothing_fails(name):
    counts = importlib.import_module(f"campaign.{name}").run(SHORT[name], seed=1)
    assert not counts.failures, "\n".join(counts.failures)
    assert sum(counts.outcomes.values()) >= min(SHORT[name], 1000)


def test_every_campaign_has_both_lengths():
    assert LONG.keys() == SHORT.keys()
