"""compile: a model, a loss and an optimizer as one native training step."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt import nn
from fastopt._device import as_data, is_device_array, moved
from fastopt._reading import read_loss, read_model
from fastopt._stepping import Block, Stepping
from fastopt.data import DataLoader, as_rows
from fastopt.optim.base import Optimizer
from fastopt.optim.lr_scheduler import ReduceLROnPlateau

Array = npt.NDArray[Any]

_BLOCK_SECONDS = 0.1  # of steps in one native call: an interrupt waits for its end
_BLOCK_STEPS = 1024
_PREDICT_ROWS = 1024


class Progress(NamedTuple):
    """How far a run is.

    Attributes
    ----------
    epoch, epochs : int
        Whole passes over the data so far, and in the end.
    step, steps : int
        Steps so far, and in the end.
    loss : float
        Mean loss of the steps of the pass that is under way or has just ended.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


class _Data(NamedTuple):
    """Samples and targets as the kernels take them; shape is that of the model's output."""

    x: Array
    target: Array
    shape: tuple[int, ...]


def compile(
    model: nn.Module,
    loss_fn: Any,
    optimizer: Optimizer,
    *,
    batch_size: int | None = None,
    fuse_update: bool | Literal["auto"] = "auto",
    precision: Literal["bf16", "tf32", "fp16"] | None = None,
) -> CompiledStep:
    """Return a training step - forward, loss, backward, update - that runs as one native call without the GIL.

    Parameters
    ----------
    model : Module
        A `Linear`, or a `Sequential` (nested ones too) of `Linear`, `BatchNorm1d`, activations, `Softmax`,
        `LogSoftmax`, `Dropout`, `Flatten` and `Identity`, with parameters of one dtype, float32 or float64.
    loss_fn : Module
        A loss of `fastopt.nn` with a reduction to one number.
    optimizer : Optimizer
        Of the model's parameters. Those of the model that it lacks, or that do not require grad, stay.
    batch_size : int, optional
        Rows to make room for now, and what `CompiledStep.run` takes when it is given none.
    fuse_update : bool or "auto"
        Update each piece of a weight while its gradient is in cache; the gradient is never stored. That
        needs a rule optimizer without `max_norm`, and weights that one layer uses. "auto" does it wherever
        that holds. On the CPU no bit of the result depends on it. On a GPU plain `SGD` (no momentum, average, clipping
        or L1) then updates weights in the very product that would give their gradient, which rounds once where two
        steps round twice; a single step of a loss of classes is left out of that.
    precision : {"bf16", "tf32", "fp16"}, optional
        Round the factors of all matrix products to bfloat16 or, on a GPU, to one of the others; sums stay
        float32.

    Returns
    -------
    CompiledStep

    Raises
    ------
    TypeError
        A module or loss that cannot be compiled, by its path and class; parameters of other dtypes.
    ValueError
        Shapes that do not fit, a parameter of the optimizer that is not the model's, nothing to train.

    Notes
    -----
    A model on a GPU takes its steps there, captured as CUDA graphs; samples and targets are arrays on that GPU. A step
    waits for its loss, `CompiledStep.run` for the losses of many steps at once. An optimizer that the program cannot do
    the work of, such as `Muon` or any with ``accumulate``, gets the gradients there and takes its own step after.

    Structure and settings of model and loss are read now, those of the optimizer, ``training`` and the
    dropouts' ``p`` at each step. Parameters, running statistics and optimizer state stay in their own arrays:
    compiled and eager steps may be mixed. ``.grad`` is neither read nor written.
    """
    return CompiledStep(model, loss_fn, optimizer, batch_size, fuse_update, precision)


