"""Fits scikit-learn's perceptrons on the ranks of an MPI program: ``mpiexec -n 3 python perceptrons.py OUT.npz``."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fastopt import distributed
from fastopt.sklearn import MLPClassifier, MLPRegressor


def estimators() -> dict[str, Any]:
    common = {"hidden_layer_sizes": (12,), "max_iter": 4}
    return {
        "adam": MLPClassifier(**common, random_state=1, batch_size=20, alpha=0.1),
        "stopping": MLPClassifier(**common, random_state=1, solver="sgd", early_stopping=True),
        "lbfgs": MLPClassifier(**common, random_state=1, solver="lbfgs", alpha=0.1),
        "regressor": MLPRegressor(**common, random_state=1, max_grad_norm=0.1),
        "tiny_batches": MLPRegressor(**common, random_state=1, batch_size=2, alpha=0.5),
        "any_seed": MLPClassifier(**common),
    }


def fit_all(comm: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((71, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int)
    weight = rng.uniform(0.5, 2.0, len(x))
    results = {}
    with distributed.use(comm), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, model in estimators().items():
            model.fit(x, y if name != "regressor" else x[:, :2] @ np.ones((2, 2)), sample_weight=weight)
            results[f"{name}/coefs"] = np.concatenate([w.ravel() for w in model.coefs_])
            results[f"{name}/loss"] = np.asarray(model.loss_)
    return results


if __name__ == "__main__":
    with distributed.world(timeout=120) as ranks:
        found = fit_all(ranks)
        for name, values in found.items():
            everyone = np.empty((ranks.size, values.size))
            ranks.allgather(values.astype(float).ravel(), everyone.ravel(), [values.size] * ranks.size)
            assert (everyone == everyone[0]).all(), f"{name} differs between ranks"
        if ranks.rank == 0:
            np.savez(sys.argv[1], **found)
