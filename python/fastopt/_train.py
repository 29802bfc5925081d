"""What ``fastopt train`` does apart from its command line: model, training loop, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _core, _device, _random, checkpoint, data, distributed, nn, optim
from fastopt._dataset import Dataset, shorten
from fastopt._tape import no_grad
from fastopt.operations import cat
from fastopt.optim import lr_scheduler
from fastopt.program import Progress, compile

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}

# Class, learning rate and weight decay where none is asked for, further arguments.
OPTIMIZERS: dict[str, tuple[Any, float, float, dict[str, Any]]] = {
    "sgd": (optim.SGD, 0.1, 0.0, {}),
    "momentum": (optim.SGD, 0.1, 0.0, {"momentum": 0.9}),
    "nesterov": (optim.SGD, 0.1, 0.0, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, 1e-2, 0.0, {}),
    "adadelta": (optim.Adadelta, 1.0, 0.0, {}),
    "rmsprop": (optim.RMSprop, 1e-3, 0.0, {}),
    "adam": (optim.Adam, 1e-3, 0.0, {}),
    "amsgrad": (optim.Adam, 1e-3, 0.0, {"amsgrad": True}),
    "adamw": (optim.AdamW, 1e-3, 1e-2, {}),
    "nadam": (optim.NAdam, 2e-3, 0.0, {}),
    "radam": (optim.RAdam, 3e-3, 0.0, {}),
    "adamax": (optim.Adamax, 2e-3, 0.0, {}),
    "adabelief": (optim.AdaBelief, 1e-3, 0.0, {}),
    "lion": (optim.Lion, 1e-3, 0.0, {}),
    "lamb": (optim.LAMB, 1e-2, 0.0, {"use_nvlamb": True}),
    "adafactor": (optim.Adafactor, 1e-2, 0.0, {}),
    "muon": (optim.Muon, 2e-2, 0.0, {"adamw": {"lr": 1e-3, "weight_decay": 0.0}}),
    "asgd": (optim.ASGD, 1e-1, 0.0, {}),
    "yogi": (optim.Yogi, 1e-2, 0.0, {}),
    "adopt": (optim.ADOPT, 1e-3, 0.0, {}),
    "ademamix": (optim.AdEMAMix, 1e-3, 0.0, {}),
    "adan": (optim.Adan, 1e-3, 0.0, {}),
    "ftrl": (optim.Ftrl, 0.3, 0.0, {}),
    "prodigy": (optim.Prodigy, 1.0, 0.0, {}),
}
MOMENTUM_OPTIMIZERS = ("sgd", "rmsprop")

SCHEDULERS = ("none", "cosine", "warmup_cosine", "onecycle", "linear", "step", "exponential", "plateau")
# Those whose course is set by the planned number of epochs: a resumed run cannot change it.
PLANNED_SCHEDULERS = ("cosine", "warmup_cosine", "onecycle", "linear", "step", "exponential")

# What a checkpoint of a run holds beside the states.
SAVED = frozenset({"config", "sizes", "classes", "mean", "std", "history", "train_seconds"})

_EVALUATION_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; it travels in the checkpoint."""

    dataset: str
    hidden: tuple[int, ...]
    activation: str
    dropout: float
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    scheduler: str
    batch_size: int
    epochs: int
    seed: int
    label: int | str
    scale: str
    test_size: float
    batch_norm: bool = False


# -------------------------------------------------------------------------------------------- device


def open_device(name: str) -> str:
    """Return the full name, such as ``cuda:0``, of a device that can be trained on.

    Raises
    ------
    ValueError
        It cannot be used; the message says what is missing.
    """
    if name == "cpu":
        return name
    try:
        device = _device.wanted_device(name, "--device")
        _device.cupy()
    except RuntimeError as err:
        raise ValueError(f"--device {name}: {err}") from err
    if device is None:
        raise ValueError(f"--device: {name!r} is not cpu, cuda or cuda:N")
    return device


# --------------------------------------------------------------------------------------------- model


