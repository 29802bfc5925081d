"""What a campaign has counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

#: So many failures are told in words; the rest are counted alone.
_TOLD = 20


class Counts:
    """How often each outcome came; a failure has a text that says how to have it again."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.measured: Counter[str] = Counter()
        self.failures: list[str] = []

    def measure(self, name: str, number: int = 1) -> None:
        """Add to a number that is told beside the outcomes and is none of them."""
        self.measured[name] += number

    def add(self, outcome: str, times: int = 1) -> None:
        self.outcomes[outcome] += times

    def fail(self, text: str) -> None:
        self.outcomes["failed"] += 1
        if len(self.failures) < _TOLD:
            self.failures.append(text)

    def check(self, holds: bool, outcome: str, text: str) -> None:
        """Count `outcome` where something holds, else the failure to."""
        if holds:
            self.add(outcome)
        else:
            self.fail(text)

    def merge(self, other: dict[str, Any]) -> None:
        """Take over what `as_dict` of others returned."""
        self.outcomes.update(other["outcomes"])
        self.measured.update(other["measured"])
        self.failures += other["failures"][: max(0, _TOLD - len(self.failures))]

    def as_dict(self) -> dict[str, Any]:
        return {"outcomes": dict(self.outcomes), "measured": dict(self.measured), "failures": self.failures}

    def __str__(self) -> str:
        told = [*self.outcomes.most_common(), *self.measured.items()]
        return ", ".join(f"{number} {name}" for name, number in told)
