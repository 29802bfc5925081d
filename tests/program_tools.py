"""What the tests of compiled steps share: models, losses, data, and the eager loop beside."""

from __future__ import annotations

import numpy as np

import fastopt
from fastopt import nn, optim
from optim_tools import ulp

IN, HIDDEN, OUT, BATCH = 7, 9, 5, 13

CLASS_WEIGHT = [0.5, 1.0, 2.0, 0.1, 1.5]

#: name -> (class, options of the loss, kind of target, the model's last module)
LOSSES = {
    "cross_entropy": (nn.CrossEntropyLoss, {}, "class", None),
    "cross_entropy sum": (nn.CrossEntropyLoss, {"reduction": "sum"}, "class", None),
    "cross_entropy weight": (nn.CrossEntropyLoss, {"weight": CLASS_WEIGHT}, "class", None),
    "cross_entropy smoothing": (
        nn.CrossEntropyLoss,
        {"weight": CLASS_WEIGHT, "label_smoothing": 0.2, "ignore_index": 2},
        "class",
        None,
    ),
    "cross_entropy probabilities": (nn.CrossEntropyLoss, {"label_smoothing": 0.1}, "distribution", None),
    "cross_entropy probabilities sum": (
        nn.CrossEntropyLoss,
        {"weight": CLASS_WEIGHT, "reduction": "sum"},
        "distribution",
        None,
    ),
    "nll": (nn.NLLLoss, {"weight": CLASS_WEIGHT, "ignore_index": 1}, "class", nn.LogSoftmax),
    "nll sum": (nn.NLLLoss, {"reduction": "sum"}, "class", nn.LogSoftmax),
    "mse": (nn.MSELoss, {}, "number", None),
    "mse softmax": (nn.MSELoss, {}, "number", nn.Softmax),
    "mse sum": (nn.MSELoss, {"reduction": "sum"}, "number", None),
    "l1": (nn.L1Loss, {}, "number", None),
    "smooth_l1": (nn.SmoothL1Loss, {"beta": 0.25}, "number", None),
    "smooth_l1 0": (nn.SmoothL1Loss, {"beta": 0.0, "reduction": "sum"}, "number", None),
    "huber": (nn.HuberLoss, {"delta": 0.3}, "number", None),
    "poisson_nll": (nn.PoissonNLLLoss, {}, "probability", nn.Tanh),  # ascent ends somewhere
    "quantile": (nn.QuantileLoss, {"quantile": 0.2}, "number", None),
    "sigmoid_focal": (nn.SigmoidFocalLoss, {}, "probability", None),
    "bce": (nn.BCELoss, {"weight": [0.3, 1.0, 2.0, 0.7, 1.1]}, "probability", nn.Sigmoid),
    "bce sum": (nn.BCELoss, {"reduction": "sum"}, "probability", nn.Sigmoid),
    "bce_with_logits": (nn.BCEWithLogitsLoss, {}, "probability", None),
    "bce_with_logits scalar": (nn.BCEWithLogitsLoss, {"pos_weight": 2.5}, "probability", None),
    "bce_with_logits weights": (
        nn.BCEWithLogitsLoss,
        {"weight": 0.7, "pos_weight": CLASS_WEIGHT, "reduction": "sum"},
        "probability",
        None,
    ),
    "kl_div": (nn.KLDivLoss, {}, "distribution", nn.LogSoftmax),
    "kl_div batchmean": (nn.KLDivLoss, {"reduction": "batchmean"}, "distribution", nn.LogSoftmax),
    "kl_div log": (
        nn.KLDivLoss,
        {"reduction": "sum", "log_target": True},
        "log_distribution",
        nn.LogSoftmax,
    ),
}