def build_model(
    sizes: Sequence[int], activation: str, dropout: float, batch_norm: bool = False
) -> nn.Sequential:
    """A multilayer perceptron: ``sizes`` are input, hidden layers and classes."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        if i:
            if batch_norm:
                layers.append(nn.BatchNorm1d(n_in))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


def build_optimizer(config: Config, model: nn.Module) -> Any:
    cls, _, _, options = OPTIMIZERS[config.optimizer]
    if config.optimizer in MOMENTUM_OPTIMIZERS:
        options = {**options, "momentum": config.momentum}
    return cls(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, **options)


class Schedule:
    """The learning rate's course: one scheduler, advanced after each step or after each epoch."""

    def __init__(self, config: Config, optimizer: Any, steps_per_epoch: int) -> None:
        steps = config.epochs * steps_per_epoch
        name = config.scheduler
        self.per_step = name in ("cosine", "warmup_cosine", "onecycle", "linear")
        self.takes_loss = name == "plateau"
        self.scheduler: Any = None
        if name == "cosine":
            self.scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        elif name == "warmup_cosine":
            warmup = max(1, steps // 20)
            self.scheduler = lr_scheduler.WarmupCosineLR(optimizer, warmup_steps=warmup, total_steps=steps)
        elif name == "onecycle":
            self.scheduler = lr_scheduler.OneCycleLR(
                optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=False
            )
        elif name == "linear":
            self.scheduler = lr_scheduler.LinearLR(
                optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps
            )
        elif name == "step":
            self.scheduler = lr_scheduler.StepLR(
                optimizer, step_size=max(1, -(-config.epochs // 3)), gamma=0.1
            )
        elif name == "exponential":
            self.scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / config.epochs))
        elif name == "plateau":
            self.scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)

    def after_epoch(self, loss: float) -> None:
        if self.scheduler is None or self.per_step:
            return
        if self.takes_loss:
            self.scheduler.step(loss)
        else:
            self.scheduler.step()


# ------------------------------------------------------------------------------------------ training


class Diverged(ValueError):
    """The loss of an epoch is not finite."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop and did so on all ranks, at the same step."""


