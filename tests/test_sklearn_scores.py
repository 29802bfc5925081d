"""Scores over several seeds beside scikit-learn's, on the sets that it brings and on MNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

from sklearn import datasets, neural_network
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastopt.data import load_mnist
from fastopt.sklearn import MLPClassifier, MLPRegressor

SEEDS = range(5)
POINTS = 0.005  # that a mean score may be below scikit-learn's


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("name", "epochs", "more"),
    [
        ("digits", 12, {}),
        ("breast_cancer", 30, {}),
        ("breast_cancer", 30, {"dropout": 0.1}),
        ("wine", 60, {}),
        ("iris", 100, {}),
        ("diabetes", 60, {}),
        ("wine", 200, {"solver": "lbfgs"}),
        ("diabetes", 200, {"solver": "lbfgs", "alpha": 10.0}),
    ],
)
def test_mean_scores_are_scikit_learns(name, epochs, more) -> None:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    kinds = (
        (MLPRegressor, neural_network.MLPRegressor)
        if name == "diabetes"
        else (
            MLPClassifier,
            neural_network.MLPClassifier,
        )
    )
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    scores = []
    for kind in kinds:
        options = {key: value for key, value in more.items() if kind is kinds[0] or key != "dropout"}
        of_kind = []
        for seed in SEEDS:
            parts = train_test_split(x, y, random_state=seed)
            model = make_pipeline(
                StandardScaler(),
                kind(max_iter=epochs, random_state=seed, learning_rate_init=0.005, **options),
            )
            of_kind.append(model.fit(parts[0], parts[2]).score(parts[1], parts[3]))
        scores.append(np.mean(of_kind))
    assert scores[0] >= scores[1] - POINTS


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_mean_scores_on_mnist_are_scikit_learns(shared: Path) -> None:
    x, y, x_test, y_test = load_mnist(shared / "data" / "mnist")
    scores = []
    for kind in (MLPClassifier, neural_network.MLPClassifier):
        models = [kind(max_iter=3, random_state=seed).fit(x[:20_000], y[:20_000]) for seed in SEEDS]
        scores.append(np.mean([model.score(x_test, y_test) for model in models]))
    assert scores[0] >= scores[1] - POINTS
    assert scores[0] > 0.93
