"""What the perceptrons refuse, and leave the fitted model as it was; settings that change between fits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

from sklearn import neural_network
from sklearn.preprocessing import LabelBinarizer

from fastopt import nn, optim
from fastopt.sklearn import MLPClassifier, MLPRegressor
from fastopt.sklearn.classifier import _binarizer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4))
CLASSES = (X[:, 0] > 0).astype(int)
SMALL = {"hidden_layer_sizes": 5, "random_state": 0, "max_iter": 3, "device": "cpu"}


def parameters(model):
    return [a.copy() for a in (*model.coefs_, *model.intercepts_)]


def assert_refused(model, error, match, *args, **kwargs):
    """A fit raises and leaves weights, curves and predictions."""
    before, curve, predicted = parameters(model), list(model.loss_curve_), model.predict(X)
    with pytest.raises(error, match=match):
        model.fit(*args, **kwargs)
    for a, b in zip(parameters(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.loss_curve_ == curve
    np.testing.assert_array_equal(model.predict(X), predicted)


def refusal(estimator, x, y):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller compares the messages
        estimator.fit(x, y)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.nan, np.inf]])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1]])
def test_bad_samples_are_refused_in_scikit_learn_s_words(dtype, bad, layout):
    x = np.zeros((700, 90), dtype)  # more than one thread's share
    x[-1, -len(bad) :] = bad
    x = layout(x)
    y, labels = np.arange(700) % 3, np.full(700, np.nan)  # of two bad arguments, the samples are told of
    model = MLPClassifier(**SMALL).fit(X, CLASSES)
    for targets in (y, labels):
        words = refusal(neural_network.MLPClassifier(), x, targets)
        assert refusal(MLPClassifier(**SMALL), x, targets) == words
        assert words.startswith("Input X contains ")
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        model.predict(np.ascontiguousarray(x[:, -4:]))


def test_samples_whose_sum_is_infinite_are_taken():
    x = np.full((40, 4), 1e308)
    checked = MLPClassifier()._validated(x, np.arange(40) % 2)
    assert checked[0] is x


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", "u2", ">i4", "f8", "?", "U1"])
@pytest.mark.parametrize("labels", [[1, 0, 1], [3, 5, 3, 1, 5], [7, 7]])
def test_binarizers_are_scikit_learn_s(labels, dtype):
    y = np.array(labels).astype(dtype)
    ours, theirs = vars(_binarizer(y)), vars(LabelBinarizer().fit(y))
    classes, expected = ours.pop("classes_"), theirs.pop("classes_")
    assert ours == theirs
    assert classes.dtype == expected.dtype
    np.testing.assert_array_equal(classes, expected)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"optimizer": "adamm"}, ValueError, r"optimizer must be one of .*, got 'adamm'"),
        ({"loss": "hinge"}, ValueError, r"loss must be 'log_loss' or 'focal'.*'hinge'"),
        ({"device": "gpu"}, ValueError, r"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ({"optimizer": "muon", "max_grad_norm": 1.0}, ValueError, r"max_grad_norm: Muon has no max_norm"),
        ({"optimizer": lambda groups: 3}, TypeError, r"optimizer returned int, .* wraps no other"),
        (
            {"loss": nn.BCEWithLogitsLoss(pos_weight=np.array([2.0]))},
            ValueError,
            r"pos_weight of shape \(1,\), expected one number",
        ),
    ],
)
def test_settings(settings, error, match):
    model = MLPClassifier(**SMALL).fit(X, CLASSES)
    model.set_params(**settings)
    before = parameters(model)
    with pytest.raises(error, match=match):
        model.fit(X, CLASSES)
    for a, b in zip(parameters(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_data():
    model = MLPClassifier(**SMALL).fit(X, np.where(CLASSES, "a", "b"))
    assert_refused(
        model, ValueError, r"must be \(X, y\)", X, np.where(CLASSES, "c", "d"), validation_data=(X,)
    )
    assert set(model.classes_) == {"a", "b"}
    regressor = MLPRegressor(**SMALL).fit(X, X[:, 0])
    two = (X, X[:, :2])
    assert_refused(regressor, ValueError, r"y has 2 outputs, training has 1", X, X[:, 0], validation_data=two)
    counts = MLPRegressor(**SMALL, loss="poisson").fit(X, np.abs(X[:, 0]))
    negative = (X, X[:, 0])
    assert_refused(
        counts,
        ValueError,
        r"needs validation_data: y >= 0, got -",
        X,
        np.abs(X[:, 0]),
        validation_data=negative,
    )


def test_other_outputs_in_a_fit_that_goes_on():
    model = MLPRegressor(**SMALL).fit(X, X[:, 0])
    before = model.predict(X)
    with pytest.raises(ValueError, match=r"y has 2 outputs, the earlier fit had 1"):
        model.partial_fit(X, X[:, :2])
    assert model.n_outputs_ == 1
    np.testing.assert_array_equal(model.predict(X), before)


@pytest.mark.parametrize("argument", ["callbacks", "validation_data"])
def test_lbfgs_takes_no_part_in_what_epochs_have(argument):
    settings = {"callbacks": print} if argument == "callbacks" else {}
    given = {} if settings else {"validation_data": (X, CLASSES)}
    with pytest.raises(ValueError, match=rf"{argument} is for solver='sgd', 'adam' or an optimizer"):
        MLPClassifier(**{**SMALL, **settings}, solver="lbfgs").fit(X, CLASSES, **given)


def test_averages_begin_and_end_between_partial_fits():
    model = MLPClassifier(**SMALL).partial_fit(X, CLASSES, classes=[0, 1])
    plain = MLPClassifier(**SMALL).partial_fit(X, CLASSES, classes=[0, 1])
    model.set_params(ema=0.5).partial_fit(X, CLASSES)
    plain.partial_fit(X, CLASSES)
    # The average is half way between the weights before this one step and those after it.
    assert not np.array_equal(model.coefs_[0], plain.coefs_[0])
    np.testing.assert_allclose(model._session._weights[0].data.T, plain.coefs_[0], rtol=1e-12)
    model.set_params(ema=None).partial_fit(X, CLASSES)
    plain.partial_fit(X, CLASSES)
    np.testing.assert_allclose(model.coefs_[0], plain.coefs_[0], rtol=1e-12)


def test_an_optimizer_with_new_settings_has_them():
    model = MLPClassifier(**SMALL, optimizer=lambda groups: optim.Adam(groups, lr=1e-3))
    model.partial_fit(X, CLASSES, classes=[0, 1])
    model.set_params(optimizer=lambda groups: optim.Adam(groups, lr=1e-3, amsgrad=True))
    model.partial_fit(X, CLASSES)
    assert all(group["amsgrad"] for group in model._session.optimizer.param_groups)


@pytest.mark.parametrize("optimizer", [None, "soap"])
def test_samples_that_weigh_nothing_leave_the_loss_finite(optimizer):
    weight = np.r_[np.ones(30), np.zeros(30)]
    model = MLPClassifier(**SMALL, optimizer=optimizer, batch_size=30, shuffle=False)
    assert np.isfinite(model.fit(X, CLASSES, sample_weight=weight).loss_)