def batches(kind, dtype, count=20, seed=1, batch=BATCH):
    """Pairs of inputs and targets."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        x = rng.standard_normal((batch, IN)).astype(np.float32)
        raw = rng.standard_normal((batch, OUT))
        if kind == "class":
            y = rng.integers(0, OUT, batch)
        else:
            distribution = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
            y = {
                "number": raw,
                "probability": rng.random((batch, OUT)),
                "distribution": distribution,
                "log_distribution": np.log(distribution),
            }[kind].astype(np.float32)
        pairs.append((x.astype(dtype), y if kind == "class" else y.astype(dtype)))
    return pairs


def weights(shapes, seed=3):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32) for s in shapes]


def build(last=None, dtype=np.float32, dropout=0.25):
    """A small model with an activation of each kind of gradient, dropout, and `last` at its end."""
    modules = [
        nn.Linear(IN, HIDDEN),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, HIDDEN, bias=False),
        nn.SiLU(),
        nn.Linear(HIDDEN, OUT),
    ]
    model = nn.Sequential(*modules, *([] if last is None else [last()]))
    return seeded(model, dtype)


def seeded(model, dtype=np.float32):
    """The model with weights that depend on its shapes alone."""
    for p, w in zip(model.parameters(), weights([p.shape for p in model.parameters()]), strict=True):
        p.data[...] = w
    return model.to(np.dtype(dtype))


def loss_of(name, dtype=np.float32):
    """The loss, the kind of its target, and the model's last module."""
    kind, options, target, last = LOSSES[name]
    given = {
        key: np.array(value, np.float32).astype(dtype) if key in ("weight", "pos_weight") else value
        for key, value in options.items()
    }
    return kind(**given), target, last


def optimizer_of(name, model, options):
    return getattr(optim, name)(model.parameters(), **options)


def tame(name, options, case):
    """The options with a rate at which plain descent does not diverge on sums, nor ascent on anything."""
    plain = (
        "SGD",
        "ASGD",
        "SGDScheduleFree",
        "RAdam",
        "Ftrl",
    )  # the last two at first, and by their settings
    if name not in plain or "lr" not in options:
        return options
    return {**options, "lr": options["lr"] / 50 ** (("sum" in case) + options.get("maximize", False))}


def eager_step(model, loss_fn, opt, x, y):
    def closure():
        opt.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss

    if isinstance(opt, optim.LBFGS):
        return float(opt.step(closure))
    loss = closure()
    opt.step()
    return float(loss)


def eager(model, loss_fn, opt, pairs, seed=11):
    """The losses of the eager loop."""
    fastopt.manual_seed(seed)
    return [eager_step(model, loss_fn, opt, x, y) for x, y in pairs]


def compiled(model, loss_fn, opt, pairs, seed=11, **options):
    """The losses of the compiled loop."""
    step = fastopt.compile(model, loss_fn, opt, **options)
    fastopt.manual_seed(seed)
    return [step(x, y) for x, y in pairs]


def everything(model, opt):
    """Parameters and the optimizer's state arrays, in order."""
    arrays = [p.data for p in model.parameters()]
    for i in sorted(opt.state):
        arrays += [np.asarray(a) for _, a in sorted(opt.state[i].items()) if isinstance(a, np.ndarray)]
    return arrays


def snapshot(model, opt):
    return [a.copy() for a in everything(model, opt)]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def error(arrays, exact):
    """The relative distance of all arrays together."""
    join = lambda list_: np.concatenate([np.asarray(a, np.float64).ravel() for a in list_])  # noqa: E731
    a, b = join(arrays), join(exact)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def assert_as_exact(ours, eager_, exact, what, dtype=np.float32):
    """The error against float64 is at most twice the eager run's and a few ulp."""
    mine, allowed = error(ours, exact), 2 * error(eager_, exact) + 8 * ulp(dtype)
    assert mine <= allowed, f"{what}: error {mine:.3g} > {allowed:.3g}"


N = 53


def data(dtype=np.float32, n=N):
    rng = np.random.default_rng(9)
    return rng.standard_normal((n, IN)).astype(dtype), rng.integers(0, OUT, n)


def make(opt="Adam", dtype=np.float32, dropout=0.25, loss_fn=None, **options):
    model = build(dtype=dtype, dropout=dropout)
    optimizer = getattr(optim, opt)(model.parameters(), **options)
    step = fastopt.compile(model, loss_fn or nn.CrossEntropyLoss(), optimizer)
    fastopt.manual_seed(4)
    return step


def left(step):
    return snapshot(step.model, step.optimizer)
