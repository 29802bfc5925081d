"""Line searches along a direction of descent: torch's strong Wolfe search, and that of Moré and Thuente."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Probe = Callable[[float], "Point"]


class Point(NamedTuple):
    """The loss at distance `t` along the direction, its gradient, and the slope along the direction."""

    t: float
    loss: float
    grad: Any
    slope: float


def cubic_minimum(a: Point, b: Point) -> float | None:
    """Return where the cubic through two points and their slopes is least, None where it has no minimum."""
    left, right = (a, b) if a.t <= b.t else (b, a)
    d1 = left.slope + right.slope - 3.0 * (left.loss - right.loss) / (left.t - right.t)
    square = d1 * d1 - left.slope * right.slope
    if not 0.0 <= square < math.inf:  # a loss that is not finite, too
        return None
    d2 = math.sqrt(square)
    span = right.slope - left.slope + 2.0 * d2
    if span == 0.0:
        return None
    t = right.t - (right.t - left.t) * ((right.slope + d2 - d1) / span)
    return t if math.isfinite(t) else None


def _cubic_within(a: Point, b: Point, low: float, high: float) -> float:
    """Return the cubic's minimum limited to [low, high], the middle where it has none."""
    t = cubic_minimum(a, b)
    return (low + high) / 2.0 if t is None else min(max(t, low), high)


