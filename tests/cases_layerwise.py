"""The optimizers whose update depends on whole parameters: a part of the table in cases_optim.py."""

from __future__ import annotations

from typing import Any


def layerwise(common: list[Any], betas: list[Any]) -> dict[str, dict[str, Any]]:
    """Rows of these optimizers; `common` and `betas` are the errors that they share with others."""
    bounded = {"l1": 0.01, "max_norm": 20.0, "clip_value": 0.5}
    decayed = {"maximize": True, "weight_decay": 0.05173}
    averaged = {"ema_decay": 0.9, "weight_decay": 0.1}
    return {
        "LARS": {
            "options": [
                {"lr": 0.1},
                {"lr": 2.0, "skip_1d": False, "weight_decay": 0.02},
                {"lr": 2.0, "skip_1d": False, "trust_coefficient": 0.02, "eps": 0.1, "momentum": 0.0},
                {"lr": 2.0, "skip_1d": False, "momentum_form": "torch", "dampening": 0.3},
                {"lr": 2.0, "skip_1d": False, "momentum_form": "ewma", "nesterov": True},
                {"lr": 2.0, "skip_1d": False, "ratio": "joint", "nesterov": True, "momentum": 0.8, **decayed},
                {"lr": 2.0, "skip_1d": False, **bounded, **averaged},
            ],
            "errors": [
                *common,
                ({"trust_coefficient": 0.0}, r"trust_coefficient must be in \(0, inf\), got 0.0"),
                ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
                ({"ratio": "both"}, r"ratio must be one of .*, got 'both'"),
                ({"momentum": -0.9}, r"momentum must be in \[0, inf\), got -0.9"),
                ({"momentum_form": "heavy"}, r"momentum_form must be one of .*, got 'heavy'"),
            ],
        },
        "LAMB": {
            "options": [
                {},
                {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "bias_correction": False},
                {"lr": 0.02, "weight_decay": 0.0},
                {"lr": 0.02, "weight_decay": 0.0, "use_nvlamb": True},
                {"lr": 0.02, "max_param_norm": 3.0, **decayed},
                {"lr": 0.02, **bounded, **averaged},
            ],
            "errors": [
                *common,
                *betas,
                ({"max_param_norm": 0.0}, r"max_param_norm must be in \(0, inf\), got 0.0"),
            ],
        },
        "NovoGrad": {
            "options": [
                {},
                {"lr": 0.05, "betas": (0.9, 0.25), "eps": 1e-2, "weight_decay": 0.05},
                {"lr": 0.05, "grad_averaging": True, **decayed},
                {"lr": 0.05, **bounded, **averaged},
            ],
            "errors": [*common, *betas],
        },
    }


def matrices() -> dict[str, dict[str, Any]]:
    """Rows of the optimizers that compute with whole arrays."""
    lr = [
        ({"lr": -0.1}, r"lr must be in \[0, inf\), got -0.1"),
        ({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan"),
        ({"lr": "fast"}, r"lr must be a number, got 'fast'"),
        ({"weight_decay": -1e-3}, r"weight_decay must be in \[0, inf\), got -0.001"),
    ]
    return {
        "Muon": {
            "options": [
                {"lr": 0.02},
                {"lr": 0.02, "nesterov": False, "momentum": 0.8, "weight_decay": 0.3},
                {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 1.0},
                {"lr": 0.02, "adjust_lr_fn": "original", "ns_coefficients": (1.875, -1.25, 0.375)},
            ],
            "errors": [
                *lr,
                ({"momentum": -0.1}, r"momentum must be in \[0, inf\), got -0.1"),
                ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
                ({"ns_steps": 100}, r"ns_steps must be in \[0, 99\], got 100"),
                ({"ns_coefficients": (1.0, 2.0)}, r"ns_coefficients must be three numbers, got \(1.0, 2.0\)"),
                (
                    {"ns_coefficients": (1.0, 2.0, float("nan"))},
                    r"ns_coefficients\[2\] must be in .*, got nan",
                ),
                ({"adjust_lr_fn": "spectral"}, r"adjust_lr_fn must be one of .*, got 'spectral'"),
            ],
        },
        "Adafactor": {
            "options": [
                {},
                {"lr": 0.3, "beta2_decay": -0.5, "eps": (1e-3, 0.1), "d": 1.5, "weight_decay": 0.2},
                {"lr": 0.1, "eps": (0.5, 1e-3), "maximize": True, "foreach": False},
            ],
            "errors": [
                *lr,
                ({"beta2_decay": 0.8}, r"beta2_decay must be in \(-inf, 0\], got 0.8"),
                ({"eps": 1e-3}, r"eps must be a pair of numbers, got 0.001"),
                ({"eps": (-1.0, 1e-3)}, r"eps\[0\] must be in \[0, inf\), got -1.0"),
                ({"eps": (None, None)}, r"eps\[1\] must be a number, got None"),
                ({"d": 0.5}, r"d must be in \[1, inf\), got 0.5"),
            ],
        },
        "SOAP": {
            "options": [
                {},
                {
                    "lr": 0.02,
                    "betas": (0.8, 0.9),
                    "shampoo_beta": 0.7,
                    "eps": 1e-3,
                    "precondition_frequency": 2,
                },
                {"lr": 0.02, "max_precond_dim": 8, "weight_decay": 0.2, "correct_bias": False},
                {"lr": 0.02, "precondition_1d": True, "normalize_grads": True, "precondition_frequency": 3},
            ],
            "errors": [
                *lr,
                ({"betas": (1.2, 0.9)}, r"beta1 must be in \[0, 1\), got 1.2"),
                ({"shampoo_beta": 1.0}, r"shampoo_beta must be in \(-inf, 1\), got 1.0"),
                ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
                ({"precondition_frequency": 0}, r"precondition_frequency must be in \[1, inf\), got 0"),
                ({"max_precond_dim": -1}, r"max_precond_dim must be in \[0, inf\), got -1"),
            ],
        },
    }
