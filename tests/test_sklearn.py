"""The perceptrons beside scikit-learn's: the same numbers, curves, attributes, warnings and errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

import scipy.sparse
import sklearn
from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastopt
from fastopt.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Where there is a GPU too."""
    monkeypatch.setattr("fastopt.sklearn.base._usable_device", lambda: "cpu")


RNG = np.random.default_rng(0)
THEIRS = {MLPClassifier: neural_network.MLPClassifier, MLPRegressor: neural_network.MLPRegressor}


def standard(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return x[:500] / 16, y[:500]


def cancer():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return standard(x), y


def labels():
    return datasets.make_multilabel_classification(120, 8, n_classes=4, random_state=0)


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return standard(x), y / 100


def several():
    x, y = diabetes()
    return x, np.stack([y, y**2, -y], axis=1)


def weighted(x, y):
    return np.random.default_rng(3).uniform(0, 2, len(x))


def weights(model):
    return [*model.coefs_, *model.intercepts_]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=tolerance)
    assert ours.out_activation_ == theirs.out_activation_
    for name in ("n_layers_", "n_outputs_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("best_loss_", "loss_", "best_validation_score_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (other is None), name
        if other is not None:
            np.testing.assert_allclose(mine, other, rtol=tolerance, err_msg=name)
    if theirs.validation_scores_ is None:
        assert ours.validation_scores_ is None
    else:
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=tolerance)


# ----------------------------------------------------------------------------------- scikit-learn's trajectories

CLASSIFIER_ROWS = [
    (digits, {}),
    (digits, {"solver": "sgd", "batch_size": 64}),
    (digits, {"batch_size": 7, "max_iter": 2}),
    (digits, {"batch_size": 60, "shuffle": False, "alpha": 0.3}),
    (digits, {"hidden_layer_sizes": (20, 10), "activation": "tanh", "batch_size": 500}),
    (digits, {"hidden_layer_sizes": [], "solver": "sgd", "momentum": 0.0}),
    (digits, {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.2, "nesterovs_momentum": False}),
    (cancer, {"activation": "logistic"}),
    (cancer, {"activation": "identity", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}),
    (cancer, {"early_stopping": True, "max_iter": 30, "n_iter_no_change": 3}),
    (
        cancer,
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.02, "n_iter_no_change": 1, "max_iter": 60},
    ),
    (labels, {"early_stopping": True}),
    (labels, {"solver": "sgd", "batch_size": 50}),
]
REGRESSOR_ROWS = [
    (diabetes, {}),
    (diabetes, {"solver": "sgd", "batch_size": 33, "alpha": 1.0}),
    (diabetes, {"loss": "poisson", "activation": "tanh"}),
    (several, {"hidden_layer_sizes": (7, 5)}),
    (several, {"solver": "sgd", "activation": "logistic", "early_stopping": True}),
]
ROWS = [(MLPClassifier, *row) for row in CLASSIFIER_ROWS] + [(MLPRegressor, *row) for row in REGRESSOR_ROWS]
IDS = [f"{data.__name__} {' '.join(f'{k}={v}' for k, v in options.items())}" for _, data, options in ROWS]


@pytest.mark.parametrize("weigh", [None, weighted], ids=["", "weighted"])
@pytest.mark.parametrize(("ours", "data", "options"), ROWS, ids=IDS)
def test_the_same_seed_gives_the_same_weights(ours, data, options, weigh) -> None:
    x, y = data()
    options = {"max_iter": 6, "random_state": 5, **options}
    weight = None if weigh is None else weigh(x, y)
    mine = ours(**options).fit(x, y, weight)
    other = THEIRS[ours](**options).fit(x, y, weight)
    assert_close(mine, other, 1e-9)
    np.testing.assert_allclose(mine.score(x, y), other.score(x, y), rtol=1e-9)


