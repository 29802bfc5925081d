"""SparseAdam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastopt._arrays import Array, as_view
from fastopt._device import device_view, is_device_array
from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import POSITIVE, Interval
from fastopt.optim.params import is_tensor
from fastopt.optim.plans import take_over
from fastopt.optim.state import computed_dtype
from fastopt.optim.tail import NO_TAIL
from fastopt.optim.vectors import numbers, unwrapped


class _Pair:
    """The gradient of some rows, no container to those who walk the structure of gradients."""

    __slots__ = ("indices", "rows")

    def __init__(self, indices: Any, rows: Any) -> None:
        self.indices = indices
        self.rows = rows


class _Touched(NamedTuple):
    """Rows of parameter i, in order and each once, and their gradients."""

    i: int
    indices: Array
    grads: Array


class SparseAdam(AdamFamily):
    r"""Adam that updates the rows with a gradient and leaves the others, with their moments, as they are.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, \frac{m}{\sqrt{v} + \epsilon}

    for these rows; :math:`t` counts the steps of the whole parameter.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`. Of one dimension at least.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the mean square.
    eps : float
        :math:`\epsilon`, outside the root and not corrected for bias, as in torch.
    maximize : bool
        Ascend instead of descend.

    Notes
    -----
    When to use: for tables of embeddings, of which a batch touches a few rows: the cost of a step grows with those, not
    with the table. Other parameters belong to another optimizer. On a GPU a step waits twice for each parameter,
    for how many different rows there are and whether they are in range, and for the update.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, in the form of torch's class.
    """

    ranges: ClassVar[dict[str, Interval]] = {**AdamFamily.ranges, "lr": POSITIVE, "eps": POSITIVE}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, 0.0, False, maximize=maximize)

    def check(self, group: dict[str, Any]) -> None:
        for i, p in enumerate(group["params"]):
            view = as_view(p.data if is_tensor(p) else p, f"SparseAdam: params[{i}]")
            if not view.ndim:
                raise ValueError(f"SparseAdam: params[{i}] is a scalar, expected an array with rows")

    def rule(self, group: dict[str, Any]) -> str:
        return "radam"  # which, rectified, is this rule

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        t = s["step"]
        lr = group["lr"] * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        return lr, beta1, beta2, group["eps"], 1.0

    def step(self, grads: Any = None, closure: Callable[[], Any] | None = None) -> Any:
        """Update the given rows of each parameter.

        Parameters
        ----------
        grads : list, dict, tree or callable
            In the place of each parameter a pair ``(indices, rows)``: `indices`, an integer array of shape (n,), are
            those of the parameter's first axis, and `rows`, of shape (n, ...) and the parameter's dtype, the gradients
            there; both lie where the parameter does. The gradients of an index that stands several times are summed.
            None skips the parameter; with n = 0 the step only counts. Without it torch's sparse ``.grad`` is taken. A
            callable is taken as `closure`.
        closure : callable, optional
            Evaluates the model and returns ``(loss, grads)``.

        Returns
        -------
        The closure's loss, None without a closure.

        Raises
        ------
        TypeError, ValueError
            A gradient is no such pair, an index is out of range, or the structure differs. Nothing has changed then.
        """
        if callable(grads):
            grads, closure = None, grads
        loss = None
        if closure is not None:
            loss, grads = self._evaluate(closure)
        with self._lock, self._placement.current():
            self._placement.require_no_capture(type(self).__name__)
            flat = self._gather(None if grads is None else _paired(grads))
            self._update_rows([None if g is None else self._touched(i, g) for i, g in enumerate(flat)])
        return loss

    def _touched(self, i: int, pair: Any) -> _Touched:
        """Return a gradient with the rows of equal indices summed, or raise."""
        name, p = self._label(i, "grads"), self._dense[i].source
        if getattr(pair, "is_sparse", False) and pair.sparse_dim() == 1:
            pair = _Pair(pair._indices()[0], pair._values())
        if not isinstance(pair, _Pair):
            raise TypeError(f"step: {name} is {type(pair).__name__}, expected a pair (indices, rows)")
        view = device_view(pair.indices, f"step: {name}[0]")
        indices = np.asarray(pair.indices) if view is None else view
        rows = as_view(pair.rows, f"step: {name}[1]")
        self._require_place(i, indices, f"{name}[0]")
        self._require_place(i, rows, f"{name}[1]")
        if rows.dtype != p.dtype:
            raise TypeError(f"step: {name}[1] is {rows.dtype}, {self._label(i)} is {p.dtype}")
        if indices.ndim != 1:
            raise ValueError(f"step: {name}[0] has shape {indices.shape}, expected one dimension")
        expected = (len(indices), *p.shape[1:])
        if rows.shape != expected:
            raise ValueError(
                f"step: {name}[1] has shape {rows.shape}, expected {expected} for {name}[0] and {self._label(i)}"
            )
        return self._summed(i, indices, rows) if indices.size else _Touched(i, indices, rows)

    def _summed(self, i: int, indices: Array, rows: Array) -> _Touched:
        """Return rows with those of equal indices summed, or raise for an index out of range."""
        p, order = self._dense[i].source, np.argsort(indices, kind="stable")
        given = indices[order]
        indices = given.astype(np.int64, copy=False)
        rows = rows[order].astype(computed_dtype(self._dense[i]), copy=False)
        first = np.flatnonzero(np.diff(indices, prepend=indices[:1] - 1))
        longest = np.diff(first, append=first[:1] + len(indices)).max()
        on_device = is_device_array(rows)
        ends = (given[0], given[-1], longest)  # on the host as they are: an uint64 can be beyond int64
        lowest, highest, longest = map(int, numbers(*ends) if on_device else ends)
        if lowest < 0 or highest >= p.shape[0]:
            raise ValueError(
                f"step: {self._label(i, 'grads')}[0] has the index {lowest if lowest < 0 else highest}, "
                f"{self._label(i)} has {p.shape[0]} rows"
            )
        sums = _sums(indices, rows, first, longest) if on_device else np.add.reduceat(rows, first, axis=0)
        return _Touched(i, indices[first], sums.astype(p.dtype, copy=False))

    def _update_rows(self, pairs: list[_Touched | None]) -> None:
        """Run one native step over copies of all rows that are touched, and put them back."""
        plans = self._refresh()
        given = np.array([pair is not None for pair in pairs])
        active = None if given.all() else self._split(given)
        advanced = self._advance(plans, active, 1.0)
        for plan in plans:
            sets = np.zeros(len(plan.index), np.int32) if plan.sets is None else plan.sets
            touched, used = [], []
            for k, i in enumerate(plan.index):
                pair = pairs[i]
                if pair is not None and pair.indices.size:
                    touched.append(pair)
                    used.append(sets[k])
            wholes = [
                [
                    self._dense[pair.i].source,
                    *(as_view(self._state[pair.i][name], name) for name in ("exp_avg", "exp_avg_sq")),
                ]
                for pair in touched
            ]
            parts = [
                [whole[pair.indices] for whole in arrays]
                for pair, arrays in zip(touched, wholes, strict=True)
            ]
            params, *states = ([unwrapped(part[a]) for part in parts] for a in range(3))
            native = self._placement.plan("radam", params, states, None)
            grads = [unwrapped(pair.grads) for pair in touched]
            self._placement.step(native, grads, plan.coefs, np.array(used, np.int32), NO_TAIL)
            for pair, arrays, copies in zip(touched, wholes, parts, strict=True):
                for whole, part in zip(arrays, copies, strict=True):
                    whole[pair.indices] = part
        take_over(advanced)


def _sums(indices: Array, rows: Array, first: Array, longest: int) -> Array:
    """Return the sums of the rows of equal indices, of which at most `longest` follow each other from `first` on.

    Each row takes in the one after it, then the one two further, then four: the order is fixed, so two runs give the
    same bits, which atomic additions would not.
    """
    step = 1
    while step < longest:
        same = (indices[step:] == indices[:-step]).reshape(-1, *[1] * (rows.ndim - 1))
        head = rows[:-step]
        head += np.where(same, rows[step:], 0.0)
        step *= 2
    return rows[first]


def _paired(grads: Any) -> Any:
    """Return the structure of gradients with its pairs as `_Pair`."""
    if isinstance(grads, Mapping):
        return {key: _paired(value) for key, value in grads.items()}
    if not isinstance(grads, list | tuple):
        return grads
    if len(grads) == 2 and "int" in str(getattr(grads[0], "dtype", "")):  # torch's dtypes have no kind
        return _Pair(*grads)
    return type(grads)(_paired(value) for value in grads)
