"""Modules: what they compute, what they hold, how they are saved, and torch's defaults and trajectories."""

from __future__ import annotations

import gc
import inspect
import math
import weakref

import numpy as np
import pytest

import fastopt.nn.functional as F
from fastopt import nn, optim
from fastopt._random import manual_seed
from fastopt._tape import no_grad
from fastopt.creation import randn, tensor
from fastopt.nn.activations import FUSABLE
from fastopt.tensor import Tensor
from gradients import check_gradients

RNG = np.random.default_rng(3)

ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.3),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.ELU(),
    nn.ELU(0.5),
    nn.Softplus(),
    nn.Softplus(2.0, 5.0),
]


def mlp(seed: int = 0) -> nn.Sequential:
    manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


# ------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    layer = nn.Linear(3, 5, bias=bias, dtype=np.float64)
    x = RNG.standard_normal((2, 3))
    expected = x @ layer.weight.data.T + (layer.bias.data if bias else 0)
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-15)
    assert (layer.bias is not None) == bias
    assert [name for name, _ in layer.named_parameters()] == (["weight", "bias"] if bias else ["weight"])


def test_linear_starts_as_torchs_does() -> None:
    manual_seed(0)
    layer = nn.Linear(400, 300)
    bound = 1 / math.sqrt(400)
    for parameter in layer.parameters():
        assert parameter.dtype == np.float32
        assert np.abs(parameter.data).max() <= bound
    weight = layer.weight.data
    assert weight.max() > 0.999 * bound
    assert weight.min() < -0.999 * bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert layer.bias.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    manual_seed(0)
    np.testing.assert_array_equal(nn.Linear(400, 300).weight.data, weight)


def test_a_model_on_numpy_arrays_is_recorded() -> None:
    model, loss_fn = mlp(), nn.CrossEntropyLoss()
    loss = loss_fn(model(RNG.standard_normal((4, 6))), np.array([0, 1, 2, 0]))
    assert isinstance(loss, Tensor)
    assert loss.dtype == np.float32
    loss.backward()
    assert all(np.any(p.grad.data != 0) for p in model.parameters())
    with no_grad():
        assert not model(np.ones((1, 6))).requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_sequential_fuses_and_gives_the_same_bits(activation: nn.Module, monkeypatch) -> None:
    manual_seed(1)
    model = nn.Sequential(nn.Linear(33, 17), activation, nn.Linear(17, 5), activation)
    x = RNG.standard_normal((9, 33)).astype(np.float32)
    calls = []
    linear = F.linear

    def recorded(*args, **kwargs):
        calls.append(args[3:])
        return linear(*args, **kwargs)

    monkeypatch.setattr("fastopt.functional.linear", recorded)

    def run(forward) -> list[bytes]:
        model.zero_grad()
        v = tensor(x, requires_grad=True)
        y = forward(v)
        (y * y).sum().backward()
        return [t.tobytes() for t in (y.data, v.grad.data, *(p.grad.data for p in model.parameters()))]

    def one_by_one(v: Tensor) -> Tensor:
        for module in model:
            v = module(v)
        return v

    fused = run(model)
    assert calls == [(activation.kernel, activation.params)] * 2
    assert run(one_by_one) == fused
    with no_grad():
        assert model(x).data.tobytes() == fused[0]


def test_sequential_fuses_only_what_is_its_own() -> None:
    class Doubling(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    manual_seed(0)
    x = RNG.standard_normal((4, 3)).astype(np.float32)
    model = nn.Sequential(Shifted(3, 3), nn.ReLU(), nn.Linear(3, 3), Doubling())
    first, _, second, _ = model
    h = np.maximum(x @ first.weight.data.T + first.bias.data + 1, 0)
    expected = 2 * np.maximum(h @ second.weight.data.T + second.bias.data, 0)
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-5, atol=1e-6)


def test_every_elementwise_activation_is_fused() -> None:
    assert {type(a) for a in ACTIVATIONS} == FUSABLE


@pytest.mark.parametrize(
    "activation", [*ACTIVATIONS, nn.Softmax(), nn.Softmax(0), nn.LogSoftmax(1)], ids=repr
)
def test_activation_modules(activation: nn.Module) -> None:
    check_gradients(activation, RNG.uniform(0.3, 3.0, (3, 4)) * RNG.choice([-1.0, 1.0], (3, 4)))
    options = {k: v for k, v in vars(activation).items() if k not in ("training", "inplace", "kernel")}
    function = getattr(
        F,
        {"LogSoftmax": "log_softmax", "LeakyReLU": "leaky_relu"}.get(
            name := type(activation).__name__, name.lower()
        ),
    )
    x = RNG.standard_normal((3, 4))
    np.testing.assert_array_equal(activation(x).data, function(x, **options))


