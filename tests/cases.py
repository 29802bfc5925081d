"""The table that tests and benchmarks run over: one row per activation, loss, optimizer and scheduler."""

from __future__ import annotations

from cases_optim import OPTIMIZERS as OPTIMIZERS

# ---------------------------------------------------------------------------------------------------
# ACTIVATIONS
# ---------------------------------------------------------------------------------------------------

#: name -> rows of parameters. The first row is torch's defaults.
ACTIVATIONS: dict[str, list[tuple[float, ...]]] = {
    "relu": [()],
    "leaky_relu": [(0.01,), (0.0,), (0.3,), (-0.5,)],
    "sigmoid": [()],
    "tanh": [()],
    "gelu": [()],
    "gelu_tanh": [()],
    "silu": [()],
    "elu": [(1.0,), (0.5,), (-1.5,)],
    "softplus": [(1.0, 20.0), (2.0, 5.0), (-0.7, 20.0), (1.0, float("inf"))],
}

#: Refused parameters: name, params, error, pattern of its message.
ACTIVATION_ERRORS: list[tuple[str, tuple[float, ...], type[Exception], str]] = [
    ("swish", (), ValueError, r"activation: name is 'swish', expected one of relu, leaky_relu, "),
    ("relu", (1.0,), TypeError, r"relu: params has 1 entries, expected 0"),
    ("leaky_relu", (0.1, 0.2), TypeError, r"leaky_relu: params has 2 entries, expected 1"),
    ("leaky_relu", (float("nan"),), ValueError, r"leaky_relu: negative_slope must be finite, got nan"),
    ("elu", (float("inf"),), ValueError, r"elu: alpha must be finite, got inf"),
    ("softplus", (0.0, 20.0), ValueError, r"softplus: beta must not be 0, got 0\.0"),
    ("softplus", (1.0, float("nan")), ValueError, r"softplus: threshold must be finite, got nan"),
]

# ---------------------------------------------------------------------------------------------------
# BATCH NORMALISATION
# ---------------------------------------------------------------------------------------------------

#: Shapes of the input: around tiles, rows taken together, blocks of rows and threads' pieces.
BATCH_NORM_SHAPES: list[tuple[int, ...]] = [
    (2, 1),
    (3, 2),
    (17, 1),
    (70_003, 1),
    (5, 7),
    (4097, 3),
    (37, 128),
    (38, 129),
    (64, 256),
    (9, 257),
    (300, 511),
    (65, 513),
    (130, 1030),
    (6, 5, 4),
    (1, 3, 9),
]

#: Options of `BatchNorm1d`, each away from its default.
BATCH_NORM: list[dict[str, object]] = [
    {},
    {"eps": 0.3},
    {"momentum": 0.7},
    {"momentum": 0.0},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "eps": 1e-2},
]

#: Refused arguments of `batch_norm` on an input of shape (4, 3) with all of them: overridden arguments, error, pattern
#: of its message.
BATCH_NORM_ERRORS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"input": (3,)}, ValueError, r"input has shape \(3,\), expected \(N, C\) or \(N, C, L\)"),
    ({"input": (2, 3, 4, 5)}, ValueError, r"input has shape \(2, 3, 4, 5\), expected"),
    ({"input": (1, 3)}, ValueError, r"input has shape \(1, 3\), 1 value per channel: training needs more"),
    ({"input": (1, 3, 1)}, ValueError, r"1 value per channel"),
    ({"input": (0, 3)}, ValueError, r"0 values per channel"),
    ({"input": (4, 2)}, ValueError, r"weight has shape \(3,\), input has 2 channels"),
    ({"weight": (4,)}, ValueError, r"weight has shape \(4,\), input has 3 channels"),
    ({"bias": (3, 1)}, ValueError, r"bias has shape \(3, 1\), input has 3 channels"),
    ({"running_mean": (2,)}, ValueError, r"running_mean has shape \(2,\), input has 3 channels"),
    ({"running_var": None}, ValueError, r"running_mean and running_var go together"),
    (
        {"running_mean": None, "running_var": None, "training": False},
        ValueError,
        r"training=False needs them",
    ),
    ({"eps": -1e-5}, ValueError, r"eps must be finite and at least 0, got -1e-05"),
    ({"eps": float("nan")}, ValueError, r"eps must be finite and at least 0, got nan"),
    ({"momentum": float("inf")}, ValueError, r"momentum must be finite and at least 0, got inf"),
    ({"bias": "float64"}, TypeError, r"bias is float64, weight is float32"),
    ({"running_var": "float64"}, TypeError, r"running_var is float64, weight is float32"),
    ({"weight": "int64"}, TypeError, r"weight is int64, expected floating-point numbers"),
]

