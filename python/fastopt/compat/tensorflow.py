"""TensorFlow 1's optimizers (``tf.compat.v1.train``). For TensorFlow 2's, see `fastopt.compat.keras`."""

from __future__ import annotations

from typing import Any

from fastopt import optim


def GradientDescentOptimizer(params: Any, learning_rate: float, **common: Any) -> optim.SGD:
    """Return tf.compat.v1.train.GradientDescentOptimizer."""
    return optim.SGD(params, learning_rate, **common)


def MomentumOptimizer(
    params: Any, learning_rate: float, momentum: float, use_nesterov: bool = False, **common: Any
) -> optim.SGD:
    """Return tf.compat.v1.train.MomentumOptimizer: the rate is outside the momentum, as in torch."""
    options: Any = {"nesterov": use_nesterov and momentum != 0, **common}
    return optim.SGD(params, learning_rate, momentum, **options)


def AdagradOptimizer(
    params: Any, learning_rate: float, initial_accumulator_value: float = 0.1, **common: Any
) -> optim.Adagrad:
    """Return tf.compat.v1.train.AdagradOptimizer: sums start from 0.1, no epsilon."""
    start = {"initial_accumulator_value": initial_accumulator_value, "eps": 0.0}
    options: Any = {**start, **common}
    return optim.Adagrad(params, learning_rate, **options)


def AdadeltaOptimizer(
    params: Any, learning_rate: float = 0.001, rho: float = 0.95, epsilon: float = 1e-8, **common: Any
) -> optim.Adadelta:
    """Return tf.compat.v1.train.AdadeltaOptimizer."""
    return optim.Adadelta(params, learning_rate, rho, epsilon, **common)


def RMSPropOptimizer(
    params: Any,
    learning_rate: float,
    decay: float = 0.9,
    momentum: float = 0.0,
    epsilon: float = 1e-10,
    centered: bool = False,
    **common: Any,
) -> optim.RMSprop:
    """Return tf.compat.v1.train.RMSPropOptimizer.

    Averages start from 1, epsilon is inside the root, and the rate is part of the momentum.
    """
    form = {
        "eps_mode": "inside",
        "momentum_form": "velocity",
        "initial_square_avg": 1.0,
        "centered": centered,
    }
    options: Any = {"momentum": momentum, **form, **common}
    return optim.RMSprop(params, learning_rate, decay, epsilon, **options)


def AdamOptimizer(
    params: Any,
    learning_rate: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    **common: Any,
) -> optim.Adam:
    """Return tf.compat.v1.train.AdamOptimizer: epsilon beside moments that are not corrected."""
    options = {"eps_mode": "hat", **common}
    return optim.Adam(params, learning_rate, (beta1, beta2), epsilon, **options)