def test_activation_modules_in_place() -> None:
    x = tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x) is x
    assert x.tolist() == [0.0, 2.0]
    w = tensor([-1.0, 2.0], requires_grad=True)
    nn.ReLU(True)(w).sum().backward()
    assert w.tolist() == [-1.0, 2.0]
    assert w.grad.tolist() == [0.0, 1.0]


def test_dropout_goes_by_the_mode() -> None:
    manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity())
    x = np.ones((50, 60), np.float32)
    y = model(x)
    assert set(np.unique(y.data)) == {0.0, 2.0}
    assert model.eval() is model
    assert not model[0].training
    np.testing.assert_array_equal(model(x).data, x)
    assert model.train()[0].training
    manual_seed(0)
    np.testing.assert_array_equal(model(x).data, y.data)
    with pytest.raises(ValueError, match=r"Dropout: p must be in \[0, 1\], got 2"):
        nn.Dropout(2)


def test_flatten_and_identity() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    assert nn.Flatten()(x).shape == (2, 12)
    assert nn.Flatten(0, 1)(x).tolist() == x.reshape(6, 4).tolist()
    t = Tensor(x)
    assert nn.Identity(54, unused=1)(t) is t


@pytest.mark.parametrize(
    ("module", "function", "shape", "kwargs"),
    [
        (nn.CrossEntropyLoss, "cross_entropy", "classes", {}),
        (
            nn.CrossEntropyLoss,
            "cross_entropy",
            "classes",
            {
                "weight": np.array([1.0, 2.0, 3.0]),
                "ignore_index": 1,
                "reduction": "sum",
                "label_smoothing": 0.1,
            },
        ),
        (nn.NLLLoss, "nll_loss", "classes", {"weight": np.array([1.0, 2.0, 3.0]), "ignore_index": 1}),
        (nn.BCELoss, "binary_cross_entropy", "probabilities", {"weight": np.array([1.0, 2.0, 3.0])}),
        (
            nn.BCEWithLogitsLoss,
            "binary_cross_entropy_with_logits",
            "probabilities",
            {"weight": np.array([1.0, 2.0, 3.0]), "pos_weight": np.array(2.0), "reduction": "none"},
        ),
        (nn.MSELoss, "mse_loss", "probabilities", {"reduction": "sum"}),
        (nn.L1Loss, "l1_loss", "probabilities", {}),
        (nn.SmoothL1Loss, "smooth_l1_loss", "probabilities", {"beta": 0.2}),
        (nn.HuberLoss, "huber_loss", "probabilities", {"delta": 0.2}),
        (nn.PoissonNLLLoss, "poisson_nll_loss", "probabilities", {"reduction": "sum"}),
        (nn.QuantileLoss, "quantile_loss", "probabilities", {"quantile": 0.2}),
        (nn.SigmoidFocalLoss, "sigmoid_focal_loss", "probabilities", {"alpha": 0.4, "gamma": 1.5}),
        (nn.KLDivLoss, "kl_div", "probabilities", {"reduction": "batchmean", "log_target": True}),
    ],
)
def test_loss_modules(module, function: str, shape: str, kwargs: dict) -> None:
    x = RNG.uniform(0.1, 0.9, (4, 3))
    t = np.array([0, 1, 2, 0]) if shape == "classes" else RNG.uniform(0.1, 0.9, (4, 3))
    v = tensor(x, requires_grad=True)
    loss = module(**kwargs)(v, t)
    np.testing.assert_array_equal(loss.data, getattr(F, function)(x, t, **kwargs))
    loss.backward(np.ones(loss.shape))
    _, grad = getattr(F, function + "_with_grad")(x, t, **kwargs)
    np.testing.assert_array_equal(v.grad.data, grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MSELoss(reduction="avg"), "MSELoss: reduction must be one of none, mean, sum, got 'avg'"),
        (lambda: nn.L1Loss("batchmean"), "L1Loss: reduction must be one of none, mean, sum, got 'batchmean'"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=-0.1), r"label_smoothing must be in \[0, 1\], got -0.1"),
        (lambda: nn.QuantileLoss(1.0), r"QuantileLoss: quantile must be in \(0, 1\), got 1.0"),
        (lambda: nn.SigmoidFocalLoss(alpha=2.0), "SigmoidFocalLoss: alpha must be at most 1, got 2.0"),
        (lambda: nn.SigmoidFocalLoss(gamma=-1.0), "SigmoidFocalLoss: gamma must be at least 0, got -1.0"),
        (lambda: nn.HuberLoss(delta=-1.0), "HuberLoss: delta must be above 0, got -1.0"),
        (lambda: nn.SmoothL1Loss(beta=-1.0), "SmoothL1Loss: beta must be at least 0, got -1.0"),
        (lambda: nn.GELU("erf"), "approximate must be 'none' or 'tanh', got 'erf'"),
        (lambda: nn.Linear(-1, 2), "Linear: in_features must be at least 0, got -1"),
    ],
)
def test_constructor_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------------------- training


