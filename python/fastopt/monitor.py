"""A monitor of training: gradient and weight norms of each layer, and whether gradients vanish or explode."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastopt import nn, plot
from fastopt._drawing import StrPath
from fastopt._tape import enable_grad
from fastopt.optim.clip import get_total_norm

__all__ = ["GradientMonitor", "Layer", "Report"]

_SATURATING = (nn.Sigmoid, nn.Tanh, nn.Softmax)
_RECTIFIED = (nn.ReLU,)
_EARLIER = 5  # records that a typical norm is taken from, before a sudden one can be told


class Layer(NamedTuple):
    """What a `GradientMonitor` says of one layer.

    Attributes
    ----------
    name : str
        The module's path; of plain arrays their name up to the last dot.
    verdict : {"ok", "vanishing", "dead", "exploding"}
    gradient, weight : float
        Euclidean norms of all gradients and all parameters of the layer, medians of the last records.
    ratio : float
        gradient / weight: the share of the weights by which a plain SGD step at a learning rate of 1 would move them.
        NaN of weights that are all zero.
    reason : str
        The figures that the verdict comes from; empty where it is "ok".
    """

    name: str
    verdict: str
    gradient: float
    weight: float
    ratio: float
    reason: str


class Report(NamedTuple):
    """What `GradientMonitor.report` returns; ``str(report)`` is a table with what to try below it.

    Attributes
    ----------
    layers : list of Layer
        In the order of the model.
    advice : list of str
        What to try, the likeliest first; empty where all layers are "ok".
    records : int
        The number of records that it comes from.
    """

    layers: list[Layer]
    advice: list[str]
    records: int

    @property
    def ok(self) -> bool:
        """Whether no layer vanishes, is dead or explodes."""
        return all(layer.verdict == "ok" for layer in self.layers)

    def with_verdict(self, verdict: str) -> list[str]:
        """The names of the layers of one verdict."""
        return [layer.name for layer in self.layers if layer.verdict == verdict]

    def as_dict(self) -> dict[str, Any]:
        """The report in lists, strings and numbers, ready for JSON: None stands for what is not finite."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        layers = [{key: plain(value) for key, value in layer._asdict().items()} for layer in self.layers]
        return {"ok": self.ok, "layers": layers, "advice": self.advice, "records": self.records}

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':<{width}}  gradient   weights     ratio  verdict"]
        for layer in self.layers:
            numbers = "  ".join(f"{v:8.2e}" for v in (layer.gradient, layer.weight, layer.ratio))
            why = f": {layer.reason}" if layer.reason else ""
            lines.append(f"{layer.name:<{width}}  {numbers}  {layer.verdict}{why}")
        if self.advice:
            lines += ["what to try:", *(f"  - {line}" for line in self.advice)]
        return "\n".join(lines)


