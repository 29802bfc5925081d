"""Keras 3's optimizers: ``weight_decay`` is decoupled in all of them, and epsilon is 1e-7.

Each takes ``weight_decay``, ``clipnorm`` (of each gradient by itself), ``clipvalue`` and ``global_clipnorm`` besides
its own arguments. Norms are limited as torch does it, by ``norm / (norm + 1e-6)`` more than in Keras.
"""

from __future__ import annotations

from typing import Any

from fastopt import optim


def _common(
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    **common: Any,
) -> dict[str, Any]:
    """Return Keras's arguments that all optimizers share as ours."""
    if clipnorm is not None and global_clipnorm is not None:
        raise ValueError(
            f"only one of clipnorm, global_clipnorm may be set, got {clipnorm} and {global_clipnorm}"
        )
    if clipnorm is not None:
        common |= {"max_norm": clipnorm, "clip_scope": "parameter"}
    elif global_clipnorm is not None:
        common["max_norm"] = global_clipnorm
    decay = {"weight_decay": weight_decay or 0.0, "weight_decay_mode": "decoupled"}
    return {**decay, "clip_value": clipvalue, **common}


def SGD(
    params: Any, learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False, **common: Any
) -> optim.SGD:
    """Return keras.optimizers.SGD: the rate is part of the velocity."""
    look_ahead = nesterov and momentum != 0.0
    form: Any = {"momentum_form": "velocity", "nesterov": look_ahead}
    return optim.SGD(params, learning_rate, momentum, **form, **_common(**common))


def Adam(
    params: Any,
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    **common: Any,
) -> optim.Adam:
    """Return keras.optimizers.Adam: epsilon beside moments that are not corrected."""
    options = {"amsgrad": amsgrad, "eps_mode": "hat", **_common(**common)}
    return optim.Adam(params, learning_rate, (beta_1, beta_2), epsilon, **options)


def AdamW(
    params: Any,
    learning_rate: float = 0.001,
    weight_decay: float | None = 0.004,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    **common: Any,
) -> optim.Adam:
    """Return keras.optimizers.AdamW."""
    common["weight_decay"] = weight_decay
    return Adam(params, learning_rate, beta_1, beta_2, epsilon, amsgrad, **common)


def Adamax(
    params: Any,
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    **common: Any,
) -> optim.Adamax:
    """Return keras.optimizers.Adamax: epsilon added to the norm."""
    options = {"eps_mode": "outside", **_common(**common)}
    return optim.Adamax(params, learning_rate, (beta_1, beta_2), epsilon, **options)


def Nadam(
    params: Any,
    learning_rate: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    **common: Any,
) -> optim.NAdam:
    """Return keras.optimizers.Nadam: the momentum's schedule runs 250 times as fast as torch's."""
    options = {"momentum_decay": 1.0, **_common(**common)}
    return optim.NAdam(params, learning_rate, (beta_1, beta_2), epsilon, **options)


def RMSprop(
    params: Any,
    learning_rate: float = 0.001,
    rho: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-7,
    centered: bool = False,
    **common: Any,
) -> optim.RMSprop:
    """Return keras.optimizers.RMSprop: epsilon inside the root, the rate part of the momentum."""
    form = {"centered": centered, "eps_mode": "inside", "momentum_form": "velocity"}
    options: Any = {"momentum": momentum, **form, **_common(**common)}
    return optim.RMSprop(params, learning_rate, rho, epsilon, **options)


def Adagrad(
    params: Any,
    learning_rate: float = 0.001,
    initial_accumulator_value: float = 0.1,
    epsilon: float = 1e-7,
    **common: Any,
) -> optim.Adagrad:
    """Return keras.optimizers.Adagrad: sums start from 0.1, epsilon inside the root."""
    start = {"initial_accumulator_value": initial_accumulator_value, "eps": epsilon, "eps_mode": "inside"}
    options: Any = {**start, **_common(**common)}
    return optim.Adagrad(params, learning_rate, **options)


def Adadelta(
    params: Any, learning_rate: float = 0.001, rho: float = 0.95, epsilon: float = 1e-7, **common: Any
) -> optim.Adadelta:
    """Return keras.optimizers.Adadelta."""
    return optim.Adadelta(params, learning_rate, rho, epsilon, **_common(**common))


def Ftrl(
    params: Any,
    learning_rate: float = 0.001,
    learning_rate_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1_regularization_strength: float = 0.0,
    l2_regularization_strength: float = 0.0,
    l2_shrinkage_regularization_strength: float = 0.0,
    beta: float = 0.0,
    **common: Any,
) -> optim.Ftrl:
    """Return keras.optimizers.Ftrl."""
    return optim.Ftrl(
        params,
        learning_rate,
        learning_rate_power,
        initial_accumulator_value,
        l1_regularization_strength,
        l2_regularization_strength,
        l2_shrinkage_regularization_strength,
        beta,
        **_common(**common),
    )


def Lion(
    params: Any, learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, **common: Any
) -> optim.Lion:
    """Return keras.optimizers.Lion."""
    return optim.Lion(params, learning_rate, (beta_1, beta_2), **_common(**common))
