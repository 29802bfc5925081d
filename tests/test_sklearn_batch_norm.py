"""Perceptrons with batch normalisation: what they compute, what is kept, what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

from sklearn.base import clone

from fastopt import nn
from fastopt.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((61, 6))  # of batches of 20 a sample is left
CLASSES, NUMBERS = (X[:, 0] * X[:, 1] > 0).astype(int), X[:, :2] * X[:, 2:4]
SMALL = {"hidden_layer_sizes": (9, 5), "batch_size": 20, "max_iter": 3, "random_state": 0, "batch_norm": True}


def arrays(model: Any) -> list[np.ndarray]:
    return [*model.coefs_, *model.intercepts_, *[a for norm in model.batch_norms_ for a in norm]]


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_is_the_loop_over_a_model(activation: str, dtype: Any) -> None:
    """A BatchNorm1d before each hidden activation; the sample that a batch of 20 leaves over takes no part."""
    x = X.astype(dtype)
    fitted = MLPRegressor(**SMALL, activation=activation, shuffle=False, solver="sgd", momentum=0.0).fit(
        x, NUMBERS
    )
    start = MLPRegressor(**{**SMALL, "batch_norm": False}, activation=activation, max_fun=1)
    start._random_state = np.random.RandomState(0)
    start._initialize([6, 9, 5, 2], np.dtype(dtype))
    modules: list[nn.Module] = []
    for k, (w, b) in enumerate(zip(start.coefs_, start.intercepts_, strict=True)):
        linear = nn.Linear(*w.shape, dtype=dtype)
        linear.weight.data[...], linear.bias.data[...] = w.T, b
        between = [] if activation == "identity" else [{"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()]
        modules += [linear] if k == 2 else [linear, nn.BatchNorm1d(w.shape[1], dtype=dtype), *between]
    model = nn.Sequential(*modules)
    decayed = [m.weight for m in modules if isinstance(m, nn.Linear)]
    rest = [p for p in model.parameters() if not any(p is w for w in decayed)]
    losses = []
    for _ in range(3):
        total = 0.0
        for at in range(0, 60, 20):
            xb, yb = x[at : at + 20], NUMBERS[at : at + 20].astype(dtype)
            for p in model.parameters():
                p.grad = None
            loss = nn.MSELoss(reduction="sum")(model(xb), yb) * (0.5 / 20)
            loss.backward()
            squares = sum(float((w.data**2).sum()) for w in decayed)
            total += (float(loss) / 2 + 0.5 * 1e-4 * squares / 20) / 3
            for p in decayed:
                p.grad.data[...] += 1e-4 / 20 * p.data
            for p in [*decayed, *rest]:
                p.data[...] -= 1e-3 * p.grad.data
        losses.append(total)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}
    norms = [m for m in modules if isinstance(m, nn.BatchNorm1d)]
    assert [int(norm.num_batches_tracked) for norm in fitted.batch_norms_] == [9, 9]
    for ours, theirs in zip(fitted.batch_norms_, norms, strict=True):
        for name in ours._fields:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).data, err_msg=name, **close)
    for w, p in zip(fitted.coefs_, decayed, strict=True):
        np.testing.assert_allclose(w, p.data.T, **close)
    np.testing.assert_allclose(fitted.loss_curve_, losses, rtol=1e-4)
    np.testing.assert_allclose(fitted.predict(x), model.eval()(x).data, **close)


def test_it_learns() -> None:
    options = {**SMALL, "hidden_layer_sizes": (32, 16), "max_iter": 150, "learning_rate_init": 0.01}
    assert MLPClassifier(**options).fit(X, CLASSES).score(X, CLASSES) > 0.95
    assert MLPRegressor(**options).fit(X, NUMBERS).score(X, NUMBERS) > 0.9


def test_a_pickle_goes_on_where_it_was() -> None:
    model = MLPClassifier(**SMALL, dropout=0.1).fit(X, CLASSES)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    for _ in range(2):
        model.partial_fit(X, CLASSES)
        other.partial_fit(X, CLASSES)
    assert_same(model, other)
    assert int(model.batch_norms_[0].num_batches_tracked) == 15


def test_warm_starts_and_clones() -> None:
    once = MLPClassifier(**{**SMALL, "max_iter": 1}, warm_start=True, shuffle=False).fit(X, CLASSES)
    mean = once.batch_norms_[0].running_mean.copy()
    fresh = clone(once)
    assert fresh.batch_norm is True
    assert not hasattr(fresh, "batch_norms_")
    once.fit(X, CLASSES)
    assert int(once.batch_norms_[0].num_batches_tracked) == 6
    assert not np.array_equal(once.batch_norms_[0].running_mean, mean)
    # With another choice the other weights go on.
    w = once.coefs_[0].copy()
    once.set_params(batch_norm=False, learning_rate_init=1e-12).fit(X, CLASSES)
    assert once.batch_norms_ == []
    np.testing.assert_allclose(once.coefs_[0], w, atol=1e-9)
    once.set_params(batch_norm=True).partial_fit(X, CLASSES)
    assert int(once.batch_norms_[0].num_batches_tracked) == 3


def test_weights_that_are_set_count() -> None:
    model = MLPClassifier(**SMALL).fit(X, CLASSES)
    before = model.predict_proba(X)
    model.batch_norms_[0] = model.batch_norms_[0]._replace(bias=model.batch_norms_[0].bias + 3)
    assert not np.allclose(model.predict_proba(X), before)
    set_to = model.batch_norms_[0].bias.copy()
    model.partial_fit(X, CLASSES)
    np.testing.assert_allclose(model.batch_norms_[0].bias, set_to, atol=0.01)


def test_the_best_epoch_comes_back_whole() -> None:
    options = {
        **SMALL,
        "max_iter": 30,
        "learning_rate_init": 0.3,
        "early_stopping": True,
        "n_iter_no_change": 30,
    }
    model = MLPClassifier(**options).fit(X, CLASSES, validation_data=(X, CLASSES))
    scores = model.validation_scores_
    assert model.score(X, CLASSES) == max(scores)
    assert int(model.batch_norms_[0].num_batches_tracked) == 3 * (int(np.argmax(scores)) + 1)


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.9}, {"optimizer": "muon"}, {"optimizer": "adamwschedulefree"}, {"max_grad_norm": 0.1}],
    ids=str,
)
def test_other_optimizers_and_averages(options: dict[str, Any]) -> None:
    model = MLPClassifier(**SMALL, **options).fit(X, CLASSES)
    assert int(model.batch_norms_[1].num_batches_tracked) == 9
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))


def test_gradients_of_weighted_samples() -> None:
    """The sample that is left over is left out of sums of weights too."""
    weight = np.ones(61)
    plain = MLPClassifier(**SMALL, shuffle=False).fit(X, CLASSES)
    weight[60] = 1e9
    weighted = MLPClassifier(**SMALL, shuffle=False).fit(X, CLASSES, weight)
    np.testing.assert_allclose(weighted.loss_curve_, plain.loss_curve_, rtol=1e-9)
    for a, b in zip(arrays(weighted), arrays(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_refusals() -> None:
    for options, message in (
        ({"batch_size": 1}, "batch_norm=True needs batches of 2 samples or more, got 1"),
        ({"solver": "lbfgs"}, "batch_norm is for solver='sgd', 'adam' or an optimizer, not for 'lbfgs'"),
    ):
        model = MLPClassifier(**{**SMALL, **options})
        with pytest.raises(ValueError, match=message):
            model.fit(X, CLASSES)
        assert not hasattr(model, "coefs_")
    model = MLPClassifier(**SMALL).fit(X, CLASSES)
    before = [a.copy() for a in arrays(model)]
    with pytest.raises(ValueError, match="needs batches of 2 samples"), np.errstate(all="ignore"):
        model.set_params(batch_size="auto").partial_fit(X[:1], CLASSES[:1])
    for a, b in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
