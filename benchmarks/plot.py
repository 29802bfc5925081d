"""Draw results/*.csv, and write the tables of benchmarks/README.md from them.

python benchmarks/plot.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

import harness
import linear
import tables
from harness import Comparison, Row

HERE = Path(__file__).parent
PICTURES = harness.RESULTS  # where they are written
MARK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.S)

BLUE, ORANGE, GREY = "#3b6ea5", "#d1812c", "#8a8f98"
COLOURS = {
    "fastopt": BLUE,
    "torch": ORANGE,
    "jax": "#4c9a6a",
    "sklearn": "#a35f9e",
    "thinc": "#b5a642",
    "numpy": GREY,
}
NAMES = {
    "fastopt": "fastopt",
    "fastopt-eager": "fastopt, eager",
    "torch-fused": "torch, fused Adam",
    "torch-compile": "torch.compile",
    "jax": "JAX jit",
    "sklearn": "scikit-learn",
    "thinc": "thinc",
    "numpy": "NumPy",
}


def colour(provider: str) -> str:
    return COLOURS[provider.split("-")[0]]


def tidy(axis: Any) -> None:
    """Leave the two axes that are read."""
    axis.spines[["top", "right"]].set_visible(False)


def label_bars(axis: Any, bars: Any, labels: Sequence[str]) -> None:
    """Write behind each bar, over whatever lines are there."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.bar_label(bars, labels, padding=3, fontsize=7.5, bbox=ground)


def save(figure: Any, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.png", dpi=120)
    plt.close(figure)


def ratio_bars(groups: dict[str, list[tuple[str, float]]], label: str, name: str, width: float = 3.1) -> None:
    """Draw ratios as bars, a panel a group, with a line at 1."""
    longest = max(len(bars) for bars in groups.values())
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(width * len(groups), 0.28 * longest + 1.2),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, bars) in zip(axes[0], groups.items(), strict=True):
        drawn = axis.barh([b for b, _ in bars], [r for _, r in bars], color=BLUE)
        axis.axvline(1, color="black", linewidth=0.8)
        label_bars(axis, drawn, [f"{r:.2f}" if r < 10 else f"{r:.0f}" for _, r in bars])
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18)
        tidy(axis)
    axes[0][0].invert_yaxis()
    figure.supxlabel(label, fontsize=9)
    save(figure, name)


def optim_bars(table: Sequence[Row]) -> None:
    """The ratio of each class on each set of parameters."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for c in harness.comparisons(table):
        groups.setdefault(c.key[2], []).append((c.key[0].removeprefix("optim."), c.ratio() or 0.0))
    ratio_bars(groups, "best of torch's time / fastopt's time", "optim")


def linear_bars(table: Sequence[Row]) -> None:
    """The ratio of each size, forward and backward."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for c in harness.comparisons(table):
        groups.setdefault(c.key[1], []).append((c.key[2], c.ratio() or 0.0))
    ratio_bars(groups, "time of the best of torch and NumPy / fastopt's time", "linear", 4.2)


def _median(found: Sequence[Comparison], ceiling: str) -> float:
    return float(np.median([c.ceilings[ceiling].rate for c in found if ceiling in c.ceilings]))


def spaced(positions: Sequence[float], gap: float) -> list[float]:
    """Move neighbours apart until they are `gap` from each other; increasing positions stay so."""
    moved = np.array(positions, float)
    for _ in range(100):
        for i in np.flatnonzero(np.diff(moved) < gap - 1e-9):
            middle = (moved[i] + moved[i + 1]) / 2
            moved[i], moved[i + 1] = middle - gap / 2, middle + gap / 2
    return moved.tolist()


