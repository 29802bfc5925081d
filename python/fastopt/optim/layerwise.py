"""Optimizers whose update depends on norms of whole parameters: two native passes over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt._device import on_host
from fastopt.optim.base import NONNEGATIVE, number
from fastopt.optim.plans import Plan
from fastopt.optim.rule import RuleOptimizer
from fastopt.optim.tail import Tail

_L2 = 3  # the column of the L2 penalty among the coefficients


class LayerwiseOptimizer(RuleOptimizer):
    """Base class of the optimizers that scale a parameter's update by norms of the whole parameter.

    The first native pass measures the direction and the parameter; what a subclass makes of the norms (`factors`)
    scales the parameter's coefficients in the second, which is the rule's step. There are no temporary arrays of the
    parameters' size, and of parameters on a GPU the norms stay there.
    """

    by_element = False
    decay_modes: ClassVar[tuple[str, ...]] = ()
    #: Numbers of each parameter that follow from norms, as they are called in its state; they begin as 0.
    numbers: ClassVar[tuple[str, ...]] = ()
    #: Whether the direction is measured with the L2 penalty in it.
    measures_decay: ClassVar[bool] = False

    def factors(self, plan: Plan, grads: list[Any], update: Any, param: Any) -> tuple[Any, Any, Any]:
        """Return what multiplies the gradient, the L2 penalty and the learning rate: numbers, or one a parameter.

        `update` and `param` are the norms of directions and parameters, float64, where the parameters are.
        """
        raise NotImplementedError

    def _run(self, plan: Plan, grads: list[Any], tail: Tail) -> None:
        where = self._placement
        norms, tail = where.measure(plan.native, grads, self._measured(plan), plan.sets, tail)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            columns = self.factors(plan, grads, norms[0], norms[1])
        where.step(plan.native, grads, plan.coefs, plan.sets, tail, where.table(columns, len(grads)))

    def _measured(self, plan: Plan) -> Array:
        """Return the coefficients of the first pass."""
        coefs = plan.coefs
        for k, r in enumerate(plan.rows):
            if not self._decays_first(self.param_groups[self._rows[r].group]):
                coefs = plan.coefs.copy() if coefs is plan.coefs else coefs
                coefs[k, _L2] = 0.0
        return coefs

    def _decays_first(self, group: dict[str, Any]) -> bool:
        """Whether the L2 penalty is part of what is measured."""
        return self.measures_decay

    def _each(self, plan: Plan, key: str, value: Callable[[dict[str, Any]], float] | None = None) -> Any:
        """Return a setting, or what `value` makes of a group, for each parameter of a plan."""
        groups = [self.param_groups[self._rows[r].group] for r in plan.rows]
        rows = np.array([group[key] if value is None else value(group) for group in groups], np.float64)
        return self._kept(
            plan, key, rows[plan.sets] if plan.sets is not None else np.repeat(rows, len(plan.index))
        )

    def _kept(self, plan: Plan, key: str, values: Array) -> Any:
        """Return numbers of a plan's parameters where these are; they are taken there when they change."""
        known = plan.kept.get(key)
        if known is None or not np.array_equal(known[0], values):
            known = plan.kept[key] = (values, self._placement.numbers(values))
        return known[1]

    def _trust(self, numerator: Any, denominator: Any, update: Any, param: Any) -> Any:
        """Return the trust ratio of each parameter: 1 where a norm is 0 or no number."""
        return self._placement.where((param > 0) & (update > 0), numerator / denominator, 1.0)

    # Numbers of parameters ------------------------------------------------------------------------------

    def _index_parameters(self) -> None:
        super()._index_parameters()
        kept: dict[str, Any] = self.__dict__.setdefault("_numbers", {})
        for name in self.numbers:
            values = np.zeros(len(self._objects))
            known = kept.get(name, ())
            values[: len(known)] = [float(x) for x in known]
            kept[name] = self._placement.numbers(values)

    def _updated(self, plan: Plan, name: str, grads: list[Any], update: Callable[[Any], Any]) -> Any:
        """Replace numbers of a plan's parameters that have a gradient by ``update(numbers)``; return them."""
        numbers = self._numbers[name]
        old = numbers if plan.whole else numbers[plan.index]
        new = update(old)
        given = [g is not None for g in grads]
        if not all(given):
            where = self._placement.numbers(np.array(given))
            new = self._placement.where(where, new, old)
        if plan.whole:
            self._numbers[name] = new
        else:
            numbers[plan.index] = new
        return new

    def _entry(self, i: int) -> dict[str, Any]:
        entry = super()._entry(i)
        if entry.keys() - {"ema"}:
            entry |= {name: np.asarray(float(self._numbers[name][i])) for name in self.numbers}
        return entry

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        loaded = {name: np.zeros(len(entries)) for name in self.numbers}
        rest = []
        for i, entry in enumerate(entries):
            for name in self.numbers:
                where = f"state[{i}][{name!r}]"
                if name not in entry and entry.keys() - {"ema"}:
                    raise ValueError(
                        f"load_state_dict: state[{i}] has no {name!r}, it has {sorted(map(str, entry))}"
                    )
                loaded[name][i] = value = number("load_state_dict", where, on_host(entry.get(name, 0.0)))
                if not NONNEGATIVE.holds(value):
                    raise ValueError(f"load_state_dict: {where} must be in {NONNEGATIVE.text}, got {value}")
            rest.append({key: value for key, value in entry.items() if key not in self.numbers})
        super()._load(groups, rest)
        self._numbers = {name: self._placement.numbers(values) for name, values in loaded.items()}