@pytest.mark.parametrize(("ours", "data", "options"), ROWS[::4], ids=IDS[::4])
def test_float32_stays_as_near_as_rounding(ours, data, options) -> None:
    """Beside a float64 fit, float32 is at most twice as far as scikit-learn's."""
    x, y = data()
    options = {"random_state": 5, **options, "max_iter": 3}
    exact = THEIRS[ours](**options).fit(x, y)
    distance = []
    for kind in (ours, THEIRS[ours]):
        model = kind(**options).fit(x.astype(np.float32), y)
        assert all(w.dtype == np.float32 for w in weights(model))
        errors = [np.linalg.norm(a - b) for a, b in zip(weights(model), weights(exact), strict=True)]
        distance.append(np.linalg.norm(errors))
    total = np.linalg.norm([np.linalg.norm(b) for b in weights(exact)])
    assert distance[0] <= 2 * distance[1] + 8 * np.finfo(np.float32).eps * total


@pytest.mark.parametrize(
    ("kind", "data"), [(MLPClassifier, cancer), (MLPClassifier, labels), (MLPRegressor, several)]
)
def test_partial_fits_are_scikit_learns(kind, data) -> None:
    x, y = data()
    options = {"random_state": 2, "batch_size": 50, "hidden_layer_sizes": 9}
    mine, other = kind(**options), THEIRS[kind](**options)
    for begin in (0, 60, 30):
        part = slice(begin, begin + 60)
        classes = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
        more = {"classes": classes} if kind is MLPClassifier and begin == 0 else {}
        mine.partial_fit(x[part], y[part], **more)
        other.partial_fit(x[part], y[part], **more)
    assert_close(mine, other, 1e-9)


def test_lbfgs_ends_where_scikit_learns_does() -> None:
    x, y = diabetes()
    options = {
        "solver": "lbfgs",
        "random_state": 1,
        "alpha": 1.0,
        "activation": "tanh",
        "hidden_layer_sizes": 4,
    }
    mine = MLPRegressor(max_iter=4000, tol=1e-6, **options).fit(x, y)
    other = neural_network.MLPRegressor(max_iter=4000, tol=1e-6, **options).fit(x, y)
    assert abs(mine.loss_ - other.loss_) < 0.02 * other.loss_
    assert not hasattr(mine, "loss_curve_")
    assert mine.t_ == other.t_ == 0
    w = [np.concatenate([a.ravel() for a in weights(mine)])]
    pred = 0.5 * np.mean((mine.predict(x) - y) ** 2)
    penalty = 0.5 * 1.0 * sum((c**2).sum() for c in mine.coefs_) / len(x)
    np.testing.assert_allclose(mine.loss_, pred + penalty, rtol=1e-9)
    assert np.isfinite(w[0]).all()


