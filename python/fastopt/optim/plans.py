"""Which parameters one native call updates, and which of them share their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._arrays import Array
from fastopt.optim.state import RULES
from fastopt.optim.tail import COMMON_COEFS, Range


class Row:
    """Parameters of one group whose numbers are equal; they share one row of coefficients."""

    __slots__ = ("group", "scalars")

    def __init__(self, group: int, scalars: dict[str, float]) -> None:
        self.group = group
        self.scalars = scalars


#: Rows, each with its numbers after a step.
Numbers = list[tuple[Row, dict[str, float]]]


def take_over(numbers: Numbers) -> None:
    """Let rows have these numbers, as a step has been taken."""
    for row, scalars in numbers:
        row.scalars = scalars


class Plan:
    """The parameters that one native call updates."""

    def __init__(
        self, rule: str, native: Any, index: list[int], whole: bool, packed: bool, parts: list[int] | None
    ) -> None:
        self.native = native
        self.parts = parts
        self.ranges: list[Range] = []
        self.packed = packed
        self.index = index
        self.whole = whole
        self.counts = packed or bool(RULES[rule]["states"])
        self.width = COMMON_COEFS + len(RULES[rule]["coefs"])
        self.rows: list[int] = []
        self.sets: Array | None = None
        self.coefs = np.empty((0, self.width))

    def assign(self, row_of: Array) -> None:
        """Take each parameter's row from `row_of`."""
        rows, local = np.unique(row_of[self.index], return_inverse=True)
        self.rows = rows.tolist()
        tensors = local if self.parts is None else np.repeat(local, self.parts)
        self.sets = None if len(self.rows) <= 1 else tensors.astype(np.int32)
        self.coefs = np.zeros((len(self.rows), self.width))
        self.kept: dict[str, tuple[Array, Any]] = {}  # numbers of tensors that follow from the rows

    def table(self, factors: Array | None) -> tuple[Array, Array | None]:
        """Return the rows of coefficients and which tensor uses which; with `factors` each tensor has its own."""
        if factors is None:
            return self.coefs, self.sets
        own = np.arange(len(factors), dtype=np.int32)
        coefs = self.coefs[np.zeros_like(own) if self.sets is None else self.sets]
        coefs[:, 0] *= factors
        return coefs, own

    def select(self, grads: list[Any]) -> list[Any]:
        return grads if self.whole else [grads[i] for i in self.index]


def parts(plans: list[Plan], table: Array) -> list[Array]:
    """Return each plan's coefficients (steps, rows, width), views of a table (steps, those of all plans)."""
    found, first = [], 0
    for plan in plans:
        end = first + plan.coefs.size
        found.append(table[:, first:end].reshape(len(table), *plan.coefs.shape))
        first = end
    return found
