"""Optimizers and schedules straight from the papers, with torch's conventions, in plain NumPy.

The dtype of the arithmetic is an argument: in float64 this is the oracle, in the dtype under test the plain
baseline whose error the kernels' error is measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import reference_elementwise as elementwise
import reference_layerwise

Array = npt.NDArray[Any]
Options = dict[str, Any]
State = dict[str, Any]

#: The settings of each class where a row of the table does not give them.
DEFAULTS: dict[str, Options] = {
    "SGD": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "momentum_form": "torch"},
    "Adagrad": {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
        "eps_mode": "outside",
    },
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
    "RMSprop": {
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "momentum": 0.0,
        "centered": False,
        "eps_mode": "outside",
        "momentum_form": "torch",
        "initial_square_avg": 0.0,
    },
    "Adam": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "amsgrad": False,
        "eps_mode": "outside",
        "amsgrad_max": "biased",
    },
    "AdamW": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "amsgrad": False,
        "eps_mode": "outside",
        "amsgrad_max": "biased",
        "weight_decay": 1e-2,
        "decoupled_weight_decay": True,
    },
    "NAdam": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3},
    "Adamax": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "inside"},
    "RAdam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "hat", "threshold": 5.0},
    "Rprop": {"lr": 1e-2, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "decoupled_weight_decay": True},
    "AdaBelief": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "decoupled_weight_decay": True},
    **elementwise.DEFAULTS,
    **reference_layerwise.DEFAULTS,
}
COMMON: Options = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "weight_decay_mode": None,
    "maximize": False,
    "l1": 0.0,
    "max_norm": None,
    "clip_value": None,
    "ema_decay": None,
}


def sgd(g: Array, s: State, t: int, o: Options) -> Array:
    lr, mu = o["lr"], o["momentum"]
    if mu == 0:
        return lr * g
    if o["momentum_form"] == "velocity":  # Keras: v = mu v - lr g; p += v, or p += mu v - lr g
        v = mu * s.get("v", np.zeros_like(g)) - lr * g
        s["v"] = v
        s["momentum_buffer"] = -v
        return -(mu * v - lr * g) if o["nesterov"] else -v
    if o["momentum_form"] == "ewma":
        b = mu * s.get("momentum_buffer", np.zeros_like(g)) + (1 - mu) * g
        s["momentum_buffer"] = b
        return lr * ((1 - mu) * g + mu * b if o["nesterov"] else b)
    b = g if t == 1 else mu * s["momentum_buffer"] + (1 - o["dampening"]) * g
    s["momentum_buffer"] = b
    return lr * (g + mu * b if o["nesterov"] else b)


def adagrad(g: Array, s: State, t: int, o: Options) -> Array:
    s["sum"] = s.get("sum", np.full_like(g, o["initial_accumulator_value"])) + g * g
    return o["lr"] / (1 + (t - 1) * o["lr_decay"]) * g / _root(s["sum"], o)


def _root(v: Array, o: Options) -> Array:
    return np.sqrt(v + o["eps"]) if o["eps_mode"] == "inside" else np.sqrt(v) + o["eps"]


def adadelta(g: Array, s: State, t: int, o: Options) -> Array:
    rho, eps = o["rho"], o["eps"]
    a = s.get("acc_delta", np.zeros_like(g))
    s["square_avg"] = rho * s.get("square_avg", np.zeros_like(g)) + (1 - rho) * g * g
    d = np.sqrt(a + eps) / np.sqrt(s["square_avg"] + eps) * g
    s["acc_delta"] = rho * a + (1 - rho) * d * d
    return o["lr"] * d


def rmsprop(g: Array, s: State, t: int, o: Options) -> Array:
    alpha = o["alpha"]
    before = s.get("square_avg", np.full_like(g, o["initial_square_avg"]))
    v = s["square_avg"] = alpha * before + (1 - alpha) * g * g
    if o["centered"]:
        m = s["grad_avg"] = alpha * s.get("grad_avg", np.zeros_like(g)) + (1 - alpha) * g
        v = v - m * m
    u = g / _root(v, o)
    if o["momentum"]:
        k = o["lr"] if o["momentum_form"] == "velocity" else 1.0
        u = s["momentum_buffer"] = o["momentum"] * s.get("momentum_buffer", np.zeros_like(g)) + k * u
        if o["momentum_form"] == "velocity":
            return u
    return o["lr"] * u


def _moments(g: Array, s: State, o: Options) -> tuple[Array, Array]:
    beta1, beta2 = o["betas"]
    s["exp_avg"] = beta1 * s.get("exp_avg", np.zeros_like(g)) + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", np.zeros_like(g)) + (1 - beta2) * g * g
    return s["exp_avg"], s["exp_avg_sq"]


def adam(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m, v = _moments(g, s, o)
    bc2 = 1 - beta2**t
    if o["amsgrad"]:
        if o["amsgrad_max"] == "corrected":
            v, bc2 = v / bc2, 1.0
        v = s["max_exp_avg_sq"] = np.maximum(s.get("max_exp_avg_sq", np.zeros_like(g)), v)
    lr = o["lr"] / (1 - beta1**t)
    if o["eps_mode"] == "hat":
        return lr * math.sqrt(bc2) * m / (np.sqrt(v) + o["eps"])
    return (
        lr
        * m
        / (
            np.sqrt(v / bc2 + o["eps"])
            if o["eps_mode"] == "inside"
            else np.sqrt(v) / math.sqrt(bc2) + o["eps"]
        )
    )


def nadam(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m, v = _moments(g, s, o)
    if o["momentum_decay"] is None:
        mu = mu_next = beta1
    else:
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (k * o["momentum_decay"])) for k in (t, t + 1))
    product = s["mu_product"] = s.get("mu_product", 1.0) * mu
    denominator = np.sqrt(v) / math.sqrt(1 - beta2**t) + o["eps"]
    look_ahead = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * m
    return o["lr"] * look_ahead / denominator


def adamax(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m = s["exp_avg"] = beta1 * s.get("exp_avg", np.zeros_like(g)) + (1 - beta1) * g
    inside, outside = (o["eps"], 0.0) if o["eps_mode"] == "inside" else (0.0, o["eps"])
    u = s["exp_inf"] = np.maximum(beta2 * s.get("exp_inf", np.zeros_like(g)), np.abs(g) + inside)
    return o["lr"] / (1 - beta1**t) * m / (u + outside)


def radam(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m, v = _moments(g, s, o)
    m = m / (1 - beta1**t)
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= o["threshold"]:
        return o["lr"] * m
    r = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    if o["eps_mode"] == "outside":
        return o["lr"] * m * r / (np.sqrt(v / (1 - beta2**t)) + o["eps"])
    return o["lr"] * m * r * math.sqrt(1 - beta2**t) / (np.sqrt(v) + o["eps"])


def rprop(g: Array, s: State, t: int, o: Options) -> Array:
    turn = np.sign(g) * np.sign(s.get("prev", np.zeros_like(g)))
    (less, more), (smallest, largest) = o["etas"], o["step_sizes"]
    factor = np.where(turn > 0, g.dtype.type(more), np.where(turn < 0, g.dtype.type(less), g.dtype.type(1)))
    size = np.clip(s.get("step_size", np.full_like(g, o["lr"])) * factor, smallest, largest)
    s["step_size"] = size
    g = s["prev"] = np.where(turn < 0, g.dtype.type(0), g)
    return np.sign(g) * size


def lion(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m = s.get("exp_avg", np.zeros_like(g))
    s["exp_avg"] = beta2 * m + (1 - beta2) * g
    return o["lr"] * np.sign(beta1 * m + (1 - beta1) * g)


def adabelief(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m = s["exp_avg"] = beta1 * s.get("exp_avg", np.zeros_like(g)) + (1 - beta1) * g
    spread = beta2 * s.get("exp_avg_var", np.zeros_like(g)) + (1 - beta2) * (g - m) ** 2 + o["eps"]
    s["exp_avg_var"] = spread
    return o["lr"] / (1 - beta1**t) * m / (np.sqrt(spread) / math.sqrt(1 - beta2**t) + o["eps"])


UPDATES: dict[str, Callable[[Array, State, int, Options], Array]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "RMSprop": rmsprop,
    "Adam": adam,
    "AdamW": adam,
    "NAdam": nadam,
    "Adamax": adamax,
    "RAdam": radam,
    "Rprop": rprop,
    "Lion": lion,
    "AdaBelief": adabelief,
    **elementwise.UPDATES,
}


class Run(NamedTuple):
    """What optimizing leaves: parameters, state and averages, one of each for every parameter."""

    params: list[Array]
    states: list[State]
    emas: list[Array]


def run(
    name: str,
    params: Sequence[Array],
    steps: Sequence[Sequence[Array | None]],
    options: Options,
    compute: npt.DTypeLike | None = None,
    storage: npt.DTypeLike | None = None,
) -> Run:
    """Optimize copies of `params` with the gradients of each step.

    Arithmetic is in `compute`; parameters are rounded to `storage` after each step. Both are the
    parameters' dtype by default. A parameter whose gradient is None is skipped.
    """
    o = {**COMMON, **DEFAULTS[name], **options}
    whole = reference_layerwise.UPDATES.get(name)
    update = {**UPDATES, **elementwise.UPDATES}.get(name)
    compute = params[0].dtype if compute is None else np.dtype(compute)
    storage = compute if storage is None else np.dtype(storage)
    ps = [p.astype(storage) for p in params]
    emas = [p.astype(compute) for p in ps]
    states: list[State] = [{} for _ in ps]
    counts = [0] * len(ps)
    shared: State = {}
    mode = o["weight_decay_mode"] or ("decoupled" if o["decoupled_weight_decay"] else "l2")
    for grads in steps:
        scale = 1.0
        if o["max_norm"] is not None:
            norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads if g is not None))
            scale = min(1.0, o["max_norm"] / (norm + 1e-6))
        gs: list[Array | None] = [None] * len(ps)
        for i, given in enumerate(grads):
            if given is None:
                continue
            p, g = ps[i].astype(compute), given.astype(compute)
            g = scale * g
            if o["clip_value"] is not None:
                g = np.clip(g, -o["clip_value"], o["clip_value"])
            if o["maximize"]:
                g = -g
            if not whole and mode == "l2":
                g = g + o["weight_decay"] * p
            gs[i] = g + o["l1"] * np.sign(p)
            states[i]["p"] = p
        if name in elementwise.PREPARE and not elementwise.PREPARE[name](gs, states, o, shared):
            continue
        for i, (g, s) in enumerate(zip(gs, states, strict=True)):
            if g is None:
                continue
            counts[i] += 1
            p = s["p"]
            u = whole(g, p, s, counts[i], o) if whole else update(g, s, counts[i], o)
            if mode == "fixed":
                p = p * (1 - o["weight_decay"])
            elif not whole and o["weight_decay_mode"] is None:
                p = p * elementwise.decay(name, counts[i], o, s)
            elif mode == "decoupled":
                p = p * (1 - o["lr"] * o["weight_decay"])
            p = p - u
            if mode == "decoupled_after":
                p = p - o["lr"] * o["weight_decay"] * p
            if o["ema_decay"] is not None:
                emas[i] = o["ema_decay"] * emas[i] + (1 - o["ema_decay"]) * p
            ps[i] = p.astype(storage)
    return Run(ps, states, emas)


# -------------------------------------------------------------------------------------------- schedules
# The rate after t steps, by torch's documented formulas; `t` counts from 0.


def _cos(start: float, end: float, x: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2


def step_lr(lr: float, t: int, step_size: int, gamma: float = 0.1) -> float:
    for k in range(1, t + 1):
        lr *= gamma if k % step_size == 0 else 1.0
    return lr


def multi_step_lr(lr: float, t: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    for k in range(1, t + 1):
        lr *= gamma ** list(milestones).count(k)
    return lr


def constant_lr(lr: float, t: int, factor: float = 1 / 3, total_iters: int = 5) -> float:
    return lr * factor if t < total_iters else lr


def linear_lr(
    lr: float, t: int, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
) -> float:
    return lr * float(np.interp(t, [0, total_iters], [start_factor, end_factor]))


def exponential_lr(lr: float, t: int, gamma: float) -> float:
    for _ in range(t):
        lr *= gamma
    return lr


def polynomial_lr(lr: float, t: int, total_iters: int = 5, power: float = 1.0) -> float:
    return lr * max(0.0, 1 - t / total_iters) ** power


def lambda_lr(lr: float, t: int, lr_lambda: Callable[[int], float]) -> float:
    return lr * lr_lambda(t)


def cosine_annealing_lr(lr: float, t: int, T_max: int, eta_min: float = 0.0) -> float:
    return _cos(lr, eta_min, t / T_max)


def cosine_annealing_warm_restarts(
    lr: float, t: int, T_0: int, T_mult: int = 1, eta_min: float = 0.0
) -> float:
    now, length = 0, T_0
    for _ in range(t):
        now += 1
        if now == length:
            now, length = 0, length * T_mult
    return _cos(lr, eta_min, now / length)


def warmup_cosine_lr(
    lr: float, t: int, warmup_steps: int, total_steps: int, eta_min: float = 0.0, start_factor: float = 0.0
) -> float:
    if t < warmup_steps:
        return float(np.interp(t, [0, warmup_steps], [start_factor * lr, lr]))
    return _cos(lr, eta_min, min(1.0, (t - warmup_steps) / max(1, total_steps - warmup_steps)))


SCHEDULES: dict[str, Callable[..., float]] = {
    "LambdaLR": lambda_lr,
    "StepLR": step_lr,
    "MultiStepLR": multi_step_lr,
    "ConstantLR": constant_lr,
    "LinearLR": linear_lr,
    "ExponentialLR": exponential_lr,
    "PolynomialLR": polynomial_lr,
    "CosineAnnealingLR": cosine_annealing_lr,
    "CosineAnnealingWarmRestarts": cosine_annealing_warm_restarts,
    "WarmupCosineLR": warmup_cosine_lr,
}
