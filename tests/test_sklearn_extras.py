"""What the perceptrons have beyond scikit-learn's: losses, optimizers, clipping, averages, validation, callbacks."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

import scipy.sparse
from sklearn import datasets
from sklearn.metrics import accuracy_score, log_loss, r2_score

import reference
from fastopt import nn, optim
from fastopt.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Where there is a GPU too."""
    monkeypatch.setattr("fastopt.sklearn.base._usable_device", lambda: "cpu")


X, Y = datasets.make_regression(70, 5, n_targets=2, random_state=0, noise=1.0)
Y = Y / 100
COUNTS = np.random.default_rng(1).poisson(2.0, (70, 1)).astype(float)
CLASSES = np.random.default_rng(2).integers(0, 3, 70)
WEIGHT = np.random.default_rng(3).uniform(0, 2, 70)
ALPHA, BATCH, RATE = 0.5, 16, 0.05
PLAIN = {
    "solver": "sgd",
    "momentum": 0.0,
    "shuffle": False,
    "activation": "tanh",
    "alpha": ALPHA,
    "batch_size": BATCH,
    "learning_rate_init": RATE,
    "hidden_layer_sizes": (6, 4),
    "random_state": 0,
}


def parameters(model):
    return [*model.coefs_, *model.intercepts_]


def gradients(coefs, intercepts, x, y, weight, derivative):
    """The gradients of a weighted sum of losses, by the derivative of each loss by the outputs."""
    inputs = [x]
    for w, b in zip(coefs[:-1], intercepts[:-1], strict=True):
        inputs.append(np.tanh(inputs[-1] @ w + b))
    d = weight[:, None] * derivative(inputs[-1] @ coefs[-1] + intercepts[-1], y)
    grads_w, grads_b = [], []
    for a, w in zip(inputs[::-1], coefs[::-1], strict=True):
        grads_w.insert(0, a.T @ d)
        grads_b.insert(0, d.sum(axis=0))
        d = d @ w.T * (1 - a**2)
    return grads_w + grads_b


def trained(start, x, y, weight, derivative, epochs, max_norm=None, step=None):
    """The weights after plain descent of each batch's weighted mean loss and penalty."""
    params = [p.copy() for p in parameters(start)]
    layers = len(start.coefs_)
    for _ in range(epochs):
        for begin in range(0, len(x), BATCH):
            rows = slice(begin, begin + BATCH)
            w = np.ones(len(x[rows])) if weight is None else weight[rows]
            grads = gradients(params[:layers], params[layers:], x[rows], y[rows], w, derivative)
            grads = [g / w.sum() for g in grads]
            if max_norm is not None:
                norm = np.sqrt(sum((g**2).sum() for g in grads))
                grads = [g * min(1.0, max_norm / (norm + 1e-6)) for g in grads]
            for i in range(layers):
                grads[i] = grads[i] + ALPHA / w.sum() * params[i]
            if step is not None:
                step(params, grads)
            else:
                params = [p - RATE * g for p, g in zip(params, grads, strict=True)]
    return params


def elementwise(name, *params):
    return lambda z, t: reference.LOSSES[name](z, t, *params)[1]


def smoothed(z, t):
    q = t * 0.9 + 0.1 / t.shape[1]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True) - q


ONE_HOT = np.eye(3)[CLASSES]
LOSSES = {
    "absolute_error": (MLPRegressor, "absolute_error", Y, Y, elementwise("l1")),
    "huber": (MLPRegressor, "huber", Y, Y, elementwise("huber", 1.0)),
    "huber 0.2": (MLPRegressor, nn.HuberLoss("mean", 0.2), Y, Y, elementwise("huber", 0.2)),
    "smooth_l1": (MLPRegressor, nn.SmoothL1Loss(beta=0.5), Y, Y, elementwise("smooth_l1", 0.5)),
    "quantile": (MLPRegressor, "quantile", Y, Y, elementwise("quantile", 0.5)),
    "quantile 0.9": (MLPRegressor, nn.QuantileLoss(0.9), Y, Y, elementwise("quantile", 0.9)),
    "squared_error": (MLPRegressor, nn.MSELoss(), Y, Y, lambda z, t: z - t),
    "poisson": (MLPRegressor, "poisson", COUNTS, COUNTS, elementwise("poisson_nll")),
    "focal, two classes": (
        MLPClassifier,
        "focal",
        CLASSES > 0,
        (CLASSES > 0)[:, None].astype(float),
        elementwise("sigmoid_focal", 0.25, 2.0),
    ),
    "focal": (
        MLPClassifier,
        nn.SigmoidFocalLoss(-1, 1.5),
        CLASSES,
        ONE_HOT,
        elementwise("sigmoid_focal", -1, 1.5),
    ),
    "focal, labels": (
        MLPClassifier,
        "focal",
        ONE_HOT.astype(int),
        ONE_HOT,
        elementwise("sigmoid_focal", 0.25, 2.0),
    ),
    "pos_weight": (
        MLPClassifier,
        nn.BCEWithLogitsLoss(pos_weight=3.0),
        CLASSES > 0,
        (CLASSES > 0)[:, None].astype(float),
        elementwise("bce_with_logits", 3.0),
    ),
    "smoothing": (MLPClassifier, nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES, ONE_HOT, smoothed),
}


