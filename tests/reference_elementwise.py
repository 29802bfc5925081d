"""Optimizers of reference_optim.py that came after torch's: straight from the papers or their authors' code.

Some need the parameter as it was before the step, ``s["p"]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Options = dict[str, Any]
State = dict[str, Any]

DEFAULTS: dict[str, Options] = {
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6},
    "Yogi": {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "initial_accumulator": 1e-6},
    "ADOPT": {"lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-6, "clip_exponent": 0.25},
    "Ftrl": {
        "lr": 1e-3,
        "learning_rate_power": -0.5,
        "initial_accumulator_value": 0.1,
        "l1_regularization_strength": 0.0,
        "l2_regularization_strength": 0.0,
        "l2_shrinkage_regularization_strength": 0.0,
        "beta": 0.0,
    },
    "AdEMAMix": {
        "lr": 1e-3,
        "betas": (0.9, 0.999, 0.9999),
        "alpha": 2.0,
        "t_alpha": None,
        "t_beta3": None,
        "eps": 1e-8,
        "decoupled_weight_decay": True,
    },
    "Adan": {
        "lr": 1e-3,
        "betas": (0.98, 0.92, 0.99),
        "eps": 1e-8,
        "no_prox": False,
        "decoupled_weight_decay": True,
    },
    "Sophia": {
        "lr": 1e-4,
        "betas": (0.965, 0.99),
        "rho": 0.04,
        "weight_decay": 0.1,
        "eps": 1e-15,
        "decoupled_weight_decay": True,
    },
    "SGDScheduleFree": {"lr": 1.0, "momentum": 0.9, "warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0},
    "AdamWScheduleFree": {
        "lr": 2.5e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
        "decoupled_weight_decay": True,
    },
    "Prodigy": {
        "lr": 1.0,
        "betas": (0.9, 0.999),
        "beta3": None,
        "eps": 1e-8,
        "use_bias_correction": False,
        "safeguard_warmup": False,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": math.inf,
        "decoupled_weight_decay": True,
    },
}


def mean(s: State, key: str, beta: float, x: Array) -> Array:
    """Take `x` into an exponential average that starts from zero."""
    average: Array = beta * s.get(key, np.zeros_like(x)) + (1 - beta) * x
    s[key] = average
    return average


def decay(name: str, t: int, o: Options, s: State) -> float:
    """What step t multiplies the parameter by."""
    if name == "ASGD":
        return 1 - o["lambd"] * asgd_rate(t, o)
    own = name == "AdamWScheduleFree" or (name == "ADOPT" and t == 1)
    if not o["decoupled_weight_decay"] or own:
        return 1.0
    if name == "Adan" and not o["no_prox"]:
        return 1 / (1 + o["lr"] * o["weight_decay"])
    rate: float = s["dlr"] if name == "Prodigy" else o["lr"]
    return 1 - rate * o["weight_decay"]


def asgd_rate(t: int, o: Options) -> float:
    return o["lr"] / (1 + o["lambd"] * o["lr"] * (t - 1)) ** o["alpha"]


def asgd(g: Array, s: State, t: int, o: Options) -> Array:
    eta = asgd_rate(t, o)
    mu = 1 / max(1, t - 1 - o["t0"])
    moved = s["p"] * (1 - o["lambd"] * eta) - eta * g
    ax = s.get("ax", np.zeros_like(g))
    s["ax"] = moved if mu == 1 else ax + mu * (moved - ax)
    return eta * g


def yogi(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    for key in ("exp_avg", "exp_avg_sq"):
        s.setdefault(key, np.full_like(g, o["initial_accumulator"]))
    m = mean(s, "exp_avg", beta1, g)
    v = s["exp_avg_sq"]
    v = s["exp_avg_sq"] = v - (1 - beta2) * np.sign(v - g * g) * (g * g)
    return o["lr"] / (1 - beta1**t) * m / (np.sqrt(v / (1 - beta2**t)) + o["eps"])


def adopt(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    if t == 1:
        s["exp_avg"], s["exp_avg_sq"] = np.zeros_like(g), g * g
        return np.zeros_like(g)
    u = g / np.maximum(np.sqrt(s["exp_avg_sq"]), g.dtype.type(o["eps"]))
    if o["clip_exponent"] is not None:
        clip = (t - 1) ** o["clip_exponent"]
        u = np.clip(u, -clip, clip)
    m = mean(s, "exp_avg", beta1, u)
    mean(s, "exp_avg_sq", beta2, g * g)
    return o["lr"] * m


def ftrl(g: Array, s: State, t: int, o: Options) -> Array:
    p = s["p"] * decay("Ftrl", t, o, s)
    l1, l2 = (o[f"l{k}_regularization_strength"] for k in (1, 2))
    n = s.get("accumulator", np.full_like(g, o["initial_accumulator_value"]))
    s["accumulator"] = n + g * g
    before, now = (x ** -o["learning_rate_power"] for x in (n, s["accumulator"]))
    z = s.get("linear", np.zeros_like(g)) + g + 2 * o["l2_shrinkage_regularization_strength"] * p
    s["linear"] = z = z - (now - before) / o["lr"] * p
    quadratic = now / o["lr"] + 2 * (l2 + o["beta"] / (2 * o["lr"]))
    least: Array = p - (np.clip(z, -l1, l1) - z) / quadratic
    return least


def ademamix(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2, beta3 = o["betas"]
    alpha = o["alpha"] * min(1.0, t / (o["t_alpha"] or 1))
    if o["t_beta3"] is not None and t < o["t_beta3"]:
        part = t / o["t_beta3"]
        if beta1 == 0:
            beta3 = beta3 ** (1 / part)
        else:  # the paper's formula
            a, b = math.log(beta1), math.log(beta3)
            beta3 = math.exp(a * b / ((1 - part) * b + part * a))
    m = mean(s, "exp_avg_fast", beta1, g) / (1 - beta1**t)
    slow = mean(s, "exp_avg_slow", beta3, g)
    v = mean(s, "exp_avg_sq", beta2, g * g) / (1 - beta2**t)
    return o["lr"] * (m + alpha * slow) / (np.sqrt(v) + o["eps"])


def adan(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2, beta3 = o["betas"]
    difference = g + s["neg_pre_grad"] if t > 1 else np.zeros_like(g)
    s["neg_pre_grad"] = -g
    m = mean(s, "exp_avg", beta1, g) / (1 - beta1**t)
    d = mean(s, "exp_avg_diff", beta2, difference) / (1 - beta2**t)
    v = mean(s, "exp_avg_sq", beta3, (g + beta2 * difference) ** 2) / (1 - beta3**t)
    u = o["lr"] * (m + beta2 * d) / (np.sqrt(v) + o["eps"])
    return u if o["no_prox"] else u * decay("Adan", t, o, s)


def sophia(g: Array, s: State, t: int, o: Options) -> Array:
    m = mean(s, "exp_avg", o["betas"][0], g)
    h = s.setdefault("hessian", np.zeros_like(g))
    return o["lr"] * np.clip(m / np.maximum(o["rho"] * h, g.dtype.type(o["eps"])), -1, 1)


def schedule_free(g: Array, s: State, t: int, o: Options, mu: float) -> Array:
    """The authors' step of y and z, which stores no x."""
    y, lr = s["p"], o["lr"] * min(1.0, t / max(1, o["warmup_steps"]))
    z = s.get("z", y)
    s["lr_max"] = max(lr, s.get("lr_max", 0.0))
    weight = t ** o["r"] * s["lr_max"] ** o["weight_lr_power"]
    s["weight_sum"] = s.get("weight_sum", 0.0) + weight
    c = weight / s["weight_sum"]
    s["z"] = z - lr * g
    return c * (y - z) + lr * (1 - mu * (1 - c)) * g


