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


def save(figure: Any, name: str) -> None:
    figure.savefig(harness.RESULTS / f"{name}.png", dpi=120)
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
        axis.barh([b for b, _ in bars], [r for _, r in bars], color=BLUE)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.bar_label(axis.containers[0], fmt="%.2g", padding=2, fontsize=8)
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


def roofline(table: Sequence[Row]) -> None:
    """Achieved arithmetic of every linear case over its operations a byte, under the roofs of the same run.

    The memory roof is that of arrays beyond the caches; smaller ones lie above it, below the cache's.
    """
    cases = tables.by_key(linear.CASES)
    found = [c for c in harness.comparisons(table) if c.key in cases and c.mine and c.best()]
    peak, memory = _median(found, "fma"), _median(found, "copy")
    cached = float(np.max([c.ceilings["stream"].rate for c in found]))
    intensity = {c.key: cases[c.key].flops / cases[c.key].nbytes for c in found}
    x = np.geomspace(min(intensity.values()) / 2, max(intensity.values()) * 2, 200)

    figure, axis = plt.subplots(figsize=(9, 5.2), layout="constrained")
    axis.loglog(x, np.minimum(peak, memory * x), color="black", linewidth=1.4)
    axis.loglog(x, np.minimum(peak, cached * x), color=GREY, linewidth=1, linestyle="--")
    axis.text(x[-1], peak * 1.06, f"multiply-adds: {peak:.0f} GFLOP/s", ha="right", fontsize=8)
    for rate, text, tone in ((memory, "copy of memory", "black"), (cached, "stream in cache", GREY)):
        at = peak / rate / 3.2
        if at > x[0]:
            axis.annotate(
                f"{text}: {rate:.0f} GB/s",
                (at, rate * at),
                xytext=(-4, 5),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=tone,
            )
    for mode, marker in (("forward", "o"), ("backward", "s")):
        chosen = [c for c in found if c.key[1] == mode]
        at = [intensity[c.key] for c in chosen]
        best = [c.best() for c in chosen]
        mine = [c.mine.rate for c in chosen if c.mine]
        theirs = [b.rate for b in best if b]
        axis.vlines(at, mine, theirs, color=GREY, linewidth=0.8, zorder=2)
        axis.scatter(
            at,
            theirs,
            marker=marker,
            s=34,
            facecolor="white",
            edgecolor=ORANGE,
            zorder=3,
            label=f"best peer, {mode}",
        )
        axis.scatter(at, mine, marker=marker, s=38, color=BLUE, zorder=4, label=f"fastopt, {mode}")
    for c in found:
        if c.key[1] == "forward" and c.mine:
            best_rate = min(c.mine.rate, c.best().rate)  # type: ignore[union-attr]
            axis.annotate(
                c.key[2], (intensity[c.key], best_rate), xytext=(0, -8), textcoords="offset points",
                ha="center", va="top", fontsize=7, color="#444444", rotation=0,
            )  # fmt: skip
    axis.set_xlabel("operations a byte of arrays read and written once")
    axis.set_ylabel("GFLOP/s")
    axis.set_title("Linear layers with bias and ReLU (batch x out x in)", fontsize=11)
    axis.grid(which="major", color="#e6e6e6", linewidth=0.6)
    axis.legend(fontsize=8, loc="lower right", frameon=False)
    tidy(axis)
    save(figure, "roofline")


def memory_bars(table: Sequence[Row], name: str, title: str) -> None:
    """The rate of every memory-bound operation as a share of the copy's, ours and the best peer's."""
    found = [c for c in harness.comparisons(table) if c.mine]
    modes = list(dict.fromkeys(c.key[1] for c in found))
    longest = max(sum(c.key[1] == mode for c in found) for mode in modes)
    figure, axes = plt.subplots(
        1, len(modes), figsize=(4.6 * len(modes), 0.42 * longest + 1.3), layout="constrained", squeeze=False
    )
    for axis, mode in zip(axes[0], modes, strict=True):
        chosen = [c for c in found if c.key[1] == mode]
        sizes = {c.key[2] for c in chosen}
        labels = [c.key[0].split(".")[-1] + (f" {c.key[2]}" if len(sizes) > 1 else "") for c in chosen]
        at = np.arange(len(chosen))
        best = [c.best() for c in chosen]
        axis.barh(at - 0.2, [c.mine.share * 100 for c in chosen if c.mine], 0.38, color=BLUE, label="fastopt")
        axis.barh(at + 0.2, [b.share * 100 if b else 0 for b in best], 0.38, color=ORANGE, label="best peer")
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axis.axvline(100, color="black", linewidth=0.8)
        axis.set_yticks(at, labels)
        axis.set_title(mode, fontsize=10)
        axis.margins(x=0.1)
        axis.invert_yaxis()
        tidy(axis)
    axes[0][-1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("% of the bandwidth of a copy, measured in the same rounds", fontsize=9)
    save(figure, name)


def train_bars(table: Sequence[Row]) -> None:
    """The time of a training step of every network, one panel each."""
    found = [c for c in harness.comparisons(table) if c.key[1] == "step"]
    figure, axes = plt.subplots(
        1, len(found), figsize=(2.9 * len(found) + 1, 3.3), layout="constrained", sharey=True, squeeze=False
    )
    order = [p for p in NAMES if any(p in c.ours or p in c.peers for c in found)]
    for axis, c in zip(axes[0], found, strict=True):
        rows = {**c.ours, **c.peers}
        shown = [rows[p].p50 if p in rows else 0.0 for p in order]
        bars = axis.barh([NAMES[p] for p in order], shown, color=[colour(p) for p in order])
        base = c.mine.p50 if c.mine else 1.0
        axis.bar_label(
            bars, [f"{t:.0f}  ({t / base:.1f}x)" if t else "" for t in shown], padding=2, fontsize=7
        )
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
    "losses": [lambda table: memory_bars(table, "losses", "Losses with their gradients, and softmax")],
    "activations": [
        lambda table: memory_bars(table, "activations", "Activations, 16M elements into an existing array")
    ],
    "train": [train_bars],
    "curves": [curve_lines],
}


def main() -> None:
    readme = HERE / "README.md"
    made = {name: text for name in tables.TABLES if (text := tables.render(name))}
    readme.write_text(
        MARK.sub(lambda m: m[1] + made[m[2]] + m[3] if m[2] in made else m[0], readme.read_text())
    )
    for name, figures in FIGURES.items():
        table = harness.read(name)
        for draw in figures if table else ():
            draw(table)
            print(f"drew {name}")


if __name__ == "__main__":
    main()
