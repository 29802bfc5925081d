"""What a step's gradients are scaled by before the rule: clipping, and undoing the scale of a loss."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastopt import _core


class Tail(NamedTuple):
    """What this step's gradients are scaled by before the rule.

    Attributes
    ----------
    factor : float
        What the coefficients carry.
    norm : float, array of one float64, or None
        Of all gradients.
    scale : array of one float64, or None
        What the kernel multiplies gradients by, besides.
    max_norm : float or None
        The kernel is to compute `norm` and `scale` first.
    """

    factor: float = 1.0
    norm: Any = None
    scale: Any = None
    max_norm: float | None = None


NO_TAIL = Tail()


def known_tail(norm: float, max_norm: float | None, inverse: float | None) -> Tail | None:
    """Return the tail of gradients whose norm is known on the host; None where a step is to be skipped.

    Parameters
    ----------
    norm : float
        Of the gradients as they were given.
    max_norm : float or None
        The limit of the norm of the gradients times `inverse`.
    inverse : float or None
        What undoes the scale of the loss; gradients that are not finite are skipped then.
    """
    if inverse is None:
        inverse = 1.0
    elif not math.isfinite(norm):
        return None
    if max_norm is None:
        return Tail(inverse)
    norm *= inverse
    return Tail(inverse * _core.clip_factor(norm, max_norm), norm)
