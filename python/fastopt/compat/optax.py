"""optax's optimizers, by the names of its functions. A rate is a number; schedules set the groups' ``lr``.

Its ``rprop`` is left out: it applies each update one step after the gradient that it belongs to.
"""

from __future__ import annotations

from typing import Any

from fastopt import optim


def _epsilons(eps: float, eps_root: float) -> dict[str, Any]:
    """Return where epsilon is, of optax's two places for it."""
    if eps and eps_root:
        raise ValueError(f"one of eps and eps_root has to be 0, got {eps} and {eps_root}")
    return {"eps": eps_root, "eps_mode": "inside"} if eps_root else {"eps": eps, "eps_mode": "outside"}


def sgd(
    params: Any, learning_rate: float, momentum: float | None = None, nesterov: bool = False, **common: Any
) -> optim.SGD:
    """Return optax.sgd."""
    options: Any = {"nesterov": nesterov and bool(momentum), **common}
    return optim.SGD(params, learning_rate, momentum or 0.0, **options)


def adam(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    nesterov: bool = False,
    **common: Any,
) -> optim.Adam | optim.NAdam:
    """Return optax.adam; with `nesterov` it is `nadam`."""
    if nesterov:
        if eps_root:
            raise ValueError(f"nesterov has no eps_root, got {eps_root}")
        return nadam(params, learning_rate, b1, b2, eps, **common)
    return optim.Adam(params, learning_rate, (b1, b2), **_epsilons(eps, eps_root), **common)


def adamw(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
    *,
    nesterov: bool = False,
    **common: Any,
) -> optim.Adam | optim.NAdam:
    """Return optax.adamw."""
    common |= {"weight_decay": weight_decay, "decoupled_weight_decay": True}
    return adam(params, learning_rate, b1, b2, eps, eps_root, nesterov=nesterov, **common)


def nadam(
    params: Any, learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **common: Any
) -> optim.NAdam:
    """Return optax.nadam: no schedule of the momentum."""
    return optim.NAdam(params, learning_rate, (b1, b2), eps, momentum_decay=None, **common)


def nadamw(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    **common: Any,
) -> optim.NAdam:
    """Return optax.nadamw."""
    common |= {"weight_decay": weight_decay, "decoupled_weight_decay": True}
    return nadam(params, learning_rate, b1, b2, eps, **common)


def amsgrad(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    **common: Any,
) -> optim.Adam:
    """Return optax.amsgrad: the largest of the corrected moments."""
    common |= {"amsgrad": True, "amsgrad_max": "corrected", **_epsilons(eps, eps_root)}
    return optim.Adam(params, learning_rate, (b1, b2), **common)


def adamax(
    params: Any, learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **common: Any
) -> optim.Adamax:
    """Return optax.adamax."""
    return optim.Adamax(params, learning_rate, (b1, b2), eps, **common)


def adamaxw(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    **common: Any,
) -> optim.Adamax:
    """Return optax.adamaxw."""
    common |= {"weight_decay": weight_decay, "decoupled_weight_decay": True}
    return adamax(params, learning_rate, b1, b2, eps, **common)


def radam(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    threshold: float = 5.0,
    **common: Any,
) -> optim.RAdam:
    """Return optax.radam: epsilon beside the corrected moments."""
    options = {"eps_mode": "outside", "threshold": threshold, **common}
    return optim.RAdam(params, learning_rate, (b1, b2), eps, **options)


def adabelief(
    params: Any, learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16, **common: Any
) -> optim.AdaBelief:
    """Return optax.adabelief; `eps` is its eps and its eps_root."""
    return optim.AdaBelief(params, learning_rate, (b1, b2), eps, **common)


def yogi(
    params: Any, learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-3, **common: Any
) -> optim.Yogi:
    """Return optax.yogi."""
    return optim.Yogi(params, learning_rate, (b1, b2), eps, **common)


def rmsprop(
    params: Any,
    learning_rate: float,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    **common: Any,
) -> optim.RMSprop:
    """Return optax.rmsprop: epsilon inside the root, the rate part of the momentum."""
    form = {"centered": centered, "momentum_form": "velocity", "initial_square_avg": initial_scale}
    options: Any = {"momentum": momentum or 0.0, **form, **common}
    options["eps_mode"] = "inside" if eps_in_sqrt else "outside"
    return optim.RMSprop(params, learning_rate, decay, eps, **options)


def adagrad(
    params: Any,
    learning_rate: float,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    **common: Any,
) -> optim.Adagrad:
    """Return optax.adagrad: sums start from 0.1, epsilon inside the root."""
    options: Any = {"initial_accumulator_value": initial_accumulator_value, "eps_mode": "inside", **common}
    return optim.Adagrad(params, learning_rate, eps=eps, **options)


def adadelta(
    params: Any,
    learning_rate: float | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    **common: Any,
) -> optim.Adadelta:
    """Return optax.adadelta."""
    rate = 1.0 if learning_rate is None else learning_rate
    return optim.Adadelta(params, rate, rho, eps, weight_decay, **common)


def lion(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1e-3,
    **common: Any,
) -> optim.Lion:
    """Return optax.lion."""
    return optim.Lion(params, learning_rate, (b1, b2), weight_decay, **common)


def lars(
    params: Any,
    learning_rate: float,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    **common: Any,
) -> optim.LARS:
    """Return optax.lars: the norm of gradient and decay together, vectors scaled too."""
    form = {"trust_coefficient": trust_coefficient, "eps": eps, "ratio": "joint", "skip_1d": False}
    options: Any = {"weight_decay": weight_decay, "nesterov": nesterov, **form, **common}
    return optim.LARS(params, learning_rate, momentum, **options)


def lamb(
    params: Any,
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    **common: Any,
) -> optim.LAMB:
    """Return optax.lamb: parameters without decay are scaled too."""
    options = {"use_nvlamb": True, **common}
    return optim.LAMB(params, learning_rate, (b1, b2), eps, weight_decay, **options)
