"""Rows of the optimizers' table for the variants that other libraries have; `fastopt.compat` is made of them."""

from __future__ import annotations

OPTIONS = {
    "SGD": [
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "weight_decay_mode": "decoupled_after"},
        {"lr": 0.1, "weight_decay": 0.01, "weight_decay_mode": "fixed"},
        {"lr": 0.1, "weight_decay": 0.1, "weight_decay_mode": "l2", "decoupled_weight_decay": True},
    ],
    "Adagrad": [{"lr": 0.1, "eps": 1e-3, "eps_mode": "inside", "initial_accumulator_value": 0.1}],
    "RMSprop": [
        {"lr": 0.02, "eps": 1e-3, "eps_mode": "inside", "initial_square_avg": 1.0},
        {"lr": 0.02, "eps": 1e-3, "eps_mode": "inside", "momentum": 0.9, "momentum_form": "velocity"},
        {"lr": 0.02, "momentum": 0.9, "momentum_form": "velocity", "centered": True, "eps_mode": "inside"},
    ],
    "Adam": [
        {"lr": 0.02, "eps": 1e-3, "eps_mode": "hat"},
        {
            "lr": 0.02,
            "eps": 1e-3,
            "eps_mode": "inside",
            "weight_decay_mode": "decoupled",
            "weight_decay": 0.1,
        },
        {"lr": 0.02, "eps": 1e-3, "eps_mode": "hat", "amsgrad": True},
        {"lr": 0.02, "amsgrad": True, "amsgrad_max": "corrected", "betas": (0.9, 0.6)},
        {"lr": 0.02, "amsgrad": True, "amsgrad_max": "corrected", "eps": 1e-3, "eps_mode": "inside"},
    ],
    "AdamW": [
        {
            "lr": 0.02,
            "weight_decay": 0.3,
            "eps": 1e-3,
            "eps_mode": "hat",
            "weight_decay_mode": "decoupled_after",
        }
    ],
    "NAdam": [{"lr": 0.02, "momentum_decay": None}],
    "Adamax": [{"lr": 0.02, "betas": (0.8, 0.6), "eps": 1e-3, "eps_mode": "outside"}],
    "RAdam": [{"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "eps_mode": "outside", "threshold": 4.5}],
}

ERRORS = {
    "SGD": [({"weight_decay_mode": "after"}, r"weight_decay_mode must be one of .*'fixed'\), got 'after'")],
    "Adagrad": [({"eps_mode": "hat"}, r"eps_mode must be one of \('outside', 'inside'\), got 'hat'")],
    "RMSprop": [
        ({"eps_mode": 1}, r"eps_mode must be one of \('outside', 'inside'\), got 1"),
        ({"momentum_form": "ewma"}, r"momentum_form must be one of \('torch', 'velocity'\), got 'ewma'"),
        ({"initial_square_avg": -1.0}, r"initial_square_avg must be in \[0, inf\), got -1.0"),
    ],
    "Adam": [
        ({"eps_mode": "in"}, r"eps_mode must be one of \('outside', 'hat', 'inside'\), got 'in'"),
        ({"amsgrad_max": "both"}, r"amsgrad_max must be one of \('biased', 'corrected'\), got 'both'"),
        (
            {"amsgrad": True, "amsgrad_max": "corrected", "eps_mode": "hat"},
            r"eps_mode 'hat' is of uncorrected moments, got amsgrad_max 'corrected'",
        ),
    ],
    "Adamax": [({"eps_mode": "hat"}, r"eps_mode must be one of \('inside', 'outside'\), got 'hat'")],
    "RAdam": [
        ({"eps_mode": "inside"}, r"eps_mode must be one of \('hat', 'outside'\), got 'inside'"),
        ({"threshold": 3.0}, r"threshold must be in \[4, inf\), got 3.0"),
    ],
}


def extend(optimizers: dict[str, dict[str, list]]) -> None:
    """Add these rows to the table's."""
    for part, rows in (("options", OPTIONS), ("errors", ERRORS)):
        for name, added in rows.items():
            optimizers[name][part] += added
