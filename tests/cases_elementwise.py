"""Rows of the table in cases_optim.py: rules element by element that came after torch's.

"rules" are native rules that a class uses besides its own; "parabola" and "rosenbrock" the settings with which it
minimises those, where the usual ones do not serve.
"""

from __future__ import annotations

from typing import Any

#: All but ASGD.
TORCH_HAS_NO = (
    "Yogi",
    "ADOPT",
    "AdEMAMix",
    "Adan",
    "Sophia",
    "SGDScheduleFree",
    "AdamWScheduleFree",
    "Prodigy",
    "Ftrl",
)


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
    schedule_free_errors = [
        ({"warmup_steps": -1}, r"warmup_steps must be in \[0, inf\), got -1"),
        ({"r": float("nan")}, r"r must be in \(-inf, inf\), got nan"),
        ({"weight_lr_power": -2.0}, r"weight_lr_power must be in \[0, inf\), got -2.0"),
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
        "Ftrl": {
            "options": [
                {},
                {
                    "lr": 0.3,
                    "l1_regularization_strength": 2.0,
                    "l2_regularization_strength": 0.3,
                    "beta": 1.0,
                },
                {
                    "lr": 0.3,
                    "l2_shrinkage_regularization_strength": 0.02,
                    "initial_accumulator_value": 2.0,
                    "weight_decay": 0.1,
                    "decoupled_weight_decay": True,
                },
                {"lr": 0.3, "learning_rate_power": -0.3, "l1_regularization_strength": 0.5},
                {"lr": 0.02, "learning_rate_power": 0.0, "initial_accumulator_value": 0.0, "beta": 0.1},
                {"lr": 0.3, **coupled},
                {"lr": 0.3, **regularised},
                {"lr": 0.3, **averaged},
            ],
            "errors": [
                *(error for error in common_errors if "lr" not in error[0]),
                ({"lr": 0.0}, r"lr must be in \(0, inf\), got 0.0"),
                ({"lr": float("nan")}, r"lr must be in \(0, inf\), got nan"),
                ({"learning_rate_power": 0.5}, r"learning_rate_power must be in \(-inf, 0\], got 0.5"),
                (
                    {"initial_accumulator_value": -0.1},
                    r"initial_accumulator_value must be in \[0, inf\), got -0.1",
                ),
                (
                    {"l1_regularization_strength": -1.0},
                    r"l1_regularization_strength must be in \[0, inf\), got -1.0",
                ),
                (
                    {"l2_regularization_strength": float("nan")},
                    r"l2_regularization_strength must be in \[0, inf\), got nan",
                ),
                (
                    {"l2_shrinkage_regularization_strength": -1.0},
                    r"l2_shrinkage_regularization_strength must be in \[0, inf\), got -1.0",
                ),
                ({"beta": -1.0}, r"beta must be in \[0, inf\), got -1.0"),
                ({"weight_decay_mode": "fixed"}, r"weight_decay_mode must be one of .*, got 'fixed'"),
            ],
            "parabola": {"lr": 0.5},
            "rosenbrock": ({"lr": 0.3}, 5e-3),
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
        "Sophia": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.8, 0.95), "rho": 0.5, "eps": 0.3, "weight_decay": 0.3},
                {"lr": 0.02, "eps": 0.1, "decoupled_weight_decay": False, **coupled},
                {"lr": 0.02, "eps": 0.1, **regularised},
                {"lr": 0.02, "eps": 0.1, **averaged},
            ],
            "errors": [
                *common_errors,
                *betas_errors,
                ({"rho": float("nan")}, r"rho must be in \[0, inf\), got nan"),
            ],
            # Without estimates of the Hessian it is momentum with a limit.
            "parabola": {"lr": 0.1, "eps": 10.0, "weight_decay": 0.0},
            "rosenbrock": ({"lr": 1e-3, "eps": 0.5, "weight_decay": 0.0}, 5e-3),
        },
        "SGDScheduleFree": {
            "options": [
                {"lr": 0.1},
                {"lr": 0.1, "momentum": 0.7, "warmup_steps": 7, "r": 1.5, "weight_lr_power": 1.0},
                {"lr": 0.05, "warmup_steps": 3, **coupled},
                {"lr": 0.1, **regularised},
                {"lr": 0.1, "ema_decay": 0.9},
            ],
            "errors": [
                *common_errors,
                ({"momentum": 0.0}, r"momentum must be in \(0, 1\), got 0.0"),
                ({"momentum": 1.0}, r"momentum must be in \(0, 1\), got 1.0"),
                *schedule_free_errors,
            ],
            "parabola": {"lr": 0.3},
            "rosenbrock": ({"lr": 3e-3, "momentum": 0.98}, 5e-3),
        },
        "AdamWScheduleFree": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3, "warmup_steps": 7},
                {"lr": 0.02, "r": 1.5, "weight_lr_power": 0.0, **coupled},
                {"lr": 0.02, **regularised},
                {"lr": 0.02, "weight_decay": 0.1, "ema_decay": 0.9},
            ],
            "errors": [
                *common_errors,
                *(error for error in betas_errors if error[0].get("betas") != (1.2, 0.999)),
                ({"betas": (0.0, 0.9)}, r"beta1 must be in \(0, 1\), got 0.0"),
                *schedule_free_errors,
            ],
            "parabola": {"lr": 0.3},
            "rosenbrock": ({"lr": 0.02, "betas": (0.98, 0.999)}, 5e-3),
        },
        "Prodigy": {
            "options": [
                {},
                {
                    "lr": 0.5,
                    "betas": (0.8, 0.95),
                    "beta3": 0.9,
                    "eps": 1e-3,
                    "weight_decay": 0.3,
                    "d0": 1e-3,
                    "d_coef": 2.0,
                    "growth_rate": 1.5,
                },
                {"d0": 1e-3, "use_bias_correction": True, "safeguard_warmup": True, "weight_decay": 0.1},
                {"d0": 1e-3, "decoupled_weight_decay": False, **coupled},
                {"d0": 1e-3, **regularised},
                {"d0": 1e-3, **averaged},
            ],
            "errors": [
                *common_errors,
                *betas_errors,
                ({"beta3": 1.0}, r"beta3 must be in \[0, 1\), got 1.0"),
                ({"d0": 0.0}, r"d0 must be in \(0, inf\), got 0.0"),
                ({"d_coef": -1.0}, r"d_coef must be in \(0, inf\), got -1.0"),
                ({"growth_rate": 0.5}, r"growth_rate must be in \[1, inf\], got 0.5"),
            ],
            "parabola": {},
            "rosenbrock": ({"lr": 0.05}, 5e-3),
            "rules": {"prodigy_estimate"},
        },
        "SparseAdam": {
            "options": [{}, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "maximize": True}],
            "errors": [
                ({"lr": 0.0}, r"lr must be in \(0, inf\), got 0.0"),
                ({"eps": 0.0}, r"eps must be in \(0, inf\), got 0.0"),
                *(error for error in betas_errors if "betas" in error[0]),
            ],
        },
    }
