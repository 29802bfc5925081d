"""The perceptrons fitted on a GPU."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

from fastopt.sklearn import MLPClassifier, MLPRegressor
from gpu_tools import cp, kind

__all__ = ["cp", "kind"]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 6))
CLASSES, NUMBERS, WEIGHT = RNG.integers(0, 3, 70), RNG.standard_normal((70, 2)), RNG.uniform(0, 2, 70)
OPTIONS = {"hidden_layer_sizes": (9, 5), "batch_size": 16, "max_iter": 4, "random_state": 0}


def parameters(model: Any) -> list[np.ndarray]:
    return [*model.coefs_, *model.intercepts_, *[a for norm in model.batch_norms_ for a in norm[:4]]]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize(
    ("estimator", "y", "options"),
    [
        (MLPClassifier, CLASSES, {}),
        (MLPClassifier, CLASSES > 0, {"solver": "sgd", "activation": "tanh"}),
        (MLPClassifier, CLASSES, {"loss": "focal", "shuffle": False}),
        (MLPRegressor, NUMBERS, {"solver": "sgd", "momentum": 0.0, "alpha": 1.0}),
        (MLPClassifier, CLASSES, {"batch_norm": True, "solver": "sgd"}),
        (MLPRegressor, NUMBERS, {"loss": "huber", "dropout": 0.25, "max_grad_norm": 0.5}),
        (MLPClassifier, CLASSES, {"optimizer": "lamb", "alpha": 0.1}),
        (MLPClassifier, CLASSES, {"optimizer": "adafactor"}),
        (MLPRegressor, np.abs(NUMBERS), {"loss": "poisson", "ema": 0.9, "early_stopping": True}),
    ],
)
def test_fits_are_those_of_the_cpu(cp: Any, estimator: Any, y: Any, options: Any, weight: Any) -> None:
    host, device = (
        estimator(**OPTIONS, **options, device=where).fit(X, y, weight) for where in ("cpu", "cuda")
    )
    for a, b in zip(parameters(device), parameters(host), strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    # The penalty is that of the epoch's ends there.
    np.testing.assert_allclose(device.loss_curve_, host.loss_curve_, rtol=0.02)
    np.testing.assert_allclose(device.predict(X), host.predict(X), rtol=1e-9)


def test_partial_fits_and_pickles_go_on(cp: Any) -> None:
    one = MLPRegressor(random_state=0, device="cuda").partial_fit(X, NUMBERS)
    two = pickle.loads(pickle.dumps(one))
    three = MLPRegressor(random_state=0, device="cpu").partial_fit(X, NUMBERS)
    for model in (one, two, three):
        model.partial_fit(X, NUMBERS)
    for a, b, c in zip(parameters(one), parameters(two), parameters(three), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-12)
    one.set_params(device="cpu").partial_fit(X, NUMBERS)
    two.partial_fit(X, NUMBERS)
    for a, b in zip(parameters(one), parameters(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_lbfgs_is_for_the_cpu(cp: Any) -> None:
    with pytest.raises(ValueError, match="solver='lbfgs' fits on the CPU, got device 'cuda'"):
        MLPRegressor(solver="lbfgs", device="cuda").fit(X, NUMBERS)