class Trainer:
    """A run of `Config` on a `Dataset`, from the start or from a checkpoint.

    Model and data are moved to `device` first; parameters begin with the same numbers on every device. Ranks of a
    `comm` of several share out each batch, and with `shard_state` the optimizer's state; rank 0 saves.

    Attributes
    ----------
    device
        Where it computes, by the names of `open_device`. Checkpoints are the same from everywhere.
    history
        Lists with one number per finished epoch: ``epoch``, ``train_loss`` (the mean over the epoch's
        batches), ``test_loss``, ``train_accuracy``, ``test_accuracy``, ``lr``.
    train_seconds
        Time of the training itself, without evaluation and saving.
    train_set
        Features and labels of the training set, where the model is.
    saved
        The place in the run where the last checkpoint was written, in words; None before the first.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        save: Path | None = None,
        device: str = "cpu",
        comm: distributed.Comm | None = None,
        shard_state: bool = False,
    ) -> None:
        self.config, self.dataset, self.save, self.device = config, dataset, save, device
        self.comm: distributed.Comm = distributed.NullComm() if comm is None else comm
        _random.manual_seed(config.seed)
        self.sizes = (dataset.features, *config.hidden, len(dataset.classes))
        model = build_model(self.sizes, config.activation, config.dropout, config.batch_norm)
        self.model = model.to(device)
        self.loss_fn = nn.CrossEntropyLoss()
        self.optimizer = build_optimizer(config, self.model)
        self.train_set = _device.moved(dataset.x_train, device), _device.moved(dataset.y_train, device)
        self._test_set = _device.moved(dataset.x_test, device), _device.moved(dataset.y_test, device)
        # A row alone has no variance: it is left out of its epoch.
        alone = config.batch_norm and len(dataset.x_train) % config.batch_size == 1
        self.loader = data.DataLoader(
            *self.train_set, batch_size=config.batch_size, shuffle=True, seed=config.seed, drop_last=alone
        )
        self.schedule = Schedule(config, self.optimizer, len(self.loader))
        self.step = compile(self.model, self.loss_fn, self.optimizer, batch_size=config.batch_size)
        self._parallel = None
        if self.comm.size > 1:
            self._parallel = distributed.DataParallel(self.step, comm=self.comm, shard_state=shard_state)
        self.history: dict[str, list[float]] = {
            key: [] for key in ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy", "lr")
        }
        self.train_seconds = 0.0
        self.saved: str | None = None
        self._first_lr: float | None = None  # of the epoch that is under way
        self._losses = np.zeros(0)  # of the steps of an epoch that was left in its middle
        self.predictions = np.zeros(0, dtype=np.int64)

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history["epoch"])

    @property
    def begun(self) -> bool:
        """Whether any step was taken."""
        return bool(self.epoch or len(self._losses))

    def place(self) -> str:
        """Where the run stands, in words."""
        here = f"after epoch {self.epoch}"
        done = len(self._losses)
        return f"{done} of {len(self.loader)} batches {here}" if done else here

    @property
    def parameters(self) -> int:
        return sum(math.prod(p.shape) for p in self.model.parameters())

    def resume(self, path: Path) -> None:
        """Go on where the checkpoint stands."""
        saved = checkpoint.read(path)["extra"]["classes"]
        if saved != self.dataset.classes:
            ours, theirs = shorten(self.dataset.classes), shorten(saved)
            raise ValueError(f"{self.config.dataset} has the classes {ours}, {path} the classes {theirs}")
        extra = checkpoint.load(
            path,
            model=self.model,
            optimizer=self._parallel or self.optimizer,
            scheduler=self.schedule.scheduler,
            loader=self.loader,
        )["extra"]
        self.history, self.train_seconds = extra["history"], extra["train_seconds"]
        self._losses = np.asarray(extra["losses"], np.float64) if "losses" in extra else np.zeros(0)
        self._first_lr = extra.get("first_lr")
        if self.save is not None and self.save.exists() and self.save.samefile(path):
            self.saved = self.place()

    def run(
        self,
        log: Callable[[str], None],
        bar: Callable[..., Any] | None = None,
        stop: Callable[[], bool] = lambda: False,
        after_epoch: Callable[[], None] | None = None,
    ) -> None:
        """Train to the last epoch.

        ``log`` gets a line for each, ``bar`` is tqdm or None. ``stop`` is asked some ten times a second; once it says
        True the run is saved where it stands and ends with KeyboardInterrupt.

        Raises
        ------
        Diverged
            A loss that is not finite.
        """
        while self.epoch < self.config.epochs:
            log(self.run_epoch(bar, stop))
            if after_epoch is not None:
                after_epoch()
            if self._any(stop()) and self.epoch < self.config.epochs:
                raise Stopped

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return flag if self._parallel is None else self._parallel.any(flag)

    def run_epoch(
        self, bar: Callable[..., Any] | None = None, stop: Callable[[], bool] = lambda: False
    ) -> str:
        """Train, evaluate and save; return the line that says so."""
        # A diverging run overflows on its way; the check of the loss says so in words.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._run_epoch(bar, stop)

    def _run_epoch(self, bar: Callable[..., Any] | None, stop: Callable[[], bool]) -> str:
        dataset = self.dataset
        if self._first_lr is None:
            self._first_lr = self.optimizer.param_groups[0]["lr"]
        lr = self._first_lr
        before = self.train_seconds
        rows = len(dataset.x_train) - self.config.batch_size * len(self._losses)
        train_loss = self._train_epoch(bar, stop)
        if not math.isfinite(train_loss):
            advice = f"try a smaller --lr than {self.config.lr:g}"
            raise Diverged(f"the loss is {train_loss} in epoch {self.epoch + 1}: {advice}")
        self._first_lr = None
        speed = rows / max(self.train_seconds - before, 1e-9)
        _, train_accuracy, _ = evaluate(self.model, *self.train_set, self.comm)
        test_loss, test_accuracy, self.predictions = evaluate(self.model, *self._test_set, self.comm)
        row = (self.epoch + 1, train_loss, test_loss, train_accuracy, test_accuracy, lr)
        for key, value in zip(self.history, row, strict=True):
            self.history[key].append(value)
        if self.save is not None:
            self.write(self.save)
        width = len(str(self.config.epochs))
        return (
            f"epoch {self.epoch:{width}}/{self.config.epochs}  loss {train_loss:.4f}  "
            f"train {train_accuracy:.2%}  test {test_accuracy:.2%}  {speed:,.0f} samples/s"
        )

    def _train_epoch(self, bar: Callable[..., Any] | None, stop: Callable[[], bool]) -> float:
        scheduler = self.schedule.scheduler if self.schedule.per_step else None
        rows, batch = len(self.dataset.x_train), self.loader.batch_size
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        known = f"  test {self.history['test_accuracy'][-1]:.2%}" if self.epoch else ""
        first = len(self._losses)
        with _progress(bar, rows, title, known) as show:

            def report(p: Progress) -> bool:
                if show is not None:
                    show(min((first + p.step) * batch, rows), p.loss)
                return not stop()

            begin = time.perf_counter()
            run = self.step.run if self._parallel is None else self._parallel.run
            losses = np.r_[self._losses, run(self.loader, scheduler=scheduler, callback=report)]
            self.train_seconds += time.perf_counter() - begin
        if len(losses) < len(self.loader):
            self._losses = losses
            if self.save is not None:
                self.write(self.save)
            raise Stopped
        self._losses = np.zeros(0)
        sizes = np.full(len(losses), batch)
        sizes[-1] = min(rows - batch * (len(losses) - 1), batch)
        mean = float(losses @ sizes) / int(sizes.sum())
        self.schedule.after_epoch(mean)
        return mean

    def write(self, path: Path) -> None:
        """Save a checkpoint that `resume` and ``fastopt predict`` read."""
        distributed.save(
            path,
            self.comm,
            model=self.model,
            optimizer=self._parallel or self.optimizer,
            scheduler=self.schedule.scheduler,
            loader=self.loader,
            epoch=self.epoch,
            extra={
                "config": dataclasses.asdict(self.config),
                "sizes": list(self.sizes),
                "classes": self.dataset.classes,
                "mean": self.dataset.mean,
                "std": self.dataset.std,
                "history": self.history,
                "train_seconds": self.train_seconds,
                **({"losses": self._losses, "first_lr": self._first_lr} if len(self._losses) else {}),
            },
        )
        self.saved = self.place()

    def result(self) -> dict[str, Any]:
        """The run in numbers, ready for JSON: None stands for a loss that is not finite."""
        last = {key: v[-1] if math.isfinite(v[-1]) else None for key, v in self.history.items()}
        samples = self.epoch * len(self.dataset.x_train)
        return {
            "dataset": self.config.dataset,
            "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"],
            "train_accuracy": last["train_accuracy"],
            "train_loss": last["train_loss"],
            "epochs": self.epoch,
            "train_seconds": self.train_seconds,
            "samples_per_second": samples / max(self.train_seconds, 1e-9),
            "world_size": self.comm.size,
            "device": self.device,
            "batch_size": self.config.batch_size,
            "optimizer": self.config.optimizer,
            "lr": self.config.lr,
            "seed": self.config.seed,
            "sizes": list(self.sizes),
            "parameters": self.parameters,
            "threads": _core.num_threads(),
            "isa": _core.isa(),
        }


@contextmanager
def _progress(
    bar: Callable[..., Any] | None, rows: int, title: str, known: str
) -> Iterator[Callable[[int, float], None] | None]:
    """A function that moves tqdm's bar to ``done`` rows and shows loss and ``known``; None without a bar."""
    if bar is None:
        yield None
        return
    with bar(total=rows, desc=title, unit=" samples", unit_scale=True, leave=False) as shown:

        def show(done: int, loss: float) -> None:
            shown.set_postfix_str(f"loss {loss:.4f}{known}", refresh=False)
            shown.update(done - shown.n)
            if done == rows:  # however short the epoch was
                shown.refresh()

        yield show


