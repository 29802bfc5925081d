"""What all pictures share: figures, files, colours and axes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

StrPath: TypeAlias = str | os.PathLike[str]

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#333333"
_ROUNDS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # dashes and markers of a round of colours each
_MAX_MARKED = 30  # more points than this: a line without markers


def check_path(path: StrPath) -> None:
    """Raise what writing a plot to ``path`` would: no matplotlib, or a format that it does not write."""
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in known:
        given = suffix or "a file without suffix"
        raise ValueError(f"{path}: cannot write {given}, only {', '.join(sorted(known))}")


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError('plots need matplotlib: pip install "fastopt[plot]"') from err
    # A Figure of its own, not pyplot's: saving it draws with Agg, whatever backend the session has.
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    return figure


def new_grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels: up to three in a row, more in two rows."""
    rows = 1 if count <= 3 else 2
    columns = -(-count // rows)
    figure = new_figure(4.4 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def finish(figure: Figure, path: StrPath | None, title: str | None) -> Figure:
    if title is not None:
        figure.suptitle(title, color=INK, fontsize=11)
    if path is not None:
        check_path(path)
        figure.savefig(path, dpi=150)
    return figure


def style(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK, labelsize=9)
    ax.grid(True, color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line_look(i: int, points: int = 1000) -> dict[str, Any]:
    """The look of a picture's i-th line, of so many points, unlike those before."""
    dash, marker = _ROUNDS[i // len(COLOURS) % len(_ROUNDS)]
    look = {"color": COLOURS[i % len(COLOURS)], "linestyle": dash, "linewidth": 1.8}
    return {**look, "marker": marker, "markersize": 3.5} if points <= _MAX_MARKED else look


def whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def percent(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.6g}%"))


def logarithmic(ax: Axes) -> None:
    """A logarithmic axis of values; with numbers such as 0.02 rather than powers where it spans few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 1e4 * low:
        ax.yaxis.set_major_locator(
            LogLocator(10, subs=(1.0, 2.0, 5.0) if high > 10 * low else (1, 2, 3, 4, 6, 8))
        )
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
