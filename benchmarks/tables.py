"""The tables of benchmarks/README.md, as Markdown, from results/*.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import activations
import harness
import linear
import losses
import optim
import sklearn_fit
import tails
import train
from harness import Case, Comparison, Row, geometric_mean

NOT_MEASURED = "-"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def footnote(table: Sequence[Row]) -> str:
    """Return a line that names the versions and the machine's settings of a run."""
    versions = {row.provider.split("-")[0]: row.version for row in table if row.version}
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    threads, isas = ({getattr(row, name) for row in table} for name in ("threads", "isa"))
    return (
        f"\n{named}; threads: {', '.join(map(str, sorted(threads)))}, instruction set {', '.join(sorted(isas))}, "
        "float32.\n"
    )


def us(row: Row | None) -> str:
    """Return a time in microseconds."""
    return NOT_MEASURED if row is None else f"{row.p50:.0f}"


def spread(row: Row | None) -> str:
    """Return a time with its quantiles."""
    return NOT_MEASURED if row is None else f"{row.p50:.0f} ({row.p20:.0f} - {row.p80:.0f})"


def named(row: Row | None) -> str:
    """Return a time and whose it is."""
    return NOT_MEASURED if row is None else f"{row.p50:.0f} ({row.provider})"


def times(ratio: float | None) -> str:
    """Return a ratio."""
    return NOT_MEASURED if ratio is None else f"{ratio:.2f}"


def verdicts(comparison: Comparison, case: Case | None) -> str:
    """Return the aims of a case beside what was reached, those that fell short in bold."""
    shown = []
    for aim, reached in comparison.aims(case) if case else ():
        text = f"{reached:.0%}" if aim.share else f"{reached:.2f}"
        text = text if reached >= aim.at_least else f"**{text}**"
        shown.append(f"{text} (aim {aim})")
    return ", ".join(shown)


def by_key(cases: Iterable[Case]) -> dict[tuple[str, str, str], Case]:
    return {case.key: case for case in cases}


def optim_table(table: Sequence[Row]) -> str:
    cases = by_key(optim.CASES)
    lines = []
    for c in harness.comparisons(table):
        op, _, size = c.key
        best, mine = c.best(), c.mine
        if not best or not mine:
            continue
        aim = cases[c.key].aims[0].at_least if c.key in cases else float("nan")
        lines.append(
            [
                size, op.removeprefix("optim."), spread(mine), f"{mine.rate:.1f}", f"{mine.share:.0%}",
                f"{best.p50:.0f} ({best.provider.removeprefix('torch-')})", times(c.ratio()), f"{aim:g}",
            ]
        )  # fmt: skip
    header = ["parameters", "class", "fastopt us (p20 - p80)", "GB/s", "of the stream", "best of torch us"]
    return markdown([*header, "ratio", "aim"], lines)


def linear_table(table: Sequence[Row]) -> str:
    lines, ratios = [], []
    for c in harness.comparisons(table):
        mine, ratio = c.mine, c.ratio()
        if not mine or not ratio:
            continue
        ratios.append(ratio)
        shown = f"{ratio:.2f}" if ratio >= linear.AIM.at_least else f"**{ratio:.2f}**"
        lines.append(
            [
                c.key[2], c.key[1], spread(mine), f"{mine.rate:.0f}", f"{mine.share:.0%}",
                named(c.best(["torch"])), us(c.best(["numpy"])), shown,
            ]
        )  # fmt: skip
    mean = geometric_mean(ratios)
    header = ["batch x out x in", "direction", "fastopt us (p20 - p80)", "GFLOP/s", "of the FMA peak"]
    text = markdown([*header, "best of torch us", "numpy us", "ratio to the best"], lines)
    return text + f"\nGeometric mean of the ratios: {mean:.2f} (aim {linear.MEAN_AIM:g}); aim of each: 1.\n"


def losses_table(table: Sequence[Row]) -> str:
    cases = by_key(losses.CASES)
    lines = []
    for c in harness.comparisons(table):
        mine = c.mine
        if not mine:
            continue
        lines.append(
            [
                c.key[0].removeprefix("loss."), c.key[2], spread(mine), f"{mine.rate:.1f}", f"{mine.share:.0%}",
                us(c.peers.get("torch-autograd")), us(c.peers.get("torch-out")), us(c.peers.get("jax")),
                times(c.ratio()), verdicts(c, cases.get(c.key)),
            ]
        )  # fmt: skip
    header = ["", "size", "fastopt us (p20 - p80)", "GB/s", "of the copy", "torch autograd us"]
    return markdown([*header, "torch into arrays us", "JAX us", "ratio to the best", "aims"], lines)


