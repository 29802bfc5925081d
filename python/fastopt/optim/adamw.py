"""AdamW."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.optim.adam import Adam, AmsgradMax, EpsMode
from fastopt.optim.rule import Common


class AdamW(Adam):
    r"""AdamW: Adam whose weight decay shrinks the parameters themselves.

    .. math::
        p \leftarrow (1 - \eta \lambda) \, p - \frac{\eta}{1 - \beta_1^t} \,
        \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`m` and :math:`v` as in `Adam`.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `Optimizer`.
    lr : float
        Learning rate :math:`\eta`.
    betas : (float, float)
        Decay of the mean and of the mean square.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`.
    amsgrad : bool
        Never let the denominator's :math:`v` shrink.
    eps_mode, amsgrad_max : str
        As for `Adam`.
    **common
        ``maximize``, ``l1``, ``max_norm``, ``clip_value``, ``ema_decay``; see `Common`.

    Notes
    -----
    When to use: as the first choice wherever weight decay is wanted, transformers above all, with warm-up and a cosine
    schedule (`lr_scheduler.WarmupCosineLR`). Leave biases and gains out of the decay: ``no_decay=("bias", "norm")``.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        eps_mode: EpsMode = "outside",
        amsgrad_max: AmsgradMax = "biased",
        **common: Unpack[Common],
    ) -> None:
        modes: Any = {"decoupled_weight_decay": True, "eps_mode": eps_mode, "amsgrad_max": amsgrad_max}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **modes, **common)
