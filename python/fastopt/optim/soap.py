"""SOAP."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from fastopt._arrays import Array
from fastopt.optim.base import COUNT, FRACTION, NONNEGATIVE, Interval
from fastopt.optim.matrix import MatrixOptimizer, matmul, norm, zeros_like


class SOAP(MatrixOptimizer):
    r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    For a matrix, and along each axis of other parameters likewise,

    .. math::
        G_L &\leftarrow \beta_s G_L + (1 - \beta_s) g g^\top, \qquad
        G_R \leftarrow \beta_s G_R + (1 - \beta_s) g^\top g \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) (Q_L^\top g \, Q_R)^2 \\
        p &\leftarrow p - \eta \, c \; Q_L \frac{Q_L^\top m \, Q_R}{\sqrt v + \epsilon} Q_R^\top, \qquad
        p \leftarrow (1 - \eta \lambda) p

    with :math:`c = \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`. The columns of :math:`Q` are eigenvectors of :math:`G`:
    found once, then followed by one step of the power iteration with a QR decomposition every
    `precondition_frequency` steps. As in the authors' code the first gradient only makes the bases and moves nothing,
    and a gradient joins :math:`G` after its step. :math:`m` is kept in the parameter's own basis.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        :math:`\beta_1` and :math:`\beta_2`.
    shampoo_beta : float
        :math:`\beta_s`; below 0 it is :math:`\beta_2`.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`.
    precondition_frequency : int
        Steps from one basis to the next.
    max_precond_dim : int
        Axes that are longer keep their own basis.
    precondition_1d : bool
        Precondition vectors too.
    normalize_grads : bool
        Divide the step by its root mean square.
    correct_bias : bool
        Whether :math:`c` is not 1.

    Notes
    -----
    When to use: when fewer steps are worth more time and memory per step: matrices of moderate size, large batches. It
    keeps two square matrices an axis; axes longer than `max_precond_dim` go without.

    References
    ----------
    Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024, and the authors' code. Its `merge_dims` is
    not here: reshape such parameters.
    """

    ranges: ClassVar[dict[str, Interval]] = {
        "lr": NONNEGATIVE,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "shampoo_beta": Interval(-math.inf, 1.0, "(-inf, 1)"),
        "eps": NONNEGATIVE,
        "weight_decay": NONNEGATIVE,
        "precondition_frequency": COUNT,
        "max_precond_dim": NONNEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = -1.0,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        *,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
    ) -> None:
        settings = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim,
            "precondition_1d": precondition_1d,
            "normalize_grads": normalize_grads,
            "correct_bias": correct_bias,
        }
        super().__init__(params, settings)

    def shapes(self, p: Any, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        squares = {f"{name}_{axis}": 2 * (p.shape[axis],) for axis in _axes(p, group) for name in ("GG", "Q")}
        return {"exp_avg": p.shape, "exp_avg_sq": p.shape, **squares}

    def update(
        self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any], stored: np.dtype[Any]
    ) -> Array:
        beta1, beta2 = group["betas"]
        if "exp_avg" not in state:
            self._begin(p, g, state, group)
            return p
        t, lr, axes = state["step"], group["lr"], _axes(p, group)
        bases = {axis: state[f"Q_{axis}"] for axis in axes}
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m += (1.0 - beta1) * (g - m)
        v *= beta2
        v += (1.0 - beta2) * _turned(g, bases) ** 2
        u = _turned(m, bases) / (np.sqrt(v) + group["eps"])
        u = _turned(u, {axis: q.T for axis, q in bases.items()})
        if group["normalize_grads"]:
            u = u / (norm(u) / math.sqrt(u.size) + 1e-30)
        if group["correct_bias"]:
            lr = lr * math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        self._gather_products(g, state, group)
        if t % int(group["precondition_frequency"]) == 0:
            for axis in axes:
                _follow_basis(state, axis)
        stepped: Array = (p - lr * u) * (1.0 - group["lr"] * group["weight_decay"])
        return stepped

    def _begin(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Make the state from a first gradient, which is no step yet."""
        new = {name: zeros_like(p, shape) for name, shape in self.shapes(p, group).items()}
        self._gather_products(g, new, group)
        for axis in _axes(p, group):
            new[f"Q_{axis}"] = np.flip(np.linalg.eigh(new[f"GG_{axis}"])[1], 1).copy()
        state.update(new, step=0)

    @staticmethod
    def _gather_products(g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Bring the averages of products of the gradient with itself along each axis forward."""
        beta = group["shampoo_beta"] if group["shampoo_beta"] >= 0 else group["betas"][1]
        for axis in _axes(g, group):
            unfolded = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
            gg = state[f"GG_{axis}"]
            gg += (1.0 - beta) * (matmul(unfolded, unfolded.T) - gg)


def _axes(p: Any, group: dict[str, Any]) -> list[int]:
    """Return the axes that have a basis of their own."""
    if p.ndim < 2 and not group["precondition_1d"]:
        return []
    return [axis for axis, n in enumerate(p.shape) if n <= group["max_precond_dim"]]


def _turned(x: Array, bases: dict[int, Array]) -> Array:
    """Return `x` multiplied by a matrix along each of these axes."""
    for axis, q in bases.items():
        x = np.moveaxis(matmul(np.moveaxis(x, axis, -1), q), -1, axis)
    return x


def _follow_basis(state: dict[str, Any], axis: int) -> None:
    """Bring one basis nearer to the eigenvectors, the largest first; second moments go with their vectors."""
    q = state[f"Q_{axis}"]
    powered = matmul(state[f"GG_{axis}"], q)
    order = np.argsort(-(q * powered).sum(axis=0))
    state["exp_avg_sq"] = np.take(state["exp_avg_sq"], order, axis=axis)
    state[f"Q_{axis}"] = np.linalg.qr(powered[:, order])[0]