# ---------------------------------------------------------------------------------------------------
# LOSSES
# ---------------------------------------------------------------------------------------------------

#: name -> rows of parameters, and what the targets are: any number, a probability, or its logarithm.
LOSSES: dict[str, tuple[list[tuple[float, ...]], str]] = {
    "mse": ([()], "number"),
    "l1": ([()], "number"),
    "smooth_l1": ([(1.0,), (0.25,), (0.0,)], "number"),
    "huber": ([(1.0,), (0.25,), (3.0,)], "number"),
    "bce": ([()], "probability"),
    "bce_with_logits": ([(1.0,), (2.5,), (0.0,)], "probability"),
    "kl_div": ([()], "probability"),
    "kl_div_log": ([()], "log_probability"),
    "poisson_nll": ([()], "number"),
    "quantile": ([(0.5,), (0.1,), (0.875,)], "number"),
    "sigmoid_focal": ([(0.25, 2.0), (-1.0, 0.0), (1.0, 0.5)], "probability"),
}

#: Options of cross_entropy that are tried together with each kind of target and each reduction.
CROSS_ENTROPY: list[dict[str, object]] = [
    {},
    {"weight": True},
    {"label_smoothing": 0.1},
    {"weight": True, "label_smoothing": 0.3},
    {"label_smoothing": 1.0},
    {"ignore_index": 0},
    {"weight": True, "ignore_index": 2, "label_smoothing": 0.2},
]

#: Refused arguments of `loss` on inputs of shape (2, 3): overridden arguments, error, pattern of its message.
LOSS_ERRORS: list[tuple[str, dict[str, object], type[Exception], str]] = [
    ("hinge", {}, ValueError, r"loss: name is 'hinge', expected one of mse, l1, "),
    ("mse", {"params": (1.0,)}, TypeError, r"mse: params has 1 entries, expected 0"),
    (
        "mse",
        {"reduction": "batchmean"},
        ValueError,
        r"mse: reduction must be one of none, mean, sum, got 'batchmean'",
    ),
    ("kl_div", {"reduction": "max"}, ValueError, r"kl_div: reduction must be .*batchmean, got 'max'"),
    ("huber", {"params": (0.0,)}, ValueError, r"huber: delta must be above 0, got 0\.0"),
    ("huber", {"params": (float("nan"),)}, ValueError, r"huber: delta must be finite, got nan"),
    ("quantile", {"params": (1.0,)}, ValueError, r"quantile: quantile must be in \(0, 1\), got 1\.0"),
    (
        "sigmoid_focal",
        {"params": (1.5, 2.0)},
        ValueError,
        r"sigmoid_focal: alpha must be at most 1, got 1\.5",
    ),
    (
        "sigmoid_focal",
        {"params": (0.5, -1.0)},
        ValueError,
        r"sigmoid_focal: gamma must be at least 0, got -1\.0",
    ),
    ("smooth_l1", {"params": (-1.0,)}, ValueError, r"smooth_l1: beta must be at least 0, got -1\.0"),
    (
        "bce_with_logits",
        {"params": (float("inf"),)},
        ValueError,
        r"bce_with_logits: pos_weight must be finite",
    ),
]

# ---------------------------------------------------------------------------------------------------
# SCHEDULERS
# ---------------------------------------------------------------------------------------------------
# By class, as OPTIMIZERS. A row may name the "optimizer" that is scheduled; it is SGD with momentum otherwise.

