"""Adafactor."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt.optim.base import COUNT, NONNEGATIVE, Interval
from fastopt.optim.matrix import MatrixOptimizer, at_least, norm, zeros_like

_BFLOAT16_EPS = 2.0**-7  # NumPy's finfo does not know it


class Adafactor(MatrixOptimizer):
    r"""Adafactor: second moments of a matrix kept as one number for each row and each column.

    .. math::
        \rho &= \min(\eta, 1 / \sqrt t), \qquad \alpha = \max(\epsilon_2, \mathrm{RMS}(p)) \, \rho, \qquad
        1 - \hat\beta_2 = t^\tau \\
        R &\leftarrow \hat\beta_2 R + (1 - \hat\beta_2) \, \overline{g^2}^{\,\text{rows}}, \qquad
        C \leftarrow \hat\beta_2 C + (1 - \hat\beta_2) \, \overline{g^2}^{\,\text{columns}}, \qquad
        V = R C / \max(\overline{R}, \epsilon_1) \\
        u &= g / \sqrt{\max(V, \epsilon_1^2)}, \qquad
        p \leftarrow (1 - \eta \lambda) p - \alpha \, u / \max(1, \mathrm{RMS}(u) / d)

    A parameter of fewer than two dimensions keeps :math:`V` itself, one of more is a stack of matrices of its last
    two axes. Settings, defaults and state are torch's.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        The largest relative step :math:`\eta`.
    beta2_decay : float
        :math:`\tau`, at most 0.
    eps : (float or None, float)
        :math:`\epsilon_1`, by default the spacing of the parameter's dtype at 1, and :math:`\epsilon_2`.
    d : float
        The largest root mean square of :math:`u`, at least 1.
    weight_decay : float
        :math:`\lambda`, decoupled.
    foreach : bool or None
        Accepted for torch's sake and ignored.
    maximize : bool
        Ascend instead of descend.

    Notes
    -----
    When to use: when memory decides: the second moment of an n by m matrix takes n + m numbers. Made for very large
    transformers. Its steps are relative to the size of the parameters, and limited, so it does without momentum.

    References
    ----------
    Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, ICML 2018; torch.optim.Adafactor.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        "lr": NONNEGATIVE,
        "beta2_decay": Interval(-math.inf, 0.0, "(-inf, 0]"),
        "d": COUNT,
        "weight_decay": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        settings = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, settings)

    def check(self, group: dict[str, Any]) -> None:
        eps = group["eps"]
        if not isinstance(eps, list | tuple) or len(eps) != 2:
            raise ValueError(f"Adafactor: eps must be a pair of numbers, got {eps!r}")
        for i, value in enumerate(eps):
            if i or value is not None:
                self._require(f"eps[{i}]", value, NONNEGATIVE)

    def shapes(self, p: Any, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        if p.ndim < 2:
            return {"variance": p.shape}
        return {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, p.shape[-1])}

    def update(
        self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any], stored: np.dtype[Any]
    ) -> Array:
        t, lr, root = state["step"], group["lr"], math.sqrt(p.size)
        eps1, eps2 = group["eps"]
        if eps1 is None:
            eps1 = _BFLOAT16_EPS if stored.name == "bfloat16" else float(np.finfo(stored).eps)
        alpha = at_least(norm(p) / root, eps2) * min(lr, 1.0 / math.sqrt(t))
        for name, shape in self.shapes(p, group).items():
            if name not in state:
                state[name] = zeros_like(p, shape)
        v = self._second_moment(g, state, t ** group["beta2_decay"], eps1)
        u = g / np.sqrt(np.maximum(v, eps1 * eps1))
        step = alpha / at_least(norm(u) / (root * group["d"]), 1.0)
        stepped: Array = p * (1.0 - lr * group["weight_decay"]) - step * u
        return stepped

    @staticmethod
    def _second_moment(g: Array, state: dict[str, Any], new: float, eps1: float) -> Array:
        """Bring the averages forward by a part `new` of this gradient's squares; return their estimate."""
        squares = g * g
        if "variance" in state:
            v: Array = state["variance"]
            v += new * (squares - v)
            return v
        row, col = state["row_var"], state["col_var"]
        row += new * (squares.mean(axis=-1, keepdims=True) - row)
        col += new * (squares.mean(axis=-2, keepdims=True) - col)
        product: Array = row * (col / np.maximum(row.mean(axis=-2, keepdims=True), eps1))
        return product
