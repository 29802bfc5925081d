"""MLPClassifier."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from fastopt.sklearn.base import BaseMLP
from fastopt.sklearn.losses import Loss, classifier_loss

Array = npt.NDArray[Any]


def _binarizer(y: Any) -> LabelBinarizer:
    """Return a LabelBinarizer fitted to labels; to integers in one pass over them."""
    binarizer = LabelBinarizer()
    if y.ndim != 1 or y.dtype.kind not in "iu" or not y.dtype.isnative:
        return binarizer.fit(y)
    binarizer.classes_ = np.unique(y)
    binarizer.y_type_ = "multiclass" if len(binarizer.classes_) > 2 else "binary"
    binarizer.sparse_input_ = False
    return binarizer


class MLPClassifier(ClassifierMixin, BaseMLP):  # type: ignore[misc]
    """scikit-learn's multilayer perceptron for classes, fitted by `fastopt.compile`.

    With the same `random_state`, "sgd" and "adam" give the weights of scikit-learn's class up to rounding.

    Parameters
    ----------
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
    loss : {"log_loss", "focal"} or loss of fastopt.nn
        Cross-entropy of one logistic output (two classes), of softmax outputs, or of a logistic output for each label.
        "focal" is `SigmoidFocalLoss` (Lin et al. 2017): of several classes each has a logistic output then, and
        probabilities are their shares. A `CrossEntropyLoss` (``label_smoothing``), `BCEWithLogitsLoss` or
        `SigmoidFocalLoss` brings its own settings; its reduction does not count.
    class_weight : dict, list of dict, "balanced" or None
        Multiplies the samples' weights by one for their class; "balanced": inversely to how many there are. The part
        that `early_stopping` sets aside is weighted too, `validation_data` as its own weights say.
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
    classes_ : ndarray or list of ndarray
        The class labels.
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
    goes on where it was, and a batch of samples that weigh nothing has a gradient of zero.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseMLP._parameter_constraints,
        "class_weight": [None, dict, list, StrOptions({"balanced"})],
    }

    def __init__(
        self,
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
        loss: Any = "log_loss",
        class_weight: Any = None,
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
        self.loss = loss
        self.class_weight = class_weight
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
        X, y = self._validated(X, y, multi_output=True, dtype=(np.float64, np.float32), reset=reset)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = _binarizer(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(unique_labels(y))
        return X, self._marked(y)

    def _marked(self, y: Array) -> Array:
        """Tell of each sample which classes it has, one column where there are two."""
        if self._multiclass and y.ndim == 1:  # without looking at y a third time
            return y[:, None] == self.classes_  # type: ignore[no-any-return]
        return self._label_binarizer.transform(y).astype(bool)  # type: ignore[no-any-return]

    def _check_classes(self, classes: Array) -> None:
        """Refuse classes that an earlier fit has not seen, and with `warm_start` lacking ones."""
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    @property
    def _multiclass(self) -> bool:
        return bool(self._label_binarizer.y_type_ == "multiclass")

    def _loss(self) -> Loss:
        return classifier_loss(self.loss, self._multiclass)

    def _labels(self, y: Array) -> Array:
        return self._label_binarizer.inverse_transform(y)  # type: ignore[no-any-return]

    def _targets(self, y: Any) -> Array:
        y = np.asarray(y)
        unknown = np.setdiff1d(unique_labels(y), self.classes_)
        if len(unknown):
            raise ValueError(f"validation_data: y has classes {unknown}, training has {self.classes_}")
        return self._marked(y)

    def _sample_weight(self, y: Array, sample_weight: Array | None, incremental: bool) -> Array | None:
        if self.class_weight is None:
            return sample_weight
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' is not for partial_fit, which does not see all classes' samples: give a dict "
                "of sklearn.utils.class_weight.compute_class_weight's numbers"
            )
        labels = self._labels(y)
        labels = labels.toarray() if hasattr(labels, "toarray") else labels
        weight = compute_sample_weight(self.class_weight, labels)
        return weight if sample_weight is None else weight * sample_weight  # type: ignore[no-any-return]

    def _score(self, predicted: Array, y: Array, sample_weight: Array | None) -> float:
        return float(accuracy_score(y, self._decided(predicted), sample_weight=sample_weight))

    def _decided(self, p: Array) -> Array:
        """The labels of an output activation's values."""
        return self._label_binarizer.inverse_transform(p.ravel() if self.n_outputs_ == 1 else p)  # type: ignore[no-any-return]

    @available_if(lambda model: model._check_solver())  # type: ignore[untyped-decorator]
    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train one epoch over the given data, going on from where the estimator is.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array of shape (n_classes,), optional
            All classes there will be; the first call needs them.

        Returns
        -------
        self
        """
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        return self._fit(X, y, sample_weight, True)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> Array:
        """Return the predicted classes (n_samples,), or the labels (n_samples, n_classes) of multilabel targets."""
        return self._decided(self._forward(X))

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class of ``classes_``, (n_samples, n_classes)."""
        p = self._forward(X)
        if self.n_outputs_ == 1:
            return np.hstack([1 - p, p])
        if self._multiclass and self.out_activation_ == "logistic":
            return p / p.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
        return p

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`."""
        p = self.predict_proba(X)
        return np.log(p, out=p)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
