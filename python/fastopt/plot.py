"""Pictures of training: learning curves, schedules, confusion matrix, norms by layer, comparisons, paths on a surface.

matplotlib is imported when a plot is made, and only its file-writing half: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastopt._drawing import (
    COLOURS,
    INK,
    StrPath,
    finish,
    line_look,
    logarithmic,
    new_figure,
    new_grid,
    percent,
    style,
    three_digits,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_bars",
    "plot_comparison",
    "plot_confusion",
    "plot_history",
    "plot_norms",
    "plot_path",
    "plot_schedule",
]

_PARTS = ("train", "test")
_MAX_NUMBERED = 20  # more classes than this: colours without numbers
_MAX_LISTED = 10  # more layers than this: some of them in the legend


def plot_history(
    history: Mapping[str, Sequence[float]],
    path: StrPath | None = None,
    *,
    confusion: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    gradients: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot loss and accuracy over the epochs, training and test set together, and the learning rate where it changes.

    Parameters
    ----------
    history
        Lists of one number per epoch under ``train_loss``, ``test_loss``, ``train_accuracy`` and
        ``test_accuracy``; what is missing is left out. ``epoch``: their numbers, from 1 by default. ``lr``: the
        learning rates, which get a panel where they are not all the same.
    path
        Where to write the picture; the suffix (png, svg, pdf) chooses the format. None: only returned.
    confusion, classes
        Add a panel with `plot_confusion`'s matrix.
    gradients
        Add a panel with the gradient norms of the last epochs by layer, as `GradientMonitor.gradients` has them.
    title
        A line above the panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Nothing to plot, or lists of different lengths.
    """
    panels = [
        (
            quantity,
            {part: history[f"{part}_{quantity}"] for part in _PARTS if f"{part}_{quantity}" in history},
        )
        for quantity in ("loss", "accuracy")
    ]
    panels = [(quantity, curves) for quantity, curves in panels if curves]
    if not panels:
        raise ValueError(f"plot_history: no train_loss, test_loss ... in history, only {sorted(history)}")
    lengths = {f"{part}_{quantity}": len(c) for quantity, curves in panels for part, c in curves.items()}
    rates = history.get("lr", ())
    scheduled = len(set(rates)) > 1
    if scheduled:
        lengths["lr"] = len(rates)
    epochs = history.get("epoch", range(1, max(lengths.values()) + 1))
    for name, length in lengths.items():
        if length != len(epochs):
            raise ValueError(f"plot_history: {name} has {length} values for {len(epochs)} epochs")

    draw: list[Callable[[Axes], None]] = [partial(_draw_curves, epochs, *panel) for panel in panels]
    if scheduled:
        draw.append(partial(_draw_rates, epochs, rates))
    if gradients is not None:
        records = len(next(iter(gradients.values()), ()))
        if not 0 < records <= len(epochs):
            raise ValueError(f"plot_history: gradients has {records} values for {len(epochs)} epochs")
        draw.append(partial(_draw_norms, epochs[-records:], gradients))
    if confusion is not None:
        draw.append(partial(_draw_confusion, _as_matrix(confusion), classes))
    figure, axes = new_grid(len(draw))
    for ax, panel_of in zip(axes, draw, strict=True):
        panel_of(ax)
    return finish(figure, path, title)