def activations_table(table: Sequence[Row]) -> str:
    cases = by_key(activations.CASES)
    lines = []
    for c in harness.comparisons(table):
        mine = c.mine
        if not mine:
            continue
        lines.append(
            [
                c.key[0].removeprefix("activation."), c.key[1], spread(mine), f"{mine.rate:.1f}",
                f"{mine.share:.0%}", named(c.best()), times(c.ratio()), verdicts(c, cases.get(c.key)),
            ]
        )  # fmt: skip
    header = ["activation", "direction", "fastopt us (p20 - p80)", "GB/s", "of the copy", "best peer us"]
    return markdown([*header, "ratio", "aims"], lines)


def train_table(table: Sequence[Row]) -> str:
    cases = by_key(train.CASES)
    modes = {c.key: c for c in harness.comparisons(table)}
    lines = []
    for (op, mode, size), c in modes.items():
        if mode != "step":
            continue
        run, case = modes.get((op, "run", size)), cases.get((op, mode, size))
        runs = {**run.ours, **run.peers} if run else {}

        def both(step: str, many: str, c: Comparison = c, runs: dict[str, Row] = runs) -> str:
            rows = {**c.ours, **c.peers}
            return f"{us(rows.get(step))} / {us(runs.get(many))}" if many else us(rows.get(step))

        lines.append(
            [
                size, both("fastopt", "fastopt-run"), us(c.ours.get("fastopt-eager")), us(c.peers.get("torch-fused")),
                us(c.peers.get("torch-compile")), both("jax", "jax-scan"), both("sklearn", "sklearn-epoch"),
                us(c.peers.get("thinc")), us(c.peers.get("numpy")), verdicts(c, case),
                verdicts(run, case) if run else NOT_MEASURED,
            ]
        )  # fmt: skip
    header = ["network", "fastopt step / run us", "eager us", "torch fused us", "torch.compile us"]
    header += ["JAX step / scan us", "scikit-learn batch / epoch us", "thinc us", "NumPy us"]
    return markdown([*header, "ratios, one step a call", "many steps a call"], lines)


def curves_table(table: Sequence[Row]) -> str:
    lines = []
    for c in harness.comparisons(table):
        if c.key[1] == "step" and c.mine:
            lines.append([c.key[0], c.key[2], spread(c.mine), named(c.best()), times(c.ratio())])
    return markdown(["along", "size", "fastopt us (p20 - p80)", "best peer us", "ratio"], lines)


def tails_table(table: Sequence[Row]) -> str:
    cases = by_key(tails.CASES)
    lines = []
    for c in harness.comparisons(table):
        mine = c.mine
        if not mine:
            continue
        lines.append(
            [
                c.key[0], c.key[2], spread(mine), f"{mine.rate:.1f}", f"{mine.share:.0%}", named(c.best()),
                times(c.ratio()), verdicts(c, cases.get(c.key)),
            ]
        )  # fmt: skip
    header = [
        "",
        "parameters",
        "fastopt us (p20 - p80)",
        "GB/s",
        "of the stream",
        "best peer us",
        "ratio",
        "aims",
    ]
    return markdown(header, lines)


def fits_table(table: Sequence[Row]) -> str:
    cases = by_key(sklearn_fit.CASES)
    lines = []
    for c in harness.comparisons(table):
        if c.mine:
            lines.append(
                [
                    c.key[0],
                    c.key[2],
                    c.mine.dtype,
                    spread(c.mine),
                    named(c.best()),
                    verdicts(c, cases.get(c.key)),
                ]
            )
    return markdown(["fit", "network", "dtype", "fastopt us (p20 - p80)", "scikit-learn us", "ratio"], lines)


#: By the name of the benchmark, whose results/<name>.csv is the table's source.
TABLES = {
    "optim": optim_table,
    "tails": tails_table,
    "linear": linear_table,
    "losses": losses_table,
    "activations": activations_table,
    "train": train_table,
    "curves": curves_table,
    "sklearn_fit": fits_table,
}


def render(name: str) -> str | None:
    """Return the table of a benchmark with its footnote; None where it was not run."""
    table = harness.read(name)
    return TABLES[name](table) + footnote(table) if table else None
