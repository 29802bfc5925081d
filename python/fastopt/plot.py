"""Plots of a training run: learning curves, confusion matrix, learning-rate schedules.

matplotlib is imported when a plot is made, and only its file-writing half: no window, no global state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_confusion", "plot_history", "plot_schedule"]

StrPath: TypeAlias = str | os.PathLike[str]

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PARTS = {"train": _COLOURS[0], "test": _COLOURS[1]}
_INK = "#333333"
_MAX_NUMBERED = 20  # more classes than this: colours without numbers


def plot_history(
    history: Mapping[str, Sequence[float]],
    path: StrPath | None = None,
    *,
    confusion: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot loss and accuracy over the epochs, training and test set together.

    Parameters
    ----------
    history
        Lists of one number per epoch under ``train_loss``, ``test_loss``, ``train_accuracy`` and
        ``test_accuracy``; what is missing is left out. ``epoch``: their numbers, from 1 by default.
    path
        Where to write the picture; the suffix (png, svg, pdf) chooses the format. None: only returned.
    confusion, classes
        Add a third panel with `plot_confusion`'s matrix.
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
    epochs = history.get("epoch", range(1, max(lengths.values()) + 1))
    for name, length in lengths.items():
        if length != len(epochs):
            raise ValueError(f"plot_history: {name} has {length} values for {len(epochs)} epochs")

    count = len(panels) + (confusion is not None)
    figure = _new_figure(4.4 * count, 3.6)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax, (quantity, curves) in zip(axes, panels, strict=False):
        _draw_curves(ax, epochs, quantity, curves)
    if confusion is not None:
        _draw_confusion(ax=axes[-1], matrix=_as_matrix(confusion), classes=classes)
    return _finish(figure, path, title)


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
    figure = _new_figure(side + 0.6, side)
    _draw_confusion(figure.subplots(), counts, classes)
    return _finish(figure, path, title)


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
    figure = _new_figure(5.6, 3.6)
    ax = figure.subplots()
    for i, (name, values) in enumerate(named.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        ax.plot(range(len(values)), values, color=colour, label=name, linewidth=1.8, drawstyle="steps-post")
    _style(ax, xlabel, "learning rate")
    ax.set_ylim(bottom=0)
    if isinstance(rates, Mapping):
        ax.legend(frameon=False)
    return _finish(figure, path, title)


def check_path(path: StrPath) -> None:
    """Raise what writing a plot to ``path`` would: no matplotlib, or a format that it does not write."""
    known = _new_figure(1, 1).canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in known:
        given = suffix or "a file without suffix"
        raise ValueError(f"{path}: cannot write {given}, only {', '.join(sorted(known))}")


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError('plots need matplotlib: pip install "fastopt[plot]"') from err
    # A Figure of its own, not pyplot's: saving it draws with Agg, whatever backend the session has.
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    return figure


def _finish(figure: Figure, path: StrPath | None, title: str | None) -> Figure:
    if title is not None:
        figure.suptitle(title, color=_INK, fontsize=11)
    if path is not None:
        check_path(path)
        figure.savefig(path, dpi=150)
    return figure


def _style(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel, color=_INK)
    ax.set_ylabel(ylabel, color=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=_INK, labelsize=9)
    ax.grid(True, color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)


def _draw_curves(
    ax: Axes, epochs: Sequence[float], quantity: str, curves: Mapping[str, Sequence[float]]
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    marker = "o" if len(epochs) <= 30 else None
    for part, values in curves.items():
        last = f"{values[-1]:.2%}" if quantity == "accuracy" else f"{values[-1]:.3g}"
        ax.plot(
            epochs,
            values,
            color=_PARTS[part],
            label=f"{part} {last}",
            linewidth=1.8,
            marker=marker,
            markersize=3.5,
        )
    _style(ax, "epoch", quantity)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if quantity == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
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


def _draw_confusion(ax: Axes, matrix: NDArray[Any], classes: Sequence[str] | None) -> None:
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
                    color="white" if light else _INK,
                    fontsize=7 if k > 6 else 9,
                )
        long_names = max(map(len, names)) > 3
        ax.set_xticks(
            range(k), names, rotation=45 if long_names else 0, ha="right" if long_names else "center"
        )
        ax.set_yticks(range(k), names)
    ax.set_xlabel("predicted", color=_INK)
    ax.set_ylabel("true", color=_INK)
    ax.tick_params(length=0, colors=_INK, labelsize=9)
    ax.spines[:].set_visible(False)
