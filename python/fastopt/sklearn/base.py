"""What classifier and regressor share: parameters, validation of what is given, fits that go on, predictions."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastopt import _ops, _random, _threads, distributed, functional
from fastopt._device import wanted_device
from fastopt._minimize.first_order import optimizers
from fastopt.optim.base import Optimizer
from fastopt.sklearn.fitting import fit_epochs, fit_lbfgs
from fastopt.sklearn.losses import Loss
from fastopt.sklearn.training import (
    ACTIVATIONS,
    BatchNorm,
    Session,
    Settings,
    Weights,
    outputs,
    solver_optimizer,
)

Array = npt.NDArray[Any]

STOCHASTIC = ("sgd", "adam")
_MAX_SEED = 2**31 - 1
_FLOATS = (np.float32, np.float64)


@functools.cache
def _usable_device() -> str:
    """The GPU that can be computed on, or "cpu"."""
    try:
        return wanted_device("cuda") or "cpu"
    except (ImportError, RuntimeError, ValueError):
        return "cpu"


class BaseMLP(BaseEstimator, ABC):  # type: ignore[misc]
    """Base class of the perceptrons; its subclasses' docstrings list the parameters."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "solver": [StrOptions({"lbfgs", "sgd", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "loss": [str, object],
        "optimizer": [None, str, callable],
        "lr_scheduler": [None, callable],
        "dropout": ["array-like", Interval(Real, 0, 1, closed="left")],
        "batch_norm": ["boolean"],
        "max_grad_norm": [None, Interval(Real, 0, None, closed="neither")],
        "ema": [None, Interval(Real, 0, 1, closed="left")],
        "device": [str],
        "precision": [None, StrOptions({"bf16", "tf32", "fp16"})],
        "callbacks": [None, callable, "array-like"],
        "n_threads": [None, Interval(Integral, 1, None, closed="left")],
    }

    n_outputs_: int
    _session_key: tuple[Any, ...]  # what the session was made for

    @abstractmethod
    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Array]:
        """Return checked samples and targets; the classifier's mark classes."""

    @abstractmethod
    def _loss(self) -> Loss:
        """Return the loss of the parameters as they are now."""

    @abstractmethod
    def _sample_weight(self, y: Array, sample_weight: Array | None, incremental: bool) -> Array | None:
        """Return the weights of samples with targets as `_validate_input` returned them."""

    @abstractmethod
    def _labels(self, y: Array) -> Array:
        """Return targets of `_validate_input` as `predict` would return them."""

    @abstractmethod
    def _targets(self, y: Any) -> Array:
        """Return validation targets as `_validate_input` does."""

    @abstractmethod
    def _score(self, predicted: Array, y: Array, sample_weight: Array | None) -> float:
        """Return the score of an output activation's values for labels y."""

    # Fitting --------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> Any:
        """Fit the model to data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            float32 stays float32, all else becomes float64. Sparse matrices are made dense as a whole.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Classes or numbers.
        sample_weight : array-like of shape (n_samples,), optional
            Batches minimise the weighted mean of their losses.
        validation_data : tuple of (X, y) or (X, y, sample_weight), optional
            Gives ``validation_scores_`` and ``validation_loss_curve_``, and is what `early_stopping` looks at in place
            of a part of the training data.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, False, validation_data)

    def _check_solver(self) -> bool:
        if self.optimizer is None and self.solver not in STOCHASTIC:
            raise AttributeError(f"partial_fit is only for stochastic optimizers, solver is {self.solver!r}")
        return True

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool, validation_data: Any = None) -> Any:
        before = dict(self.__dict__)
        self._began = False
        try:
            return self._fit_checked(X, y, sample_weight, incremental, validation_data)
        except Exception:
            if not self._began:  # refused: what was fitted stays
                self.__dict__.clear()
                self.__dict__.update(before)
            raise
        finally:
            self.__dict__.pop("_began", None)

    def _fit_checked(
        self, X: Any, y: Any, sample_weight: Any, incremental: bool, validation_data: Any
    ) -> Any:
        sizes = self._hidden_sizes()
        self._check_extras(sizes, incremental)
        if validation_data is not None and not self._is_stochastic():
            raise ValueError("validation_data is for solver='sgd', 'adam' or an optimizer, not for 'lbfgs'")
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._validate_input(X, y, incremental, first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        sample_weight = self._sample_weight(y, sample_weight, incremental)
        X = X.toarray() if hasattr(X, "toarray") else X
        validation = None if validation_data is None else self._validation(validation_data, y.shape[1])
        if not first and y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {y.shape[1]} outputs, the earlier fit had {self.n_outputs_}")
        self.n_outputs_ = y.shape[1]
        self._random_state = distributed.shared(check_random_state(self.random_state))
        if first:
            self._initialize([X.shape[1], *sizes, y.shape[1]], X.dtype)
        with self._threads(), _random.keep_stream():
            session = self._continued(sizes, first, incremental, sample_weight is not None)
            if session.comm.size > 1:
                _random.set_stream(session.comm.rank)
            try:
                if self._is_stochastic():
                    fit_epochs(self, session, X, y, sample_weight, incremental, validation)
                else:
                    fit_lbfgs(self, session, X, y, sample_weight)
            finally:
                self._publish(session)
        if not all(np.isfinite(w).all() for w in self._weights().arrays):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to "
                "be preprocessed."
            )
        return self

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Return what `validate_data` does; of a dense matrix a faster sum tells that there is no NaN or infinity."""
        finite = type(X) is np.ndarray and X.ndim == 2 and X.dtype in _FLOATS and X.flags.c_contiguous
        if finite:
            with self._threads():
                finite = math.isfinite(_ops.abs_sum(X))
        return validate_data(
            self, X, *y, accept_sparse=["csr", "csc"], ensure_all_finite=not finite, **options
        )

    def _is_stochastic(self) -> bool:
        return self.optimizer is not None or self.solver in STOCHASTIC

    def _hidden_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if np.any(np.array(sizes) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return sizes

    def _check_extras(self, sizes: list[int], incremental: bool) -> None:
        """Refuse parameters that contradict each other."""
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if np.ndim(self.dropout) and len(self.dropout) != len(sizes):
            raise ValueError(
                f"dropout has {len(self.dropout)} entries, hidden_layer_sizes has {len(sizes)}: give one for each "
                "hidden layer, or one number for all"
            )
        if not self._is_stochastic():
            for name in ("dropout", "batch_norm", "max_grad_norm", "ema", "lr_scheduler", "callbacks"):
                if np.any(getattr(self, name)):
                    raise ValueError(f"{name} is for solver='sgd', 'adam' or an optimizer, not for 'lbfgs'")
            if self.device.startswith("cuda"):
                raise ValueError(f"solver='lbfgs' fits on the CPU, got device {self.device!r}")

    def _rates(self, sizes: list[int]) -> tuple[float, ...]:
        return tuple(np.broadcast_to(np.asarray(self.dropout, float), len(sizes)).tolist())

    def _initialize(self, units: list[int], dtype: np.dtype[Any]) -> None:
        """Draw weights by Glorot and Bengio's rule, in scikit-learn's order, and start all curves anew."""
        self.n_iter_ = 0
        self.t_ = 0
        self.n_layers_ = len(units)
        self.coefs_, self.intercepts_ = [], []
        factor = 2.0 if self.activation == "logistic" else 6.0
        for fan_in, fan_out in pairwise(units):
            bound = np.sqrt(factor / (fan_in + fan_out))
            w = self._random_state.uniform(-bound, bound, (fan_in, fan_out))
            b = self._random_state.uniform(-bound, bound, fan_out)
            # Converted first: half the bytes are transposed, which is the slower part.
            self.coefs_.append(np.ascontiguousarray(w.astype(dtype, copy=False).T).T)
            self.intercepts_.append(b.astype(dtype, copy=False))
        self.batch_norms_: list[BatchNorm] = []
        self._masks = (0, 0)
        if np.any(self.dropout):
            self._masks = (int(self._random_state.randint(_MAX_SEED)), 0)
        self._session: Session | None = None
        self._saved: dict[str, Any] | None = None
        self._published: list[Any] = []
        for name in ("validation_loss_curve_", "loss_curve_", "best_loss_"):
            self.__dict__.pop(name, None)
        if not self._is_stochastic():
            return
        self.loss_curve_: list[float] = []
        self.validation_loss_curve_: list[float] | None = None
        self._no_improvement_count = 0
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        self.best_validation_score_ = -np.inf if self.early_stopping else None
        self.best_loss_ = None if self.early_stopping else np.inf

    def _settings(self, sizes: list[int], weighted: bool) -> Settings:
        loss = self._loss()
        self.out_activation_ = loss.out_activation
        return Settings(
            self.activation,
            self._rates(sizes),
            loss,
            float(self.alpha),
            self._make_optimizer,
            self.lr_scheduler,
            self._device(),
            self.precision,
            weighted,
            bool(self.batch_norm),
        )

    def _weights(self) -> Weights:
        return Weights(self.coefs_, self.intercepts_, self.batch_norms_)

    def _device(self) -> str:
        if self.device == "auto":
            return _usable_device() if self._is_stochastic() else "cpu"
        device = wanted_device(self.device, type(self).__name__)
        if device is None:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        return device

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        common = {"max_norm": self.max_grad_norm, "ema_decay": self.ema}
        common = {name: value for name, value in common.items() if value is not None}
        chosen = self.optimizer
        if chosen is None:
            solver = self.solver if self.solver in STOCHASTIC else "adam"  # of L-BFGS: never stepped
            return solver_optimizer(groups, solver, vars(self), **common)
        if isinstance(chosen, str):
            table = optimizers()
            if chosen.lower() not in table:
                raise ValueError(f"optimizer must be one of {', '.join(sorted(table))}, got {chosen!r}")
            chosen = table[chosen.lower()]
        names = {"max_norm": "max_grad_norm", "ema_decay": "ema"}
        given = ", ".join(names[name] for name in common)
        if isinstance(chosen, type):
            try:
                return chosen(groups, lr=self.learning_rate_init, **common)  # type: ignore[no-any-return]
            except TypeError as error:
                if not any(name in str(error) for name in common):
                    raise
                raise ValueError(f"{given}: {chosen.__name__} has no {', '.join(common)}") from error
        if common:
            raise ValueError(f"{given}: an optimizer that a function makes gets {', '.join(common)} there")
        made = chosen(groups)
        if not isinstance(made, Optimizer):
            raise TypeError(
                f"optimizer returned {type(made).__name__}, expected a fastopt optimizer that wraps no other"
            )
        return made

    def _key(self, settings: Settings) -> tuple[Any, ...]:
        """What a session of partial fits depends on."""
        return (
            settings._replace(loss=None, optimizer=None),  # type: ignore[arg-type]
            *(self.loss, self.optimizer, self.solver, self.max_grad_norm, self.ema),
            *[(w.shape, w.dtype) for w in self.coefs_],
        )

    def _continued(self, sizes: list[int], first: bool, incremental: bool, weighted: bool) -> Session:
        """Return the session to fit with: a new one, or one that goes on with weights and optimizer state."""
        if first:
            self._session, self._saved, self._published = None, None, []
        settings = self._settings(sizes, weighted)
        key = self._key(settings)
        session = self._session
        for i, w in enumerate(self.coefs_):
            if not (w.T.flags.c_contiguous and w.flags.writeable):
                self.coefs_[i] = np.ascontiguousarray(w.T).T
        if bool(self.batch_norms_) != settings.batch_norm:
            norms = [BatchNorm.initial(w.shape[1], w.dtype) for w in self.coefs_[:-1]]
            self.batch_norms_ = norms if settings.batch_norm else []
        same = session is not None and session.comm is distributed.current()
        if session is not None and same and incremental and key == self._session_key:
            if not self._is_published():
                session.load(self._weights())
            return session
        saved = session.state() if session is not None else self._saved
        made = Session(self._weights(), settings, self._masks)
        if saved is not None:
            if self._published and not self._is_published():
                saved = {**saved, "weights": None}
            known = getattr(self, "_session_key", None)
            made.restore(
                saved,
                settings=incremental
                and (known is None or (known[0].batch_norm, *known[2:6]) == (key[0].batch_norm, *key[2:6])),
            )
        self._session, self._session_key = made, key
        return made

    def _is_published(self) -> bool:
        """Whether the weights are the arrays that the last fit left."""
        return [id(a) for a in self._weights().arrays] == [id(a) for a in self._published]

    def _publish(self, session: Session) -> None:
        """Let `coefs_`, `intercepts_` and `batch_norms_` be what predicts."""
        best = self.__dict__.pop("_best", None)
        if best is not None:
            session.load(best)
        with session.predicting() as weights:
            if best is not None and not session.shares:
                weights = best
            elif not session.shares:
                weights = weights.copies()
            self.coefs_, self.intercepts_, self.batch_norms_ = weights
        self._published = self._weights().arrays
        self._masks = session.masks
        self._saved = None

    @contextmanager
    def _threads(self) -> Iterator[None]:
        if self.n_threads is None:
            yield
            return
        before = _threads.get_num_threads()
        _threads.set_num_threads(int(self.n_threads))
        try:
            yield
        finally:
            _threads.set_num_threads(before)

    def _validation(self, data: Any, width: int) -> tuple[Any, Array, Array | None]:
        """Return checked validation data: samples, targets of `width` columns as in training, weights."""
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            raise ValueError("validation_data must be (X, y) or (X, y, sample_weight)")
        X = self._validated(data[0], dtype=(np.float64, np.float32), reset=False)
        y = self._targets(data[1])
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        if len(y) != X.shape[0]:
            raise ValueError(f"validation_data: X has {X.shape[0]} samples, y has {len(y)}")
        if y.shape[1] != width:
            raise ValueError(f"validation_data: y has {y.shape[1]} outputs, training has {width}")
        weight = data[2] if len(data) == 3 else None
        return X, y, None if weight is None else _check_sample_weight(weight, X)

    # Predicting -----------------------------------------------------------------------------------------

    def _forward(self, X: Any, check: bool = True) -> Array:
        """Return the output activation's values, (n, outputs)."""
        check_is_fitted(self)
        if check:
            X = self._validated(X, reset=False)
        with self._threads():
            return self._activated(outputs(X, self._weights(), self.activation))

    def _activated(self, z: Array) -> Array:
        if self.out_activation_ == "softmax":
            return functional.softmax(z, 1)  # type: ignore[no-any-return]
        if self.out_activation_ == "logistic":
            return functional.sigmoid(z)  # type: ignore[no-any-return]
        return np.exp(z) if self.out_activation_ == "exp" else z

    # Pickles --------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        session = state.pop("_session", None)
        state.pop("_session_key", None)
        if session is not None:
            state["_saved"] = session.state()
        if "_published" in state:
            state["_published"] = []
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_session": None} if "coefs_" in state else state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
