"""Sophia."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import numpy as np

from fastopt._arrays import assign, zeros_for
from fastopt.optim.adam_family import AdamFamily
from fastopt.optim.base import NONNEGATIVE, Interval
from fastopt.optim.rule import Common, bare
from fastopt.optim.state import computed_dtype, in_layout
from fastopt.optim.tail import NO_TAIL


class Sophia(AdamFamily):
    r"""Sophia: a mean of the gradients over an estimate of the Hessian's diagonal, each element's step limited.

    .. math::
        h &\leftarrow \beta_2 h + (1 - \beta_2) \, \hat{h} \qquad \text{(in } \mathrm{update\_hessian} \text{)} \\
        p &\leftarrow (1 - \eta \lambda) \, p - \eta \,
        \max\left(-1, \min\left(1, \frac{m}{\max(\rho h, \epsilon)}\right)\right)

    with :math:`m` as in `Adam`. The estimates :math:`\hat{h}` are the caller's, every ten steps or so:

    - Gauss-Newton-Bartlett (SophiaG): ``n * g * g`` with a gradient `g` of the mean loss of `n` samples whose targets
      are drawn from the model.
    - Hutchinson (SophiaH): ``u * (H @ u)`` with random signs `u`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay :math:`\beta_1` of the mean and :math:`\beta_2` of the Hessian's estimates.
    rho : float
        :math:`\rho`: the smaller it is, the more elements take the largest step.
    weight_decay : float
        :math:`\lambda`.
    eps : float
        :math:`\epsilon`. Where the Hessian is below it, as before the first estimate, elements step by their sign.
    decoupled_weight_decay : bool
        False: add ``weight_decay * p`` to the gradient instead.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: to train language models, where an estimate of the curvature every ten steps or so can be paid for: the
    estimate is yours to compute. Steep directions then get short steps and flat ones long steps, up to a limit.

    References
    ----------
    Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, ICLR 2024.
    Settings are those of the authors' SophiaG, whose step takes the batch size where the estimates have it here.
    """

    ranges: ClassVar[dict[str, Interval]] = {**AdamFamily.ranges, "rho": NONNEGATIVE}
    # An estimate may come before the first step.
    eager_state = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        eps: float = 1e-15,
        *,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay, {"rho": rho}, **common)

    def rule(self, group: dict[str, Any]) -> str:
        return "sophia"

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return group["lr"], group["betas"][0], group["rho"], group["eps"]

    def update_hessian(self, hessians: Any) -> None:
        """Take an estimate of the Hessian's diagonal into the running one.

        Parameters
        ----------
        hessians : list, dict or tree
            Estimates in the structure of the parameters, of their dtypes and shapes, or as a flat list; None in place
            of one leaves its parameter's as it is. With ``maximize`` they are those of the negative objective.

        Raises
        ------
        TypeError, ValueError
            Their structure, a dtype or a shape differs from the parameters'. Nothing has changed then.
        """
        if hessians is None:
            raise TypeError("update_hessian: hessians is None, expected estimates in the structure of params")
        try:
            flat = self._usable(self._gather(hessians))
        except (TypeError, ValueError) as error:  # one look at structures and arrays, which names a step's
            message = str(error).replace("step:", "update_hessian:").replace(" grads", " hessians")
            raise type(error)(message) from None
        for plan in self._refresh():
            estimates = [None if flat[i] is None else self._as_state(i, flat[i]) for i in plan.index]
            states = [in_layout(self._dense[i], self._state[i], "hessian") for i in plan.index]
            coefs = np.array([self._average(self.param_groups[self._rows[r].group]) for r in plan.rows])
            native = self._placement.plan("sgd", states, [], None)
            self._placement.step(native, estimates, coefs, plan.sets, NO_TAIL)

    @staticmethod
    def _average(group: dict[str, Any]) -> tuple[float, ...]:
        """Return the coefficients of plain descent with which it averages."""
        beta2 = group["betas"][1]
        return bare(1.0, beta2 - 1.0, beta2)

    def _as_state(self, i: int, estimate: Any) -> Any:
        """Return the estimate of parameter i in the dtype of its state."""
        dense = self._dense[i]
        dtype = computed_dtype(dense)
        if dense.source.dtype == dtype:
            return estimate
        wide = dense.arrange(zeros_for(dense, dtype))
        assign(wide, estimate)
        return wide
