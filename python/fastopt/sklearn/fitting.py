"""The loops of a fit: epochs until the loss or a score stops improving, or L-BFGS."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from fastopt._minimize import minimize
from fastopt.sklearn.progress import Epoch, Progress
from fastopt.sklearn.training import Samples, Session, outputs, samples

Array = npt.NDArray[Any]

_LARGEST_BATCH = 200  # of batch_size="auto"


class Validation(NamedTuple):
    """Samples that an epoch is judged by, with targets as in training and as predicted."""

    x: Any
    y: Array
    labels: Array
    weight: Array | None


def fit_epochs(
    model: Any,
    session: Session,
    x: Array,
    y: Array,
    weight: Array | None,
    incremental: bool,
    given: tuple[Any, Array, Array | None] | None,
) -> None:
    """Train an estimator by epochs: one where it is `incremental`, else up to ``max_iter``."""
    stopping = bool(model.early_stopping)
    if given is None and stopping:
        x, y, weight, given = _split(model, x, y, weight)
    validation = None if given is None else Validation(given[0], given[1], model._labels(given[1]), given[2])
    if validation is not None:
        model.validation_loss_curve_ = getattr(model, "validation_loss_curve_", None) or []
        model.validation_scores_ = model.validation_scores_ or []
    n = len(x)
    batch = _batch_size(model, n)
    if model.batch_norm and batch < 2:
        raise ValueError(f"batch_norm=True needs batches of 2 samples or more, got {batch}")
    data = session.place(samples(session.settings.loss, x, y, weight, model.coefs_[0].dtype))
    order = np.arange(n, dtype=np.int64) if model.shuffle else None
    epochs = 1 if incremental else model.max_iter
    if stopping:
        model._best = model._weights().copies()
    progress = Progress(model.verbose if session.comm.rank == 0 else False, epochs, model.callbacks)
    model._began = True
    try:
        model.n_iter_ = 0
        for _ in range(epochs):
            if order is not None:
                model._random_state.shuffle(order)  # what `sklearn.utils.shuffle` makes of it
            model.loss_ = session.epoch(data, batch, order)
            model.n_iter_ += 1
            model.t_ += n
            model.loss_curve_.append(model.loss_)
            if validation is not None:
                _validate(model, session, validation)
            _count_improvements(model, session, stopping)
            session.end_epoch(model.loss_, model.t_)
            stop = not progress.silent and not progress.tell(_epoch(model, session, validation))
            if session.any(stop):
                break
            if model._no_improvement_count > model.n_iter_no_change:
                what = "Validation score" if stopping else "Training loss"
                progress.say(
                    f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} "
                    "consecutive epochs."
                )
                if session.stops():
                    progress.say("Stopping.")
                    break
                progress.say(f"Setting learning rate to {session.learning_rate:f}")
                model._no_improvement_count = 0
            if not incremental and model.n_iter_ == model.max_iter:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({model.max_iter}) reached and the optimization "
                    "hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=5,
                )
    except KeyboardInterrupt:
        if session.comm.size > 1:  # the others have not stopped here
            session.comm.fail("KeyboardInterrupt")
            raise
        warnings.warn("Training interrupted by user.", stacklevel=5)
    finally:
        progress.close()


def _split(
    model: Any, x: Array, y: Array, weight: Array | None
) -> tuple[Array, Array, Array | None, tuple[Array, Array, Array | None]]:
    """Set a part of the training data aside."""
    given = [x, y] if weight is None else [x, y, weight]
    stratify = y if is_classifier(model) and model.n_outputs_ == 1 else None
    parts = train_test_split(
        *given, random_state=model._random_state, test_size=model.validation_fraction, stratify=stratify
    )
    if weight is None:
        x, x_val, y, y_val = parts
        weight_val = None
    else:
        x, x_val, y, y_val, weight, weight_val = parts
    if len(x_val) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
        )
    return x, y, weight, (x_val, y_val, weight_val)


def _batch_size(model: Any, n: int) -> int:
    if isinstance(model.batch_size, str):
        return min(_LARGEST_BATCH, n)
    if model.batch_size > n:
        warnings.warn(
            f"Got `batch_size` {model.batch_size}, larger than the sample size {n}. It is going to be clipped",
            stacklevel=6,
        )
    return int(min(model.batch_size, n))


def _validate(model: Any, session: Session, validation: Validation) -> None:
    """Append the score and the loss of the validation data to their curves, and keep the best weights."""
    with session.predicting() as weights:
        z = outputs(validation.x, weights, model.activation)
        model.validation_loss_curve_.append(_mean_loss(session, z, validation))
        score = model._score(model._activated(z), validation.labels, validation.weight)
        model.validation_scores_.append(score)
        if model.early_stopping and score > model.best_validation_score_:
            model._best = weights.copies()


def _mean_loss(session: Session, z: Array, validation: Validation) -> float:
    """The loss of outputs, as in ``loss_curve_`` but without penalty."""
    loss = session.settings.loss
    data: Samples = samples(loss, z, validation.y, validation.weight, z.dtype)
    if data.rows is None:
        total, divisor = float(loss.module(z, data.target)), float(len(z))
    else:
        # Targets of classes hold the weights already.
        target = samples(loss, z, validation.y, None, z.dtype).target
        single = copy.copy(loss.module)
        single.reduction = "none"
        values = np.asarray(single(z, target), np.float64).reshape(len(z), -1).sum(axis=1)
        total, divisor = float((values * data.rows).sum()), float(data.rows.sum())
    total *= loss.factor
    if loss.mean:
        total /= data.width
    if data.constant is not None:
        total += float(data.constant.sum())
    return total / divisor if divisor else 0.0


def _count_improvements(model: Any, session: Session, stopping: bool) -> None:
    """Count the epochs since the loss, or the score of early stopping, was better by ``tol``."""
    if stopping:
        score, best = model.validation_scores_[-1], model.best_validation_score_
        worse = score < best + model.tol
        if score > best:
            model.best_validation_score_ = score
    else:
        loss, best = model.loss_, model.best_loss_
        worse = loss > best - model.tol
        if loss < best:
            model.best_loss_ = loss
    model._no_improvement_count = model._no_improvement_count + 1 if worse else 0


def _epoch(model: Any, session: Session, validation: Validation | None) -> Epoch:
    scores = (None, None)
    if validation is not None:
        scores = (model.validation_scores_[-1], model.validation_loss_curve_[-1])
    return Epoch(model, model.n_iter_, model.loss_, session.learning_rate, *scores)


def fit_lbfgs(model: Any, session: Session, x: Array, y: Array, weight: Array | None) -> None:
    """Minimise the loss of all samples at once."""
    data = samples(session.settings.loss, x, y, weight, model.coefs_[0].dtype)
    fun = session.evaluation(data)
    model._began = True
    found = minimize(
        fun,
        session.vector(),
        jac=True,
        method="lbfgs",
        options={"maxfun": model.max_fun, "maxiter": model.max_iter, "gtol": model.tol},
    )
    fun(found.x)
    model.n_iter_ = min(int(found.nit), model.max_iter)
    model.loss_ = session.reported(float(found.fun), data)
    if found.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {found.nit} iteration(s) (status={found.status}): {found.message}. "
            f"Increase max_iter={model.max_iter} or max_fun={model.max_fun}, or scale the data.",
            ConvergenceWarning,
            stacklevel=5,
        )