def fresh(kind, y, **options):
    """An estimator with the weights that a fit starts with."""
    model = kind(**{**PLAIN, **options, "learning_rate_init": 1e-300, "max_iter": 1, "max_grad_norm": None})
    return model.fit(X, y)


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_losses_descend_as_plain_numpy_does(name, weight, max_norm) -> None:
    kind, loss, y, target, derivative = LOSSES[name]
    y = np.ravel(y) if y.ndim == 2 and y.shape[1] == 1 else y
    expected = trained(fresh(kind, y, loss=loss), X, target, weight, derivative, 3, max_norm)
    model = kind(**PLAIN, loss=loss, max_iter=3, max_grad_norm=max_norm).fit(X, y, weight)
    for a, b in zip(parameters(model), expected, strict=True):
        # Clipping adds 1e-6 to the norm of a batch's sum, here to that of its mean.
        tolerance = 1e-9 if max_norm is None else 1e-5
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-3 * tolerance)


def test_losses_are_reported_as_documented() -> None:
    """With tiny steps the loss of an epoch is that of its weights."""
    tiny = {**PLAIN, "learning_rate_init": 1e-300, "max_iter": 1, "batch_size": 70}
    for loss, value in (
        ("squared_error", lambda p: 0.5 * ((p - Y) ** 2).mean()),
        ("absolute_error", lambda p: np.abs(p - Y).mean()),
        ("quantile", lambda p: 0.5 * np.abs(p - Y).mean()),
    ):
        model = MLPRegressor(**tiny, loss=loss).fit(X, Y)
        penalty = 0.5 * ALPHA * sum((w**2).sum() for w in model.coefs_) / len(X)
        np.testing.assert_allclose(model.loss_, value(model.predict(X)) + penalty, rtol=1e-12)


def test_focal_probabilities_are_shares() -> None:
    model = MLPClassifier(loss="focal", max_iter=30, learning_rate_init=0.01, random_state=0)
    x, y = datasets.load_iris(return_X_y=True)
    model.fit(x, y)
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(x), p.argmax(axis=1))
    assert model.out_activation_ == "logistic"
    assert model.score(x, y) > 0.8


# ---------------------------------------------------------------------------------------------- optimizers