def roofline(table: Sequence[Row]) -> None:
    """Achieved arithmetic of every linear case over its operations a byte, under the roofs of the same run.

    The memory roof is that of arrays beyond the caches; smaller ones may lie above it, below the cache's.
    """
    cases = tables.by_key(linear.CASES)
    found = [c for c in harness.comparisons(table) if c.key in cases and c.mine and c.best()]
    found.sort(key=lambda c: cases[c.key].flops / cases[c.key].nbytes)
    peak, memory = _median(found, "fma"), _median(found, "copy")
    cached = max(c.ceilings["stream"].rate for c in found)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, sharex=True, layout="constrained")
    x = np.geomspace(0.2, 700, 300)
    for axis, mode in zip(axes, ("forward", "backward"), strict=True):
        axis.loglog(
            x, np.minimum(peak, memory * x), color="black", linewidth=1.4,
            label=f"copy of memory {memory:.0f} GB/s, multiply-adds {peak:.0f} GFLOP/s",
        )  # fmt: skip
        axis.loglog(
            x, np.minimum(peak, cached * x), color=GREY, linewidth=1.1, linestyle="--", zorder=1,
            label=f"fastest stream in cache {cached:.0f} GB/s",
        )  # fmt: skip
        chosen = [c for c in found if c.key[1] == mode]
        at = [cases[c.key].flops / cases[c.key].nbytes for c in chosen]
        mine, theirs = (
            [r.rate for c in chosen if (r := pick(c))] for pick in (lambda c: c.mine, Comparison.best)
        )
        axis.vlines(at, mine, theirs, color=ORANGE, linewidth=0.8, zorder=2)
        axis.scatter(
            at, theirs, s=34, facecolor="white", edgecolor=ORANGE, zorder=3, label="best of torch and NumPy"
        )
        axis.scatter(at, mine, s=38, color=BLUE, zorder=4, label="fastopt")
        bottom = min(r.rate for c in found for r in (c.mine, c.best()) if r) / 8
        axis.vlines(at, bottom, np.minimum(mine, theirs), color="#dddddd", linewidth=0.8, zorder=0)
        for place, c in zip(spaced(np.log10(at), 0.13), chosen, strict=True):
            axis.text(
                10**place, bottom * 1.1, c.key[2], rotation=90, ha="center", va="bottom", fontsize=7.5,
                color="#444444", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            )  # fmt: skip
        axis.set_ylim(bottom, 1.6 * max(peak, *mine, *theirs))
        axis.set_xlim(x[0], x[-1])
        axis.set_title(f"linear + bias + ReLU, {mode} (batch x out x in)", fontsize=10)
        tidy(axis)
    axes[0].set_ylabel("GFLOP/s")
    figure.supxlabel("operations a byte, each array read or written once", fontsize=9)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    save(figure, "roofline")


def memory_bars(table: Sequence[Row], name: str, title: str, split: bool = False) -> None:
    """The rate of every memory-bound operation as a share of the copy's, ours and the best peer's.

    With `split` each mode has a panel of its own.
    """
    found = [c for c in harness.comparisons(table) if c.mine]
    panels: dict[str, list[Comparison]] = {}
    for c in found:
        panels.setdefault(c.key[1] if split else "", []).append(c)
    longest = max(len(chosen) for chosen in panels.values())
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(4.6 * len(panels) + (0 if split else 3.4), 0.46 * longest + 1.5),
        layout="constrained",
        squeeze=False,
    )
    for axis, (mode, chosen) in zip(axes[0], panels.items(), strict=True):
        labels = [c.key[0].split(".")[-1] + ("" if split else f" {c.key[2]}") for c in chosen]
        at = np.arange(len(chosen))
        best = [c.best() for c in chosen]
        axis.axvline(100, color="black", linewidth=0.8)
        for shift, shares, tone, whose in (
            (-0.2, [100 * c.mine.share if c.mine else 0.0 for c in chosen], BLUE, "fastopt"),
            (0.2, [100 * b.share if b else 0.0 for b in best], ORANGE, "best peer"),
        ):
            bars = axis.barh(at + shift, shares, 0.38, color=tone, label=whose)
            label_bars(axis, bars, [f"{share:.0f}" if share else "" for share in shares])
        axis.set_yticks(at, labels)
        axis.set_title(mode, fontsize=10)
        axis.set_xlim(0, max(112, axis.get_xlim()[1] * 1.05))
        axis.invert_yaxis()
        tidy(axis)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("% of the bandwidth of a copy, measured in the same rounds", fontsize=9)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8, frameon=False
    )
    save(figure, name)


