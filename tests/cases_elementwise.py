"""Rows of the table in cases_optim.py: rules element by element that came after torch's.

"parabola" and "rosenbrock" are the settings with which a class minimises those, where the usual ones do not serve.
"""

from __future__ import annotations

from typing import Any


def rows(
    coupled: dict[str, Any],
    regularised: dict[str, Any],
    averaged: dict[str, Any],
    common_errors: list[Any],
    betas_errors: list[Any],
) -> dict[str, Any]:
    """Return the rows, made of the settings and errors that all optimizers share."""
    three_betas = [
        *(error for error in betas_errors if "betas" not in error[0]),
        ({"betas": (1.2, 0.9, 0.99)}, r"beta1 must be in \[0, 1\), got 1.2"),
        ({"betas": (0.9, 1.0, 0.99)}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 0.9, float("nan"))}, r"beta3 must be in \[0, 1\), got nan"),
        ({"betas": (0.9, 0.999)}, r"betas must be 3 numbers, got \(0.9, 0.999\)"),
    ]
    return {
        "ASGD": {
            "options": [
                {},
                {"lr": 0.1, "lambd": 0.02, "alpha": 0.6, "t0": 3.0},
                {"lr": 0.05, **coupled, "t0": 10.0},
                {"lr": 0.05, "t0": 0.0, **regularised},
                {"lr": 0.05, "ema_decay": 0.9},
            ],
            "errors": [
                *common_errors,
                ({"lambd": -1e-4}, r"lambd must be in \[0, inf\), got -0.0001"),
                ({"alpha": float("nan")}, r"alpha must be in \[0, inf\), got nan"),
                ({"t0": -1.0}, r"t0 must be in \[0, inf\), got -1.0"),
            ],
            "parabola": {"lr": 0.1},
            "rosenbrock": ({"lr": 2e-3, "lambd": 1e-6}, 5e-3),
        },
        "Yogi": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "initial_accumulator": 0.1},
                {"lr": 0.02, **coupled},
                {"lr": 0.02, **regularised},
                {"lr": 0.02, **averaged},
            ],
            "errors": [
                *common_errors,
                *betas_errors,
                ({"initial_accumulator": -1.0}, r"initial_accumulator must be in \[0, inf\), got -1.0"),
            ],
        },
        "ADOPT": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "clip_exponent": None},
                {"lr": 0.02, "clip_exponent": 0.1, **coupled},
                {"lr": 0.02, **regularised},
                {"lr": 0.02, **averaged},
            ],
            "errors": [
                *common_errors,
                *betas_errors,
                ({"clip_exponent": -0.25}, r"clip_exponent must be in \[0, inf\), got -0.25"),
            ],
            # The mean of quotients by the first gradients' size hardly forgets them.
            "parabola": {"lr": 0.02, "betas": (0.9, 0.99)},
            "rosenbrock": ({"lr": 0.02, "betas": (0.9, 0.99)}, 5e-3),
        },
        "AdEMAMix": {
            "options": [
                {},
                {
                    "lr": 0.02,
                    "betas": (0.8, 0.95, 0.99),
                    "alpha": 5.0,
                    "t_alpha": 20,
                    "t_beta3": 30,
                    "eps": 1e-3,
                },
                {"lr": 0.02, "betas": (0.0, 0.95, 0.9), "t_beta3": 60, "weight_decay": 0.3},
                {"lr": 0.02, "decoupled_weight_decay": False, **coupled},
                {"lr": 0.02, **regularised},
                {"lr": 0.02, **averaged},
            ],
            "errors": [
                *common_errors,
                *three_betas,
                ({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1.0"),
                ({"t_alpha": 0}, r"t_alpha must be in \[1, inf\), got 0"),
                ({"t_beta3": 0.5}, r"t_beta3 must be in \[1, inf\), got 0.5"),
            ],
            "parabola": {"lr": 0.05, "betas": (0.9, 0.999, 0.99)},
            "rosenbrock": ({"lr": 0.01, "betas": (0.9, 0.999, 0.99)}, 5e-3),
        },
        "Adan": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.8, 0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3},
                {"lr": 0.02, "weight_decay": 0.3, "no_prox": True},
                {"lr": 0.02, "decoupled_weight_decay": False, **coupled},
                {"lr": 0.02, **regularised},
                {"lr": 0.02, **averaged},
            ],
            "errors": [*common_errors, *three_betas],
        },
    }