def sgd_schedule_free(g: Array, s: State, t: int, o: Options) -> Array:
    return schedule_free(g, s, t, o, o["momentum"])


def adamw_schedule_free(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    v = mean(s, "exp_avg_sq", beta2, g * g) / (1 - beta2**t)
    u = g / (np.sqrt(v) + o["eps"])
    if o["decoupled_weight_decay"]:
        u = u + o["weight_decay"] * s["p"]
    return schedule_free(u, s, t, o, beta1)


def prodigy_estimate(gs: list[Array | None], states: list[State], o: Options, shared: State) -> bool:
    """Estimate d from the gradients of all parameters; False where they are 0."""
    beta1, beta2 = o["betas"]
    beta3 = math.sqrt(beta2) if o["beta3"] is None else o["beta3"]
    d, k = shared.get("d", o["d0"]), shared.get("k", 0) + 1
    bias = math.sqrt(1 - beta2**k) / (1 - beta1**k) if o["use_bias_correction"] else 1.0
    dlr = d * o["lr"] * bias
    product, norm = 0.0, 0.0
    given = [(g, s) for g, s in zip(gs, states, strict=True) if g is not None]
    for g, s in given:
        way = s.setdefault("p0", s["p"]) - s["p"]
        s["s"] = (
            beta3 * s.get("s", np.zeros_like(g)) + d / o["d0"] * (d if o["safeguard_warmup"] else dlr) * g
        )
        product += float(np.sum(g * way))
        norm += float(np.sum(np.abs(s["s"])))
    if norm == 0:
        return False
    shared["r"] = beta3 * shared.get("r", 0.0) + d / o["d0"] * dlr * product
    estimate = o["d_coef"] * shared["r"] / norm
    largest = shared["d_max"] = max(shared.get("d_max", o["d0"]), estimate)
    grown = max(d, estimate) if d == o["d0"] else d
    shared["d"], shared["k"] = min(largest, grown * o["growth_rate"]), k
    for _, s in given:
        s.update(d=d, dlr=dlr, next_d=shared["d"])
    return True


def prodigy(g: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    m = mean(s, "exp_avg", beta1, s["d"] * g)
    v = mean(s, "exp_avg_sq", beta2, s["d"] ** 2 * (g * g))
    return s["dlr"] * m / (np.sqrt(v) + s["next_d"] * o["eps"])


#: What comes before the updates of one step, for rules that look at all parameters together.
PREPARE: dict[str, Callable[[list[Array | None], list[State], Options, State], bool]] = {
    "Prodigy": prodigy_estimate
}
UPDATES: dict[str, Callable[[Array, State, int, Options], Array]] = {
    "ASGD": asgd,
    "Yogi": yogi,
    "ADOPT": adopt,
    "Ftrl": ftrl,
    "AdEMAMix": ademamix,
    "Adan": adan,
    "Sophia": sophia,
    "SGDScheduleFree": sgd_schedule_free,
    "AdamWScheduleFree": adamw_schedule_free,
    "Prodigy": prodigy,
}
