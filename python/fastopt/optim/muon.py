"""Muon, with AdamW for what is no hidden matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from fastopt._arrays import Array
from fastopt.optim.adamw import AdamW
from fastopt.optim.base import FINITE, NONNEGATIVE, Interval
from fastopt.optim.matrix import (
    MatrixOptimizer,
    at_least,
    matmul,
    matrix_of,
    multiply_add,
    norm,
    zeros_like,
)
from fastopt.optim.params import collection, flatten, gather

_ADJUSTMENTS = (None, "original", "match_rms_adamw")
_STEPS = Interval(0.0, 99.0, "[0, 99]")


def is_vector_or_end(name: str | None, param: Any) -> bool:
    """Return whether AdamW is to take a parameter: one of fewer than two dimensions, an embedding or a head.

    A part of its dotted name tells the latter: it contains "embed", or is "head" or "lm_head".
    """
    parts = (name or "").lower().split(".")
    return param.ndim < 2 or any("embed" in part or part in ("head", "lm_head") for part in parts)


class Muon(MatrixOptimizer):
    r"""Muon: momentum whose matrix is replaced by one near it with all singular values about 1.

    .. math::
        b &\leftarrow \mu b + (1 - \mu) g, \qquad u = (1 - \mu) g + \mu b \text{ (nesterov) or } b \\
        X_0 &= u / \max(\lVert u \rVert_F, \epsilon), \qquad
        X \leftarrow a X + (b_{NS} A + c A^2) X \text{ with } A = X X^\top, \; k \text{ times} \\
        p &\leftarrow (1 - \eta \lambda) p - \eta \, s \, X_k

    where :math:`s = \sqrt{\max(1, \text{rows} / \text{columns})}`, or
    :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}` for "match_rms_adamw".

    Settings and defaults are torch's. The iteration is computed in float32, of float64 parameters in float64, where
    torch rounds to bfloat16. Parameters of more than two dimensions, which torch refuses, are taken as matrices of
    their first axis by all others.

    Muon is for hidden matrices. Others go to `AdamW`: with `adamw` given, those that `route` names; or groups with
    ``"use_muon": False``, whose other settings are AdamW's. They are groups of their own in `param_groups`, where
    schedules see them.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    weight_decay : float
        :math:`\lambda`, decoupled.
    momentum : float
        :math:`\mu`.
    nesterov : bool
        Look one step ahead.
    ns_coefficients : (float, float, float)
        :math:`a, b_{NS}, c`.
    eps : float
        :math:`\epsilon`.
    ns_steps : int
        :math:`k`, below 100.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        What :math:`s` is; None is "original".
    adamw : dict, optional
        Settings of `AdamW` for the parameters that it is to take, such as ``{"lr": 3e-4}``. Parameters are then one
        collection, no groups; gradients keep its structure.
    route : callable, optional
        ``route(name, param)``, true where AdamW takes a parameter; `name` is None without names. By default it does
        those of fewer than two dimensions, and those with "embed" in a part of their name or a part "head" or
        "lm_head".

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`; a parameter of fewer than two dimensions is left to Muon.

    Notes
    -----
    When to use: for the hidden matrices of transformers and perceptrons, with `AdamW` for embeddings, heads and vectors
    (`adamw`). One array of state. A step costs several matrix products, which large batches hide.

    References
    ----------
    Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; Liu et al., Muon is Scalable for LLM
    Training, 2025; torch.optim.Muon.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        "lr": NONNEGATIVE,
        "weight_decay": NONNEGATIVE,
        "momentum": NONNEGATIVE,
        "eps": NONNEGATIVE,
        "ns_steps": _STEPS,
    }
    counts = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        adamw: Mapping[str, Any] | None = None,
        route: Callable[[str | None, Any], bool] | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        self._adamw: dict[int, AdamW] = {}  # by group
        self._given: Any = None
        if adamw is None:
            if route is not None:
                raise ValueError("Muon: route is given without adamw, the settings of what it routes there")
        else:
            params = self._routed(params, dict(adamw), route or is_vector_or_end)
        super().__init__(params, settings)

    def _routed(
        self, params: Any, adamw: dict[str, Any], route: Callable[[str | None, Any], bool]
    ) -> list[dict[str, Any]]:
        """Return one group for Muon and one for AdamW; keep how gradients find their way there."""
        params = collection(params, "Muon")
        if not isinstance(params, Mapping) and params and isinstance(params[0], Mapping):
            raise ValueError(
                'Muon: adamw is for params without groups; give groups "use_muon": False instead'
            )
        flat = flatten(params, 0, "Muon")
        names: list[Any] = flat.names or [None] * len(flat.arrays)
        sides: tuple[list[int], list[int]] = ([], [])
        for i, (name, array) in enumerate(zip(names, flat.arrays, strict=True)):
            sides[bool(route(name, array))].append(i)
        self._given = (flat.spec, [*sides[0], *sides[1]])

        def chosen(side: list[int]) -> Any:
            arrays = [flat.arrays[i] for i in side]
            return (
                arrays
                if flat.names is None
                else [(flat.names[i], a) for i, a in zip(side, arrays, strict=True)]
            )

        return [{"params": chosen(sides[0])}, {**adamw, "params": chosen(sides[1]), "use_muon": False}]

    def _gather(self, grads: Any) -> list[Any]:
        if grads is None or self._given is None:
            return super()._gather(grads)
        spec, order = self._given
        if self._movable:
            self._follow()
        flat = isinstance(grads, list | tuple) and len(grads) == len(order)
        if not flat or any(isinstance(g, Mapping | list | tuple) for g in grads):
            nested, grads = grads, [None] * len(order)
            gather(nested, spec, grads)
        return [grads[i] for i in order]

    def _as_given(self, in_order: list[Any]) -> list[Any]:
        if self._given is None:
            return in_order
        given: list[Any] = [None] * len(in_order)
        for i, g in zip(self._given[1], in_order, strict=True):
            given[i] = g
        return given

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; with ``"use_muon": False`` they are AdamW's and so are its settings.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing is added then.
        """
        if not isinstance(param_group, Mapping) or param_group.get("use_muon", True):
            super().add_param_group(param_group)
            return
        own = ("params", "param_names", "use_muon")
        settings = AdamW(
            [{"params": []}], **{k: v for k, v in param_group.items() if k not in own}
        ).param_groups[0]
        super().add_param_group({**settings, **param_group})
        group = self.param_groups[-1]
        for key in group.keys() - settings.keys() - set(own):
            del group[key]
        adamw = AdamW([{"params": group["params"]}])
        adamw.param_groups[0] = group
        self._adamw[len(self.param_groups) - 1] = adamw

    def _validate(self, group: dict[str, Any], where: str = "") -> None:
        if group.get("use_muon", True):
            super()._validate(group, where)
        else:
            _ADAMW._validate(group, where)

    def check(self, group: dict[str, Any]) -> None:
        coefficients = group["ns_coefficients"]
        if not isinstance(coefficients, list | tuple) or len(coefficients) != 3:
            raise ValueError(f"Muon: ns_coefficients must be three numbers, got {coefficients!r}")
        for i, value in enumerate(coefficients):
            self._require(f"ns_coefficients[{i}]", value, FINITE)
        if group["adjust_lr_fn"] not in _ADJUSTMENTS:
            raise ValueError(
                f"Muon: adjust_lr_fn must be one of {_ADJUSTMENTS}, got {group['adjust_lr_fn']!r}"
            )

    def _accept(self, group: dict[str, Any], dense: list[Any], labels: list[str]) -> None:
        if not group.get("use_muon", True):
            return
        for d, label in zip(dense, labels, strict=True):
            if len(d.source.shape) < 2:
                raise ValueError(
                    f"Muon: {label} has shape {d.source.shape}, Muon takes two dimensions or more; "
                    f"adamw={{...}} sends it to AdamW"
                )

    def _step_group(self, g: int, grads: list[Any]) -> None:
        if g in self._adamw:
            self._adamw[g].step(grads)
        else:
            super()._step_group(g, grads)

    def shapes(self, p: Any, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum_buffer": p.shape}

    def update(
        self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any], stored: np.dtype[Any]
    ) -> Array:
        mu, lr = group["momentum"], group["lr"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = zeros_like(p, p.shape)
        b = state["momentum_buffer"]
        b += (1.0 - mu) * (g - b)
        u = matrix_of(g + mu * (b - g) if group["nesterov"] else b)
        direction = orthogonal(u, group["ns_coefficients"], group["ns_steps"], group["eps"])
        scale = lr * _adjustment(group["adjust_lr_fn"], *u.shape)
        stepped: Array = p * (1.0 - lr * group["weight_decay"]) - scale * direction.reshape(p.shape)
        return stepped

    # State of both ----------------------------------------------------------------------------------------

    def _entry(self, i: int) -> dict[str, Any]:
        g = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self._adamw[g]._entry(i - self._starts[g]) if g in self._adamw else super()._entry(i)

    def _load(self, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        parts = {g: entries[self._starts[g] : self._starts[g + 1]] for g in self._adamw}
        others = [{} if self._is_adamw(i) else entry for i, entry in enumerate(entries)]
        if len(parts) > 1:  # what one of them refuses may not have changed another
            for g, part in parts.items():
                copy.deepcopy(self._adamw[g])._load([groups[g]], part)
        kept = [dict(state) for state in self._state]
        super()._load(groups, others)
        try:
            for g, part in parts.items():
                self._adamw[g]._load([groups[g]], part)
        except (TypeError, ValueError):
            self._take(kept)
            raise

    def _is_adamw(self, i: int) -> bool:
        return int(np.searchsorted(self._starts, i, side="right")) - 1 in self._adamw


_ADAMW = AdamW([{"params": []}])  # knows which settings are AdamW's


def orthogonal(u: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """Return a matrix with the singular vectors of `u` and singular values of about 1, by Newton and Schulz."""
    a, b, c = coefficients
    x = u.T if u.shape[0] > u.shape[1] else u
    x = x / at_least(norm(x), eps)
    for _ in range(steps):
        gram = matmul(x, x.T)
        x = multiply_add(multiply_add(c * gram, gram, b, gram), x, a, x)
    return x.T if u.shape[0] > u.shape[1] else x


def _adjustment(kind: str | None, rows: int, columns: int) -> float:
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
