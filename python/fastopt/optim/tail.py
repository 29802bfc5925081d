"""What a step's gradients are scaled by before the rule: clipping, and undoing the scale of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import _core
from fastopt._arrays import Array

Limiter = Callable[[Any, float], Any]

#: Numbers that come before a rule's own in a row of coefficients.
COMMON_COEFS = 8


class Tail(NamedTuple):
    """What this step's gradients of one plan are scaled by before the rule.

    Attributes
    ----------
    factor : float
        What the coefficients carry.
    norm : float, array of one float64, or None
        Of all gradients.
    scale : array of float64, or None
        What a device's kernel multiplies gradients by, besides: one number, or one for each tensor.
    max_norm : float or None
        A device's kernel is to compute `norm` and `scale` first.
    factors : ndarray of float64, or None
        What the coefficients of each tensor carry besides.
    """

    factor: float = 1.0
    norm: Any = None
    scale: Any = None
    max_norm: float | None = None
    factors: Array | None = None


NO_TAIL = Tail()


class Range(NamedTuple):
    """Neighbouring tensors of a plan that are clipped alike.

    Attributes
    ----------
    begin, end : int
        Positions among the plan's tensors.
    max_norm : float or None
        The limit of the norm.
    together : bool
        Of all of them, rather than of each.
    adaptive : (float, float) or None
        Adaptive clipping instead: the limit is the first number times the parameter's norm, which counts as the
        second at least.
    """

    begin: int
    end: int
    max_norm: float | None = None
    together: bool = False
    adaptive: tuple[float, float] | None = None


def joined(norms: Sequence[float], order: float) -> float:
    """Return the norm of arrays whose norms these are: NaN where one is."""
    if order == 2.0:
        return _core.joint_norm(list(norms))
    if order == 1.0:
        return math.fsum(norms) if all(map(math.isfinite, norms)) else sum(norms)
    return math.nan if any(map(math.isnan, norms)) else max(norms, default=0.0)


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


def each_factor(norms: Any, r: Range, param_norms: Any, at_most: Limiter) -> Any:
    """Return what scales each tensor of a range, whose norms these are; on the host or on a device.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, 2021 (adaptive).
    """
    if r.adaptive is None:
        return at_most(r.max_norm / (norms + 1e-6), 1.0)
    share, least = r.adaptive
    return at_most(-share * at_most(-param_norms, -least) / norms, 1.0)


def known_factors(norms: Array, ranges: Sequence[Range], param_norms: Array | None) -> Array:
    """Return what scales each tensor of a plan, whose norms are known on the host."""
    factors = np.ones(len(norms))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for r in ranges:
            own = slice(r.begin, r.end)
            if r.together and r.max_norm is not None:
                factors[own] = _core.clip_factor(_core.joint_norm(norms[own].tolist()), r.max_norm)
            elif r.max_norm is not None or r.adaptive is not None:
                params = None if param_norms is None else param_norms[own]
                factors[own] = each_factor(norms[own], r, params, np.minimum)
    return factors
