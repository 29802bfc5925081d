"""Optimizers whose update depends on whole parameters, straight from the papers: a part of reference_optim.py.

An update takes the gradient, clipped and with its L1 penalty but without decay, and the parameter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Options = dict[str, Any]
State = dict[str, Any]

DEFAULTS: dict[str, Options] = {
    "LARS": {
        "lr": 1e-3,
        "momentum": 0.9,
        "dampening": 0.0,
        "nesterov": False,
        "momentum_form": "velocity",
        "trust_coefficient": 1e-3,
        "eps": 0.0,
        "ratio": "paper",
        "skip_1d": True,
    },
    "LAMB": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 1e-2,
        "bias_correction": True,
        "use_nvlamb": False,
        "max_param_norm": None,
    },
    "NovoGrad": {"lr": 1e-3, "betas": (0.95, 0.98), "eps": 1e-8, "grad_averaging": False},
}


def norm(x: Array) -> Any:
    return np.sqrt(np.sum(np.square(x, dtype=np.result_type(x.dtype, np.float64))))


def lars(g: Array, p: Array, s: State, t: int, o: Options) -> Array:
    ratio, decay = 1.0, o["weight_decay"]
    if o["skip_1d"] and p.ndim < 2:
        decay = 0.0
    else:
        size = norm(g + decay * p) if o["ratio"] == "joint" else norm(g)
        apart = 0.0 if o["ratio"] == "joint" else decay * norm(p)
        if size > 0 and norm(p) > 0:
            ratio = o["trust_coefficient"] * norm(p) / (size + apart + o["eps"])
    u = p.dtype.type(ratio) * (g + decay * p)
    lr, mu = o["lr"], o["momentum"]
    if mu == 0:
        return lr * u
    form = o["momentum_form"]
    if form == "velocity":
        rate, k = 1.0, lr
    elif form == "ewma":
        rate, k = lr, 1.0 - mu
    else:
        rate, k = lr, 1.0 if t == 1 else 1.0 - o["dampening"]
    s["momentum_buffer"] = b = mu * s.get("momentum_buffer", np.zeros_like(g)) + k * u
    return rate * (k * u + mu * b if o["nesterov"] else b)


def lamb(g: Array, p: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    s["exp_avg"] = beta1 * s.get("exp_avg", np.zeros_like(g)) + (1 - beta1) * g
    s["exp_avg_sq"] = beta2 * s.get("exp_avg_sq", np.zeros_like(g)) + (1 - beta2) * g * g
    m, v = s["exp_avg"], s["exp_avg_sq"]
    if o["bias_correction"]:
        m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    u = m / (np.sqrt(v) + o["eps"]) + o["weight_decay"] * p
    ratio = 1.0
    if (o["use_nvlamb"] or o["weight_decay"]) and norm(p) > 0 and norm(u) > 0:
        ratio = min(norm(p), o["max_param_norm"] or math.inf) / norm(u)
    return p.dtype.type(o["lr"] * ratio) * u


def novograd(g: Array, p: Array, s: State, t: int, o: Options) -> Array:
    beta1, beta2 = o["betas"]
    square, v = norm(g) ** 2, s.get("second", 0.0)
    s["second"] = v = square if v == 0 else beta2 * v + (1 - beta2) * square
    u = g / p.dtype.type(np.sqrt(v) + o["eps"]) + o["weight_decay"] * p
    if o["grad_averaging"]:
        u = (1 - beta1) * u
    s["momentum_buffer"] = m = beta1 * s.get("momentum_buffer", np.zeros_like(g)) + u
    return o["lr"] * m


UPDATES = {"LARS": lars, "LAMB": lamb, "NovoGrad": novograd}
