"""Words that error messages share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for what is nearest to `given`, or nothing where all is far off."""
    folded = {name.casefold(): name for name in known}
    near = get_close_matches(given.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]}?" if near else ""