class CompiledStep:
    """What `compile` returns: call it for a step, or `run` it over a data set.

    Attributes
    ----------
    model, loss_fn, optimizer
        As given to `compile`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Any,
        optimizer: Optimizer,
        batch_size: int | None,
        fuse_update: bool | str,
        precision: str | None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"compile: optimizer is {type(optimizer).__name__}, expected a fastopt optimizer")
        if batch_size is not None and operator.index(batch_size) < 1:
            raise ValueError(f"compile: batch_size must be at least 1, got {batch_size}")
        if fuse_update not in (True, False, "auto"):
            raise ValueError(f"compile: fuse_update must be True, False or 'auto', got {fuse_update!r}")
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self._batch_size = batch_size
        self._read = read_model(model)
        self._dtype = self._read.dtype
        if self._read.device == "cpu" and precision not in (None, "bf16"):
            raise ValueError(f"compile: precision must be None or 'bf16', got {precision!r}")
        if precision is not None and self._dtype != np.float32:
            raise TypeError(f"compile: precision {precision!r} is for float32, the model is {self._dtype}")
        self._in, self._out = self._read.layers[0].width_in, self._read.layers[-1].width_out
        self._loss = read_loss(loss_fn, self._out, self._dtype, self._read.device)
        self._stepping = Stepping(self._read, self._loss, optimizer, fuse_update, precision, batch_size)
        self._factors: dict[Any, Array] = {}
        self._lock = optimizer._lock  # steps that are not compiled wait, too

    def __repr__(self) -> str:
        parts = (type(self.loss_fn).__name__, type(self.optimizer).__name__)
        return f"CompiledStep({', '.join(parts)}, {self._in} -> {self._out}, {self._dtype})"

    # Steps ----------------------------------------------------------------------------------------------

    def __call__(self, x: Any, y: Any) -> float:
        """Take one step.

        Parameters
        ----------
        x : array, shape (n, ..., in)
            Of any real dtype; of a model that begins with `Flatten`, any shape with `in` numbers a sample.
        y : array
            What the loss takes as its target.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        TypeError, ValueError
            Shapes or dtypes do not fit, or a class is out of range. Nothing has changed then.
        """
        with self._lock:
            loss = self._stepping.step_plain(x, y)
            if loss is not None:
                return loss
            data = self._data("step", x, y)
            n = len(data.x)
            self._stepping.check_batches("step", {n})
            factors = self._loss_factors("step", data.shape)
            block = Block("step", data.x, data.target, None, 0, n, n, 1, *factors)
            if self._stepping.rule:
                return float(self._stepping.steps(block)[0])
            return self._stepping.closure_step(block)

    def run(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        shuffle: bool = False,
        seed: int | None = None,
        scheduler: Any = None,
        scheduler_every: Literal["step", "epoch"] = "step",
        drop_last: bool = False,
        callback: Callable[[Progress], Any] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Take the steps of `epochs` passes over the data, many of them in each native call.

        Parameters
        ----------
        x, y : array
            As for a step, with all samples. A `fastopt.data.DataLoader` of both in place of `x` decides on its batches
            itself and goes on from the epoch it is in.
        batch_size, shuffle, seed, drop_last
            The batches are those of ``DataLoader(x, y, batch_size, shuffle, drop_last, seed)``. Without
            `batch_size` that of `compile` counts, and without both a batch is all samples.
        epochs : int
            Passes over the data.
        scheduler : optional
            A schedule of the optimizer, stepped after each step or epoch;
            `fastopt.optim.lr_scheduler.ReduceLROnPlateau` after each epoch, with its mean loss.
        scheduler_every : {"step", "epoch"}
        callback : callable, optional
            Called with a `Progress` some ten times a second and at the end of each epoch. False, returned by
            it, ends the run.

        Returns
        -------
        ndarray of float64
            The loss of each step that was taken.

        Raises
        ------
        TypeError, ValueError
            As for a step; nothing has changed then.
        KeyboardInterrupt
            Within about a tenth of a second, or a step; the steps taken so far count.
        """
        with self._lock:
            self._check_run(epochs, scheduler, scheduler_every)
            if isinstance(x, DataLoader):
                if y is not None or batch_size or shuffle or seed is not None or drop_last:
                    raise TypeError(
                        "run: x is a DataLoader, which has y, batch_size, shuffle, seed and drop_last"
                    )
                if len(x.arrays) != 2:
                    raise ValueError(f"run: x is a DataLoader of {len(x.arrays)} arrays, expected x and y")
                loader, data = x, self._data("run", *x.arrays)
            else:
                data = self._data("run", x, y)
                size = self._batch_size if batch_size is None else batch_size
                loader = DataLoader(data.x, data.target, size, shuffle, drop_last, seed)
            batch, n = min(loader.batch_size, len(data.x)), len(data.x)
            lengths = {batch} if loader.drop_last else {batch, n % batch or batch}
            self._stepping.check_batches("run", lengths if epochs else set())
            for length in sorted(lengths):
                factors = self._loss_factors("run", (length, *data.shape[1:]))
            return self._epochs(data, factors, loader, batch, epochs, scheduler, scheduler_every, callback)

    def _epochs(
        self,
        data: _Data,
        factors: tuple[Array | None, Array | None],
        loader: DataLoader,
        batch: int,
        epochs: int,
        scheduler: Any,
        every: str,
        callback: Callable[[Progress], Any] | None,
    ) -> npt.NDArray[np.float64]:
        """The loop of `run`: blocks of steps that end with the epoch."""
        length, n = len(loader), len(data.x)
        start = loader.begin_pass()[1] if epochs else 0
        if start == length:
            loader.gave(length)
        total = epochs * length - start
        losses = np.empty(total)
        each_step = scheduler if every == "step" else None
        peers = self._stepping.peers
        done, steps = 0, 1
        for epoch in range(epochs):
            order = loader.order(loader.epoch)
            first = done - (0 if epoch else start)
            while (at := done - first) < length:
                steps = min(steps, length - at)
                if peers is not None:  # they look up together
                    steps = peers.first(steps)
                began = time.perf_counter()
                block = Block("run", data.x, data.target, order, at * batch, n, batch, steps, *factors)
                if self._stepping.rule:
                    taken = self._stepping.steps(block, each_step)
                else:
                    taken = self._closure_steps(block, each_step)
                losses[done : done + len(taken)] = taken
                done += len(taken)
                seconds = max(time.perf_counter() - began, 1e-6)
                limit = int(_BLOCK_SECONDS * len(taken) / seconds)
                steps = max(1, min(_BLOCK_STEPS, 8 * len(taken), limit))
                loader.gave(done - first)
                ended = done - first == length
                mean = float(losses[max(first, 0) : done].mean()) if callback or ended else 0.0
                if ended and scheduler is not None and every == "epoch":
                    scheduler.step(*([mean] if isinstance(scheduler, ReduceLROnPlateau) else []))
                stop = False
                if callback is not None:
                    stop = callback(Progress(epoch + ended, epochs, done, total, mean)) is False
                if stop if peers is None else peers.any(stop):  # peers without a callback too
                    return losses[:done]
        return losses

    def _closure_steps(self, block: Block, scheduler: Any) -> npt.NDArray[np.float64]:
        """The same for an optimizer that evaluates the model itself: one step after the other."""
        losses = np.empty(block.steps)
        for k in range(block.steps):
            begin = block.begin + k * block.batch
            end = min(begin + block.batch, block.end)
            part = block._replace(begin=begin, end=end, batch=end - begin, steps=1)
            losses[k] = self._stepping.closure_step(part)
            if scheduler is not None:
                scheduler.step()
        return losses

    def _check_run(self, epochs: int, scheduler: Any, every: str) -> None:
        if operator.index(epochs) < 0:
            raise ValueError(f"run: epochs must be at least 0, got {epochs}")
        if every not in ("step", "epoch"):
            raise ValueError(f"run: scheduler_every must be 'step' or 'epoch', got {every!r}")
        if scheduler is None:
            return
        if getattr(scheduler, "optimizer", self.optimizer) is not self.optimizer:
            raise ValueError(f"run: scheduler is a {type(scheduler).__name__} of another optimizer")
        if isinstance(scheduler, ReduceLROnPlateau) and every == "step":
            raise ValueError("run: scheduler is ReduceLROnPlateau, which needs scheduler_every='epoch'")

    def predict(self, x: Any, batch_size: int | None = None) -> Array:
        """Return the model's output for `x` in evaluation mode.

        Parameters
        ----------
        x : array
            As for a step.
        batch_size : int, optional
            Samples computed at a time.

        Returns
        -------
        ndarray, shape (n, ..., out)
        """
        with self._lock:
            if batch_size is not None and operator.index(batch_size) < 1:
                raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
            a, shape = self._samples("predict", _rows(x, "predict: x"))
            native = self._stepping.inference()
            rows = math.prod(shape[:-1])
            each = batch_size or max(self._batch_size or 0, _PREDICT_ROWS)
            if any(norm.running_mean is None for norm in self._read.norms):
                each = len(a)  # normalised with the statistics of all
                if rows == 1:
                    raise ValueError("predict: x has 1 row, and statistics of a batch need more than 1")
            if self._read.device != "cpu":
                return native.predict(a, max(1, each * (rows // len(a)))).reshape(shape)
            return self._predicted(native, a, each).reshape(shape)

    def _predicted(self, native: Any, a: Array, each: int) -> Array:
        """The outputs of all samples, in native calls of some tenth of a second, between which Ctrl-C is heard."""
        batch = each * math.prod(a.shape[1:]) // self._in
        parts, at, count = [], 0, each
        while at < len(a):
            began = time.perf_counter()
            parts.append(native.predict(a[at : at + count], batch))
            at += count
            seconds = max(time.perf_counter() - began, 1e-6)
            count = each * max(1, min(8 * count, int(_BLOCK_SECONDS * count / seconds)) // each)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def sync(self) -> None:
        """Wait for a run in another thread. Parameters, state and step counts are then up to date.

        They are so after every call anyway: they live in the model's and the optimizer's own arrays.
        """
        with self._lock:
            pass

    # Data -----------------------------------------------------------------------------------------------

    def _samples(self, call: str, x: Array) -> tuple[Array, tuple[int, ...]]:
        """Return `x` as the kernels take it, and the shape of the model's output."""
        shape = x.shape
        if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
            raise TypeError(f"{call}: x is {x.dtype}, expected real numbers")
        if x.ndim > 1 and self._read.flatten:
            shape = (len(x), math.prod(shape[1:]))
        if len(shape) < 2 or shape[-1] != self._in:
            raise ValueError(f"{call}: x has shape {x.shape}, the model takes (..., {self._in})")
        if len(shape) > 2 and self._read.matrix_only:
            raise ValueError(
                f"{call}: x has shape {x.shape}, the model takes (n, {self._in}): {self._read.matrix_only}"
            )
        if math.prod(shape[:-1]) == 0:
            raise ValueError(f"{call}: x has shape {x.shape}, expected at least one row")
        return _dense(x, self._dtype), (*shape[:-1], self._out)

    def _data(self, call: str, x: Any, y: Any) -> _Data:
        a, shape = self._samples(call, _rows(x, f"{call}: x"))
        t = _rows(y, f"{call}: target")
        if self._loss.classes and t.dtype.kind in "iu":
            if len(shape) != 2:
                raise ValueError(
                    f"{call}: x has shape {np.shape(x)}, a loss of classes takes (n, {self._in})"
                )
            if t.shape != shape[:-1]:
                raise ValueError(
                    f"{call}: target has shape {t.shape}, expected one class for each row, {shape[:-1]}"
                )
            classes = _dense(t, np.dtype(np.int64))
            self._stepping.inference().check_classes(call, classes)
            return _Data(a, classes, shape)
        if self._loss.kind == "nll" or t.dtype.kind not in "biuf" or (self._loss.classes and t.dtype == bool):
            kinds = "classes (integers)" if self._loss.kind == "nll" else "numbers"
            raise TypeError(f"{call}: target is {t.dtype}, expected {kinds}")
        if t.shape != shape:
            raise ValueError(f"{call}: target has shape {t.shape}, the model's output has shape {shape}")
        if self._loss.classes and self._loss.ignore_index >= 0:
            raise ValueError(
                f"{call}: ignore_index is {self._loss.ignore_index}, target has probabilities and not classes"
            )
        target = _dense(t, self._dtype)
        # On a device this waits for the answer, which a single step does not.
        checked = call == "run" or isinstance(target, np.ndarray)
        if self._loss.kind == "bce" and checked and not (target.min() >= 0 and target.max() <= 1):
            target = moved(target, "cpu")
            index = np.unravel_index(np.flatnonzero(~((target >= 0) & (target <= 1)))[0], shape)
            raise ValueError(
                f"{call}: target[{', '.join(map(str, index))}] is {target[index]}, "
                "expected a probability in [0, 1]"
            )
        return _Data(a, target, shape)

    def _loss_factors(self, call: str, shape: tuple[int, ...]) -> tuple[Array | None, Array | None]:
        """The loss's weight and pos_weight for each element of a batch's output."""
        if self._loss.weight is None and self._loss.pos_weight is None:
            return None, None
        return (
            self._factor(call, "weight", self._loss.weight, shape),
            self._factor(call, "pos_weight", self._loss.pos_weight, shape),
        )

    def _factor(self, call: str, name: str, value: Array | None, shape: tuple[int, ...]) -> Array | None:
        if value is None:
            return None
        known = self._factors.get(name)
        if known is None or known.shape != shape:
            try:
                known = np.broadcast_to(value, shape).copy()
            except ValueError:
                raise ValueError(
                    f"{call}: {name} has shape {value.shape}, which does not broadcast to the output's {shape}"
                ) from None
            self._factors[name] = known
        return known


def _rows(x: Any, name: str) -> Any:
    return x if type(x) is np.ndarray else as_data(as_rows(x, name))


def _dense(a: Array, dtype: np.dtype[Any]) -> Array:
    a = a.astype(dtype, copy=False)
    dense = a.flags.c_contiguous and (is_device_array(a) or a.flags.aligned)
    return a if dense else a.copy(order="C")
