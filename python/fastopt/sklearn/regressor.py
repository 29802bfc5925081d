"""MLPRegressor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.metaestimators import available_if

from fastopt.sklearn.base import BaseMLP
from fastopt.sklearn.losses import Loss, regressor_loss

Array = npt.NDArray[Any]


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]
    """scikit-learn's multilayer perceptron for numbers, fitted by `fastopt.compile`.

    With the same `random_state`, "sgd" and "adam" give the weights of scikit-learn's class up to rounding.

    Parameters
    ----------
    loss : {"squared_error", "absolute_error", "huber", "quantile", "poisson"} or loss of fastopt.nn
        What is minimised, summed over outputs: half of the squared error; the absolute error; `HuberLoss` (quadratic up
        to 1); half of the absolute error, whose least is the median; half of the Poisson deviance of targets that are
        not negative, with exp as output activation. ``nn.QuantileLoss(0.9)``, ``nn.HuberLoss(delta=2.0)`` and
        `nn.SmoothL1Loss` bring their own settings; their reduction does not count.
    hidden_layer_sizes : array-like of int or int
        Neurons of each hidden layer.
    activation : {"identity", "logistic", "tanh", "relu", "leaky_relu", "gelu", "silu", "elu", "softplus"}
        Of hidden layers. Weights start uniform in ±sqrt(6 / (in + out)), of "logistic" ±sqrt(2 / (in + out))
        (Glorot and Bengio 2010).
    solver : {"lbfgs", "sgd", "adam"}
        L-BFGS over all samples at once, stochastic gradient descent, or Adam.
    alpha : float
        Each batch's mean loss has a penalty of alpha / 2 times the weights' squares, divided by the batch's samples.
        Biases have none.
    batch_size : int or "auto"
        Rows of a step, "auto": 200, or all if there are fewer.
    learning_rate : {"constant", "invscaling", "adaptive"}
        Of solver "sgd": as it is, divided by ``(samples so far + 1) ** power_t`` after each epoch, or by 5 where
        training would end for lack of improvement, as long as it is above 1e-6.
    learning_rate_init : float
        Where it begins; ``lr`` of an `optimizer` given by name or class.
    power_t : float
        Of "invscaling".
    max_iter : int
        Epochs, or iterations of "lbfgs", at most.
    shuffle : bool
        Draw a new order of the samples in each epoch.
    random_state : int, RandomState or None
        Weights, orders and what `early_stopping` sets aside are drawn as in scikit-learn.
    tol : float
        An epoch that is not better than the best by this much counts as no improvement; of "lbfgs" the largest
        element of the gradient at the end.
    verbose : bool or int
        1 or True: a progress bar where tqdm is installed. From 2 on, or without tqdm, a line for each epoch.
    warm_start : bool
        `fit` goes on from the last fit's weights and optimizer state, with the settings of now.
    momentum, nesterovs_momentum
        Of "sgd".
    early_stopping : bool
        Stop by the score of validation data, and keep the weights that were best.
    validation_fraction : float
        Share of the samples that is set aside for it.
    beta_1, beta_2, epsilon : float
        Of "adam".
    n_iter_no_change : int
        Epochs without improvement that end a fit when there is one more.
    max_fun : int
        Evaluations of "lbfgs" at most.
    optimizer : str, class or callable, optional
        In place of `solver`: a name of `fastopt.optim` such as "adamw", a class, or a function of parameter groups such
        as ``lambda groups: optim.Lion(groups, lr=1e-4)``. Its own weight decay comes on top of `alpha`.
    lr_scheduler : callable, optional
        Returns a schedule of an optimizer: ``lambda opt: optim.lr_scheduler.CosineAnnealingLR(opt, 50)``. It steps
        after each epoch.
    dropout : float or sequence of float
        After each hidden layer (Srivastava et al. 2014).
    batch_norm : bool
        A `BatchNorm1d` between each hidden layer and its activation; predictions use its running statistics. Weights
        and biases of these have no penalty. A last batch of one sample, which has no variance, is left out of its
        epoch; with `shuffle` that is another one each time. Batches have to be of 2 samples or more.
    max_grad_norm : float, optional
        Limit of the norm of all gradients, without those of the penalty.
    ema : float, optional
        Predict with weights averaged as ``ema * average + (1 - ema) * weights`` over the steps.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        "auto": a GPU where fastopt can use one, but for "lbfgs". On a GPU the penalty in ``loss_curve_`` is that of the
        weights before and after an epoch, not at each step.
    precision : {"bf16", "tf32", "fp16"}, optional
        Of the factors of matrix products in training, for float32; see `fastopt.compile`.
    callbacks : callable or list of callable, optional
        Called with an `Epoch` after each; False, returned by one, ends the fit.
    n_threads : int, optional
        What `fastopt.set_num_threads` is given, for the whole process, during this estimator's calls. The results do
        not depend on it.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        Weights (in, out) and biases (out,) of each layer.
    batch_norms_ : list of BatchNorm
        With `batch_norm` one for each hidden layer, else empty: ``weight``, ``bias``, ``running_mean``, ``running_var``
        and ``num_batches_tracked``.
    loss_curve_ : list of float
        The loss of each epoch, penalty included; ``loss_`` is the last, ``best_loss_`` the least.
    validation_scores_, validation_loss_curve_ : list of float, or None
        Of validation data, the loss without penalty; ``best_validation_score_`` is the best of early stopping.
    n_iter_, t_ : int
        Epochs of the last fit, and samples seen by all.
    n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    What differs from scikit-learn: `warm_start` keeps the optimizer's state, ``partial_fit`` of an unpickled estimator
    goes on where it was, a batch of samples that weigh nothing has a gradient of zero, and "lbfgs" minimises the sum
    over several outputs that the other solvers minimise. ``loss_curve_`` has the mean over outputs, of "poisson" the
    sum.
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: Any = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: Any = 0.001,
        power_t: Any = 0.5,
        max_iter: Any = 200,
        shuffle: Any = True,
        random_state: Any = None,
        tol: Any = 1e-4,
        verbose: Any = False,
        warm_start: Any = False,
        momentum: Any = 0.9,
        nesterovs_momentum: Any = True,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Any = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: Any = 15000,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        dropout: Any = 0.0,
        batch_norm: Any = False,
        max_grad_norm: Any = None,
        ema: Any = None,
        device: Any = "auto",
        precision: Any = None,
        callbacks: Any = None,
        n_threads: Any = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.max_grad_norm = max_grad_norm
        self.ema = ema
        self.device = device
        self.precision = precision
        self.callbacks = callbacks
        self.n_threads = n_threads

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Array]:
        X, y = self._validated(
            X, y, multi_output=True, y_numeric=True, dtype=(np.float64, np.float32), reset=reset
        )
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        self._require_counts(y, "y")
        return X, y

    def _loss(self) -> Loss:
        return regressor_loss(self.loss)

    def _labels(self, y: Array) -> Array:
        return y.ravel() if self.n_outputs_ == 1 else y

    def _targets(self, y: Any) -> Array:
        y = check_array(y, ensure_2d=False, dtype="numeric")
        self._require_counts(y, "validation_data: y")
        return y  # type: ignore[no-any-return]

    def _require_counts(self, y: Array, name: str) -> None:
        if self._loss().out_activation == "exp" and y.min() < 0:
            raise ValueError(f"loss='poisson' needs {name} >= 0, got {y.min()}")

    def _sample_weight(self, y: Array, sample_weight: Array | None, incremental: bool) -> Array | None:
        return sample_weight

    def _score(self, predicted: Array, y: Array, sample_weight: Array | None) -> float:
        if not np.isfinite(predicted).all():
            return float("nan")
        return float(r2_score(y, self._labels(predicted), sample_weight=sample_weight))

    @available_if(lambda model: model._check_solver())  # type: ignore[untyped-decorator]
    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train one epoch over the given data, going on from where the estimator is; arguments as for `fit`."""
        return self._fit(X, y, sample_weight, True)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> Array:
        """Return the predicted numbers, (n_samples,) or (n_samples, n_outputs)."""
        return self._labels(self._forward(X))
