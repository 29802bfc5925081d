"""Optimizers whose step is a native update rule: all parameters of a rule in one fused call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_not
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array, as_view, assign
from fastopt.optim.attempts import Attempting, LossScale
from fastopt.optim.base import NONNEGATIVE, number, one_of
from fastopt.optim.capture import Capturable
from fastopt.optim.common import COMMON_RANGES, Common
from fastopt.optim.ema import swapped
from fastopt.optim.gradients import GradientOptimizer, Reduction, Scope
from fastopt.optim.groups import Pattern
from fastopt.optim.plans import Numbers, Plan, Row, parts, take_over
from fastopt.optim.state import RULES, Storage, allocate, in_layout, load_entry, settle
from fastopt.optim.tail import NO_TAIL, Tail

__all__ = ["COMMON_RANGES", "RULES", "Common", "RuleOptimizer", "bare"]


#: Of a group's keys those that no coefficient depends on.
_NO_SETTINGS = {"params", "param_names", "penalised", "use_muon"}


def bare(scale: float, lr: float, decay: float, step: float = 0.0) -> tuple[float, ...]:
    """Return the coefficients that all rules share, for a pass over gradients times `scale` and nothing else."""
    return scale, math.inf, 0.0, 0.0, lr, decay, 1.0, step


class RuleOptimizer(Attempting, Capturable, GradientOptimizer):
    """Base class of the optimizers that are a native rule.

    A subclass names its rule for a group's settings (`rule`) and computes the rule's coefficients
    (`coefficients`). One native call reads each gradient and parameter once; scaling, clipping, L1,
    decay, the rule and the average of the weights happen in that pass.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        See `Optimizer`.
    defaults : dict
        The subclass's settings.
    **common
        See `Common`.
    """

    optional: ClassVar[tuple[str, ...]] = ("clip_value", "adaptive_clip", "ema_decay")
    #: Numbers kept for each parameter, with their initial values. A step raises "step" by one.
    scalars: ClassVar[dict[str, float]] = {"step": 0}
    #: The values of ``weight_decay_mode``; none where a rule decays in a way of its own.
    decay_modes: ClassVar[tuple[str, ...]] = ("l2", "decoupled", "decoupled_after", "fixed")
    #: Whether the numbers are part of the state dictionary.
    saves_scalars: ClassVar[bool] = True
    #: Whether an element's update depends on its own numbers alone.
    by_element: ClassVar[bool] = True
    #: Whether a parameter has state before its first step.
    eager_state: ClassVar[bool] = False

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_norm: float | None = None,
        clip_scope: Scope = "global",
        norm_type: float = 2.0,
        adaptive_clip: float | None = None,
        adaptive_clip_eps: float = 1e-3,
        clip_value: float | None = None,
        ema_decay: float | None = None,
        weight_decay_mode: str | None = None,
        state_dtype: str = "float32",
        rounding: str = "nearest",
        no_decay: Pattern | None = None,
        accumulate: int = 1,
        accumulate_reduction: Reduction = "mean",
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        self._swapped = False
        self._shadows: list[Any] | None = None
        self._rows: list[Row] = []
        self._row_of = np.empty(0, np.int32)
        common: dict[str, Any] = {
            "maximize": maximize,
            "l1": l1,
            "clip_value": clip_value,
            "adaptive_clip": adaptive_clip,
            "adaptive_clip_eps": adaptive_clip_eps,
            "ema_decay": ema_decay,
            "weight_decay_mode": weight_decay_mode,
            "state_dtype": state_dtype,
            "rounding": rounding,
        }
        if no_decay is not None:
            common["no_decay"] = no_decay
        clipping = (max_norm, clip_scope, norm_type)
        super().__init__(params, {**defaults, **common}, clipping, accumulate, accumulate_reduction)

    def rule(self, group: dict[str, Any]) -> str:
        """Return the name of the native rule for the settings of `group`."""
        raise NotImplementedError

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        """Return this step's learning rate, then the rule's coefficients in its order.

        `s` holds the parameter's numbers (`scalars`); ``s["step"]`` counts this step already.
        """
        raise NotImplementedError

    def decay(self, group: dict[str, Any], s: dict[str, float]) -> float:
        """Return what a step multiplies the parameters by; `s` is what `coefficients` is about to be given."""
        mode = self._decay_mode(group)
        factor: float = 1.0
        if mode != "l2":
            factor -= group["weight_decay"] * (1.0 if mode == "fixed" else group["lr"])
        return factor

    @staticmethod
    def _decay_mode(group: dict[str, Any]) -> str:
        mode: str | None = group["weight_decay_mode"]
        return mode or ("decoupled" if group["decoupled_weight_decay"] else "l2")

    def initial(self, group: dict[str, Any], state: str) -> float:
        """Return the value that a new array of this state is filled with."""
        return 0.0

    @classmethod
    def is_plain(cls) -> bool:
        """Whether a step is this class's own: one native call for each rule."""
        return cls.step is RuleOptimizer.step and cls._update is RuleOptimizer._update

    def _storage(self, group: dict[str, Any]) -> Storage:
        """Return how what belongs to a group's parameters is stored."""
        average, by_unit = group["ema_decay"] is not None, group["adaptive_clip"] is not None
        return Storage(self.rule(group), average, group["state_dtype"], group["rounding"], by_unit)

    def _validate(self, group: dict[str, Any], where: str = "") -> None:
        super()._validate(group, where)
        storage = self._storage(group)
        storage.check(type(self).__name__, where)
        own_way = (
            type(self)._run is not RuleOptimizer._run or type(self)._prepare is not RuleOptimizer._prepare
        )
        if own_way and (storage.by_unit or self._clip_scope != "global"):
            setting = "adaptive_clip" if storage.by_unit else f"clip_scope {self._clip_scope!r}"
            raise ValueError(
                f"{type(self).__name__}: {setting} is for optimizers that step each element by itself{where}"
            )
        if group["weight_decay_mode"] is not None:
            one_of(type(self).__name__, "weight_decay_mode", group["weight_decay_mode"], self.decay_modes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; settings that it lacks are the optimizer's defaults.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing is added then.
        """
        before = len(self.param_groups)
        super().add_param_group(param_group)
        for g in range(before, len(self.param_groups)):
            added = len(self.param_groups[g]["params"])
            self._row_of = np.append(self._row_of, np.full(added, len(self._rows), np.int32))
            self._rows.append(Row(g, dict(self.scalars)))

    def _index_parameters(self) -> None:
        super()._index_parameters()
        self._plans: list[Plan] | None = None
        self._kinds: list[Storage] = []
        self._scoped = False
        self._seen: list[dict[str, Any]] = []

    def step(self, grads: Any = None, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        grads : list, dict, tree or callable, optional
            Gradients in the structure of the parameters, or as a flat list; None in place of one skips its
            parameter. Without it the gradients are the Tensors' ``.grad``. A callable is taken as `closure`.
        closure : callable, optional
            Evaluates the model. For Tensors it runs backward and returns the loss; for plain
            arrays it returns ``(loss, grads)``.

        Returns
        -------
        The closure's loss, None without a closure.

        Raises
        ------
        TypeError, ValueError
            A gradient's structure, dtype or shape differs from its parameter's, or a setting went
            out of range. Parameters, state and step counts are as before then.
        """
        if callable(grads):
            grads, closure = None, grads
        self._require_weights()
        loss = None
        if closure is not None:
            loss, grads = self._evaluate(closure)
        self._take(grads, None)
        return loss

    def step_scaled(self, grads: Any, inverse: float | LossScale) -> Any:
        """Step with gradients times `inverse`; False, and nothing has changed, where they are not all finite.

        What `fastopt.optim.GradScaler` calls. The product costs no pass over the gradients. With `max_norm` it is what
        is limited, and what `grad_norm` is the norm of: a float, also on a GPU, where the step waits for it. With the
        scale itself on a GPU, which needs `skips_on_device`, nothing waits: the answer is an array of one bool.

        Raises
        ------
        TypeError, ValueError
            As `step`.
        """
        self._require_weights()
        return self._take(grads, inverse)

    def _take(self, grads: Any, inverse: float | LossScale | None) -> Any:
        """Update with gradients as a caller has them; `inverse` as in `step_scaled`, None without its check."""
        with self._lock:
            flat = self._gather(grads)
            types = set(map(type, flat))
            if types != self._placement.types or not self._plain:
                return self._update(self._usable(flat), type(None) in types, inverse)
            try:
                return self._update(flat, False, inverse)
            except (TypeError, ValueError):
                # The native check refused before any change. A layout can be rearranged; the rest
                # is raised by name.
                usable = self._usable(flat)
                if not any(map(is_not, flat, usable)):
                    raise
                return self._update(usable, False, inverse)

    def _require_weights(self) -> None:
        """Refuse a step while the averages are swapped in."""
        if self._swapped:
            raise RuntimeError("step: the parameters hold their averages inside swap_ema()")

    def _update(self, grads: list[Any], missing: bool, inverse: float | LossScale | None) -> Any:
        """Add gradients to those that wait, or update with all of them; False where they are not finite."""
        if self._captured is not None and self._placement.capturing():
            self._captured.record(self, grads, inverse)
            return True
        plans = self._refresh()
        if isinstance(inverse, LossScale):
            return self._attempt(plans, grads, inverse)
        if self._accumulate == 1 and not self._accumulator.count:
            return self._apply(plans, grads, missing, inverse)
        if inverse is not None:
            natives = [plan.native for plan in plans]
            if self._placement.tail(natives, [plan.select(grads) for plan in plans], None, inverse) is None:
                return False
        whole = self._add(grads, inverse)
        if whole is None:
            return True
        try:
            return self._apply(plans, whole, any(g is None for g in whole), inverse)
        finally:
            self._accumulator.clear()

    def _apply(self, plans: list[Plan], grads: list[Any], missing: bool, inverse: float | None) -> bool:
        """Run the native step; then, as nothing can fail any more, take over the advanced numbers."""
        active = self._split(np.array([g is not None for g in grads])) if missing else None
        chosen = [plan.select(grads) for plan in plans]
        tails = [NO_TAIL] * max(1, len(plans))  # groups may be without parameters
        if self._max_norm is not None or inverse is not None or self._scoped:
            found = self._tails(plans, chosen, inverse)
            if found is None:
                return False
            tails = found or tails
        elif len(plans) > 1:  # a plan must not refuse after another has stepped
            for plan, gs in zip(plans, chosen, strict=True):
                plan.native.check(gs)
        for dense in self._copied:
            dense.load()
        if not self._prepare(plans, chosen, tails[0]):
            return True
        advanced = self._advance(plans, active, tails[0].factor)
        before = [plan.native.steps for plan in plans]
        try:
            for plan, gs, tail in zip(plans, chosen, tails, strict=False):
                self._run(plan, gs, tail)
            for dense in self._copied:
                dense.store()
            take_over(advanced)
        except BaseException:
            settle(self._copied, plans, before, self._rows, advanced)
            raise
        self.grad_norm = tails[0].norm
        return True

    def _tails(self, plans: list[Plan], grads: list[list[Any]], inverse: float | None) -> list[Tail] | None:
        """Return how each plan's gradients are scaled; None where the step is to be skipped."""
        natives = [plan.native for plan in plans]
        if self._scoped:
            return self._placement.tails(natives, grads, [plan.ranges for plan in plans], inverse)
        tail = self._placement.tail(natives, grads, self._max_norm, inverse, self._norm_type)
        return None if tail is None else [tail] * len(plans)

    def _run(self, plan: Plan, grads: list[Any], tail: Tail) -> None:
        """Run the native step of one plan."""
        self._placement.step(plan.native, grads, *plan.table(tail.factors), tail)

    def _prepare(self, plans: list[Plan], grads: list[list[Any]], tail: Tail) -> bool:
        """Do what comes between the checks and a step's coefficients; False leaves the step out."""
        return True

    def _advance(self, plans: list[Plan], active: list[bool] | None, scale: float) -> Numbers:
        """Write the next step's coefficients into the plans; return the rows with their numbers after it."""
        advanced, rows = [], self._rows
        for plan in plans:
            for k, r in enumerate(plan.rows):
                if active is None or active[r]:
                    row = rows[r]
                    s = dict(row.scalars)
                    s["step"] += 1
                    plan.coefs[k] = self._coefficient_row(self.param_groups[row.group], s, scale)
                    if plan.counts:
                        advanced.append((row, s))
        return advanced

    def _ahead(self, plans: list[Plan], active: list[bool] | None, steps: int) -> tuple[Array, list[Numbers]]:
        """Return the coefficients of steps to come (steps, those of all plans), and the rows' numbers after each."""
        table = np.zeros((steps, sum([plan.coefs.size for plan in plans])))
        numbers: list[Numbers] = [[] for _ in range(steps)]
        for plan, own in zip(plans, parts(plans, table), strict=True):
            last = None
            for k, r in enumerate(plan.rows):
                if active is None or active[r]:
                    row = self._rows[r]
                    if last is None or not self._alike(row, last):
                        coefs, after = self._following(row, steps if plan.counts else 1)
                        block = np.array(coefs)
                    own[:, k], last = block, row
                    if plan.counts:
                        for pairs, s in zip(numbers, after, strict=True):
                            pairs.append((row, s))
        return table, numbers

    def _alike(self, row: Row, other: Row) -> bool:
        """Whether rows have equal numbers and the very same settings, a subclass's too: their steps are the same."""
        one, two = self.param_groups[row.group], self.param_groups[other.group]
        names = (one.keys() | two.keys()) - _NO_SETTINGS
        return row.scalars == other.scalars and all(one.get(name) is two.get(name) for name in names)

    def _following(self, row: Row, steps: int) -> tuple[list[tuple[float, ...]], list[dict[str, float]]]:
        """Return the coefficients of a row's next steps, and its numbers after each."""
        group, s = self.param_groups[row.group], row.scalars
        coefs, numbers = [], []
        for _ in range(steps):
            s = dict(s)
            s["step"] += 1
            coefs.append(self._coefficient_row(group, s, 1.0))
            numbers.append(s)
        return coefs, numbers

    def _coefficient_row(self, group: dict[str, Any], s: dict[str, float], scale: float) -> tuple[float, ...]:
        decay = self.decay(group, s)
        lr, *rest = self.coefficients(group, s)
        clip_value, mode = group["clip_value"], self._decay_mode(group)
        return (
            -scale if group["maximize"] else scale,
            math.inf if clip_value is None else clip_value,
            group["l1"],
            group["weight_decay"] if mode == "l2" else 0.0,
            lr * decay if mode == "decoupled_after" else lr,
            decay,
            group["ema_decay"] or 0.0,
            s["step"],
            *rest,
        )

    def _split(self, given: Array) -> list[bool]:
        """Split rows of which only some parameters have a gradient; tell for each row whether it has one."""
        used = np.bincount(self._row_of[given], minlength=len(self._rows))
        total = np.bincount(self._row_of, minlength=len(self._rows))
        mixed = np.flatnonzero((used > 0) & (used < total))
        for r in mixed:
            # The split alone changes nothing: both halves start with equal numbers.
            self._row_of[given & (self._row_of == r)] = len(self._rows)
            self._rows.append(Row(self._rows[r].group, dict(self._rows[r].scalars)))
        if mixed.size:
            for plan in self._plans or ():
                plan.assign(self._row_of)
            used = np.bincount(self._row_of[given], minlength=len(self._rows))
        active: list[bool] = (used > 0).tolist()
        return active

    # Plans ----------------------------------------------------------------------------------------------

    def _refresh(self) -> list[Plan]:
        """Return the plans, brought up to date with settings that were changed since the last step."""
        try:
            same = self._seen == self.param_groups
        except ValueError:  # an array among the settings cannot be compared as a whole
            same = False
        if (
            same
            and self._plans is not None
            and self._starts[-1] == sum([len(group["params"]) for group in self.param_groups])
        ):
            return self._plans
        for g, group in enumerate(self.param_groups):
            self._validate(group, f" in param_groups[{g}]")
            kept = self._objects[self._starts[g] : self._starts[g + 1]]
            if len(kept) != len(group["params"]) or any(map(is_not, kept, group["params"])):
                raise RuntimeError(f"param_groups[{g}]['params'] was changed, use add_param_group")
        kinds = [self._storage(group) for group in self.param_groups]
        plans = self._plans
        if plans is None or kinds != self._kinds:
            plans = self._build(kinds)
        self._scoped = self._clip_scope != "global" or self._clips_by_units()
        if self._scoped:
            groups = [self._known_rows[r].group for r in self._row_of]
            for plan in plans:
                sizes = plan.parts or [1] * len(plan.index)
                plan.ranges = self._ranges([groups[i] for i in plan.index], sizes)
        self._plans = plans
        self._kinds = kinds
        self._seen = [dict(group) for group in self.param_groups]
        return plans

    def _build(self, kinds: list[Storage]) -> list[Plan]:
        """Make one native plan for each rule and storage in use, of units or not, with state arrays."""
        groups = [self._rows[r].group for r in self._row_of]
        plans = []
        for storage in dict.fromkeys(kinds):
            index = [i for i, g in enumerate(groups) if kinds[g] == storage]
            if not index:
                continue
            dense, state = [self._dense[i] for i in index], [self._state[i] for i in index]
            parts = [self._units(i) for i in index] if storage.by_unit else None
            for i, units in zip(index, parts or (), strict=False):
                storage.check_units(type(self).__name__, self._label(i), self._dense[i], units)
            self._allocate(storage, index)
            names = RULES[storage.rule]["states"]
            states = [[in_layout(d, s, name) for d, s in zip(dense, state, strict=True)] for name in names]
            emas = None
            if storage.average:
                emas = [in_layout(d, s, "ema") for d, s in zip(dense, state, strict=True)]
            packed = storage.arguments(state)
            if self._shadows is not None:
                packed["shadows"] = [self._shadows[i] for i in index]
            packed["parts"] = parts
            native = self._placement.plan(storage.rule, [d.array for d in dense], states, emas, **packed)
            whole = len(index) == len(groups)
            packs = storage.packed or self._shadows is not None
            plan = Plan(storage.rule, native, index, whole, packs, parts)
            plan.assign(self._row_of)
            plans.append(plan)
        return plans

    def _allocate(self, storage: Storage, index: list[int]) -> None:
        """Make the arrays that these parameters lack."""
        by_group: dict[int, list[int]] = {}
        for i in index:
            by_group.setdefault(self._rows[self._row_of[i]].group, []).append(i)
        for g, members in by_group.items():
            group = self.param_groups[g]
            starts = {name: self.initial(group, name) for name in RULES[storage.rule]["states"]}
            dense, state = [self._dense[i] for i in members], [self._state[i] for i in members]
            allocate(storage, dense, state, starts)

    def keep_shadow(self, arrays: Any) -> None:
        """Have every step write the updated float32 parameters, rounded to the nearest, into other arrays too.

        Parameters
        ----------
        arrays : list, dict, tree, or None
            bfloat16 or float16 arrays in the structure of the parameters, None in place of those that are not
            wanted; they receive the parameters as they are now. None alone ends it.

        Raises
        ------
        TypeError, ValueError
            An array is not C-contiguous, of another shape or dtype, or its parameter is not float32; nothing
            has changed then.
        """
        before = self._shadows
        shadows = None if arrays is None else self._gather(arrays)
        views = [None if a is None else as_view(a, "keep_shadow: arrays") for a in shadows or []]
        self._shadows, self._plans = shadows and list(shadows), None
        try:
            self._refresh()
        except (TypeError, ValueError):
            self._shadows, self._plans = before, None
            raise
        for dense, view in zip(self._dense, views, strict=False):
            if view is not None:
                assign(view, dense.source.astype(view.dtype))

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Let the parameters hold their averages inside a with block; the weights come back after it.

        Raises
        ------
        RuntimeError
            No group has `ema_decay`, or the averages are swapped in already.
        """
        if self._swapped:
            raise RuntimeError("swap_ema: the averages are swapped in already")
        if all(group["ema_decay"] is None for group in self.param_groups):
            raise RuntimeError(f"swap_ema: {type(self).__name__} keeps no averages, its ema_decay is None")
        self._refresh()
        pairs = [
            (d.source, as_view(s["ema"], "ema"))
            for d, s in zip(self._dense, self._state, strict=True)
            if "ema" in s
        ]
        self._swapped = True
        try:
            with swapped([p for p, _ in pairs], [average for _, average in pairs]):
                yield
        finally:
            self._swapped = False

    # State ----------------------------------------------------------------------------------------------

    def _entry(self, i: int) -> dict[str, Any]:
        row = self._rows[self._row_of[i]]
        scalars = row.scalars
        storage = self._storage(self.param_groups[row.group])
        if self.eager_state:
            self._allocate(storage._replace(average=False), [i])
        started = self.eager_state or scalars["step"] > 0
        entry: dict[str, Any] = {}
        if started and (self.saves_scalars or storage.packed):
            for name, value in scalars.items():
                exact = float(np.float32(value)) == value
                entry[name] = np.asarray(value, np.float32 if exact else np.float64)
        return entry | {name: a for name, a in self._state[i].items() if started or name == "ema"}

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        taken: list[tuple[dict[str, Array], int]] = []
        rows: dict[tuple[Any, ...], int] = {}
        for i, entry in enumerate(entries):
            g = int(np.searchsorted(self._starts, i, side="right")) - 1
            storage = self._storage(groups[g])
            own = {name: a for name, a in entry.items() if name not in self.scalars}
            arrays = load_entry(storage, self._dense[i], own, self._label(i), f"state[{i}]")
            scalars = {}
            for name, initial in self.scalars.items():
                where = f"state[{i}][{name!r}]"
                scalars[name] = number("load_state_dict", where, entry.get(name, initial))
                if not NONNEGATIVE.holds(scalars[name]):
                    raise ValueError(
                        f"load_state_dict: {where} must be in {NONNEGATIVE.text}, got {scalars[name]}"
                    )
            if not self.saves_scalars and "step" not in entry:
                scalars["step"] = float(bool(arrays.keys() - {"ema"}))
            lacking = [name for name in RULES[storage.rule]["states"] if name not in arrays]
            if lacking and scalars["step"] > 0:
                raise ValueError(
                    f"load_state_dict: state[{i}] has no {lacking[0]!r}, it has {sorted(map(str, entry))}"
                )
            taken.append((arrays, rows.setdefault((g, *scalars.values()), len(rows))))

        for state, (arrays, _) in zip(self._state, taken, strict=True):
            for name in state.keys() - arrays.keys():
                del state[name]
            for name, value in arrays.items():
                if name in state and (old := as_view(state[name], name)).dtype == value.dtype:
                    assign(old, as_view(value, name))
                else:
                    state[name] = value
        self._rows = [Row(g, dict(zip(self.scalars, values, strict=True))) for g, *values in rows]
        self._row_of = np.array([r for _, r in taken], np.int32)
        self._plans = None

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_plans", "_kinds", "_seen", "_captured")
        kept = {key: value for key, value in super().__getstate__().items() if key not in derived}
        return {**kept, "_shadows": None}
