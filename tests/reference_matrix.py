"""Optimizers of whole arrays straight from the papers and their authors' code, in the dtype of what they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Options = dict[str, Any]
State = dict[str, Any]

DEFAULTS: dict[str, Options] = {
    "Muon": {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust_lr_fn": None,
    },
    "Adafactor": {
        "lr": 1e-2,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
        "maximize": False,
        "finfo": np.float64,
    },
    "SOAP": {
        "lr": 3e-3,
        "betas": (0.95, 0.95),
        "shampoo_beta": -1.0,
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "precondition_frequency": 10,
        "max_precond_dim": 10000,
        "precondition_1d": False,
        "normalize_grads": False,
        "correct_bias": True,
    },
}


def muon(p: Array, g: Array, s: State, t: int, o: Options) -> Array:
    mu = o["momentum"]
    s["momentum_buffer"] = b = mu * s.get("momentum_buffer", np.zeros_like(g)) + (1 - mu) * g
    u = ((1 - mu) * g + mu * b if o["nesterov"] else b).reshape(len(g), -1)
    x = u / max(np.linalg.norm(u), o["eps"])
    c1, c3, c5 = o["ns_coefficients"]
    for _ in range(o["ns_steps"]):
        left, _, right = np.linalg.svd(x, full_matrices=False)
        sigma = np.diag(left.T @ x @ right.T)
        x = (left * (c1 * sigma + c3 * sigma**3 + c5 * sigma**5)) @ right
    rows, columns = u.shape
    scale = math.sqrt(max(1.0, rows / columns))
    if o["adjust_lr_fn"] == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    return (1 - o["lr"] * o["weight_decay"]) * p - o["lr"] * scale * x.reshape(p.shape)


def _rms(x: Array) -> float:
    return math.sqrt(float(np.mean(np.square(x))))


def adafactor(p: Array, g: Array, s: State, t: int, o: Options) -> Array:
    g = -g if o["maximize"] else g
    keep = 1 - t ** o["beta2_decay"]
    eps1, eps2 = o["eps"]
    eps1 = float(np.finfo(o["finfo"]).eps) if eps1 is None else eps1
    alpha = max(eps2, _rms(p)) * min(o["lr"], 1 / math.sqrt(t))
    if g.ndim < 2:
        s["variance"] = v = keep * s.get("variance", 0.0) + (1 - keep) * g**2
    else:
        s["row_var"] = keep * s.get("row_var", 0.0) + (1 - keep) * np.mean(g**2, -1, keepdims=True)
        s["col_var"] = keep * s.get("col_var", 0.0) + (1 - keep) * np.mean(g**2, -2, keepdims=True)
        v = s["row_var"] @ s["col_var"] / np.maximum(s["row_var"].mean(-2, keepdims=True), eps1)
    u = g / np.sqrt(np.maximum(v, eps1**2))
    return (1 - o["lr"] * o["weight_decay"]) * p - alpha * u / max(1.0, _rms(u) / o["d"])


def soap(p: Array, g: Array, s: State, t: int, o: Options) -> Array:
    """The first gradient is t = 1 here, and the first step t = 2."""
    letters = "abcdef"[: g.ndim]
    axes = [k for k, n in enumerate(g.shape) if n <= o["max_precond_dim"]]
    if g.ndim == 1 and not o["precondition_1d"]:
        axes = []
    beta1, beta2 = o["betas"]
    beta_s = o["shampoo_beta"] if o["shampoo_beta"] >= 0 else beta2

    def product(k: int) -> Array:
        return np.einsum(f"{letters},{letters.replace(letters[k], 'z')}->{letters[k]}z", g, g)

    def turned(x: Array, back: bool = False) -> Array:
        for k in axes:
            q = s["Q"][k].T if back else s["Q"][k]
            x = np.einsum(f"{letters},{letters[k]}z->{letters.replace(letters[k], 'z')}", x, q)
        return x

    if t == 1:
        s["GG"] = {k: (1 - beta_s) * product(k) for k in axes}
        s["Q"] = {k: np.linalg.eigh(s["GG"][k])[1][:, ::-1] for k in axes}
        s["m"], s["v"] = np.zeros_like(g), np.zeros_like(g)
        return p
    t -= 1
    s["m"] = beta1 * s["m"] + (1 - beta1) * g
    s["v"] = beta2 * s["v"] + (1 - beta2) * turned(g) ** 2
    u = turned(turned(s["m"]) / (np.sqrt(s["v"]) + o["eps"]), back=True)
    if o["normalize_grads"]:
        u = u / (1e-30 + _rms(u))
    size = o["lr"]
    if o["correct_bias"]:
        size *= math.sqrt(1 - beta2**t) / (1 - beta1**t)
    p = p - size * u
    p = p - o["lr"] * o["weight_decay"] * p
    for k in axes:
        s["GG"][k] = beta_s * s["GG"][k] + (1 - beta_s) * product(k)
        if t % o["precondition_frequency"] == 0:
            q, gg = s["Q"][k], s["GG"][k]
            order = np.argsort(-np.diag(q.T @ gg @ q))
            s["v"] = np.take(s["v"], order, k)
            s["Q"][k] = np.linalg.qr(gg @ q[:, order])[0]
    return p


UPDATES = {"Muon": muon, "Adafactor": adafactor, "SOAP": soap}


def run_matrix(
    name: str, params: Sequence[Array], steps: Sequence[Sequence[Array | None]], options: Options
) -> tuple[list[Array], list[State]]:
    """Optimize copies of `params` with the gradients of each step; None skips a parameter."""
    o = {**DEFAULTS[name], **options}
    ps, states, counts = [p.copy() for p in params], [dict[str, Any]() for _ in params], [0] * len(params)
    for grads in steps:
        for i, g in enumerate(grads):
            if g is not None:
                counts[i] += 1
                ps[i] = UPDATES[name](ps[i], g.astype(ps[i].dtype), states[i], counts[i], o)
    return ps, states
