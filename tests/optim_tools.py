"""What the tests of optimizers share: problems, references, torch's twin, and refusals that change nothing."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest

import cases_elementwise
from cases import OPTIMIZERS
from conftest import SIZES
from fastopt import _core, optim
from fastopt.optim.rule import RuleOptimizer
from reference_optim import Run, run

STEPS = 50
#: Not SparseAdam, whose gradients are rows.
RULES = [
    name for name in OPTIMIZERS if issubclass(getattr(optim, name), RuleOptimizer) and name != "SparseAdam"
]
ROWS = [(name, row) for name in RULES for row in range(len(OPTIMIZERS[name]["options"]))]


def make(name, params, options=None):
    return getattr(optim, name)(params, **(options or {}))


def packed_rows() -> dict[str, tuple[str, dict]]:
    """A row of each native rule that has a state to pack: the optimizer and its options."""
    found: dict[str, tuple[str, dict]] = {}
    for name in RULES:
        if "rules" in OPTIMIZERS[name]:  # a class with state beside that of its rule
            continue
        for options in OPTIMIZERS[name]["options"]:
            opt = make(name, [np.ones(1, np.float32)], options)
            rule = opt.rule(opt.param_groups[0])
            if _core.rules()[rule]["packable"] and options.get("ema_decay") is None:
                found.setdefault(rule, (name, {**options, "max_norm": None}))
    return found


PACKED = packed_rows()


@cache
def problem(dtype: str) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters of every size and the gradients of each step."""
    rng = np.random.default_rng(7)
    sizes = [
        *SIZES[:-1],
        20011,
    ]  # the ends of two chunks, and work for two threads, are enough for every rule
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    drift = [0.3 * rng.standard_normal(n) for n in sizes]
    steps = [[(d + rng.standard_normal(d.size)).astype(dtype) for d in drift] for _ in range(STEPS)]
    return params, steps


@cache
def references(name: str, row: int, dtype: str, steps: int) -> tuple[Run, Run]:
    """The oracle's run, in a wider dtype, and the plain baseline's."""
    params, grads = problem(dtype)
    options = OPTIMIZERS[name]["options"][row]
    wide = np.dtype(dtype) in (np.float32, np.float64)
    exact = run(name, params, grads[:steps], options, np.longdouble if dtype == "float64" else np.float64)
    plain = run(name, params, grads[:steps], options, dtype if wide else np.float32, dtype)
    return exact, plain


def ulp(dtype) -> float:
    if np.dtype(dtype) in (np.float16, np.float32, np.float64):
        return float(np.finfo(dtype).eps)
    return 2.0**-7  # bfloat16


def joined(arrays):
    return np.concatenate([np.asarray(a, np.longdouble).ravel() for a in arrays])


def assert_close(ours, exact, plain, dtype, what):
    """The largest error against the oracle is at most twice the plain baseline's and a few ulp.

    The arrays of all sizes are taken together: a single element's error says little about the arithmetic.
    """
    ours, exact, plain = joined(ours), joined(exact), joined(plain)
    error = np.max(np.abs(ours - exact))
    allowed = 2 * np.max(np.abs(plain - exact)) + 4 * ulp(dtype) * np.max(np.abs(exact))
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


def assert_matches(opt, params, exact: Run, plain: Run, dtype):
    assert all(p.dtype == dtype for p in params)
    assert_close(params, exact.params, plain.params, dtype, "params")
    state_dtype = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
    entries = [opt.state.get(i, {}) for i in range(len(params))]
    rule = _core.rules()[opt.rule(opt.param_groups[0])]
    for key in rule["states"]:
        ours = [entry[key] for entry in entries]
        assert {a.dtype for a in ours} == {state_dtype}
        assert_close(ours, [s[key] for s in exact.states], [s[key] for s in plain.states], state_dtype, key)
    if opt.param_groups[0]["ema_decay"] is not None:
        assert_close([entry["ema"] for entry in entries], exact.emas, plain.emas, dtype, "ema")


#: Classes that torch does not have.
TORCH_HAS_NO = ("Lion", "AdaBelief", "LARS", "LAMB", "NovoGrad", *cases_elementwise.TORCH_HAS_NO)
TORCH_LACKS = ("l1", "max_norm", "clip_value", "ema_decay")
#: Variants of other libraries.
NOT_TORCH_S = (
    "eps_mode",
    "amsgrad_max",
    "momentum_form",
    "weight_decay_mode",
    "initial_square_avg",
    "threshold",
)


def torch_options(name, options):
    """The row as torch's arguments, or None where torch cannot do it."""
    if any(key in options for key in NOT_TORCH_S) or options.get("momentum_decay", 0.0) is None:
        return None
    if name in TORCH_HAS_NO or (
        options.get("decoupled_weight_decay") and name not in ("Adam", "NAdam", "RAdam")
    ):
        return None
    return {k: v for k, v in options.items() if k not in TORCH_LACKS}


class TorchTwin:
    """torch's optimizer of the same name, with the clipping and averaging that ours does inside."""

    def __init__(self, torch, name, params, options):
        self.torch = torch
        self.params = [torch.tensor(p, requires_grad=True) for p in params]
        self.options = options
        self.opt = getattr(torch.optim, name)(self.params, **torch_options(name, options))

    def step(self, grads):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else self.torch.tensor(g)
        utils = self.torch.nn.utils
        if self.options.get("max_norm"):
            utils.clip_grad_norm_(self.params, self.options["max_norm"])
        if self.options.get("clip_value"):
            utils.clip_grad_value_(self.params, self.options["clip_value"])
        if self.options.get("l1"):
            for p in self.params:
                if p.grad is not None:
                    p.grad += self.options["l1"] * p.detach().sign()
        self.opt.step()

    def arrays(self):
        return [p.detach().numpy() for p in self.params]


PEER_ROWS = [(n, r) for n, r in ROWS if torch_options(n, OPTIMIZERS[n]["options"][r]) is not None]


def to_numpy(torch, x):
    if isinstance(x, torch.Tensor):
        return x.detach().numpy().copy()
    if isinstance(x, dict):
        return {k: to_numpy(torch, v) for k, v in x.items()}
    return [to_numpy(torch, v) for v in x] if isinstance(x, list) else x


def to_torch(torch, x):
    if isinstance(x, np.ndarray):
        return torch.tensor(x)
    if isinstance(x, dict):
        return {k: to_torch(torch, v) for k, v in x.items()}
    return [to_torch(torch, v) for v in x] if isinstance(x, list) else x


def snapshot(opt):
    arrays = [p.copy() for group in opt.param_groups for p in group["params"]]
    return arrays, copy.deepcopy(opt.state), [dict(g) for g in opt.param_groups]


def assert_unchanged(opt, before):
    arrays, state, groups = before
    now = snapshot(opt)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, now[0], strict=True))
    assert state.keys() == now[1].keys()
    for i, entry in state.items():
        assert entry.keys() == now[1][i].keys()
        assert all(np.array_equal(v, now[1][i][k]) for k, v in entry.items())
    for a, b in zip(groups, now[2], strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def refuse(opt, call, message, error=(TypeError, ValueError)):
    """The call raises with the message and has changed nothing."""
    before = snapshot(opt)
    with pytest.raises(error, match=message):
        call()
    assert_unchanged(opt, before)
