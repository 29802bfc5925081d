"""The optimizers of the table in cases.py.

By class: "options" are rows of settings (each is run against the reference, torch, and itself with other threads and
instruction sets), "errors" are settings that are refused, with the message.
"""

from __future__ import annotations

import cases_compat
import cases_elementwise
from cases_layerwise import layerwise, matrices

COUPLED = {"maximize": True, "weight_decay": 0.05173}
REGULARISED = {"l1": 0.01, "max_norm": 20.0, "clip_value": 0.5}
AVERAGED = {"ema_decay": 0.9, "weight_decay": 0.1, "decoupled_weight_decay": True}
COMMON_ERRORS = [
    ({"lr": -0.1}, r"lr must be in \[0, inf\), got -0.1"),
    ({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan"),
    ({"lr": float("inf")}, r"lr must be in \[0, inf\), got inf"),
    ({"lr": "fast"}, r"lr must be a number, got 'fast'"),
    ({"weight_decay": -1e-3}, r"weight_decay must be in \[0, inf\), got -0.001"),
    ({"l1": float("nan")}, r"l1 must be in \[0, inf\), got nan"),
    ({"max_norm": 0.0}, r"max_norm must be in \(0, inf\), got 0.0"),
    ({"max_norm": float("nan")}, r"max_norm must be in \(0, inf\), got nan"),
    ({"clip_value": -1.0}, r"clip_value must be in \(0, inf\), got -1.0"),
    ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
]
BETAS_ERRORS = [
    ({"betas": (1.2, 0.999)}, r"beta1 must be in \[0, 1\), got 1.2"),
    ({"betas": (0.9, 1.0)}, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"betas": (0.9, float("nan"))}, r"beta2 must be in \[0, 1\), got nan"),
    ({"betas": 0.9}, r"betas must be a pair of numbers, got 0.9"),
    ({"eps": -1e-8}, r"eps must be in \[0, inf\), got -1e-08"),
]

OPTIMIZERS = {
    "SGD": {
        "options": [
            {"lr": 0.1},
            {"lr": 0.1, "momentum": 0.9},
            {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True},
            {"lr": 0.1, "momentum": 0.9, "momentum_form": "velocity"},
            {"lr": 0.1, "momentum": 0.9, "momentum_form": "velocity", "nesterov": True},
            {"lr": 0.1, "momentum": 0.9, "momentum_form": "ewma"},
            {"lr": 0.1, "momentum": 0.9, "momentum_form": "ewma", "nesterov": True},
            {"lr": 0.05, "momentum": 0.9, **COUPLED},
            {"lr": 0.05, "momentum": 0.9, **REGULARISED},
            {"lr": 0.05, "momentum": 0.9, "nesterov": True, **AVERAGED},
        ],
        "errors": [
            *COMMON_ERRORS,
            ({"momentum": -0.9}, r"momentum must be in \[0, inf\), got -0.9"),
            ({"momentum": 0.9, "dampening": float("nan")}, r"dampening must be in \(-inf, inf\), got nan"),
            ({"nesterov": True}, r"nesterov needs momentum and no dampening, got momentum 0"),
            ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"no dampening, .* and dampening 0.1"),
            ({"momentum_form": "heavy"}, r"momentum_form must be one of .*, got 'heavy'"),
            (
                {"momentum": 0.9, "momentum_form": "ewma", "dampening": 0.5},
                r"dampening belongs to momentum_form 'torch', got 0.5 with 'ewma'",
            ),
        ],
    },
    "Adagrad": {
        "options": [
            {"lr": 0.1},
            {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-4},
            {"lr": 0.1, **COUPLED},
            {"lr": 0.1, **REGULARISED},
            {"lr": 0.1, **AVERAGED},
        ],
        "errors": [
            *COMMON_ERRORS,
            ({"lr_decay": -0.1}, r"lr_decay must be in \[0, inf\), got -0.1"),
            (
                {"initial_accumulator_value": -1.0},
                r"initial_accumulator_value must be in \[0, inf\), got -1.0",
            ),
            ({"eps": float("nan")}, r"eps must be in \[0, inf\), got nan"),
        ],
    },
    "Adadelta": {
        "options": [
            {},
            {"lr": 0.5, "rho": 0.8, "eps": 1e-3},
            {"lr": 0.5, **COUPLED},
            {"lr": 0.5, **REGULARISED},
            {"lr": 0.5, **AVERAGED},
        ],
        "errors": [
            *COMMON_ERRORS,
            ({"rho": 1.5}, r"rho must be in \[0, 1\], got 1.5"),
            ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
        ],
    },
    "RMSprop": {
        "options": [
            {"lr": 0.02},
            {"lr": 0.02, "alpha": 0.8, "eps": 1e-3},
            {"lr": 0.02, "momentum": 0.9},
            {"lr": 0.02, "centered": True, "alpha": 0.9},
            {"lr": 0.02, "centered": True, "momentum": 0.9},
            {"lr": 0.02, "momentum": 0.5, **COUPLED},
            {"lr": 0.02, **REGULARISED},
            {"lr": 0.02, "centered": True, "momentum": 0.5, **AVERAGED},
        ],
        "errors": [
            *COMMON_ERRORS,
            ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
            ({"momentum": float("inf")}, r"momentum must be in \[0, inf\), got inf"),
            ({"eps": -1.0}, r"eps must be in \[0, inf\), got -1.0"),
        ],
    },
    "Adam": {
        "options": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
            {"lr": 0.02, "amsgrad": True, "betas": (0.9, 0.6)},
            {"lr": 0.02, **COUPLED},
            {"lr": 0.02, **REGULARISED},
            {"lr": 0.02, "amsgrad": True, **AVERAGED},
        ],
        "errors": [*COMMON_ERRORS, *BETAS_ERRORS],
    },
    "AdamW": {
        "options": [
            {},
            {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-3, "maximize": True},
            {"lr": 0.02, "weight_decay": 0.3, "amsgrad": True, "ema_decay": 0.9},
            {"lr": 0.02, **REGULARISED},
        ],
        "errors": [*COMMON_ERRORS, *BETAS_ERRORS],
    },
    "NAdam": {
        "options": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.1},
            {"lr": 0.02, **COUPLED},
            {"lr": 0.02, **REGULARISED},
            {"lr": 0.02, **AVERAGED},
        ],
        "errors": [
            *COMMON_ERRORS,
            *BETAS_ERRORS,
            ({"momentum_decay": -0.1}, r"momentum_decay must be in \[0, inf\), got -0.1"),
        ],
    },
    "Adamax": {
        "options": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.6), "eps": 1e-3},
            {"lr": 0.02, **COUPLED},
            {"lr": 0.02, **REGULARISED},
            {"lr": 0.02, **AVERAGED},
        ],
        "errors": [*COMMON_ERRORS, *BETAS_ERRORS],
    },
    "RAdam": {
        "options": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3},
            {"lr": 0.02, "betas": (0.9, 0.5)},
            {"lr": 0.02, **COUPLED},
            {"lr": 0.02, **REGULARISED},
            {"lr": 0.02, **AVERAGED},
        ],
        "errors": [*COMMON_ERRORS, *BETAS_ERRORS],
    },
    "Rprop": {
        "options": [
            {},
            {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.05, 0.3), "maximize": True},
            {"lr": 0.02, "l1": 0.01, "clip_value": 0.5, "ema_decay": 0.9},
        ],
        "errors": [
            *(error for error in COMMON_ERRORS if "weight_decay" not in error[0]),
            ({"etas": (1.0, 1.2)}, r"etas\[0\] must be in \(0, 1\), got 1.0"),
            ({"etas": (0.5, 1.0)}, r"etas\[1\] must be in \(1, inf\), got 1.0"),
            ({"etas": 0.5}, r"etas must be a pair of numbers, got 0.5"),
            ({"step_sizes": (0.0, 1.0)}, r"step_sizes\[0\] must be in \(0, inf\), got 0.0"),
            ({"step_sizes": (1.0, 0.5)}, r"step_sizes must not fall, got 1.0 and 0.5"),
        ],
    },
    "Lion": {
        "options": [
            {},
            {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3, "maximize": True},
            {"lr": 0.01, **REGULARISED},
            {"lr": 0.01, "weight_decay": 0.1, "ema_decay": 0.9},
        ],
        "errors": [*COMMON_ERRORS, *(error for error in BETAS_ERRORS if "eps" not in error[0])],
    },
    "AdaBelief": {
        "options": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
            {"lr": 0.02, "decoupled_weight_decay": False, **COUPLED},
            # Clipped gradients hardly stray from their average: what is left of them is rounding.
            {"lr": 0.02, "eps": 1e-3, **REGULARISED},
            {"lr": 0.02, **AVERAGED},
        ],
        "errors": [*COMMON_ERRORS, *BETAS_ERRORS],
    },
    **layerwise(COMMON_ERRORS, BETAS_ERRORS),
    **matrices(),
    "LBFGS": {
        "options": [
            {"lr": 0.1},
            {"line_search_fn": "strong_wolfe"},
            {"max_iter": 7, "max_eval": 12, "history_size": 2, "lr": 0.5, "line_search_fn": "strong_wolfe"},
            {"max_iter": 4, "tolerance_grad": 1e-3, "tolerance_change": 1e-4, "lr": 0.2},
        ],
        "errors": [
            ({"lr": float("nan")}, r"lr must be in \[0, inf\), got nan"),
            ({"max_iter": 0}, r"max_iter must be in \[1, inf\), got 0"),
            ({"max_eval": -3}, r"max_eval must be in \[1, inf\), got -3"),
            ({"tolerance_grad": -1.0}, r"tolerance_grad must be in \[0, inf\), got -1.0"),
            ({"tolerance_change": float("nan")}, r"tolerance_change must be in \[0, inf\), got nan"),
            ({"history_size": 0}, r"history_size must be in \[1, inf\), got 0"),
            ({"line_search_fn": "armijo"}, r"line_search_fn must be None or 'strong_wolfe', got 'armijo'"),
        ],
    },
}
OPTIMIZERS |= cases_elementwise.rows(COUPLED, REGULARISED, AVERAGED, COMMON_ERRORS, BETAS_ERRORS)
cases_compat.extend(OPTIMIZERS)