OPTIMIZERS = {
    "name": ("NAdam", lambda params: optim.NAdam(params, lr=RATE)),
    "class": (optim.Lion, lambda params: optim.Lion(params, lr=RATE)),
    "function": (
        lambda groups: optim.AdamW(groups, lr=0.01, weight_decay=0.2),
        lambda params: optim.AdamW(params, lr=0.01, weight_decay=0.2),
    ),
    "by whole parameters": ("lamb", lambda params: optim.LAMB(params, lr=RATE)),
    "by matrix products": (
        "muon",
        lambda params: optim.Muon(
            [{"params": params[:3]}, {"params": params[3:], "use_muon": False}], lr=RATE
        ),
    ),
}


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name, weight) -> None:
    chosen, made = OPTIMIZERS[name]
    start = fresh(MLPRegressor, Y)
    stepping = []

    def step(params, grads):
        if not stepping:
            # Weights as layers have them, which some optimizers look at.
            stepping.append([np.ascontiguousarray(p.T) for p in params])
            stepping.append(made(stepping[0]))
        arrays, optimizer = stepping
        optimizer.step([np.ascontiguousarray(g.T) for g in grads])
        for p, a in zip(params, arrays, strict=True):
            p[...] = a.T

    expected = trained(start, X, Y, weight, lambda z, t: z - t, 2, step=step)
    model = MLPRegressor(**PLAIN, optimizer=chosen, max_iter=2).fit(X, Y, weight)
    for a, b in zip(parameters(model), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert np.isfinite(model.loss_)


def test_the_loss_of_an_optimizer_that_evaluates_the_model() -> None:
    options = {**PLAIN, "max_iter": 1, "learning_rate_init": 1e-12}
    one = MLPRegressor(**options, optimizer="lamb").fit(X, Y, WEIGHT)
    two = MLPRegressor(**options, optimizer="adam").fit(X, Y, WEIGHT)
    np.testing.assert_allclose(one.loss_, two.loss_, rtol=1e-9)


def test_a_schedule_steps_after_each_epoch() -> None:
    rates = []
    model = MLPRegressor(
        max_iter=5,
        random_state=0,
        lr_scheduler=lambda opt: optim.lr_scheduler.ExponentialLR(opt, 0.5),
        callbacks=[lambda epoch: rates.append(epoch.learning_rate)],
    ).fit(X, Y)
    np.testing.assert_allclose(rates, 0.001 * 0.5 ** np.arange(1, 6))
    model.partial_fit(X, Y)
    np.testing.assert_allclose(rates[-1], 0.001 * 0.5**6)
    plateau = MLPRegressor(
        max_iter=6, random_state=0, tol=0.0, learning_rate_init=1e-4,
        lr_scheduler=lambda opt: optim.lr_scheduler.ReduceLROnPlateau(opt, threshold=0.5, patience=1),
        callbacks=lambda epoch: rates.append(epoch.learning_rate),
    ).fit(X, Y)  # fmt: skip
    assert rates[-1] < 1e-4
    assert plateau.n_iter_ == 6


def test_averages_predict_and_training_goes_on_without_them() -> None:
    seen = []
    options = {**PLAIN, "batch_size": 70, "max_iter": 1}
    plain = MLPRegressor(**options, warm_start=True)
    plain.set_params(learning_rate_init=1e-300).fit(X, Y)
    seen.append([p.copy() for p in parameters(plain)])
    plain.set_params(learning_rate_init=RATE)
    averaged = MLPRegressor(**options, ema=0.75)
    for i in range(5):
        (averaged.fit if i == 0 else averaged.partial_fit)(X, Y)
        plain.fit(X, Y)
        seen.append([p.copy() for p in parameters(plain)])
    average = seen[0]
    for weights in seen[1:]:
        average = [0.75 * a + 0.25 * w for a, w in zip(average, weights, strict=True)]
    for a, b in zip(parameters(averaged), average, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_weights_of_an_optimizer_with_two_faces_are_those_to_evaluate() -> None:
    model = MLPRegressor(
        optimizer=lambda groups: optim.AdamWScheduleFree(groups, lr=0.01), max_iter=30, random_state=0
    ).fit(X, Y)
    score = model.score(X, Y)
    model.partial_fit(X, Y)
    assert score > 0.3
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_dropout_is_drawn_from_the_random_state() -> None:
    options = {"max_iter": 3, "dropout": (0.5, 0.1), "hidden_layer_sizes": (20, 10)}
    one, two, other = (MLPRegressor(random_state=seed, **options).fit(X, Y) for seed in (0, 0, 1))
    for a, b in zip(parameters(one), parameters(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.coefs_[0], other.coefs_[0])
    without = MLPRegressor(random_state=0, **{**options, "dropout": 0.0}).fit(X, Y)
    assert abs(without.loss_ - one.loss_) > 1e-3
    np.testing.assert_array_equal(one.predict(X), one.predict(X))


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "silu", "elu", "softplus"])
def test_other_activations(activation) -> None:
    model = MLPRegressor(activation=activation, max_iter=100, random_state=0, learning_rate_init=0.01).fit(
        X, Y
    )
    assert model.loss_ < 0.5 * model.loss_curve_[0]
    z = getattr(nn.functional, activation)(X @ model.coefs_[0] + model.intercepts_[0])
    np.testing.assert_allclose(
        model.predict(X), z @ model.coefs_[1] + model.intercepts_[1], rtol=1e-9, atol=1e-12
    )


def test_precision_is_for_float32() -> None:
    with pytest.raises(TypeError, match="precision 'bf16' is for float32"):
        MLPRegressor(precision="bf16", max_iter=1).fit(X, Y)
    rounded = MLPRegressor(precision="bf16", max_iter=3, random_state=0).fit(X.astype(np.float32), Y)
    exact = MLPRegressor(max_iter=3, random_state=0).fit(X.astype(np.float32), Y)
    assert 0 < abs(rounded.loss_ - exact.loss_) < 0.02 * exact.loss_


# ------------------------------------------------------------------------------------------ while it runs


@pytest.mark.parametrize("weight", [None, WEIGHT[50:]], ids=["", "weighted"])
def test_validation_data_gives_curves(weight) -> None:
    given = (X[50:], CLASSES[50:]) if weight is None else (X[50:], CLASSES[50:], weight)
    model = MLPClassifier(max_iter=4, random_state=0).fit(X[:50], CLASSES[:50], validation_data=given)
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == 4
    p = model.predict_proba(X[50:])
    np.testing.assert_allclose(
        model.validation_loss_curve_[-1], log_loss(CLASSES[50:], p, sample_weight=weight), rtol=1e-9
    )
    score = accuracy_score(CLASSES[50:], p.argmax(axis=1), sample_weight=weight)
    np.testing.assert_allclose(model.validation_scores_[-1], score)
    regressor = MLPRegressor(max_iter=4, random_state=0)
    regressor.fit(X[:50], Y[:50], validation_data=(X[50:], Y[50:], *given[2:]))
    predicted = regressor.predict(X[50:])
    np.testing.assert_allclose(
        regressor.validation_scores_[-1], r2_score(Y[50:], predicted, sample_weight=weight), rtol=1e-9
    )
    np.testing.assert_allclose(
        regressor.validation_loss_curve_[-1],
        0.5 * np.average((predicted - Y[50:]) ** 2, axis=0, weights=weight).mean(),
        rtol=1e-9,
    )


def test_early_stopping_by_given_data_keeps_the_best() -> None:
    held = X[50:], Y[50:]
    model = MLPRegressor(
        early_stopping=True, max_iter=200, n_iter_no_change=2, learning_rate_init=0.3, random_state=0
    ).fit(X[:50], Y[:50], validation_data=held)
    assert model.n_iter_ < 200
    assert model.t_ == 50 * model.n_iter_
    np.testing.assert_allclose(model.score(*held), model.best_validation_score_, rtol=1e-12)
    assert model.best_validation_score_ == max(model.validation_scores_)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X,), r"validation_data must be \(X, y\) or \(X, y, sample_weight\)"),
        ((X, CLASSES[:-1]), "validation_data: X has 70 samples, y has 69"),
        ((X, CLASSES + 1), r"validation_data: y has classes \[3\]"),
        ((X[:, :3], CLASSES), "X has 3 features"),
    ],
)
def test_errors_of_validation_data(data, message) -> None:
    with pytest.raises(ValueError, match=message):
        MLPClassifier(max_iter=1).fit(X, CLASSES, validation_data=data)


