"""``fastopt info``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fastopt import info
from fastopt._cli import parser

_TEXT = """
Show what is installed and what runs: versions, instruction set, threads, GPU, optional packages.
"""
_EXAMPLES = """
fastopt info
fastopt info --json
"""


def add(commands: Any) -> None:
    p = parser.add_command(commands, "info", run, "versions, instruction set, threads, GPU", _TEXT, _EXAMPLES)
    p.add_argument("--json", action="store_true", help="print as one line of JSON")


def run(args: argparse.Namespace) -> int:
    build = info.build_info()
    if args.json:
        print(json.dumps(build))
        return 0
    gpu = build["gpu"]
    isa = f"{build['isa']} (available: {', '.join(build['isas'])})"
    if build["rejected_isa"]:
        isa += f"; FASTOPT_ISA={build['rejected_isa']} is not one of them"
    rows = {
        "fastopt": build["version"],
        "python": build["python"],
        "numpy": f"{build['numpy']} ({build['blas']})",
        "platform": build["platform"],
        "compiler": build["compiler"],
        "instruction set": isa,
        "threads": f"{build['threads']} (of {build['cpus']} CPUs)",
        "gpu": (", ".join(gpu["devices"]) or "usable") if gpu["available"] else f"not used: {gpu['reason']}",
        "cuda": _cuda_parts(gpu),
        "optional": ", ".join(f"{name} {version or '-'}" for name, version in build["optional"].items()),
    }
    for name, value in rows.items():
        print(f"{name:<16}{value}")
    return 0


def _cuda_parts(gpu: dict[str, Any]) -> str:
    """What computing on a GPU takes, and which of it is here."""
    install = "not found: pip install 'fastopt[cuda13]'"
    parts = {
        "kernels": gpu["architectures"] or "not in this build",
        "driver": f"for CUDA {gpu['driver']}" if gpu["driver"] else "not found",
        "CuPy": gpu["cupy"] or install,
        "cuBLASLt": gpu["cublaslt"] or install,
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())