def predict_logits(model: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs (n, classes) of ``model`` in evaluation mode, where ``x`` and ``model`` are."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            parts = [model(x[i : i + _EVALUATION_ROWS]) for i in range(0, len(x), _EVALUATION_ROWS)]
            logits: NDArray[np.float32] = cat(parts).data
    finally:
        model.train(was_training)
    return logits


def evaluate(
    model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], comm: distributed.Comm | None = None
) -> tuple[float, float, NDArray[np.int64]]:
    """Mean cross-entropy, accuracy and the predicted classes, these on the host; ranks share out the rows."""
    if comm is not None and comm.size > 1:
        return _evaluate_together(model, x, y, comm)
    logits = predict_logits(model, x)
    classes = logits.argmax(axis=1)
    loss = float(nn.CrossEntropyLoss()(logits, y).item())
    return loss, float((classes == y).mean()), _device.on_host(classes)


def _evaluate_together(
    model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], comm: distributed.Comm
) -> tuple[float, float, NDArray[np.int64]]:
    """The same, of which each rank computes its share."""
    begin, end = distributed.share(len(x), comm.rank, comm.size)
    own, sums = np.zeros(0, np.int64), np.zeros(2)
    if end > begin:
        loss, accuracy, own = evaluate(model, x[begin:end], y[begin:end])
        sums[:] = loss * (end - begin), accuracy * (end - begin)
    classes = np.zeros(len(x), np.int64)
    comm.allgather(own.astype(np.int64), classes, distributed.shares(len(x), comm.size))
    comm.allreduce(sums)
    return float(sums[0] / len(x)), float(sums[1] / len(x)), classes