def test_callbacks_see_epochs_and_end_fits() -> None:
    seen = []

    def first(epoch):
        seen.append((epoch.epoch, epoch.loss, epoch.validation_score, epoch.validation_loss))
        return epoch.epoch < 3

    model = MLPRegressor(callbacks=[first, lambda epoch: None], random_state=0)
    model.fit(X, Y, validation_data=(X, Y))
    assert model.n_iter_ == 3
    curves = model.loss_curve_, model.validation_scores_, model.validation_loss_curve_
    assert seen == list(zip((1, 2, 3), *curves, strict=True))


@pytest.mark.parametrize("tqdm", [True, False])
def test_verbose_shows_a_bar_or_lines(tqdm, monkeypatch, capsys) -> None:
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model = MLPRegressor(verbose=True, max_iter=3, random_state=0).fit(X, Y)
    out, err = capsys.readouterr()
    if tqdm:
        assert "3/3" in err
        assert f"loss={model.loss_:.4g}" in err
    else:
        assert f"Iteration 3, loss = {model.loss_:.8f}" in out
    MLPRegressor(
        verbose=2, max_iter=300, tol=10, n_iter_no_change=1, learning_rate="adaptive", solver="sgd"
    ).fit(X, Y)
    out, _ = capsys.readouterr()
    assert "Training loss did not improve more than tol=10.000000 for 1 consecutive epochs." in out
    assert "Setting learning rate to 0.000200" in out
    assert "Stopping." in out


@pytest.mark.parametrize(
    "name", ["lars", "soap", "muon", "adafactor", "prodigy", "rprop", "adamwschedulefree"]
)
def test_the_state_of_every_kind_of_optimizer_survives_a_pickle(name) -> None:
    model = MLPClassifier(optimizer=name, max_iter=3, random_state=0, learning_rate_init=0.01)
    model.fit(X, CLASSES, WEIGHT)
    copy = pickle.loads(pickle.dumps(model))
    for each in (model, copy):
        each.partial_fit(X, CLASSES).partial_fit(X, CLASSES, WEIGHT)
    for a, b in zip(parameters(model), parameters(copy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_data_of_labels_and_sparse_rows() -> None:
    x, y = datasets.make_multilabel_classification(80, 6, n_classes=3, random_state=0)
    held = scipy.sparse.csr_matrix(x[60:]), y[60:]
    model = MLPClassifier(max_iter=3, random_state=0).fit(x[:60], y[:60], validation_data=held)
    p = model.predict_proba(x[60:])
    expected = -np.where(y[60:], np.log(p), np.log1p(-p)).sum(axis=1).mean()
    np.testing.assert_allclose(model.validation_loss_curve_[-1], expected, rtol=1e-9)
    assert model.validation_scores_[-1] == accuracy_score(y[60:], model.predict(x[60:]))
