"""The losses of the estimators: which compiled loss each is, and how it is reported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt import nn

Array = npt.NDArray[Any]


class Loss(NamedTuple):
    """A loss of one sample, summed over its outputs.

    Attributes
    ----------
    module : Module
        Of the last layer's output, with the reduction "sum".
    out_activation : str
        What turns that output into a prediction, by scikit-learn's names.
    factor : float
        What the module's value and gradient are multiplied by.
    mean : bool
        Whether the mean over outputs is reported, while their sum is minimised: scikit-learn's squared error.
    constant : callable, optional
        Of targets (n, outputs): what is added to each sample's loss where it is reported.
    """

    module: Any
    out_activation: str
    factor: float = 1.0
    mean: bool = False
    constant: Callable[[Array], Array] | None = None

    @property
    def classes(self) -> bool:
        """Whether a target may be the number of a class."""
        return isinstance(self.module, nn.CrossEntropyLoss)


def _poisson_constant(y: Array) -> Array:
    """What half of a Poisson deviance has beyond the likelihood: t log t - t."""
    logs = np.log(y, where=y > 0, out=np.zeros_like(y))
    total: Array = (y * logs - y).sum(axis=1, dtype=np.float64)
    return total


def _summed(loss: Any) -> Any:
    """A copy of a loss module with the reduction "sum"."""
    module = copy.copy(loss)
    module.reduction = "sum"
    return module


def _refuse(owner: str, loss: Any, names: str, modules: str) -> ValueError:
    given = repr(loss) if isinstance(loss, str) else type(loss).__name__
    return ValueError(f"{owner}: loss must be {names}, or one of fastopt.nn's {modules}, got {given}")


def classifier_loss(loss: Any, multiclass: bool) -> Loss:
    """Return the loss behind the `loss` of a classifier.

    Raises
    ------
    ValueError
        There is no such loss, or it is not for several classes of which one holds.
    """
    if isinstance(loss, str):
        table = {
            "log_loss": nn.CrossEntropyLoss if multiclass else nn.BCEWithLogitsLoss,
            "focal": nn.SigmoidFocalLoss,
        }
        if loss in table:
            loss = table[loss]()
    if isinstance(loss, nn.CrossEntropyLoss) and multiclass:
        if loss.weight is not None or loss.ignore_index >= 0:
            raise ValueError(
                "MLPClassifier: loss has a weight or an ignore_index; class_weight and sample_weight are for that"
            )
        return Loss(_summed(loss), "softmax")
    if isinstance(loss, nn.SigmoidFocalLoss):
        return Loss(_summed(loss), "logistic")
    if isinstance(loss, nn.BCEWithLogitsLoss) and loss.weight is None:
        if loss.pos_weight is not None and np.ndim(loss.pos_weight):
            raise ValueError(
                f"MLPClassifier: loss has a pos_weight of shape {np.shape(loss.pos_weight)}, expected one number; "
                "class_weight has a number for each class"
            )
        return Loss(_summed(loss), "logistic")
    wanted = ["BCEWithLogitsLoss (without weight)", "SigmoidFocalLoss"]
    if multiclass:
        wanted.append("CrossEntropyLoss")
    raise _refuse("MLPClassifier", loss, "'log_loss' or 'focal'", ", ".join(wanted))


_REGRESSION: dict[str, Callable[[], Any]] = {
    "squared_error": nn.MSELoss,
    "absolute_error": nn.L1Loss,
    "huber": nn.HuberLoss,
    "quantile": nn.QuantileLoss,
    "poisson": nn.PoissonNLLLoss,
}


def regressor_loss(loss: Any) -> Loss:
    """Return the loss behind the `loss` of a regressor; ValueError where there is none."""
    if isinstance(loss, str) and loss in _REGRESSION:
        loss = _REGRESSION[loss]()
    if isinstance(loss, nn.MSELoss):
        return Loss(_summed(loss), "identity", factor=0.5, mean=True)
    if isinstance(loss, nn.PoissonNLLLoss):
        return Loss(_summed(loss), "exp", constant=_poisson_constant)
    if isinstance(loss, nn.L1Loss | nn.HuberLoss | nn.SmoothL1Loss | nn.QuantileLoss):
        return Loss(_summed(loss), "identity", mean=True)
    raise _refuse(
        "MLPRegressor",
        loss,
        ", ".join(map(repr, _REGRESSION)),
        "MSELoss, L1Loss, HuberLoss, SmoothL1Loss, QuantileLoss, PoissonNLLLoss",
    )