SCHEDULERS = {
    "LambdaLR": {
        "options": [{"lr_lambda": lambda t: 0.95**t}, {"lr_lambda": lambda t: 1 / (1 + t)}],
        "errors": [
            ({"lr_lambda": [abs, abs]}, r"lr_lambda has 2 entries, the optimizer has 1 groups"),
            ({"lr_lambda": 0.5}, r"lr_lambda\[0\] is float, expected a function"),
        ],
    },
    "StepLR": {
        "options": [{"step_size": 7}, {"step_size": 1, "gamma": 0.5}],
        "errors": [
            ({"step_size": 0}, r"step_size must be an integer of at least 1, got 0"),
            ({"step_size": 3, "gamma": float("nan")}, r"gamma must be finite, got nan"),
            ({"step_size": 3, "gamma": "half"}, r"gamma must be a number, got 'half'"),
        ],
    },
    "MultiStepLR": {
        "options": [{"milestones": [3, 10, 11]}, {"milestones": [20, 5, 5], "gamma": 0.7}],
        "errors": [
            ({"milestones": [1], "gamma": float("inf")}, r"gamma must be finite, got inf"),
            ({"milestones": [1, float("nan")]}, r"milestones must be finite, got nan"),
        ],
    },
    "ConstantLR": {
        "options": [{}, {"factor": 0.25, "total_iters": 12}],
        "errors": [
            ({"factor": 1.5}, r"factor must be in \[0, 1\], got 1.5"),
            ({"factor": "half"}, r"factor must be a number, got 'half'"),
            ({"total_iters": float("nan")}, r"total_iters must be finite, got nan"),
        ],
    },
    "LinearLR": {
        "options": [{}, {"start_factor": 0.9, "end_factor": 0.1, "total_iters": 31}],
        "errors": [
            ({"start_factor": 0.0}, r"start_factor must be in \(0, 1\], got 0.0"),
            ({"end_factor": -0.1}, r"end_factor must be in \[0, 1\], got -0.1"),
            ({"total_iters": 0}, r"total_iters must be an integer of at least 1, got 0"),
        ],
    },
    "ExponentialLR": {
        "options": [{"gamma": 0.9}, {"gamma": 1.01}],
        "errors": [({"gamma": float("nan")}, r"gamma must be finite, got nan")],
    },
    "PolynomialLR": {
        "options": [{}, {"total_iters": 40, "power": 2.5}],
        "errors": [({"total_iters": -4}, r"total_iters must be an integer of at least 1, got -4")],
    },
    "CosineAnnealingLR": {
        "options": [{"T_max": 13}, {"T_max": 60, "eta_min": 0.01}],
        "errors": [
            ({"T_max": 0}, r"T_max must be an integer of at least 1, got 0"),
            ({"T_max": 5, "eta_min": float("nan")}, r"eta_min must be finite, got nan"),
        ],
    },
    "CosineAnnealingWarmRestarts": {
        "options": [{"T_0": 7}, {"T_0": 4, "T_mult": 2, "eta_min": 0.01}, {"T_0": 1, "T_mult": 3}],
        "errors": [
            ({"T_0": 0}, r"T_0 must be an integer of at least 1, got 0"),
            ({"T_0": 5, "T_mult": 0.5}, r"T_mult must be an integer of at least 1, got 0.5"),
        ],
    },
    "WarmupCosineLR": {
        "options": [
            {"warmup_steps": 5, "total_steps": 50},
            {"warmup_steps": 0, "total_steps": 70, "eta_min": 0.01},
            {"warmup_steps": 9, "total_steps": 40, "eta_min": 0.02, "start_factor": 0.1},
            {"warmup_steps": 20, "total_steps": 20},
        ],
        "errors": [
            ({"warmup_steps": 9, "total_steps": 4}, r"warmup_steps must be in \[0, 4\], got 9"),
            ({"warmup_steps": 0, "total_steps": 0}, r"total_steps must be an integer of at least 1, got 0"),
        ],
    },
    "CyclicLR": {
        "options": [
            {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 5},
            {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 4, "step_size_down": 9, "mode": "triangular2"},
            {"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 6, "mode": "exp_range", "gamma": 0.97},
            {
                "base_lr": 0.01,
                "max_lr": 0.3,
                "step_size_up": 6,
                "scale_fn": lambda k: 1 / k,
                "cycle_momentum": False,
            },
            {
                "base_lr": 0.01,
                "max_lr": 0.3,
                "step_size_up": 6,
                "scale_fn": lambda k: 0.9**k,
                "scale_mode": "iterations",
                "base_momentum": 0.5,
                "max_momentum": 0.95,
                "optimizer": "Adam",
            },
        ],
        "errors": [
            ({"base_lr": 0.1, "max_lr": 1.0, "mode": "saw"}, r"mode must be triangular, .*, got 'saw'"),
            ({"base_lr": 0.1, "max_lr": [1.0, 2.0]}, r"max_lr has 2 entries, the optimizer has 1 groups"),
            (
                {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 0},
                r"step_size_up must be an integer of at least 1",
            ),
            (
                {"base_lr": 0.1, "max_lr": 1.0, "step_size_down": 0},
                r"step_size_down must be an integer of at least 1, got 0",
            ),
            ({"base_lr": float("nan"), "max_lr": 1.0}, r"base_lr must be finite, got nan"),
            ({"base_lr": 0.1, "max_lr": float("inf")}, r"max_lr must be finite, got inf"),
            ({"base_lr": 0.1, "max_lr": 1.0, "gamma": float("nan")}, r"gamma must be finite, got nan"),
            (
                {"base_lr": 0.1, "max_lr": 1.0, "base_momentum": float("nan")},
                r"base_momentum must be finite, got nan",
            ),
            (
                {"base_lr": 0.1, "max_lr": 1.0, "optimizer": "Adagrad"},
                r"cycle_momentum needs momentum or betas, Adagrad has none",
            ),
        ],
    },
    "OneCycleLR": {
        "options": [
            {"max_lr": 0.5, "total_steps": 61},
            {"max_lr": 0.5, "epochs": 7, "steps_per_epoch": 9, "anneal_strategy": "linear", "pct_start": 0.4},
            {"max_lr": 0.5, "total_steps": 70, "three_phase": True, "div_factor": 10.0, "optimizer": "AdamW"},
            {"max_lr": 0.5, "total_steps": 64, "final_div_factor": 50.0, "cycle_momentum": False},
            {
                "max_lr": 0.5,
                "total_steps": 64,
                "base_momentum": 0.6,
                "max_momentum": 0.9,
                "optimizer": "NAdam",
            },
        ],
        "errors": [
            ({"max_lr": 0.5}, r"give total_steps, or epochs and steps_per_epoch"),
            ({"max_lr": 0.5, "total_steps": -1}, r"total_steps must be an integer of at least 1, got -1"),
            ({"max_lr": 0.5, "total_steps": 9, "pct_start": 1.5}, r"pct_start must be in \[0, 1\], got 1.5"),
            ({"max_lr": float("nan"), "total_steps": 9}, r"max_lr must be finite, got nan"),
            ({"max_lr": 0.5, "total_steps": 9, "div_factor": 0.0}, r"div_factor must be above 0, got 0.0"),
            (
                {"max_lr": 0.5, "total_steps": 9, "final_div_factor": -1.0},
                r"final_div_factor must be above 0, got -1.0",
            ),
            (
                {"max_lr": 0.5, "total_steps": 9, "anneal_strategy": "exp"},
                r"must be cos or linear, got 'exp'",
            ),
        ],
    },
    "ReduceLROnPlateau": {
        "options": [
            {"patience": 2},
            {"patience": 1, "factor": 0.5, "cooldown": 3, "threshold": 0.05, "threshold_mode": "abs"},
            {"mode": "max", "patience": 0, "factor": 0.3, "min_lr": 0.01, "eps": 1e-3},
            {"mode": "max", "patience": 3, "threshold": 0.01, "threshold_mode": "abs"},
        ],
        "errors": [
            ({"factor": 1.0}, r"factor must be in \[0, 1\), got 1.0"),
            ({"mode": "least"}, r"mode must be min or max, got 'least'"),
            ({"threshold_mode": "half"}, r"threshold_mode must be rel or abs, got 'half'"),
            ({"min_lr": [0.1, 0.1]}, r"min_lr has 2 entries, the optimizer has 1 groups"),
            ({"min_lr": float("nan")}, r"min_lr must be finite, got nan"),
            ({"threshold": float("nan")}, r"threshold must be finite, got nan"),
            ({"patience": float("inf")}, r"patience must be finite, got inf"),
        ],
    },
}
