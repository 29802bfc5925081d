"""How many evaluations L-BFGS needs on test functions, beside SciPy's L-BFGS-B: writes results/minimize.csv.

python benchmarks/minimize.py [--dry]

Counts, not times. Both stop by the same ftol and gtol, and both see a function that is computed in the dtype of the
row; SciPy keeps its own numbers in float64.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import OptimizeResult

import fastopt as fo
from functions import FUNCTIONS, Function

RESULTS = Path(__file__).parent / "results" / "minimize.csv"
DTYPES = ("float64", "float32")


@dataclass
class Count:
    """One minimisation: `left` is the share of the start's excess over the least value that is left at the end."""

    function: str
    dtype: str
    provider: str
    evaluations: int
    iterations: int
    left: float
    steepest: float
    success: bool
    version: str


def ours(function: Function, dtype: str) -> OptimizeResult:
    return fo.minimize(function.evaluate, function.start.astype(dtype), jac=True, bounds=function.bounds)


def theirs(function: Function, dtype: str) -> OptimizeResult:
    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, g = function.evaluate(x.astype(dtype))
        return float(value), g.astype(np.float64)

    return scipy.optimize.minimize(
        evaluate, function.start, jac=True, method="L-BFGS-B", bounds=function.bounds
    )


PROVIDERS = {"fastopt": (ours, fo.__version__), "scipy": (theirs, scipy.__version__)}


def count(function: Function, dtype: str, provider: str) -> Count:
    """Run one minimisation."""
    run, version = PROVIDERS[provider]
    r = run(function, dtype)
    begin = (
        function.start if function.bounds is None else np.clip(function.start, function.lower, function.upper)
    )
    excess = function.evaluate(begin)[0] - function.least
    return Count(
        function.name,
        dtype,
        provider,
        r.nfev,
        r.nit,
        float(f"{abs(r.fun - function.least) / excess:.3g}"),
        float(f"{np.abs(r.jac).max():.3g}"),
        bool(r.success),
        version,
    )


def table(counts: list[Count]) -> str:
    """Return a Markdown table: a line a function and dtype, and the totals."""
    lines = [
        "| function | dtype | fastopt | scipy | left, fastopt | left, scipy |",
        "|---|---|---|---|---|---|",
    ]
    pairs = list(zip(counts[::2], counts[1::2], strict=True))
    lines += [
        f"| {a.function} | {a.dtype} | {a.evaluations} | {b.evaluations} | {a.left:.1e} | {b.left:.1e} |"
        for a, b in pairs
    ]
    for dtype in DTYPES:
        totals = [sum(pair[k].evaluations for pair in pairs if pair[k].dtype == dtype) for k in (0, 1)]
        lines.append(f"| total | {dtype} | {totals[0]} | {totals[1]} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="print, but keep the results on disk")
    args = parser.parse_args()
    counts = [count(f, dtype, provider) for dtype in DTYPES for f in FUNCTIONS for provider in PROVIDERS]
    print(table(counts))
    if args.dry:
        return
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Count)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, counts))


if __name__ == "__main__":
    main()