class GradientMonitor:
    """Record gradient and weight norms of each layer, and say where gradients vanish or explode.

    Parameters
    ----------
    model : Module or mapping of str to array
        A model, whose parameters that require grad are watched, grouped by the module that owns them; or arrays by
        name, grouped by the name up to its last dot.
    window : int
        The number of last records that a verdict is made from, by their median: one odd batch decides nothing.
    vanishing : float
        A layer vanishes whose gradient norm is below this share of the largest layer's, and whose ratio of gradient to
        weight is so too. At 1e-3 a step moves it, relative to its size, a thousandth as far as the layer that learns
        fastest: with one learning rate for all it would need a thousand epochs for what that learns in one.
        Both must be small, as a wide layer has a larger norm, and one that starts at zero a larger ratio, by itself.
    exploding : float
        A layer explodes whose gradient is this many times as large as its weights. At 100 a plain SGD step at a
        learning rate of 0.01 replaces all that the layer has learned.
    growth : float
        It also explodes when the last gradient is so many times the median of those before, and larger than the
        weights: training that was stable has left its path. At 100 the noise of small batches, which is rarely
        tenfold, is left far behind.

    Attributes
    ----------
    steps : list of int
        The step of each record.
    gradients, weights : dict of str to list of float
        The norms of each layer, one for each record.

    Raises
    ------
    TypeError, ValueError
        Nothing to watch, or a setting out of range.

    Notes
    -----
    Gradients that are not finite are exploding, and those that are exactly zero in all of the last records dead.

    A norm is one pass over the parameters and gradients, the cost of a step of SGD; record every tenth step where that
    matters.

    References
    ----------
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> model = fo.nn.Sequential(fo.nn.Linear(4, 8), fo.nn.ReLU(), fo.nn.Linear(8, 2))
    >>> monitor = fo.GradientMonitor(model)
    >>> loss = fo.nn.CrossEntropyLoss()(model(np.ones((3, 4), np.float32)), np.array([0, 1, 1]))
    >>> loss.backward()
    >>> monitor.record()
    >>> monitor.report().ok
    True
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        *,
        window: int = 10,
        vanishing: float = 1e-3,
        exploding: float = 100.0,
        growth: float = 100.0,
    ) -> None:
        if window < 1:
            raise ValueError(f"GradientMonitor: window must be at least 1, got {window}")
        for name, value in (("vanishing", vanishing), ("exploding", exploding), ("growth", growth)):
            if not value > 0:
                raise ValueError(f"GradientMonitor: {name} must be above 0, got {value}")
        self._model = model if isinstance(model, nn.Module) else None
        if self._model is not None:
            watched: dict[str, Any] = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        elif isinstance(model, Mapping):
            watched = dict(model)
        else:
            raise TypeError(
                f"GradientMonitor: model is {type(model).__name__}, expected a Module or a mapping of names to arrays"
            )
        if not watched:
            raise ValueError("GradientMonitor: model has no parameters to watch")
        self._watched = watched
        self._layers: dict[str, list[str]] = {}
        for name in watched:
            path, dot, _ = name.rpartition(".")
            own = (type(self._model).__name__ if self._model is not None else name) if not dot else path
            self._layers.setdefault(own, []).append(name)
        self.window, self.vanishing, self.exploding, self.growth = window, vanishing, exploding, growth
        self.steps: list[int] = []
        self.gradients: dict[str, list[float]] = {layer: [] for layer in self._layers}
        self.weights: dict[str, list[float]] = {layer: [] for layer in self._layers}

    # -------------------------------------------------------------------------------------- records

    def record(self, grads: Mapping[str, Any] | None = None, *, step: int | None = None) -> None:
        """Take the norms as they are now: call it between ``backward`` and ``step``.

        Parameters
        ----------
        grads : mapping of str to array, optional
            The gradients by the parameters' names. None: each parameter's ``.grad``. One that has none counts as 0.
        step : int, optional
            What this record is called; by default they are counted from 1.

        Raises
        ------
        ValueError
            No parameter has a gradient, or `grads` has a name that is not watched. Nothing has changed then.
        """
        if grads is None:
            grads = {name: getattr(p, "grad", None) for name, p in self._watched.items()}
            if all(g is None for g in grads.values()):
                raise ValueError(
                    "record: no parameter has a gradient: call it after backward(), or give grads"
                )
        if not grads:
            raise ValueError("record: grads is empty")
        unknown = [name for name in grads if name not in self._watched]
        if unknown:
            raise ValueError(
                f"record: grads has {unknown[0]!r}, which is not one of {', '.join(self._watched)}"
            )
        norms = {
            layer: (
                _norm([grads[n] for n in names if grads.get(n) is not None]),
                _norm([self._watched[n] for n in names]),
            )
            for layer, names in self._layers.items()
        }
        self.steps.append((self.steps[-1] if self.steps else 0) + 1 if step is None else int(step))
        for layer, (gradient, weight) in norms.items():
            self.gradients[layer].append(gradient)
            self.weights[layer].append(weight)

    def measure(self, loss_fn: Any, x: Any, y: Any, *, step: int | None = None) -> None:
        """Work out the gradients of a batch and record them: for compiled steps, which leave no ``.grad`` behind.

        The model computes in evaluation mode, without dropout; gradients, modes and random numbers are as before.

        Parameters
        ----------
        loss_fn : callable
            ``loss_fn(model(x), y)`` is the loss.
        x, y : array
            What model and loss take.
        step : int, optional
            As in `record`.

        Raises
        ------
        TypeError
            The monitor watches plain arrays.
        """
        if self._model is None:
            raise TypeError("measure: the monitor watches arrays, not a model: use record(grads)")
        modes = [(module, module.training) for module in self._model.modules()]
        before = [p.grad for p in self._watched.values()]
        try:
            self._model.eval()
            self._model.zero_grad()
            with enable_grad():
                loss_fn(self._model(x), y).backward()
            self.record(step=step)
        finally:
            for module, training in modes:
                module.training = training
            for p, grad in zip(self._watched.values(), before, strict=True):
                p.grad = grad

    # ------------------------------------------------------------------------------------- verdicts

    def report(self) -> Report:
        """Judge each layer by the last `window` records.

        Raises
        ------
        ValueError
            Nothing was recorded.
        """
        if not self.steps:
            raise ValueError("report: nothing was recorded yet")
        layers = [self._wild(name) for name in self._layers]
        calm = [layer for layer in layers if layer.verdict == "ok"]
        largest = max((layer.gradient for layer in calm), default=0.0)
        fastest = max((layer.ratio for layer in calm if not math.isnan(layer.ratio)), default=0.0)
        layers = [self._slow(layer, largest, fastest) for layer in layers]
        return Report(layers, self._advice({layer.verdict for layer in layers}), len(self.steps))

    def _wild(self, name: str) -> Layer:
        """The layer as exploding, dead, or neither."""
        gradients, weights = self.gradients[name], self.weights[name]
        recent = gradients[-self.window :]
        gradient, weight = _median(recent), _median(weights[-self.window :])
        ratio = gradient / weight if weight else math.nan
        layer = Layer(name, "ok", gradient, weight, ratio, "")
        for step, g, w in zip(self.steps[-self.window :], recent, weights[-self.window :], strict=True):
            if not (math.isfinite(g) and math.isfinite(w)):
                what, value = ("gradient", g) if not math.isfinite(g) else ("weights", w)
                return layer._replace(
                    verdict="exploding", reason=f"norm of the {what} is {value} at step {step}"
                )
        if not any(recent):
            return layer._replace(verdict="dead", reason="its gradient is exactly 0")
        if ratio > self.exploding:
            return layer._replace(
                verdict="exploding", reason=f"its gradient is {ratio:.1e} times as large as its weights"
            )
        earlier = [g for g in gradients[:-1] if math.isfinite(g)]
        usual = _median(earlier) if len(earlier) >= _EARLIER else math.inf
        if gradients[-1] > self.growth * usual and gradients[-1] > weights[-1]:
            times = f"{gradients[-1] / usual:.1e}" if usual else "inf"
            return layer._replace(
                verdict="exploding", reason=f"its last gradient is {times} times as large as those before"
            )
        return layer

    def _slow(self, layer: Layer, largest: float, fastest: float) -> Layer:
        """The layer as vanishing where it is, next to the largest gradient and the largest ratio."""
        if layer.verdict != "ok" or not layer.gradient < self.vanishing * largest:
            return layer
        if not math.isnan(layer.ratio) and not layer.ratio < self.vanishing * fastest:
            return layer
        return layer._replace(
            verdict="vanishing", reason=f"{layer.gradient / largest:.1e} of the largest layer's gradient"
        )

    def _advice(self, verdicts: set[str]) -> list[str]:
        used = [type(m) for m in self._model.modules()] if self._model is not None else []
        saturating = sorted({kind.__name__ for kind in used if issubclass(kind, _SATURATING)})
        advice = []
        if "vanishing" in verdicts:
            if saturating:
                slope = ", whose slope is at most 1/4" if saturating == ["Sigmoid"] else ", which saturate"
                advice.append(
                    f"ReLU or GELU between the layers in place of {' and '.join(saturating)}{slope}"
                )
            advice += [
                "initial weights that keep the variance from layer to layer: fo.nn.init.kaiming_normal_ before ReLU, "
                "xavier_normal_ before tanh",
                "inputs with mean 0 and variance 1",
                "fewer layers, or a sum with the input around each of them",
                "an optimizer that scales each element by itself, such as Adam, or a larger lr for these layers",
            ]
        if "dead" in verdicts:
            rectified = any(issubclass(kind, _RECTIFIED) for kind in used)
            advice += [
                *(["LeakyReLU or GELU in place of ReLU, whose slope is 0 below 0"] if rectified else []),
                "a smaller learning rate from the start: a step too long can leave units that never answer again",
                "a look at forward: does the loss depend on these layers at all?",
            ]
        if "exploding" in verdicts:
            advice += [
                "a smaller learning rate, with a warm-up (WarmupCosineLR)",
                "clipping: max_norm=1.0 of the optimizer",
                "smaller initial weights: fo.nn.init.xavier_normal_ or kaiming_normal_",
                "inputs and regression targets with mean 0 and variance 1",
            ]
        return advice

    def plot(self, path: StrPath | None = None, *, title: str | None = None) -> Any:
        """Draw the norms of all records with `fastopt.plot.plot_norms`, which returns a matplotlib Figure."""
        return plot.plot_norms(self.gradients, path, weights=self.weights, steps=self.steps, title=title)


def _norm(arrays: Sequence[Any]) -> float:
    return float(get_total_norm(arrays)) if arrays else 0.0


def _median(values: Sequence[float]) -> float:
    """The median; NaN where there is one, which sorting would hide."""
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)