def strong_wolfe(
    probe: Probe,
    start: Point,
    t: float,
    longest: float,
    tolerance_change: float,
    max_search: int,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> tuple[Point, int]:
    """Search along a direction of descent for a point that meets the strong Wolfe conditions, as torch does.

    Parameters
    ----------
    probe : callable
        Evaluates the distance `t`.
    start : Point
        Distance 0.
    t : float
        The first distance to try.
    longest : float
        Magnitude of the direction's largest element.
    tolerance_change : float
        The bracket is narrow enough when it moves no parameter by this much.
    max_search : int
        Evaluations after the first.
    c1, c2 : float
        Sufficient decrease and curvature.

    Returns
    -------
    point, evaluations
        The best point known when the search ended.
    """

    def too_high(point: Point) -> bool:
        return not point.loss <= start.loss + c1 * point.t * start.slope  # NaN too

    def flat_enough(point: Point) -> bool:
        return abs(point.slope) <= -c2 * start.slope

    # Grow the distance until an interval holds a minimum.
    before, point = start, probe(t)
    tries = 0
    while tries < max_search:
        if too_high(point) or (tries > 1 and point.loss >= before.loss):
            break
        if flat_enough(point):
            return point, tries + 1
        if point.slope >= 0.0:
            break
        t = _cubic_within(before, point, point.t + 0.01 * (point.t - before.t), 10.0 * point.t)
        before, point = point, probe(t)
        tries += 1
    else:
        before = start

    # Shrink the interval around it; `low` is the better end.
    low, high = (point, before) if point.loss < before.loss else (before, point)
    stuck = False
    while tries < max_search and abs(high.t - low.t) * longest >= tolerance_change:
        left, right = min(low.t, high.t), max(low.t, high.t)
        t = _cubic_within(low, high, left, right)
        # Twice near the same end, or on it: move a tenth of the interval inwards.
        margin = 0.1 * (right - left)
        near = min(right - t, t - left) < margin
        if near and (stuck or t >= right or t <= left):
            t = right - margin if abs(t - right) < abs(t - left) else left + margin
            near = False
        stuck = near
        point = probe(t)
        tries += 1
        if too_high(point) or point.loss >= low.loss:
            low, high = (point, low) if point.loss < low.loss else (low, point)
            continue
        if flat_enough(point):
            return point, tries + 1
        if point.slope * (high.t - low.t) >= 0.0:
            high = low
        low = point
    return low, tries + 1


def more_thuente(
    probe: Probe,
    start: Point,
    t: float,
    max_search: int,
    c1: float = 1e-3,
    c2: float = 0.9,
    noise: float = 0.0,
    longest: float = 1e10,
    narrow: float = 0.1,
) -> Point | None:
    """Search along a direction of descent for a point that meets the strong Wolfe conditions.

    The interval of uncertainty and the trial distances are those of Moré and Thuente. Where the loss changes by no
    more than its own rounding, slopes alone decide, by the approximate conditions of Hager and Zhang. A loss that is
    not finite halves the distance.

    Parameters
    ----------
    probe : callable
        Evaluates the distance `t`.
    start : Point
        Distance 0, where the slope is negative.
    t : float
        The first distance to try.
    max_search : int
        Evaluations at most, but for one more that goes back to the best point.
    c1, c2 : float
        Sufficient decrease and curvature; the defaults are those of L-BFGS-B.
    noise : float
        What a loss near the start's may be wrong by.
    longest : float
        The largest distance.
    narrow : float
        The search ends when the interval is narrower than this share of its upper end.

    Returns
    -------
    Point or None
        The point that was evaluated last: it meets the conditions, or has the least loss known. None where no loss
        below the start's was found.

    References
    ----------
    Moré and Thuente, Line Search Algorithms with Guaranteed Sufficient Decrease, ACM TOMS 20, 1994; Hager and Zhang,
    A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search, SIAM J. Optim. 16, 2005.
    """
    decrease = c1 * start.slope
    best, other = start, start
    bracketed, low_side = False, True
    low, high = 0.0, 5.0 * t
    width, width_before = longest, 2.0 * longest
    t = min(t, longest)
    for _ in range(max_search):
        point = probe(t)
        if not (math.isfinite(point.loss) and math.isfinite(point.slope)):
            longest = high = t = best.t + 0.5 * (t - best.t)
            continue
        low_enough = point.loss <= start.loss + t * decrease
        if low_enough and abs(point.slope) <= -c2 * start.slope:
            return point
        if point.loss <= start.loss + noise and c2 * start.slope <= point.slope <= (2 * c1 - 1) * start.slope:
            return point
        if t == longest and low_enough and point.slope <= decrease:
            return point
        low_side = low_side and not (low_enough and point.slope >= 0.0)
        # Until the loss has once been low enough on a rising slope, what is searched is its excess over the line of
        # sufficient decrease.
        tilt = decrease if low_side and not low_enough and point.loss <= best.loss else 0.0
        t, bracketed, best, other = _narrowed(best, other, point, tilt, bracketed, low, high)
        if bracketed:
            if abs(other.t - best.t) >= 0.66 * width_before:
                t = best.t + 0.5 * (other.t - best.t)
            width_before, width = width, abs(other.t - best.t)
            low, high = min(best.t, other.t), max(best.t, other.t)
        else:
            low, high = t + 1.1 * (t - best.t), t + 4.0 * (t - best.t)
        t = min(max(t, 0.0), longest)
        if bracketed and (t <= low or t >= high or high - low <= narrow * high):
            break
    if not best.loss < start.loss:
        return None
    return point if point is best else probe(best.t)


def _narrowed(
    best: Point, other: Point, point: Point, tilt: float, bracketed: bool, low: float, high: float
) -> tuple[float, bool, Point, Point]:
    """Return the next distance, whether a minimum is between, and the interval's ends, the better one first.

    `tilt` is the slope of a line that is taken off the loss before points are compared.
    """
    a, b, p = (Point(q.t, q.loss - q.t * tilt, None, q.slope - tilt) for q in (best, other, point))
    t, bracketed = _trial(a, b, p, bracketed, low, high)
    if p.loss > a.loss:
        return t, bracketed, best, point
    return t, bracketed, point, best if p.slope * a.slope < 0.0 else other


def _trial(a: Point, b: Point, p: Point, bracketed: bool, low: float, high: float) -> tuple[float, bool]:
    """Return the next distance to try after `p`, from the interval's better end `a` and its other one `b`."""
    cubic = cubic_minimum(a, p)
    if p.loss > a.loss:
        # A minimum lies between. The parabola through both losses and the slope at `a` may be far too bold.
        rise = (a.loss - p.loss) / (p.t - a.t) + a.slope
        parabola = a.t + 0.5 * (a.slope / rise) * (p.t - a.t)
        if cubic is None:
            return parabola, True
        return cubic if abs(cubic - a.t) < abs(parabola - a.t) else 0.5 * (cubic + parabola), True
    if p.slope * a.slope < 0.0:
        secant = _secant(a, p)
        return (secant if cubic is None or abs(cubic - p.t) <= abs(secant - p.t) else cubic), True
    edge = high if p.t > a.t else low
    if abs(p.slope) < abs(a.slope):
        if cubic is None or (cubic - p.t) * (p.t - a.t) <= 0.0:  # the cubic falls for ever
            cubic = edge
        near, far = sorted((cubic, _secant(a, p)), key=lambda t: abs(t - p.t))
        if not bracketed:
            return min(max(far, low), high), False
        limit = p.t + 0.66 * (b.t - p.t)
        return min(near, limit) if p.t > a.t else max(near, limit), True
    if bracketed:
        cubic = cubic_minimum(b, p)
        return (0.5 * (b.t + p.t) if cubic is None else cubic), True
    return edge, False


def _secant(a: Point, p: Point) -> float:
    """Return where the line through two different slopes is zero."""
    return p.t + p.slope / (p.slope - a.slope) * (a.t - p.t)