def plot_confusion(
    matrix: ArrayLike,
    path: StrPath | None = None,
    *,
    classes: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot a confusion matrix, coloured by the share of each true class.

    Parameters
    ----------
    matrix
        Counts (k, k): rows are the true classes, columns the predicted ones.
    path, title
        As in `plot_history`.
    classes
        Names of the k classes; None: 0 ... k-1.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Not a square matrix of counts, or another number of names than classes.
    """
    counts = _as_matrix(matrix)
    side = min(4.0 + 0.25 * max(0, len(counts) - 8), 9.0)
    figure = new_figure(side + 0.6, side)
    _draw_confusion(counts, classes, figure.subplots())
    return finish(figure, path, title)


def plot_schedule(
    rates: Mapping[str, Sequence[float]] | Sequence[float],
    path: StrPath | None = None,
    *,
    xlabel: str = "step",
    title: str | None = None,
) -> Figure:
    """Plot learning rates over the steps of a run.

    Parameters
    ----------
    rates
        One learning rate per step, or several such lists by name.
    path, title
        As in `plot_history`.
    xlabel
        What a step is.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        No rates.
    """
    named = rates if isinstance(rates, Mapping) else {"": rates}
    if not named or not all(len(values) for values in named.values()):
        raise ValueError("plot_schedule: rates is empty")
    figure = new_figure(5.6 + 1.6 * isinstance(rates, Mapping), 3.6)
    ax = figure.subplots()
    for i, (name, values) in enumerate(named.items()):
        ax.plot(range(len(values)), values, label=name, **line_look(i), drawstyle="steps-post")
    style(ax, xlabel, "learning rate")
    ax.set_ylim(bottom=0)
    if isinstance(rates, Mapping):
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return finish(figure, path, title)


def plot_norms(
    gradients: Mapping[str, Sequence[float]],
    path: StrPath | None = None,
    *,
    weights: Mapping[str, Sequence[float]] | None = None,
    steps: Sequence[float] | None = None,
    xlabel: str = "step",
    title: str | None = None,
) -> Figure:
    """Plot gradient norms of the layers over the steps, and beside them the weights' norms; both axes logarithmic.

    Parameters
    ----------
    gradients
        Lists of one norm per record, by layer, from the input to the output: the darkest line is nearest to the input.
        Zeros and what is not finite are left out.
    weights
        The same for the weights: a panel of its own.
    steps
        The step of each record; None: counted from 1.
    xlabel
        What a step is.
    path, title
        As in `plot_history`.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        No records, or lists of different lengths.
    """
    panels = {"gradient norm": gradients} | ({} if weights is None else {"weight norm": weights})
    count = len(next(iter(gradients.values()), ()))
    at = range(1, count + 1) if steps is None else steps
    if not count:
        raise ValueError("plot_norms: gradients is empty")
    for what, norms in panels.items():
        for layer, values in norms.items():
            if len(values) != len(at):
                raise ValueError(
                    f"plot_norms: {what} of {layer} has {len(values)} values for {len(at)} steps"
                )
    figure = new_figure(4.4 * len(panels) + 1.2, 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (what, norms) in zip(axes, panels.items(), strict=True):
        _draw_layers(ax, at, norms)
        style(ax, xlabel, what)
    axes[-1].legend(frameon=False, title="layer", loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return finish(figure, path, title)


def plot_comparison(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    path: StrPath | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Plot several runs together: training loss, test loss (both logarithmic) and test accuracy over the epochs.

    The axis of the accuracy begins where the last epochs can be told apart: first epochs far below may lie outside.

    Parameters
    ----------
    histories
        A history as in `plot_history` for each run, by name. What none of them has gets no panel; runs may have
        different lengths.
    path, title
        As in `plot_history`.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        No run has an epoch to show.
    """
    panels = [
        key
        for key in ("train_loss", "test_loss", "test_accuracy")
        if any(len(history.get(key, ())) for history in histories.values())
    ]
    if not panels:
        raise ValueError(f"plot_comparison: no losses or accuracies in the histories of {sorted(histories)}")
    figure = new_figure(4.2 * len(panels) + 1.4, 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, key in zip(axes, panels, strict=True):
        for i, (name, history) in enumerate(histories.items()):
            values = history.get(key, ())
            epochs = history.get("epoch", range(1, len(values) + 1))
            ax.plot(epochs, values, label=name, **line_look(i, len(values)))
        style(ax, "epoch", key.replace("_", " ").replace("train", "training"))
        whole_numbers(ax)
        if key == "test_accuracy":
            percent(ax)
            last = [history[key][-1] for history in histories.values() if len(history.get(key, ()))]
            floor = max(ax.get_ylim()[0], min(last) - 2 * max(max(last) - min(last), 0.05))
            best = max(ax.dataLim.y1, floor + 0.01)
            ax.set_ylim(floor, best + 0.05 * (best - floor))
        else:
            logarithmic(ax)
    axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return finish(figure, path, title)


def plot_path(
    fun: Callable[[NDArray[np.float64]], Any],
    paths: Mapping[str, ArrayLike],
    path: StrPath | None = None,
    *,
    minimum: Sequence[float] | None = None,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot the ways that optimizers took on the surface of a function of two numbers.

    Parameters
    ----------
    fun
        A function of an array (2,) that returns its value, or value and gradient, as `fastopt.minimize` takes it.
    paths
        The points (n, 2) that each optimizer went through, by name. What is not finite is left out.
    path, title
        As in `plot_history`.
    minimum
        A point to mark with a star.
    xlim, ylim
        The part of the plane to show; None: what holds all paths and the minimum.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        No paths, or points that are not (n, 2).
    """
    points = {name: np.asarray(values, np.float64) for name, values in paths.items()}
    for name, a in points.items():
        if a.ndim != 2 or a.shape[1] != 2 or not len(a):
            raise ValueError(f"plot_path: path of {name} has shape {a.shape}, expected (n, 2)")
    if not points:
        raise ValueError("plot_path: paths is empty")
    marked = [] if minimum is None else [np.reshape(np.asarray(minimum, np.float64), (1, 2))]
    everything = np.concatenate([*points.values(), *marked])
    everything = everything[np.isfinite(everything).all(axis=1)]
    if not len(everything):
        raise ValueError("plot_path: no point of paths is finite")
    limits = [given or _limits(everything[:, i]) for i, given in enumerate((xlim, ylim))]
    figure = new_figure(6.4, 4.6)
    ax = figure.subplots()
    _draw_surface(ax, fun, *limits)
    for i, (name, a) in enumerate(points.items()):
        (line,) = ax.plot(*a.T, label=name, **line_look(i, len(a)))
        ax.plot(*a[-1], marker="o", markersize=6, color=line.get_color(), label=f"_end of {name}")
    start = next(iter(points.values()))[0]
    ax.plot(
        *start, marker="o", markersize=7, color="white", markeredgecolor=INK, linestyle="none", label="start"
    )
    if minimum is not None:
        ax.plot(
            *minimum,
            marker="*",
            markersize=13,
            color="white",
            markeredgecolor=INK,
            linestyle="none",
            label="minimum",
        )
    style(ax, "", "")
    ax.grid(False)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return finish(figure, path, title)


def plot_bars(
    groups: Mapping[str, Mapping[str, float]],
    path: StrPath | None = None,
    *,
    unit: str = "µs",
    title: str | None = None,
) -> Figure:
    """Plot numbers as bars, a panel for each group, with the figures and their ratio to the first beside them.

    Parameters
    ----------
    groups
        Numbers above 0 by name, by group; the first of a group is what the others are compared with.
    unit
        What they are.
    path, title
        As in `plot_history`.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Nothing to draw.
    """
    if not groups or not all(groups.values()):
        raise ValueError("plot_bars: groups is empty")
    heights = [len(values) + 1.2 for values in groups.values()]
    figure = new_figure(6.6, 0.32 * sum(heights) + 0.5)
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, values) in zip(axes, groups.items(), strict=True):
        first = next(iter(values.values()))
        colours = [COLOURS[0], *["#b5b5b5"] * (len(values) - 1)]
        bars = ax.barh(range(len(values)), list(values.values()), color=colours, height=0.72)
        labels = [
            f"{three_digits(v)} {unit}" + (f"  {v / first:.2f}x" if i else "")
            for i, v in enumerate(values.values())
        ]
        ax.bar_label(bars, labels, padding=4, fontsize=8.5, color=INK)
        ax.set_yticks(range(len(values)), list(values))
        ax.invert_yaxis()
        ax.set_xlim(0, 1.28 * max(values.values()))
        ax.set_title(name, loc="left", fontsize=9.5, color=INK)
        ax.set_xticks([])
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=9, length=0)
    return finish(figure, path, title)


def _draw_rates(epochs: Sequence[float], rates: Sequence[float], ax: Axes) -> None:
    ax.plot(epochs, rates, **line_look(0, len(epochs)))
    ax.set_ylim(bottom=0)
    style(ax, "epoch", "learning rate")
    whole_numbers(ax)


def _draw_norms(epochs: Sequence[float], gradients: Mapping[str, Sequence[float]], ax: Axes) -> None:
    _draw_layers(ax, epochs, gradients)
    style(ax, "epoch", "gradient norm")
    whole_numbers(ax)
    ax.legend(frameon=False, title="layer", fontsize=8, title_fontsize=8)


def _draw_layers(ax: Axes, steps: Sequence[float], norms: Mapping[str, Sequence[float]]) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.92, len(norms)))
    every = -(-len(norms) // _MAX_LISTED)
    for i, (layer, values) in enumerate(norms.items()):
        a = np.asarray(values, np.float64)
        a = np.where(np.isfinite(a) & (a > 0), a, np.nan)
        listed = i % every == 0 or i == len(norms) - 1
        label = layer if listed else f"_{layer}"  # matplotlib leaves out what begins so
        ax.plot(steps, a, **{**line_look(0, len(a)), "color": shades[i]}, label=label)
    logarithmic(ax)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


def _draw_surface(
    ax: Axes,
    fun: Callable[[NDArray[np.float64]], Any],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
) -> None:
    """Contours of `fun`, whose heights grow by a fixed factor: narrow valleys and steep walls in one picture."""
    xs, ys = np.linspace(*xlim, 121), np.linspace(*ylim, 121)
    z = np.empty((len(ys), len(xs)))
    for i, j in np.ndindex(z.shape):
        value = fun(np.array([xs[j], ys[i]]))
        z[i, j] = value[0] if isinstance(value, tuple) else value
    z[~np.isfinite(z)] = np.nan
    if np.isnan(z).all() or np.nanmin(z) == np.nanmax(z):
        return  # a plain has no contours
    above = z - np.nanmin(z)
    heights = np.log10(above + 1e-3 * np.nanmax(above))
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    levels = np.linspace(low, high, 14)
    # Light greys: the paths are what is to be seen.
    ax.contourf(xs, ys, heights, levels, cmap="Greys", vmin=low, vmax=high + 1.5 * (high - low))
    ax.contour(xs, ys, heights, levels, colors="white", linewidths=0.7, linestyles="solid")


def _draw_curves(
    epochs: Sequence[float], quantity: str, curves: Mapping[str, Sequence[float]], ax: Axes
) -> None:
    for part, values in curves.items():
        last = f"{values[-1]:.2%}" if quantity == "accuracy" else f"{values[-1]:.3g}"
        ax.plot(epochs, values, **line_look(_PARTS.index(part), len(epochs)), label=f"{part} {last}")
    style(ax, "epoch", quantity)
    whole_numbers(ax)
    if quantity == "accuracy":
        percent(ax)
        ax.legend(frameon=False, loc="lower right")
    else:
        ax.set_ylim(0, 1.04 * ax.get_ylim()[1])
        ax.legend(frameon=False, loc="upper right")


def _as_matrix(matrix: ArrayLike) -> NDArray[Any]:
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise ValueError(f"confusion matrix has shape {counts.shape}, expected (k, k)")
    if counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(f"confusion matrix must hold counts, got {counts.dtype} with minimum {counts.min()}")
    return counts


def _draw_confusion(matrix: NDArray[Any], classes: Sequence[str] | None, ax: Axes) -> None:
    k = len(matrix)
    names = [str(i) for i in range(k)] if classes is None else [str(name) for name in classes]
    if len(names) != k:
        raise ValueError(f"classes: {len(names)} names for a confusion matrix of {k} classes")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The square root keeps the few errors visible beside the diagonal.
    ax.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    if k <= _MAX_NUMBERED:
        for i, j in np.ndindex(k, k):
            if matrix[i, j]:
                light = share[i, j] > 0.36
                ax.text(
                    j,
                    i,
                    str(matrix[i, j]),
                    ha="center",
                    va="center",
                    color="white" if light else INK,
                    fontsize=7 if k > 6 else 9,
                )
        long_names = max(map(len, names)) > 3
        ax.set_xticks(
            range(k), names, rotation=45 if long_names else 0, ha="right" if long_names else "center"
        )
        ax.set_yticks(range(k), names)
    ax.set_xlabel("predicted", color=INK)
    ax.set_ylabel("true", color=INK)
    ax.tick_params(length=0, colors=INK, labelsize=9)
    ax.spines[:].set_visible(False)
