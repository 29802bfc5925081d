"""Campaigns of faults: what may happen to a training run, many times over, with every outcome counted.

A campaign is a module with ``run(count, seed)``, which returns `Counts`. ``python -m tests.campaign`` runs them at the
length of `LONG`, pytest at that of `SHORT` (tests/test_campaign.py). docs/reliability.md keeps what the long ones
have counted, and the defects that they have found.
"""

from __future__ import annotations

#: Name of a campaign, which is a module here -> what its long form does how often.
LONG = {
    "kills": 200,
    "disks": 200,
    "files": 100_000,
    "arguments": 100_000,
    "threads": 100,
    "interrupts": 40,
    "libraries": 72,
    "memory": 1_000_000,
}

#: The same for pytest.
SHORT = {
    "kills": 4,
    "disks": 8,
    "files": 1500,
    "arguments": 1500,
    "threads": 8,
    "interrupts": 2,
    "libraries": 2,
    "memory": 10_000,
}
