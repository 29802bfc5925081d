"""A perceptron bound to a compiled step: epochs, evaluations for L-BFGS, and the state to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt import distributed, functional, nn
from fastopt._device import moved, on_host
from fastopt._stepping import Block, Objective
from fastopt.compat.sklearn import AdamOptimizer, SGDOptimizer
from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler import ReduceLROnPlateau
from fastopt.program import compile
from fastopt.sklearn.losses import Loss

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_BLOCK_SECONDS = 0.1  # of steps in one native call: an interrupt waits for its end
_PREDICT_ROWS = 1024

#: name -> module of hidden layers; the first four are scikit-learn's.
ACTIVATIONS: dict[str, Any] = {
    "identity": None,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}


class BatchNorm(NamedTuple):
    """The numbers of a batch normalisation, as `fastopt.nn.BatchNorm1d` has them."""

    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    num_batches_tracked: Array

    @classmethod
    def initial(cls, channels: int, dtype: np.dtype[Any]) -> BatchNorm:
        """Those before the first batch."""
        return cls.of(nn.BatchNorm1d(channels, dtype=dtype))

    @classmethod
    def of(cls, module: nn.BatchNorm1d) -> BatchNorm:
        """Those of a module, on the host."""
        return cls(*[moved(getattr(module, name).data, "cpu") for name in cls._fields])

    def module(self, device: str) -> nn.BatchNorm1d:
        """A module of the same arrays, or on a device of copies of them."""
        module = nn.BatchNorm1d(len(self.weight))
        for name, a in self._asdict().items():
            getattr(module, name)._data = moved(a, device)
        return module


class Weights(NamedTuple):
    """All that predicts: of each layer the matrix and the intercepts, of each hidden one a batch norm or of none."""

    coefs: list[Array]
    intercepts: list[Array]
    norms: list[BatchNorm]

    @property
    def arrays(self) -> list[Array]:
        return [*self.coefs, *self.intercepts, *[a for norm in self.norms for a in norm]]

    def copies(self) -> Weights:
        """The same numbers in arrays of the same layouts."""
        coefs, intercepts = [w.copy(order="K") for w in self.coefs], [b.copy() for b in self.intercepts]
        return Weights(coefs, intercepts, [BatchNorm(*[a.copy() for a in norm]) for norm in self.norms])


def outputs(x: Array, weights: Weights, activation: str) -> Array:
    """Return the last layer's output for dense or sparse rows, before the output activation."""
    parts = []
    module = ACTIVATIONS[activation]
    kernel = None if module is None else module().kernel
    last = len(weights.coefs) - 1
    for begin in range(0, x.shape[0], _PREDICT_ROWS):
        a = x[begin : begin + _PREDICT_ROWS]
        a = a.toarray() if hasattr(a, "toarray") else a
        for i, (w, b) in enumerate(zip(weights.coefs, weights.intercepts, strict=True)):
            norm = weights.norms[i] if weights.norms and i < last else None
            a = functional.linear(a, w.T, b, kernel if i < last and norm is None else None)
            if norm is not None:
                a = functional.batch_norm(a, norm.running_mean, norm.running_var, norm.weight, norm.bias)
                a = a if kernel is None else functional.activation(kernel, a, inplace=True)
        parts.append(a)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Samples(NamedTuple):
    """Samples and targets as a compiled step takes them, with their weights and what is added to their losses."""

    x: Array
    target: Array
    weight: Array | None  # of each element of the target
    rows: Floats | None  # of each sample
    constant: Floats | None
    width: int  # of the output


def samples(loss: Loss, x: Array, y: Array, sample_weight: Array | None, dtype: np.dtype[Any]) -> Samples:
    """Return dense samples x (n, in) and targets y (n, out) for a loss; y marks classes where that takes them."""
    width = y.shape[1]
    x = np.ascontiguousarray(x, dtype)
    rows = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    if loss.classes:
        if rows is None:
            return Samples(x, y.argmax(axis=1).astype(np.int64, copy=False), None, None, None, width)
        smoothing = loss.module.label_smoothing
        target = (y * (1.0 - smoothing) + smoothing / width) * rows[:, None]
        return Samples(x, target.astype(dtype), None, rows, None, width)
    target = np.ascontiguousarray(y, dtype)
    weight = None if rows is None else np.repeat(rows.astype(dtype)[:, None], width, axis=1)
    constant = None if loss.constant is None else loss.constant(target)
    if constant is not None and rows is not None:
        constant = constant * rows
    return Samples(x, target, weight, rows, constant, width)