def test_training_leaves_no_cycles() -> None:
    model, loss_fn = mlp(), nn.CrossEntropyLoss()
    opt = optim.SGD(model.parameters(), lr=0.1)
    x, y = RNG.standard_normal((4, 6)).astype(np.float32), np.array([0, 1, 2, 0])
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            out = model(x)
            loss = loss_fn(out, y)
            seen = [weakref.ref(out.data), weakref.ref(loss), weakref.ref(out._node.fn)]
            opt.zero_grad()
            loss.backward()
            opt.step()
            del out, loss
            assert [ref() for ref in seen] == [None, None, None]
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_network_learns() -> None:
    manual_seed(0)
    x = randn(256, 2).data
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(np.int64)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    opt, loss_fn = optim.Adam(model.parameters(), lr=0.05), nn.CrossEntropyLoss()
    for _ in range(150):
        opt.zero_grad()
        loss_fn(model(x), y).backward()
        opt.step()
    with no_grad():
        assert (model(x).argmax(1) == y).mean().item() > 0.97


def test_one_thread_and_two_give_the_same_bits(threads) -> None:
    x, y = RNG.standard_normal((64, 100)).astype(np.float32), RNG.integers(0, 10, 64)

    def run(count: int) -> list[bytes]:
        threads(count)
        manual_seed(0)
        model = nn.Sequential(nn.Linear(100, 300), nn.GELU(), nn.Dropout(0.3), nn.Linear(300, 10))
        opt, loss_fn = optim.Adam(model.parameters()), nn.CrossEntropyLoss(label_smoothing=0.1)
        for _ in range(3):
            opt.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
        return [p.data.tobytes() for p in model.parameters()]

    assert run(1) == run(2)


# -------------------------------------------------------------------------------------------------- torch


NAMES = [
    "Linear", "ReLU", "LeakyReLU", "Sigmoid", "Tanh", "GELU", "SiLU", "ELU", "Softplus", "LogSoftmax",
    "Dropout", "Flatten", "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "MSELoss", "L1Loss",
    "SmoothL1Loss", "HuberLoss", "KLDivLoss",
]  # fmt: skip


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")

    def arguments(cls: type) -> dict:
        left_out = {"self", "args", "kwargs", "size_average", "reduce", "device", "dtype"}
        signature = inspect.signature(cls.__init__).parameters
        return {k: v.default for k, v in signature.items() if k not in left_out}

    ours, theirs = arguments(getattr(nn, name)), arguments(getattr(torch.nn, name))
    if name == "LogSoftmax":  # torch warns and guesses where dim is left out
        theirs["dim"] = -1
    assert ours == theirs
    assert list(ours) == list(theirs)


@pytest.mark.peers
def test_repr_is_torchs() -> None:
    torch = pytest.importorskip("torch")

    def build(nn):
        return nn.Sequential(
            nn.Linear(2, 3, bias=False), nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.GELU("tanh"),
            nn.Softplus(), nn.ELU(0.5), nn.Softmax(dim=1), nn.Flatten(), nn.Sequential(nn.Tanh(), nn.SiLU()),
            nn.CrossEntropyLoss(), nn.ModuleList([nn.Identity()]),
        )  # fmt: skip

    assert repr(build(nn)) == repr(build(torch.nn))


@pytest.mark.peers
@pytest.mark.parametrize(
    "make", [lambda o, p: o.SGD(p, lr=0.1, momentum=0.9), lambda o, p: o.Adam(p, lr=0.01)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_follows_torch(make, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = RNG.standard_normal((10, 16, 12)).astype(dtype)
    y = (x @ RNG.standard_normal((12, 5))).argmax(-1)

    def build(nn):
        return nn.Sequential(
            nn.Linear(12, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
            nn.GELU(),
            nn.Linear(10, 8),
            nn.Sigmoid(),
            nn.Linear(8, 5),
        )

    manual_seed(0)
    ours, theirs = build(nn).to(dtype), build(torch.nn).to(getattr(torch, dtype))
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    losses = []
    for model, opt, loss_fn, lift in (
        (ours, make(optim, ours.parameters()), nn.CrossEntropyLoss(), lambda a: a),
        (theirs, make(torch.optim, theirs.parameters()), torch.nn.CrossEntropyLoss(), torch.tensor),
    ):
        curve = []
        for step in range(50):
            opt.zero_grad()
            loss = loss_fn(model(lift(x[step % 10])), lift(y[step % 10]))
            loss.backward()
            opt.step()
            curve.append(loss.item())
        losses.append(curve)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=10 * tolerance, err_msg=name)
    assert np.mean(losses[0][-10:]) < np.mean(losses[0][:10])
