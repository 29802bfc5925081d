"""functional: arrays in, arrays out; Tensors in, recorded Tensors out; torch's values."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import fastopt.functional as F
from fastopt import _ops, _products
from fastopt._random import manual_seed
from fastopt._tape import no_grad
from fastopt.creation import tensor
from fastopt.tensor import Tensor
from gradients import check_gradients

RNG = np.random.default_rng(5)
X = RNG.uniform(0.3, 3.0, (3, 4)) * RNG.choice([-1.0, 1.0], (3, 4))

# name, keyword arguments, the formula in float64
ACTIVATIONS = [
    ("relu", {}, lambda x: np.maximum(x, 0)),
    ("leaky_relu", {}, lambda x: np.where(x > 0, x, 0.01 * x)),
    ("leaky_relu", {"negative_slope": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
    ("sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
    ("tanh", {}, np.tanh),
    ("gelu", {}, None),
    (
        "gelu",
        {"approximate": "tanh"},
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    ("silu", {}, lambda x: x / (1 + np.exp(-x))),
    ("elu", {}, lambda x: np.where(x > 0, x, np.expm1(x))),
    ("elu", {"alpha": 0.5}, lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    ("softplus", {}, lambda x: np.log1p(np.exp(x))),
    (
        "softplus",
        {"beta": 2.0, "threshold": 1.5},
        lambda x: np.where(2 * x > 1.5, x, np.log1p(np.exp(2 * x)) / 2),
    ),
    ("softmax", {}, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ("softmax", {"dim": 0}, lambda x: np.exp(x) / np.exp(x).sum(0, keepdims=True)),
    ("log_softmax", {}, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))),
    ("log_softmax", {"dim": 0}, lambda x: x - np.log(np.exp(x).sum(0, keepdims=True))),
]
IDS = [name + "".join(f" {k}={v}" for k, v in kwargs.items()) for name, kwargs, _ in ACTIVATIONS]
activation_rows = pytest.mark.parametrize(("name", "kwargs", "formula"), ACTIVATIONS, ids=IDS)


def classes(*shape: int, count: int = 4) -> np.ndarray:
    return RNG.integers(0, count, shape)


def simplex(*shape: int) -> np.ndarray:
    p = RNG.uniform(0.1, 1.0, shape)
    return p / p.sum(1, keepdims=True)


WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])
UNIT = RNG.uniform(0.1, 0.9, (3, 4))
IGNORING = np.array([1, -100, 3])

# name, input, target, keyword arguments
LOSSES = [
    ("cross_entropy", X, classes(3), {}),
    ("cross_entropy", X, classes(3), {"weight": WEIGHT}),
    ("cross_entropy", X, IGNORING, {}),
    ("cross_entropy", X, np.array([1, 2, 3]), {"ignore_index": 2, "weight": WEIGHT}),
    ("cross_entropy", X, classes(3), {"label_smoothing": 0.1}),
    ("cross_entropy", X, IGNORING, {"label_smoothing": 0.3, "weight": WEIGHT}),
    ("cross_entropy", X, simplex(3, 4), {}),
    ("cross_entropy", X, simplex(3, 4), {"label_smoothing": 0.2, "weight": WEIGHT}),
    ("cross_entropy", X[0], np.array(2), {}),
    ("cross_entropy", RNG.standard_normal((2, 4, 3, 2)), classes(2, 3, 2), {"weight": WEIGHT}),
    ("nll_loss", np.log(simplex(3, 4)), classes(3), {}),
    ("nll_loss", np.log(simplex(3, 4)), IGNORING, {"weight": WEIGHT}),
    ("nll_loss", np.log(simplex(2, 4, 3)), classes(2, 3), {"ignore_index": 1}),
    ("binary_cross_entropy", UNIT, UNIT[::-1], {}),
    ("binary_cross_entropy", UNIT, UNIT[::-1] > 0.5, {"weight": WEIGHT}),
    ("binary_cross_entropy_with_logits", X, UNIT, {}),
    ("binary_cross_entropy_with_logits", X, UNIT, {"weight": WEIGHT, "pos_weight": WEIGHT[::-1]}),
    ("binary_cross_entropy_with_logits", X, UNIT, {"pos_weight": np.array(3.0)}),
    ("mse_loss", X, UNIT, {}),
    ("l1_loss", X, UNIT, {}),
    ("smooth_l1_loss", X, UNIT, {}),
    ("smooth_l1_loss", X, UNIT, {"beta": 0.5}),
    ("smooth_l1_loss", X, UNIT, {"beta": 0.0}),
    ("huber_loss", X, UNIT, {}),
    ("huber_loss", X, UNIT, {"delta": 2.5}),
    ("poisson_nll_loss", X, UNIT, {}),
    ("quantile_loss", X, UNIT, {}),
    ("quantile_loss", X, UNIT, {"quantile": 0.9}),
    ("sigmoid_focal_loss", X, UNIT, {}),
    ("sigmoid_focal_loss", X, UNIT > 0.5, {"alpha": -1.0, "gamma": 0.5}),
    ("kl_div", np.log(simplex(3, 4)), simplex(3, 4), {}),
    ("kl_div", np.log(simplex(3, 4)), np.array([[0.0, 0.5, 0.5, 0.0]] * 3), {}),
    ("kl_div", np.log(simplex(3, 4)), np.log(simplex(3, 4)), {"log_target": True}),
    ("kl_div", np.log(simplex(3, 4)), simplex(3, 4), {"reduction": "batchmean"}),
]
LOSS_ROWS = [
    (name, x, t, {"reduction": reduction, **kwargs})
    for name, x, t, kwargs in LOSSES
    for reduction in (("mean", "sum", "none") if "reduction" not in kwargs else (kwargs["reduction"],))
]
LOSS_IDS = [
    f"{i} {name} " + " ".join(k if isinstance(v, np.ndarray) else f"{k}={v}" for k, v in kwargs.items())
    for i, (name, _, _, kwargs) in enumerate(LOSS_ROWS)
]
loss_rows = pytest.mark.parametrize(("name", "x", "t", "kwargs"), LOSS_ROWS, ids=LOSS_IDS)


def as_target(t: np.ndarray, dtype: type) -> np.ndarray:
    return t if t.dtype.kind == "i" else t.astype(dtype)


# -------------------------------------------------------------------------------------------- activations


@activation_rows
def test_activation_value(name: str, kwargs: dict, formula) -> None:
    if formula is None:
        erf = pytest.importorskip("scipy.special").erf
        expected = X / 2 * (1 + erf(X / np.sqrt(2)))
    else:
        expected = formula(X)
    y = getattr(F, name)(X, **kwargs)
    assert type(y) is np.ndarray
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    out = np.empty_like(X)
    assert getattr(F, name)(X, **kwargs, out=out) is out
    np.testing.assert_array_equal(out, y)
    recorded = getattr(F, name)(tensor(X, requires_grad=True), **kwargs)
    np.testing.assert_array_equal(recorded.data, y)
    plain = getattr(F, name)(Tensor(X), **kwargs)
    np.testing.assert_array_equal(plain.data, y)
    assert not plain.requires_grad
    assert getattr(F, name)(X.astype(np.float32), **kwargs).dtype == np.float32


@activation_rows
def test_activation_gradient(name: str, kwargs: dict, formula) -> None:
    f = getattr(F, name)
    check_gradients(lambda x: f(x, **kwargs), X)
    dy = RNG.standard_normal(X.shape)
    x = tensor(X, requires_grad=True)
    y = f(x, **kwargs)
    y.backward(dy)
    by_hand = getattr(F, name + "_grad")
    np.testing.assert_array_equal(by_hand(dy, X, **kwargs), x.grad.data)
    if "y" in inspect.signature(by_hand).parameters:
        np.testing.assert_array_equal(by_hand(dy, y=y.data, **kwargs), x.grad.data)
    out = np.empty_like(X)
    assert by_hand(dy, X, **kwargs, out=out) is out
    np.testing.assert_array_equal(out, x.grad.data)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu", "elu"])
def test_activation_in_place(name: str) -> None:
    f = getattr(F, name)
    expected = f(X)
    a = X.copy()
    assert f(a, inplace=True) is a
    np.testing.assert_array_equal(a, expected)
    t = tensor(X)
    assert f(t, inplace=True) is t
    np.testing.assert_array_equal(t.data, expected)
    recorded = tensor(X, requires_grad=True)
    y = f(recorded, inplace=True)
    np.testing.assert_array_equal(recorded.data, X)
    np.testing.assert_array_equal(y.data, expected)


def test_activations_of_lists_and_integers() -> None:
    assert F.relu([-1.0, 2.0]).tolist() == [0.0, 2.0]
    assert F.relu([-1.0, 2.0]).dtype == np.float32
    assert F.relu(np.array([-1, 2])).dtype == np.float32
    assert F.sigmoid(0.0) == 0.5


@pytest.mark.parametrize("call", ["relu_grad", "tanh_grad", "sigmoid_grad"])
def test_an_activation_gradient_needs_x_or_y(call: str) -> None:
    with pytest.raises(TypeError, match=f"{call}: x is missing"):
        getattr(F, call)(X)


def test_activation_errors() -> None:
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh', got 'exact'"):
        F.gelu(X, approximate="exact")
    with pytest.raises(TypeError, match="relu: out is for arrays, input is a Tensor"):
        F.relu(tensor(X), out=np.empty_like(X))
    with pytest.raises(TypeError):
        F.relu("abc")
    with pytest.raises(ValueError, match="out has shape"):
        F.relu(X, out=np.empty(3))


@pytest.mark.peers
@activation_rows
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_activations_are_torchs(name: str, kwargs: dict, formula, dtype) -> None:
    torch = pytest.importorskip("torch")
    x = np.concatenate([RNG.standard_normal((50, 4)) * 5, [[0.0, -0.0, 30.0, -30.0]]]).astype(dtype)
    ours, theirs = tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = getattr(F, name)(ours, **kwargs)
    z = getattr(torch.nn.functional, name)(theirs, **(kwargs or ({"dim": -1} if "softmax" in name else {})))
    dy = RNG.standard_normal(x.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    ulp = np.finfo(dtype).eps
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=8 * ulp, atol=8 * ulp)
    np.testing.assert_allclose(ours.grad.data, theirs.grad.numpy(), rtol=16 * ulp, atol=16 * ulp)


# ------------------------------------------------------------------------------------------------- losses


@loss_rows
def test_loss_gradient(name: str, x: np.ndarray, t: np.ndarray, kwargs: dict) -> None:
    check_gradients(lambda v: getattr(F, name)(v, as_target(t, np.float64), **kwargs), x)


@loss_rows
def test_loss_with_grad(name: str, x: np.ndarray, t: np.ndarray, kwargs: dict) -> None:
    t = as_target(t, np.float64)
    recorded = tensor(x, requires_grad=True)
    value = getattr(F, name)(recorded, t, **kwargs)
    value.backward(np.ones(value.shape))
    loss, grad = getattr(F, name + "_with_grad")(x, t, **kwargs)
    assert type(loss) is np.ndarray
    np.testing.assert_array_equal(loss, value.data)
    np.testing.assert_array_equal(grad, recorded.grad.data)
    np.testing.assert_array_equal(getattr(F, name)(x, t, **kwargs), loss)
    out = np.empty(x.shape)
    again, same = getattr(F, name + "_with_grad")(x, t, **kwargs, grad_out=out)
    assert same is out
    np.testing.assert_array_equal(out, grad)
    np.testing.assert_array_equal(again, loss)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # torch on kl_div
@pytest.mark.parametrize(
    ("name", "x", "t", "kwargs"),
    [row for row in LOSS_ROWS if row[0] not in ("quantile_loss", "sigmoid_focal_loss")],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_losses_are_torchs(name: str, x: np.ndarray, t: np.ndarray, kwargs: dict, dtype) -> None:
    torch = pytest.importorskip("torch")
    x, t = x.astype(dtype), as_target(t, dtype)
    options = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    theirs = torch.tensor(x, requires_grad=True)
    z = getattr(torch.nn.functional, name)(
        theirs,
        torch.tensor(t),
        **{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()},
    )
    ours = tensor(x, requires_grad=True)
    y = getattr(F, name)(ours, t, **options)
    dy = RNG.uniform(0.5, 1.5, y.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    ulp = np.finfo(dtype).eps
    assert y.dtype == dtype
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=16 * ulp, atol=8 * ulp)
    np.testing.assert_allclose(ours.grad.data, theirs.grad.numpy(), rtol=32 * ulp, atol=8 * ulp)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_symmetric_losses_have_gradients_for_the_target(name: str) -> None:
    check_gradients(getattr(F, name), X, UNIT)
    check_gradients(lambda t: getattr(F, name)(X, t, reduction="sum"), UNIT)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits", "kl_div"])
def test_other_losses_refuse_a_target_that_requires_grad(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: target requires grad, only input can"):
        getattr(F, name)(tensor(X, requires_grad=True), tensor(UNIT, requires_grad=True))


def test_losses_convert_the_target_to_the_dtype_of_the_input() -> None:
    x = X.astype(np.float32)
    loss = F.mse_loss(tensor(x, requires_grad=True), np.ones((3, 4)))
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(np.mean((X - 1) ** 2), rel=1e-6)
    assert F.smooth_l1_loss(tensor([0.6, 0.4]), tensor([0, 3])).item() == pytest.approx(1.14)
    assert F.cross_entropy(x, simplex(3, 4)).dtype == np.float32


def test_the_gradient_kept_by_a_loss_is_not_given_away() -> None:
    x = tensor(X, requires_grad=True)
    loss = F.mse_loss(x, UNIT)
    loss.backward(retain_graph=True)
    first = x.grad.numpy().copy()
    x.grad.zero_()
    loss.backward()
    np.testing.assert_array_equal(x.grad.data, first)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "error", "message"),
    [
        ("mse_loss", (X, UNIT[:2]), {}, ValueError, r"target has shape \(2, 4\), input has shape \(3, 4\)"),
        (
            "mse_loss",
            (X[:, :1], X[:, 0]),
            {},
            ValueError,
            r"target has shape \(3,\), input has shape \(3, 1\)",
        ),
        ("l1_loss", (X, UNIT), {"reduction": "avg"}, ValueError, "must be one of none, mean, sum, got 'avg'"),
        ("mse_loss", (X, UNIT), {"reduction": "batchmean"}, ValueError, "got 'batchmean'"),
        ("smooth_l1_loss", (X, UNIT), {"beta": -1.0}, ValueError, "beta must be at least 0, got -1.0"),
        ("huber_loss", (X, UNIT), {"delta": 0.0}, ValueError, "delta must be above 0, got 0.0"),
        ("huber_loss", (X, UNIT), {"delta": float("nan")}, ValueError, "delta must be above 0, got nan"),
        ("cross_entropy", (X, classes(3)), {"label_smoothing": 1.5}, ValueError, r"in \[0, 1\], got 1.5"),
        ("cross_entropy", (X, np.array([0, 1, 4])), {}, ValueError, "4"),
        ("cross_entropy", (X, np.array([0, 1])), {}, ValueError, r"shape \(2,\)"),
        ("cross_entropy", (X, classes(3)), {"weight": WEIGHT[:3]}, ValueError, r"weight has shape \(3,\)"),
        ("nll_loss", (X, UNIT), {}, TypeError, "target is float64"),
        ("binary_cross_entropy", (UNIT * 2, UNIT), {}, ValueError, "expected a probability"),
        (
            "binary_cross_entropy_with_logits",
            (X, UNIT),
            {"pos_weight": UNIT[0, :3]},
            ValueError,
            "pos_weight",
        ),
    ],
)
def test_loss_errors(name: str, args: tuple, kwargs: dict, error, message: str) -> None:
    for call in (name, name + "_with_grad"):
        with pytest.raises(error, match=message):
            getattr(F, call)(*args, **kwargs)


def test_a_refused_loss_leaves_grad_out_as_it_was() -> None:
    out = np.full((3, 4), 7.0)
    with pytest.raises(ValueError, match="target"):
        F.cross_entropy_with_grad(X, np.array([0, 1, 9]), grad_out=out)
    with pytest.raises(ValueError, match="grad_out"):
        F.cross_entropy_with_grad(X, classes(3), grad_out=np.empty((3, 3)))
    with pytest.raises(TypeError, match="grad_out"):
        F.cross_entropy_with_grad(X, classes(3), grad_out=np.empty((3, 4), np.float32))
    assert (out == 7.0).all()


# ------------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "activation",
    [None, "relu", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "elu", "softplus"],
)
def test_linear(shape: tuple, bias: bool, activation: str | None) -> None:
    x, w = RNG.standard_normal(shape), RNG.standard_normal((5, 3))
    inputs = [x, w, RNG.standard_normal(5)] if bias else [x, w]

    def f(*arrays):
        return F.linear(*arrays, activation=activation)

    z = _products.matmul(x, w.T) + (inputs[2] if bias else 0)
    np.testing.assert_allclose(z, x @ w.T + (inputs[2] if bias else 0), rtol=0, atol=1e-14)
    expected = z if activation is None else _ops.activation(activation, z)
    np.testing.assert_array_equal(f(*inputs), expected)
    check_gradients(f, *inputs)


def test_linear_takes_parameters_of_the_activation() -> None:
    x, w = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3))
    y = F.linear(x, w, activation="leaky_relu", params=(0.3,))
    np.testing.assert_allclose(y, F.leaky_relu(x @ w.T, 0.3), rtol=0, atol=1e-14)


def test_linear_backward() -> None:
    for shape in ((3,), (2, 3), (2, 4, 3)):
        x, w, b = RNG.standard_normal(shape), RNG.standard_normal((5, 3)), RNG.standard_normal(5)
        dy = RNG.standard_normal((*shape[:-1], 5))
        tensors = [tensor(a, requires_grad=True) for a in (x, w, b)]
        F.linear(*tensors).backward(dy)
        for by_hand, recorded in zip(F.linear_backward(dy, x, w), tensors, strict=True):
            np.testing.assert_array_equal(by_hand, recorded.grad.data)


def test_linear_records_only_what_is_needed() -> None:
    x, w = tensor(X), tensor(RNG.standard_normal((5, 4)), requires_grad=True)
    y = F.linear(x, w)
    y.sum().backward()
    assert x.grad is None
    np.testing.assert_allclose(w.grad.data, np.ones((3, 5)).T @ X)
    with no_grad():
        assert not F.linear(x, w).requires_grad
    assert type(F.linear(X, w.data)) is np.ndarray
    assert isinstance(F.linear(X, w.detach()), Tensor)


def test_linear_computes_in_the_dtype_of_the_weight() -> None:
    w = tensor(RNG.standard_normal((5, 4)).astype(np.float32), requires_grad=True)
    y = F.linear(X, w)
    assert y.dtype == np.float32
    x = tensor(X, requires_grad=True)
    F.linear(x, w).sum().backward()
    assert x.grad.dtype == np.float64
    assert F.linear(np.arange(4), w).dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((2, 3)), np.ones((5, 4))), r"input has shape \(2, 3\), weight \(5, 4\) takes \(..., 4\)"),
        ((np.ones((2, 3)), np.ones(3)), r"weight must have shape \(out, in\), got \(3,\)"),
        ((np.ones((2, 3)), np.ones((5, 3)), np.ones(4)), r"bias has shape \(4,\), weight has 5 rows"),
        ((np.ones(()), np.ones((5, 3))), r"input has shape \(\)"),
    ],
)
def test_linear_errors(arrays: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.linear(*arrays)
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4\), x and w give \(2, 5\)"):
        F.linear_backward(np.ones((2, 4)), np.ones((2, 3)), np.ones((5, 3)))
    with pytest.raises(TypeError, match="bias is float32, weight is float64"):
        F.linear(np.ones((2, 3)), np.ones((5, 3)), np.ones(5, np.float32))


# ------------------------------------------------------------------------ dropout, penalties, one_hot


def test_dropout_is_reproducible_and_unbiased() -> None:
    x = np.ones((200, 500), np.float32)
    manual_seed(1)
    first, second = F.dropout(x, 0.25), F.dropout(x, 0.25)
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.01
    assert (first != second).mean() > 0.3
    manual_seed(1)
    np.testing.assert_array_equal(F.dropout(x, 0.25), first)
    np.testing.assert_array_equal(F.dropout(x, 0.25, seed=1, offset=1), second)


def test_dropout_gradient_has_the_same_mask() -> None:
    manual_seed(1)
    x = tensor(RNG.uniform(1, 2, (40, 50)), requires_grad=True)
    y = F.dropout(x, 0.5)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.where(y.data == 0, 0.0, 2.0))
    dy = RNG.standard_normal(x.shape)
    check = F.dropout_grad(dy, 0.5, seed=1, offset=0)
    np.testing.assert_array_equal(check, np.where(y.data == 0, 0.0, 2 * dy))


def test_dropout_at_its_ends() -> None:
    assert F.dropout(X, 0.0) is X
    assert F.dropout(X, 0.5, training=False) is X
    x = tensor(X, requires_grad=True)
    assert F.dropout(x, training=False) is x
    y = F.dropout(x, 1.0)
    assert not y.data.any()
    y.sum().backward()
    assert not x.grad.data.any()
    a = X.copy()
    assert F.dropout(a, 0.5, inplace=True) is a
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"dropout: p must be in \[0, 1\]"):
            F.dropout(X, p)
    with pytest.raises(TypeError, match="seed and offset go together, got seed=1 and offset=None"):
        F.dropout(X, seed=1)


def test_penalties() -> None:
    w, b = RNG.standard_normal((3, 4)), RNG.standard_normal(4)
    l1 = 0.1 * (np.abs(w).sum() + np.abs(b).sum())
    l2 = 0.05 * ((w**2).sum() + (b**2).sum())
    for params in ([w, b], {"w": w, "b": b}, iter([w, b])):
        assert F.l1_penalty(params, 0.1) == pytest.approx(l1, rel=1e-12)
    assert F.l2_penalty([w, b], 0.1) == pytest.approx(l2, rel=1e-12)
    assert F.l2_penalty(b, 2.0) == pytest.approx((b**2).sum(), rel=1e-12)
    tensors = [tensor(w, requires_grad=True), tensor(b, requires_grad=True)]
    assert F.l1_penalty(tensors, 0.1).item() == pytest.approx(l1, rel=1e-12)
    (2 * F.l2_penalty(tensors, 0.1)).backward()
    np.testing.assert_allclose(tensors[0].grad.data, 0.2 * w)
    np.testing.assert_allclose(tensors[1].grad.data, 0.2 * b)
    check_gradients(lambda u, v: F.l1_penalty([u, v], 0.3), w, b)
    check_gradients(lambda u: F.l2_penalty(u, 0.3), w)
    assert not F.l1_penalty([Tensor(w)], 0.1).requires_grad


def test_one_hot() -> None:
    assert F.one_hot(np.array([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert F.one_hot(tensor([1]), 2).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="classes from 0 to 3, num_classes is 3"):
        F.one_hot(np.array([0, 3]), 3)
    with pytest.raises(TypeError, match="target must hold integers, got float64"):
        F.one_hot(np.array([0.0]))


def test_a_training_step_by_hand_matches_the_tape() -> None:
    x, y = RNG.standard_normal((8, 5)), classes(8)
    w1, b1 = RNG.standard_normal((6, 5)), RNG.standard_normal(6)
    w2, b2 = RNG.standard_normal((4, 6)), RNG.standard_normal(4)
    h = F.linear(x, w1, b1, activation="tanh")
    loss, dz = F.cross_entropy_with_grad(F.linear(h, w2, b2), y)
    dh, dw2, db2 = F.linear_backward(dz, h, w2)
    _, dw1, db1 = F.linear_backward(F.tanh_grad(dh, y=h), x, w1)
    tensors = [tensor(a, requires_grad=True) for a in (w1, b1, w2, b2)]
    recorded = F.cross_entropy(F.linear(F.tanh(F.linear(x, *tensors[:2])), *tensors[2:]), y)
    recorded.backward()
    assert recorded.item() == loss
    for by_hand, t in zip((dw1, db1, dw2, db2), tensors, strict=True):
        np.testing.assert_array_equal(by_hand, t.grad.data)


def test_one_thread_and_two_give_the_same_bits(threads) -> None:
    x = RNG.standard_normal((500, 300)).astype(np.float32)
    t = RNG.integers(0, 300, 500)

    def run(count: int) -> list[bytes]:
        threads(count)
        manual_seed(0)
        v = tensor(x, requires_grad=True)
        loss = (
            F.cross_entropy(F.dropout(F.gelu(v), 0.2), t) + F.mse_loss(F.softmax(v), x) + F.l2_penalty(v, 0.1)
        )
        loss.backward()
        return [loss.data.tobytes(), v.grad.data.tobytes(), F.linear_backward(x, x, x[:300])[2].tobytes()]

    assert run(1) == run(2)


def test_every_export_exists_and_is_documented() -> None:
    for name in F.__all__:
        assert getattr(F, name).__doc__, name


def test_a_refused_dropout_draws_no_mask() -> None:
    manual_seed(0)
    expected = F.dropout(np.ones(100, np.float32))
    manual_seed(0)
    for refused in (lambda: F.dropout("x"), lambda: F.dropout(np.ones(3, int), inplace=True)):
        with pytest.raises(TypeError):
            refused()
    np.testing.assert_array_equal(F.dropout(np.ones(100, np.float32)), expected)


@pytest.mark.parametrize("name", ["relu", "softmax", "log_softmax"])
def test_out_is_for_arrays(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: out is for arrays, input is a Tensor"):
        getattr(F, name)(tensor([1.0]), out=np.empty(1, np.float32))


def test_results_and_gradients_go_into_tensors_of_torch_and_our_own() -> None:
    torch = pytest.importorskip("torch")
    x, target = X.astype(np.float32), np.zeros((3, 4), np.float32)
    for room in (torch.zeros(3, 4), tensor(np.zeros((3, 4), np.float32))):
        F.mse_loss_with_grad(x, target, grad_out=room)
        np.testing.assert_array_equal(room.numpy(), F.mse_loss_with_grad(x, target)[1])
        F.tanh(x, out=room)
        np.testing.assert_array_equal(room.numpy(), F.tanh(x))
        F.softmax(x, 0, out=room)
        np.testing.assert_array_equal(room.numpy(), F.softmax(x, 0))
    with pytest.raises(TypeError, match="grad_out is list, expected an array"):
        F.mse_loss_with_grad(x, target, grad_out=[0.0])


def test_penalties_take_integers_and_refuse_what_is_not_finite() -> None:
    assert F.l1_penalty(np.array([-1, 2]), 0.5) == 1.5
    assert F.l2_penalty(np.array([-1, 2]), 0.5) == 1.25
    assert F.l1_penalty(np.float64(-2.0), 0.5) == 1.0
    for alpha in (np.nan, np.inf):
        with pytest.raises(ValueError, match="l1_penalty: alpha must be finite"):
            F.l1_penalty([np.ones(2)], alpha)
    with pytest.raises(TypeError):
        F.one_hot(np.array([1]), 2.5)