def train_bars(table: Sequence[Row]) -> None:
    """The time of a training step of every network, one panel each."""
    found = [c for c in harness.comparisons(table) if c.key[1] == "step"]
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    order = [p for p in NAMES if any(p in c.ours or p in c.peers for c in found)]
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.5 * columns + 1, (0.27 * len(order) + 0.8) * lines + 0.3),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, c in zip(axes.flat, found, strict=False):
        rows = {**c.ours, **c.peers}
        shown = [rows[p].p50 if p in rows else 0.0 for p in order]
        bars = axis.barh([NAMES[p] for p in order], shown, color=[colour(p) for p in order])
        base = c.mine.p50 if c.mine else 1.0
        label_bars(axis, bars, [f"{t:.0f}  ({t / base:.1f}x)" if t else "" for t in shown])
        axis.set_title(c.key[2], fontsize=10)
        axis.margins(x=0.42)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=8)
        tidy(axis)
    axes[0][0].invert_yaxis()
    figure.supxlabel("microseconds of a step: forward, cross-entropy, backward, Adam", fontsize=9)
    save(figure, "train")


def _along(op: str, size: str) -> float:
    """The number that a curve's case is plotted at."""
    if op == "adam":
        return float(size)
    sizes, batch = size.split(" b")
    return float(batch) if op == "batch" else float(sizes.split("-")[1])


def curve_lines(table: Sequence[Row]) -> None:
    """Cost against size, log-log: a panel for each thing that grows."""
    titles = {
        "batch": "784-256-10, step over batch",
        "width": "784-width-10, batch 64, step over width",
        "adam": "Adam over parameters",
    }
    found = [c for c in harness.comparisons(table) if c.key[1] == "step"]
    ops = [op for op in titles if any(c.key[0] == op for c in found)]
    figure, axes = plt.subplots(
        1, len(ops), figsize=(4.3 * len(ops), 3.7), layout="constrained", squeeze=False
    )
    for axis, op in zip(axes[0], ops, strict=True):
        lines: dict[str, list[tuple[float, Row]]] = {}
        for c in found:
            if c.key[0] == op:
                for row in (*c.ours.values(), *c.peers.values()):
                    lines.setdefault(row.provider, []).append((_along(op, c.key[2]), row))
        for provider, points in lines.items():
            x, y = [p for p, _ in points], [r.p50 for _, r in points]
            eager = provider == "fastopt-eager"
            axis.fill_between(
                x, [r.p20 for _, r in points], [r.p80 for _, r in points], color=colour(provider), alpha=0.15
            )
            axis.loglog(
                x,
                y,
                color=colour(provider),
                marker="o",
                markersize=3.5,
                linewidth=1.0 if eager else 1.8,
                linestyle="--" if eager else "-",
                label=NAMES.get(provider, provider),
            )
        axis.set_title(titles[op], fontsize=10)
        axis.grid(which="major", color="#e6e6e6", linewidth=0.6)
        axis.set_xlabel(op if op != "adam" else "parameters", fontsize=9)
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    axes[0][0].set_ylabel("microseconds")
    save(figure, "curves")


#: By the name of the benchmark: what is drawn from its results.
FIGURES: dict[str, list[Callable[[Sequence[Row]], None]]] = {
    "optim": [optim_bars],
    "linear": [roofline, linear_bars],
    "losses": [lambda table: memory_bars(table, "losses", "Losses with their gradients, softmax")],
    "activations": [
        lambda table: memory_bars(table, "activations", "Activations of 16M elements", split=True)
    ],
    "train": [train_bars],
    "curves": [curve_lines],
}


def with_tables(text: str) -> str:
    """Return a Markdown text with the tables between its marks made anew."""
    made = {name: table for name in tables.TABLES if (table := tables.render(name))}
    return MARK.sub(lambda m: m[1] + made[m[2]] + m[3] if m[2] in made else m[0], text)


def draw_all() -> None:
    """Draw every benchmark that has results."""
    for name, figures in FIGURES.items():
        table = harness.read(name)
        for draw in figures if table else ():
            draw(table)


def main() -> None:
    readme = HERE / "README.md"
    readme.write_text(with_tables(readme.read_text()))
    draw_all()


if __name__ == "__main__":
    main()
