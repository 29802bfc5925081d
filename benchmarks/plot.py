"""Draw results/*.csv, and write the table of benchmarks/README.md from them.

python benchmarks/plot.py
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

import harness
import optim
from peers import torch_optim

HERE = Path(__file__).parent
MARK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.S)

Group = list[dict[str, str]]


def comparisons() -> dict[tuple[str, str], Group]:
    """Return the rows of results/optim.csv by (set of parameters, class)."""
    groups: dict[tuple[str, str], Group] = defaultdict(list)
    for row in harness.read("optim"):
        groups[row["size"], row["op"].removeprefix("optim.")].append(row)
    return groups


def best_peer(group: Group) -> dict[str, str]:
    """Return the fastest row that is not ours."""
    return min((row for row in group if row["provider"] != "fastopt"), key=lambda row: float(row["p50"]))


def ours(group: Group) -> dict[str, str]:
    """Return our row."""
    return next(row for row in group if row["provider"] == "fastopt")


def table() -> str:
    """Return the comparisons as a Markdown table."""
    lines = [
        "| parameters | class | fastopt us (p20 - p80) | GB/s | of the stream | best of torch us | ratio | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (size, name), group in comparisons().items():
        mine, peer = ours(group), best_peer(group)
        aim = optim.TARGETS[size] * (1 if name in torch_optim.FUSED else 2)
        lines.append(
            f"| {size} | {name} | {float(mine['p50']):.0f} ({float(mine['p20']):.0f} - {float(mine['p80']):.0f}) "
            f"| {float(mine['rate']):.1f} | {float(mine['share']):.0%} "
            f"| {float(peer['p50']):.0f} ({peer['provider'].removeprefix('torch-')}) "
            f"| {float(peer['p50']) / float(mine['p50']):.2f} | {aim:g} |"
        )
    row = harness.read("optim")[0]
    versions = {r["provider"].split("-")[0]: r["version"] for r in harness.read("optim")}
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines += ["", f"{named}; {row['threads']} threads, instruction set {row['isa']}, float32."]
    return "\n".join(lines) + "\n"


def bars(path: Path) -> None:
    """Draw the time of each class on each set, ours and the best peer's, as bars relative to ours."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = comparisons()
    sizes = list(dict.fromkeys(size for size, _ in groups))
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(3.1 * len(sizes), 3.2), sharey=True, layout="constrained"
    )
    for axis, size in zip(axes, sizes, strict=True):
        chosen = [(name, group) for (s, name), group in groups.items() if s == size]
        ratios = [float(best_peer(group)["p50"]) / float(ours(group)["p50"]) for _, group in chosen]
        axis.barh([name for name, _ in chosen], ratios, color="#3b6ea5")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.bar_label(axis.containers[0], fmt="%.1f", padding=2, fontsize=8)
        axis.set_title(size, fontsize=10)
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("best of torch's time / fastopt's time", fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    readme = HERE / "README.md"
    made = {"optim": table()}
    text = MARK.sub(lambda m: m[1] + made[m[2]] + m[3], readme.read_text())
    readme.write_text(text)
    bars(HERE / "results" / "optim.png")


if __name__ == "__main__":
    main()
