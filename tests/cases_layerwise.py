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
