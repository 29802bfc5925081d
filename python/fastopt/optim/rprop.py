"""Rprop."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

from fastopt.optim.base import POSITIVE, Interval
from fastopt.optim.rule import COMMON_RANGES, Common, RuleOptimizer


class Rprop(RuleOptimizer):
    r"""Rprop: a step size for each element, that grows while its gradient keeps its sign and shrinks where it turns.

    .. math::
        s &\leftarrow \operatorname{clamp}(s \cdot \eta^{\pm}), \qquad
        \eta^+ \text{ where } g_t g_{t-1} > 0, \; \eta^- \text{ where } g_t g_{t-1} < 0, \; 1 \text{ elsewhere} \\
        p &\leftarrow p - s \operatorname{sign}(g), \qquad g = 0 \text{ where it turned}

    For gradients of all data at once: those of small batches turn all the time.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        The first step size of each element. It is not read again.
    etas : (float, float)
        :math:`\eta^-` in (0, 1) and :math:`\eta^+` above 1.
    step_sizes : (float, float)
        The smallest and the largest step size.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: with the gradient of all data at once: small networks, fits of curves. It asks for no tuning, since
    only signs count. Not with mini-batches.

    References
    ----------
    Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm, 1993.
    """

    ranges: ClassVar[dict[str, Interval]] = COMMON_RANGES
    _PAIRS: ClassVar[dict[str, tuple[Interval, Interval]]] = {
        "etas": (Interval(0.0, 1.0, "(0, 1)"), Interval(1.0, math.inf, "(1, inf)")),
        "step_sizes": (POSITIVE, POSITIVE),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        **common: Unpack[Common],
    ) -> None:
        settings = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
        }
        super().__init__(params, settings, **common)

    def check(self, group: dict[str, Any]) -> None:
        for key, intervals in self._PAIRS.items():
            pair = group[key]
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"Rprop: {key} must be a pair of numbers, got {pair!r}")
            for i, interval in enumerate(intervals):
                self._require(f"{key}[{i}]", pair[i], interval)
        smallest, largest = group["step_sizes"]
        if smallest > largest:
            raise ValueError(f"Rprop: step_sizes must not fall, got {smallest} and {largest}")

    def rule(self, group: dict[str, Any]) -> str:
        return "rprop"

    def initial(self, group: dict[str, Any], state: str) -> float:
        first: float = group["lr"] if state == "step_size" else 0.0
        return first

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return 1.0, *group["etas"], *group["step_sizes"]