class Settings(NamedTuple):
    """What a session is made from besides weights."""

    activation: str
    dropout: tuple[float, ...]  # after each hidden layer
    loss: Loss
    alpha: float
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    scheduler: Callable[[Optimizer], Any] | None
    device: str
    precision: str | None
    weighted: bool  # samples have weights
    batch_norm: bool


class Session:
    """Weights, optimizer and compiled step of one estimator.

    On the CPU the step's parameters are the arrays that it is given, transposed.

    Parameters
    ----------
    weights : Weights
        Matrices of shape (in, out), laid out so that their transposes are C-contiguous.
    settings : Settings
    masks : tuple of int
        Seed and offset of the next dropout mask.
    """

    def __init__(self, weights: Weights, settings: Settings, masks: tuple[int, int] = (0, 0)) -> None:
        self.settings = settings
        self.masks = masks
        on = settings.device
        self._weights = [nn.Parameter(moved(w.T, on)) for w in weights.coefs]
        self._biases = [nn.Parameter(moved(b, on)) for b in weights.intercepts]
        self._norms = [norm.module(on) for norm in weights.norms]
        scales = [p for norm in self._norms for p in norm.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": self._weights, "penalised": True},
            {"params": self._biases + scales, "use_muon": False},  # which takes matrices alone
        ]
        self.optimizer = settings.optimizer(groups)
        self.scheduler = None if settings.scheduler is None else settings.scheduler(self.optimizer)
        module = settings.loss.module
        if settings.weighted and settings.loss.classes and module.label_smoothing:
            module = nn.CrossEntropyLoss(reduction="sum")  # the targets are smooth already
        self._step = compile(self._model(), module, self.optimizer, precision=settings.precision)  # type: ignore[arg-type]
        self.comm = distributed.current()
        self._parallel = None
        if self.comm.size > 1:
            self._parallel = distributed.DataParallel(self._step, comm=self.comm)
        self._block = 16
        self._averages = any(group.get("ema_decay") is not None for group in self.optimizer.param_groups)
        self._two_faced = hasattr(self.optimizer, "train") and hasattr(self.optimizer, "eval")

    def _model(self) -> nn.Sequential:
        modules: list[nn.Module] = []
        activation = ACTIVATIONS[self.settings.activation]
        for i, (w, b) in enumerate(zip(self._weights, self._biases, strict=True)):
            layer = nn.Linear(0, 0)
            layer.weight, layer.bias = w, b
            layer.out_features, layer.in_features = w.shape
            modules.append(layer)
            if i == len(self._weights) - 1:
                break
            if self._norms:
                modules.append(self._norms[i])
            if activation is not None:
                modules.append(activation())
            if self.settings.dropout[i]:
                modules.append(nn.Dropout(self.settings.dropout[i]))
        return nn.Sequential(*modules)

    # Weights ---------------------------------------------------------------------------------------------

    @property
    def shares(self) -> bool:
        """Whether the weights that predict are the arrays that are trained."""
        return self.settings.device == "cpu" and not self._averages and not self._two_faced

    @contextmanager
    def predicting(self) -> Iterator[Weights]:
        """The weights to predict with: averages, or what an optimizer has for it."""
        if self._averages:
            with self.optimizer.swap_ema():  # type: ignore[attr-defined]
                yield self._on_host()
        elif self._two_faced:
            self.optimizer.eval()  # type: ignore[attr-defined]
            try:
                yield self._on_host()
            finally:
                self.optimizer.train()  # type: ignore[attr-defined]
        else:
            yield self._on_host()

    def _on_host(self) -> Weights:
        return Weights(
            [moved(p.data, "cpu").T for p in self._weights],
            [moved(p.data, "cpu") for p in self._biases],
            [BatchNorm.of(norm) for norm in self._norms],
        )

    def load(self, weights: Weights) -> None:
        """Take over weights of the same shapes; without batch norms, or with more of them, those of now stay."""
        tensors: list[Any] = self._weights + self._biases
        given = [w.T for w in weights.coefs] + weights.intercepts
        if len(weights.norms) == len(self._norms):
            tensors += [getattr(norm, name) for norm in self._norms for name in BatchNorm._fields]
            given += [a for norm in weights.norms for a in norm]
        for p, a in zip(tensors, given, strict=True):
            p.data[...] = moved(np.asarray(a, order="C"), self.settings.device)

    def state(self) -> dict[str, Any]:
        """Copies of all that `restore` needs."""
        return {
            "class": type(self.optimizer).__name__,
            "optimizer": _tree_on_host(self.optimizer.state_dict()),  # which any machine can read
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "masks": self.masks,
            "weights": None if self.shares else self._on_host().copies(),
        }

    def restore(self, state: dict[str, Any], settings: bool) -> None:
        """Go on from a state of the same kind of optimizer; without `settings` with those of now.

        A state of another kind of optimizer, of another rule or of other shapes, leaves all as it is but the weights.
        """
        self.masks = state["masks"]
        if state["weights"] is not None:
            self.load(state["weights"])
        saved = state["optimizer"]
        if state["class"] != type(self.optimizer).__name__:
            return
        groups = self.optimizer.state_dict()["param_groups"]
        if settings:
            pairs = zip(saved["param_groups"], groups, strict=True)
            groups = [
                {**old, "ema_decay": new["ema_decay"]} if "ema_decay" in new else old for old, new in pairs
            ]
        saved = {**saved, "param_groups": groups}
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError:
            if settings:
                raise
            return  # a rule with other states, which begin anew
        if settings and self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    # Steps -----------------------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank of those that fit together."""
        return flag if self._parallel is None else self._parallel.any(flag)

    def place(self, data: Samples) -> Samples:
        """Return samples where the model is."""
        on = self.settings.device
        weight = None if data.weight is None else moved(data.weight, on)
        return data._replace(x=moved(data.x, on), target=moved(data.target, on), weight=weight)

    def epoch(self, data: Samples, batch: int, order: npt.NDArray[np.int64] | None) -> float:
        """Take the steps of one pass and return its loss: each batch's mean and penalty, weighted by its samples."""
        n = len(data.x)
        if self._norms and n % batch == 1:
            n -= 1  # a sample alone has no variance
        steps = -(-n // batch)
        lengths = np.full(steps, float(batch))
        lengths[-1] = n - batch * (steps - 1)
        divisors = lengths
        if data.rows is not None:
            totals = _sums(data.rows, order, batch, n)
            # The gradient of samples that weigh nothing together is zero.
            divisors = np.where(totals == 0, np.inf, totals)
        squares = np.zeros(steps) if self.settings.device == "cpu" else None
        loss = self.settings.loss
        objective = Objective(loss.factor, self.settings.alpha, divisors, squares)
        before = 0.0 if squares is not None else self._squares()
        values = loss.factor * self._steps(data, batch, order, objective)
        if loss.mean:
            values /= data.width
        if data.constant is not None:
            values += _sums(data.constant, order, batch, n)
        values += (
            0.5 * self.settings.alpha * (0.5 * (before + self._squares()) if squares is None else squares)
        )
        return float((values / divisors * lengths).sum() / n)

    def _squares(self) -> float:
        """The sum of all weights' squares."""
        return sum([float((p.data * p.data).sum()) for p in self._weights])

    def _steps(
        self, data: Samples, batch: int, order: npt.NDArray[np.int64] | None, objective: Objective
    ) -> Floats:
        """The steps of a pass, in blocks that are not too long to be interrupted; returns their summed losses."""
        stepping = self._step._stepping
        steps = len(objective.divisors)
        losses = np.empty(steps)
        limited = getattr(self.optimizer, "max_norm", None) is not None
        weight = data.weight
        at = 0
        while at < steps:
            count = min(self._block, steps - at)
            if not stepping.rule:
                losses[at] = self._alone(data, at * batch, batch, order, objective.part(at, at + 1))
                at += 1
                continue
            if limited:  # clipping is of one divisor at a time
                same = objective.divisors[at : at + count] == objective.divisors[at]
                count = count if same.all() else int(same.argmin())
            began = time.perf_counter()
            block = Block(
                "fit", data.x, data.target, order, at * batch, len(data.x), batch, count, weight, None,
                weight is not None, objective if count == steps else objective.part(at, at + count),
                self._next_masks(count),
            )  # fmt: skip
            losses[at : at + count] = stepping.steps(block)
            at += count
            seconds = max(time.perf_counter() - began, 1e-6)
            self._block = max(1, min(1024, 64 * self._block, int(_BLOCK_SECONDS * count / seconds)))
        return losses

    def _alone(
        self,
        data: Samples,
        begin: int,
        batch: int,
        order: npt.NDArray[np.int64] | None,
        objective: Objective,
    ) -> float:
        """One step of an optimizer that evaluates the model itself; returns the summed loss."""
        rows = slice(begin, begin + batch)
        index: Any = rows if order is None else order[rows]
        weight = None if data.weight is None else data.weight[index]
        if np.isinf(objective.divisors[0]):  # the samples weigh nothing
            return 0.0
        part = Samples(data.x[index], data.target[index], weight, None, None, data.width)
        block = self._whole(part, objective)
        before = self._squares() if objective.squares is None else 0.0
        value = self._step._stepping.closure_step(block)
        squares = before if objective.squares is None else objective.squares[0]
        penalty = 0.5 * objective.l2 * squares / objective.divisors[0]
        return float((value - penalty) * objective.divisors[0] / objective.factor)

    def _whole(self, data: Samples, objective: Objective) -> Block:
        n = len(data.x)
        return Block(
            "fit", data.x, data.target, None, 0, n, n, 1, data.weight, None,
            data.weight is not None, objective, self._next_masks(1),
        )  # fmt: skip

    def _next_masks(self, steps: int) -> tuple[int, int]:
        seed, offset = self.masks
        self.masks = seed, offset + steps * sum([p > 0 for p in self.settings.dropout])
        return seed, offset

    def evaluation(self, data: Samples) -> Callable[[Array], tuple[float, Array]]:
        """A function of all parameters in one vector, weights first: the objective of all samples, and its gradient."""
        loss, n = self.settings.loss, len(data.x)
        total = float(n) if data.rows is None else float(data.rows.sum())
        objective = Objective(loss.factor, self.settings.alpha, np.array([total or np.inf]), np.zeros(1))
        step = self._step._stepping if self._parallel is None else self._parallel
        evaluate = step.evaluation(self._whole(data, objective))
        parameters = [p.data for p in self._weights + self._biases]

        def fun(x: Array) -> tuple[float, Array]:
            begin = 0
            for p in parameters:
                p[...] = x[begin : begin + p.size].reshape(p.shape)
                begin += p.size
            value, grads = evaluate()
            return value, np.concatenate([np.ravel(g) for g in grads])  # type: ignore[arg-type]

        return fun

    def reported(self, value: float, data: Samples) -> float:
        """A value of `evaluation` at the weights as they are, as ``loss_curve_`` would have it."""
        total = float(len(data.x) if data.rows is None else data.rows.sum()) or np.inf
        penalty = 0.5 * self.settings.alpha * self._squares() / total
        loss = (value - penalty) / (data.width if self.settings.loss.mean else 1)
        constant = 0.0 if data.constant is None else float(data.constant.sum()) / total
        return loss + constant + penalty

    def vector(self) -> Array:
        """All parameters as `evaluation` takes them."""
        return np.concatenate([p.data.ravel() for p in self._weights + self._biases])

    # Between epochs --------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> float:
        """That of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def end_epoch(self, loss: float, seen: int) -> None:
        """Bring the learning rate up to date after an epoch, `seen` samples in all."""
        if isinstance(self.optimizer, SGDOptimizer):
            self.optimizer.iteration_ends(seen)
        if self.scheduler is not None:
            self.scheduler.step(*([loss] if isinstance(self.scheduler, ReduceLROnPlateau) else []))

    def stops(self) -> bool:
        """What no improvement means: the end, or a smaller rate."""
        return not isinstance(self.optimizer, SGDOptimizer) or self.optimizer.trigger_stopping()


def _tree_on_host(x: Any) -> Any:
    """A tree of dictionaries and lists with its device arrays as NumPy's."""
    if isinstance(x, dict):
        return {key: _tree_on_host(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_tree_on_host(value) for value in x]
    return on_host(x)


def _sums(a: Floats, order: npt.NDArray[np.int64] | None, batch: int, n: int) -> Floats:
    """The sums of a over each batch of the first n samples."""
    sums: Floats = np.add.reduceat((a if order is None else a[order])[:n], np.arange(0, n, batch))
    return sums


def solver_optimizer(
    groups: list[dict[str, Any]], solver: str, numbers: Mapping[str, Any], **common: Any
) -> Optimizer:
    """Return the optimizer behind scikit-learn's `solver`, with its estimators' parameters of their names."""
    rate = numbers["learning_rate_init"]
    if solver == "sgd":
        names = ("learning_rate", "momentum", "nesterovs_momentum", "power_t")
        return SGDOptimizer(groups, rate, *[numbers[name] for name in names], **common)
    return AdamOptimizer(groups, rate, numbers["beta_1"], numbers["beta_2"], numbers["epsilon"], **common)
