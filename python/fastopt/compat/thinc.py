"""thinc's optimizers: the gradient of each parameter is limited to norm 1, weights decay after the step.

`grad_clip` limits norms as torch does it, by ``norm / (norm + 1e-6)`` more than thinc; 0 leaves them alone. thinc's
averages of the weights are not kept: see ``ema_decay`` of `fastopt.optim`.
"""

from __future__ import annotations

from typing import Any

from fastopt import optim


def _common(L2: float, grad_clip: float, L2_is_weight_decay: bool, common: dict[str, Any]) -> dict[str, Any]:
    """Return thinc's arguments that all optimizers share as ours."""
    if L2 and grad_clip and not L2_is_weight_decay:
        raise ValueError(
            f"L2_is_weight_decay=False clips the gradient with its penalty: grad_clip must be 0, got {grad_clip}"
        )
    clipping = {"max_norm": grad_clip, "clip_scope": "parameter"} if grad_clip else {}
    mode = "decoupled_after" if L2_is_weight_decay else "l2"
    return {"weight_decay": L2, "weight_decay_mode": mode, **clipping, **common}


def SGD(
    params: Any,
    learn_rate: float,
    *,
    L2: float = 0.0,
    grad_clip: float = 1.0,
    L2_is_weight_decay: bool = True,
    **common: Any,
) -> optim.SGD:
    """Return thinc's SGD, which has no momentum."""
    return optim.SGD(params, learn_rate, **_common(L2, grad_clip, L2_is_weight_decay, common))


def Adam(
    params: Any,
    learn_rate: float = 0.001,
    *,
    L2: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    grad_clip: float = 1.0,
    L2_is_weight_decay: bool = True,
    **common: Any,
) -> optim.Adam:
    """Return thinc's Adam: epsilon beside moments that are not corrected."""
    options = _common(L2, grad_clip, L2_is_weight_decay, {"eps_mode": "hat", **common})
    return optim.Adam(params, learn_rate, (beta1, beta2), eps, **options)


class RAdam(optim.RAdam):
    """thinc's RAdam, whose corrections count one step more than were taken.

    Parameters
    ----------
    params : list, dict, nested tree, (name, array) pairs, or list of groups
        The parameters, updated in place; see `fastopt.optim.Optimizer`.
    learn_rate, beta1, beta2, eps, L2, L2_is_weight_decay, grad_clip
        thinc's.
    **common
        Further arguments of `fastopt.optim.RAdam`.
    """

    def __init__(
        self,
        params: Any,
        learn_rate: float = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        L2: float = 0.0,
        L2_is_weight_decay: bool = True,
        grad_clip: float = 1.0,
        **common: Any,
    ) -> None:
        options = _common(L2, grad_clip, L2_is_weight_decay, common)
        super().__init__(params, learn_rate, (beta1, beta2), eps, **options)

    def coefficients(self, group: dict[str, Any], s: dict[str, float]) -> tuple[float, ...]:
        return super().coefficients(group, {**s, "step": s["step"] + 1.0})