@pytest.mark.parametrize("data", [digits, cancer, labels])
def test_predictions_are_scikit_learns(data) -> None:
    x, y = data()
    mine = MLPClassifier(max_iter=3, random_state=0).fit(x, y)
    other = neural_network.MLPClassifier(max_iter=3, random_state=0).fit(x, y)
    np.testing.assert_allclose(mine.predict_proba(x), other.predict_proba(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.predict_log_proba(x), other.predict_log_proba(x), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(mine.predict(x), other.predict(x))
    np.testing.assert_array_equal(mine.classes_, other.classes_)


def test_sparse_and_dense_are_the_same() -> None:
    x, y = digits()
    for container in (scipy.sparse.csr_matrix, scipy.sparse.csc_array):
        dense = MLPClassifier(max_iter=2, random_state=0).fit(x, y)
        sparse = MLPClassifier(max_iter=2, random_state=0).fit(container(x), y)
        for a, b in zip(weights(dense), weights(sparse), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(dense.predict_proba(x), sparse.predict_proba(container(x)))


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("kind", "data"), [(MLPClassifier, digits), (MLPClassifier, cancer), (MLPRegressor, several)]
)
def test_a_sample_weight_is_a_repetition(kind, data) -> None:
    x, y = data()
    x, y = x[:60], y[:60]
    counts = np.random.default_rng(1).integers(0, 4, len(x))
    options = {"random_state": 1, "shuffle": False, "max_iter": 5, "batch_size": 180, "hidden_layer_sizes": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the batch is larger than the data
        one = kind(**options).fit(x, y, counts)
        two = kind(**options).fit(np.repeat(x, counts, axis=0), np.repeat(y, counts, axis=0))
    for a, b in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.loss_curve_, two.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weight_is_a_sample_weight(class_weight) -> None:
    from sklearn.utils import compute_sample_weight

    x, y = cancer()
    own = weighted(x, y)
    options = {"max_iter": 4, "random_state": 0}
    one = MLPClassifier(class_weight=class_weight, **options).fit(x, y, own)
    two = MLPClassifier(**options).fit(x, y, own * compute_sample_weight(class_weight, y))
    for a, b in zip(weights(one), weights(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_class_weights_of_labels() -> None:
    x, y = labels()
    many = [{0: 1, 1: 2}] * 4
    one = MLPClassifier(class_weight=many, max_iter=2, random_state=0).fit(x, y)
    two = MLPClassifier(max_iter=2, random_state=0).fit(x, y, 2.0 ** y.sum(axis=1))
    for a, b in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="'balanced' is not for partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(x, y, classes=np.arange(4))


def test_a_batch_that_weighs_nothing_moves_nothing() -> None:
    x, y = diabetes()
    weight = np.ones(100)
    weight[40:80] = 0
    options = {
        "solver": "sgd",
        "momentum": 0.0,
        "shuffle": False,
        "batch_size": 40,
        "max_iter": 1,
        "random_state": 0,
    }
    one = MLPRegressor(**options).fit(x[:100], y[:100], weight)
    keep = np.r_[0:40, 80:100]
    two = MLPRegressor(**options).fit(x[keep], y[keep])
    for a, b in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


# ---------------------------------------------------------------------------------------- going on, pickles


@pytest.mark.parametrize(
    "options", [{}, {"solver": "sgd"}, {"dropout": 0.3, "ema": 0.9}, {"optimizer": "adamw"}]
)
def test_an_unpickled_estimator_goes_on_bit_for_bit(options) -> None:
    x, y = digits()
    model = MLPClassifier(random_state=np.random.RandomState(3), **options)
    model.partial_fit(x, y, classes=np.unique(y)).partial_fit(x, y)
    copy = pickle.loads(pickle.dumps(model))
    again = pickle.loads(pickle.dumps(copy))
    for a, b in zip(weights(model), weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict_proba(x), again.predict_proba(x))
    for each in (model, copy, again):
        each.partial_fit(x, y).partial_fit(x, y)
    for a, b, c in zip(weights(model), weights(copy), weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert model.loss_curve_ == again.loss_curve_
    assert model.t_ == again.t_ == 4 * len(x)


@pytest.mark.parametrize("options", [{}, {"solver": "sgd", "learning_rate": "invscaling"}])
def test_a_warm_start_keeps_the_optimizers_state(options) -> None:
    """Without shuffles two warm fits are one of twice the length."""
    x, y = digits()
    fixed = {"shuffle": False, "random_state": 0, "hidden_layer_sizes": 11, **options}
    parts = MLPClassifier(max_iter=3, warm_start=True, **fixed).fit(x, y)
    parts = pickle.loads(pickle.dumps(parts)).fit(x, y)
    whole = MLPClassifier(max_iter=6, **fixed).fit(x, y)
    if not options:
        for a, b in zip(weights(parts), weights(whole), strict=True):
            np.testing.assert_array_equal(a, b)
        assert parts.loss_curve_ == whole.loss_curve_
    assert parts.n_iter_ == 3
    assert len(parts.loss_curve_) == 6


def test_a_warm_start_takes_new_settings() -> None:
    x, y = diabetes()
    model = MLPRegressor(max_iter=1, warm_start=True, random_state=0).fit(x, y)
    before = [w.copy() for w in weights(model)]
    model.set_params(learning_rate_init=1e-12).fit(x, y)
    for a, b in zip(weights(model), before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    model.set_params(solver="sgd", learning_rate_init=1e-3).fit(x, y)
    assert len(model.loss_curve_) == 3


def test_weights_that_a_user_sets_are_used() -> None:
    x, y = diabetes()
    options = {"random_state": 0, "hidden_layer_sizes": 6}
    one, two = (MLPRegressor(**options).partial_fit(x, y) for _ in range(2))
    other = neural_network.MLPRegressor(**options).partial_fit(x, y)
    for model in (one, other):
        model.coefs_ = [np.ascontiguousarray(0.5 * w) for w in model.coefs_]
    two.coefs_[0][...] *= 0.5
    two.coefs_[1][...] *= 0.5
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-9)
    for model in (one, two, other):
        model.partial_fit(x, y)
    for a, b, c in zip(weights(one), weights(two), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-12)


def test_a_fit_begins_anew() -> None:
    x, y = diabetes()
    model = MLPRegressor(random_state=0, max_iter=3).fit(x, y)
    first = [w.copy() for w in weights(model)]
    model.fit(x, y)
    for a, b in zip(weights(model), first, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.loss_curve_) == 3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_number_of_threads_changes_no_bit(dropout) -> None:
    x, y = digits()
    before = fastopt.get_num_threads()
    fits = [
        MLPClassifier(300, max_iter=3, random_state=0, dropout=dropout, n_threads=n).fit(
            x.astype(np.float32), y
        )
        for n in (1, 2, 5)
    ]
    for model in fits[1:]:
        for a, b in zip(weights(fits[0]), weights(model), strict=True):
            np.testing.assert_array_equal(a, b)
        assert model.loss_curve_ == fits[0].loss_curve_
    assert fastopt.get_num_threads() == before


# ----------------------------------------------------------------------------------- scikit-learn's company


def test_grid_search_pipeline_clone_and_set_output() -> None:
    x, y = datasets.load_iris(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), MLPClassifier(max_iter=20, random_state=0)),
        {"mlpclassifier__dropout": [0.0, 0.1], "mlpclassifier__optimizer": [None, "nadam"]},
        cv=2,
    )
    search.set_params(estimator__mlpclassifier__learning_rate_init=0.02).fit(x, y)
    assert search.best_score_ > 0.9
    pipeline = make_pipeline(StandardScaler().set_output(transform="default"), MLPClassifier(max_iter=5))
    assert pipeline.fit(x, y).predict(x).shape == y.shape
    model = MLPClassifier(loss=fastopt.nn.SigmoidFocalLoss(), dropout=[0.1], ema=0.5)
    copy = clone(model)
    assert copy.get_params()["dropout"] == [0.1]
    assert copy.loss.alpha == model.loss.alpha
    assert "optimizer='lion'" in repr(MLPClassifier(optimizer="lion"))


def test_convergence_and_clipping_warn_as_in_scikit_learn() -> None:
    x, y = diabetes()
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        MLPRegressor(max_iter=2).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        MLPRegressor(max_iter=2, solver="lbfgs").fit(x, y)
    with pytest.warns(UserWarning, match="Got `batch_size` 1000, larger than the sample size 442"):
        MLPRegressor(max_iter=1, batch_size=1000).fit(x, y)


def test_an_interrupt_ends_the_fit_with_a_warning() -> None:
    x, y = diabetes()

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model = MLPRegressor(callbacks=interrupt).fit(x, y)
    assert model.n_iter_ == 2
    assert np.isfinite(model.predict(x)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layer_sizes": (3, -1)}, "hidden_layer_sizes must be > 0, got"),
        ({"dropout": [0.1, 0.2]}, "dropout has 2 entries, hidden_layer_sizes has 1"),
        ({"dropout": 1.5}, "'dropout' parameter"),
        ({"solver": "newton"}, "'solver' parameter"),
        ({"solver": "lbfgs", "dropout": 0.5}, "dropout is for solver='sgd', 'adam' or an optimizer"),
        ({"solver": "lbfgs", "ema": 0.5}, "ema is for solver='sgd', 'adam' or an optimizer"),
        ({"optimizer": "sgdd"}, "optimizer must be one of .*adam.*, got 'sgdd'"),
        (
            {"optimizer": lambda groups: fastopt.optim.Adam(groups), "ema": 0.5},
            "ema: an optimizer that a function makes",
        ),
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"loss": "hinge"}, "loss must be 'log_loss' or 'focal', or one of fastopt.nn's .*, got 'hinge'"),
        ({"loss": fastopt.nn.MSELoss()}, "got MSELoss"),
        ({"early_stopping": True, "validation_fraction": 0.001}, "validation set is too small|test_size"),
    ],
)
def test_errors_name_the_argument(options, message) -> None:
    x, y = digits()
    with pytest.raises(ValueError, match=message):
        MLPClassifier(max_iter=1, **options).fit(x, y)


def test_errors_of_data() -> None:
    x, y = diabetes()
    with pytest.raises(ValueError, match=r"loss='poisson' needs y >= 0, got -"):
        MLPRegressor(loss="poisson").fit(x, -y)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        MLPRegressor(early_stopping=True).partial_fit(x, y)
    with pytest.raises(AttributeError, match="partial_fit"):
        MLPRegressor(solver="lbfgs").partial_fit(x, y)
    with pytest.raises(NotFittedError):
        MLPRegressor().predict(x)
    with pytest.raises(ValueError, match="non-finite parameter weights"), np.errstate(all="ignore"):
        MLPRegressor(solver="sgd", learning_rate_init=1e6, max_iter=20).fit(x * 1e6, y)
    model = MLPClassifier(warm_start=True, max_iter=1).fit(x[:20], np.arange(20) % 3)
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
        model.fit(x[:20], np.arange(20) % 2)
    model = MLPClassifier().partial_fit(x[:20], np.arange(20) % 3, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"`y` has classes not in `self.classes_`"):
        model.partial_fit(x[:20], np.arange(20) % 4)


@pytest.mark.parametrize("shape", [(20, 6000), (2100, 30)], ids=["wide", "deep"])
def test_penalties_of_wide_weights_and_deep_batches(shape) -> None:
    """Where updates are cut in other ways."""
    x = np.random.default_rng(0).standard_normal(shape)
    y = x[:, 0] * x[:, 1]
    options = {
        "hidden_layer_sizes": 40,
        "max_iter": 3,
        "alpha": 10.0,
        "random_state": 0,
        "batch_size": shape[0],
    }
    other = neural_network.MLPRegressor(**options).fit(x, y)
    one, two = (MLPRegressor(**options, n_threads=n).fit(x, y) for n in (1, 3))
    np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-9)
    assert one.loss_curve_ == two.loss_curve_


def test_metadata_is_routed() -> None:
    x, y = diabetes()
    with sklearn.config_context(enable_metadata_routing=True):
        model = MLPRegressor(max_iter=2, random_state=0)
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"alpha": [0.1]}, cv=2).fit(x, y, sample_weight=weighted(x, y))
    direct = MLPRegressor(max_iter=2, random_state=0, alpha=0.1).fit(x, y, weighted(x, y))
    np.testing.assert_array_equal(search.best_estimator_.coefs_[0], direct.coefs_[0])


def test_importing_fastopt_leaves_scikit_learn_out() -> None:
    code = (
        "import sys, fastopt; assert 'sklearn' not in sys.modules; fastopt.sklearn.MLPClassifier; "
        "print('sklearn' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
