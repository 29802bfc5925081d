"""nn.init: bounds, moments, structure, torch's defaults, errors."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from fastopt._random import manual_seed
from fastopt.creation import tensor
from fastopt.nn import Linear, init

SHAPE = (200, 300)


def filled(name: str, *args: float, shape: tuple[int, ...] = SHAPE, **kwargs) -> np.ndarray:
    manual_seed(1)
    a = np.full(shape, np.nan, np.float32)
    assert getattr(init, name)(a, *args, **kwargs) is a
    return a


# name, arguments, half-width of the uniform distribution
@pytest.mark.parametrize(
    ("name", "args", "low", "high"),
    [
        ("uniform_", (), 0.0, 1.0),
        ("uniform_", (-3.0, 5.0), -3.0, 5.0),
        ("xavier_uniform_", (), -math.sqrt(6 / 500), math.sqrt(6 / 500)),
        ("xavier_uniform_", (2.0,), -2 * math.sqrt(6 / 500), 2 * math.sqrt(6 / 500)),
        ("kaiming_uniform_", (), -math.sqrt(6 / 300), math.sqrt(6 / 300)),
        ("kaiming_uniform_", (math.sqrt(5),), -math.sqrt(1 / 300), math.sqrt(1 / 300)),
        ("kaiming_uniform_", (0, "fan_out", "relu"), -math.sqrt(6 / 200), math.sqrt(6 / 200)),
        ("kaiming_uniform_", (0, "fan_in", "tanh"), -5 / 3 * math.sqrt(3 / 300), 5 / 3 * math.sqrt(3 / 300)),
    ],
)
def test_uniform(name: str, args: tuple, low: float, high: float) -> None:
    x = filled(name, *args)
    width = high - low
    assert x.min() == pytest.approx(low, abs=1e-3 * width)
    assert x.max() == pytest.approx(high, abs=1e-3 * width)
    assert x.min() >= low - 1e-6 * width
    assert x.max() <= high + 1e-6 * width
    assert x.mean() == pytest.approx((low + high) / 2, abs=0.01 * width)
    assert x.std() == pytest.approx(width / math.sqrt(12), rel=0.01)


@pytest.mark.parametrize(
    ("name", "args", "mean", "std"),
    [
        ("normal_", (), 0.0, 1.0),
        ("normal_", (3.0, 0.5), 3.0, 0.5),
        ("xavier_normal_", (), 0.0, math.sqrt(2 / 500)),
        ("xavier_normal_", (5 / 3,), 0.0, 5 / 3 * math.sqrt(2 / 500)),
        ("kaiming_normal_", (), 0.0, math.sqrt(2 / 300)),
        ("kaiming_normal_", (0.2, "fan_out"), 0.0, math.sqrt(2 / 1.04 / 200)),
    ],
)
def test_normal(name: str, args: tuple, mean: float, std: float) -> None:
    x = filled(name, *args)
    assert x.mean() == pytest.approx(mean, abs=0.02 * std)
    assert x.std() == pytest.approx(std, rel=0.01)
    standard = (x - mean) / std
    assert (np.abs(standard) < 1).mean() == pytest.approx(0.6827, abs=0.01)
    assert (np.abs(standard) < 2).mean() == pytest.approx(0.9545, abs=0.01)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [
        (0.0, 1.0, -2.0, 2.0),
        (0.0, 0.02, -2.0, 2.0),
        (1.0, 1.0, -2.0, 2.0),
        (0.0, 1.0, 3.0, 4.0),
        (0.0, 1.0, -9.0, -6.0),
    ],
)
def test_truncated_normal(mean: float, std: float, a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    x = filled("trunc_normal_", mean, std, a, b)
    assert x.min() >= a
    assert x.max() <= b
    exact = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    assert x.mean(dtype=np.float64) == pytest.approx(exact.mean(), abs=0.02 * exact.std())
    assert x.std(dtype=np.float64) == pytest.approx(exact.std(), rel=0.02)
    for share in (0.1, 0.5, 0.9):
        assert (x <= exact.ppf(share)).mean() == pytest.approx(share, abs=0.01)


def test_constants() -> None:
    assert (filled("constant_", 2.5) == 2.5).all()
    assert (filled("ones_") == 1).all()
    assert (filled("zeros_") == 0).all()
    np.testing.assert_array_equal(filled("eye_", shape=(3, 5)), np.eye(3, 5))


@pytest.mark.parametrize("shape", [(20, 20), (10, 30), (30, 10), (10, 3, 4)], ids=str)
def test_orthogonal(shape: tuple) -> None:
    x = filled("orthogonal_", 2.0, shape=shape).reshape(shape[0], -1).astype(np.float64)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_orthogonal_is_not_biased() -> None:
    manual_seed(0)
    corners = [init.orthogonal_(np.empty((3, 3)))[0, 0] for _ in range(2000)]
    assert np.mean(corners) == pytest.approx(0, abs=0.05)
    assert np.std(corners) == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_sparse() -> None:
    x = filled("sparse_", 0.25, 0.5)
    assert ((x == 0).sum(axis=0) == 50).all()
    assert x[x != 0].std() == pytest.approx(0.5, rel=0.02)
    assert (filled("sparse_", 0.101, shape=(10, 4)) == 0).sum(axis=0).tolist() == [2] * 4


def test_fans_of_convolution_weights() -> None:
    x = filled("kaiming_normal_", shape=(100, 30, 3, 3))
    assert x.std() == pytest.approx(math.sqrt(2 / 270), rel=0.02)
    x = filled("xavier_uniform_", shape=(100, 30, 3, 3))
    assert np.abs(x).max() == pytest.approx(math.sqrt(6 / (270 + 900)), rel=1e-3)


@pytest.mark.parametrize(
    "name", ["uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
             "kaiming_normal_", "orthogonal_"],
)  # fmt: skip
def test_targets_dtypes_and_generators(name: str) -> None:
    f = getattr(init, name)
    layer = Linear(4, 5)
    memory = layer.weight.data
    assert f(layer.weight) is layer.weight
    assert layer.weight.data is memory
    assert layer.weight.requires_grad
    assert layer.weight.grad_fn is None
    strided = np.zeros((8, 10))[::2, ::-2]
    first = f(strided, generator=np.random.default_rng(3)).copy()
    np.testing.assert_array_equal(f(np.empty((4, 5)), generator=np.random.default_rng(3)), first)
    half = f(np.full((4, 5), np.nan, np.float16))
    assert np.isfinite(half).all()
    manual_seed(7)
    drawn = f(np.empty((4, 5))).copy()
    manual_seed(7)
    np.testing.assert_array_equal(f(tensor(np.empty((4, 5)))).data, drawn)


def test_calculate_gain() -> None:
    assert init.calculate_gain("linear") == 1
    assert init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("leaky_relu") == math.sqrt(2 / (1 + 0.01**2))
    assert init.calculate_gain("leaky_relu", 0.2) == math.sqrt(2 / 1.04)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.calculate_gain("swish"), ValueError, "nonlinearity must be one of .*, got 'swish'"),
        (lambda: init.uniform_(np.ones(3), 2.0, 1.0), ValueError, "a must be at most b, got a=2.0 and b=1.0"),
        (lambda: init.normal_(np.ones(3), std=-1.0), ValueError, "std must be at least 0, got -1.0"),
        (
            lambda: init.trunc_normal_(np.ones(3), a=1.0, b=1.0),
            ValueError,
            "a below b, got mean=0.0, std=1.0, a=1.0, b=1.0",
        ),
        (lambda: init.kaiming_uniform_(np.ones((2, 2)), mode="fan"), ValueError, "mode must be .* got 'fan'"),
        (lambda: init.xavier_normal_(np.ones(3)), ValueError, r"at least 2 dimensions, got shape \(3,\)"),
        (lambda: init.kaiming_normal_(np.ones((3, 0))), ValueError, r"must not be empty, got shape \(3, 0\)"),
        (lambda: init.eye_(np.ones(3)), ValueError, r"2 dimensions, got shape \(3,\)"),
        (lambda: init.sparse_(np.ones((3, 3)), 1.5), ValueError, r"sparsity must be in \[0, 1\], got 1.5"),
        (lambda: init.ones_(np.ones(3, np.int64)), TypeError, "tensor must be floating-point, got int64"),
    ],
)
def test_errors(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.peers
@pytest.mark.parametrize("name", [n for n in dir(init) if n.endswith("_") and not n.startswith("_")])
def test_arguments_and_defaults_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")

    def arguments(f) -> dict:
        return {k: v.default for k, v in inspect.signature(f).parameters.items()}

    assert arguments(getattr(init, name)) == arguments(getattr(torch.nn.init, name))


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("kaiming_uniform_", (0.3, "fan_out")),
        ("xavier_normal_", (1.5,)),
        ("kaiming_normal_", ()),
        ("trunc_normal_", (0.5, 2.0)),
    ],
)
def test_moments_are_torchs(name: str, args: tuple) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn.init, name)(torch.empty(SHAPE), *args).numpy()
    ours = filled(name, *args)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.015)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02 * float(theirs.std()))


def test_what_cannot_be_filled_is_refused() -> None:
    fixed = np.ones(3, np.float32)
    fixed.setflags(write=False)
    with pytest.raises(ValueError, match="constant_: tensor is read-only"):
        init.zeros_(fixed)
    with pytest.raises(TypeError, match="uniform_: tensor is list, expected a Tensor or an array to fill"):
        init.uniform_([1.0, 2.0])
    for mean, std in ((np.nan, 1.0), (np.inf, 1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="trunc_normal_: mean must be finite"):
            init.trunc_normal_(np.ones(3), mean, std)
