"""The command ``fastopt``: train, compare, predict, bench, info."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastopt import _core, _device, distributed
from fastopt._cli import bench, compare, info, predict, train
from fastopt._cli.parser import INTERRUPTED, USAGE_ERROR, Parser
from fastopt._wording import did_you_mean

#: Exit code where another rank of an MPI program has failed.
PEER_FAILED = 1

_TEXT = """
Train small networks with fused kernels, compare optimizers, and see how fast this machine does it.
Data are files: CSV, npz, MNIST's IDX; a classifier comes out, with its accuracy and confusion matrix.
"""
_EPILOG = """
examples:
  fastopt train                                    handwritten digits, in seconds
  fastopt train data.csv --plot curves.png --save model.safetensors
  fastopt train --resume model.safetensors --epochs 60
  fastopt compare data.csv --optimizers sgd,momentum,adam,lion --plot race.png
  fastopt predict model.safetensors new.csv --out predictions.csv
  fastopt bench --plot bars.png

files:
  CSV: a row a sample, numbers, and a column of labels (the last, or --label); a header is found.
  npz: x and y, or x_train, y_train, x_test and y_test.

exit codes:
  0 done; 2 bad input, explained in one line; 130 stopped by Ctrl-C, after a checkpoint where --save was given;
  1 under mpiexec, another process failed.

fastopt COMMAND --help explains a command and all its options.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit code.

    0: done. 2: bad input, explained in one line on stderr. 130: stopped by Ctrl-C.
    """
    parser = _make_parser()
    rank = distributed.launched_rank()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if rank else contextlib.nullcontext():
            args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except KeyboardInterrupt:
        if not rank:
            print(f"fastopt {args.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except distributed.RankError as err:
        if rank == (err.rank == 0):  # the first of those that are left
            print(f"fastopt {args.name}: error: {_one_line(err)}", file=sys.stderr)
        return PEER_FAILED
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as err:
        if isinstance(err, RuntimeError) and not _device.is_refusal(err):
            raise
        if not rank or not isinstance(err, (ValueError, OSError, ImportError)):  # which all ranks meet alike
            print(f"fastopt {args.name}: error: {_one_line(err)}", file=sys.stderr)
        return USAGE_ERROR


def _one_line(err: Exception) -> str:
    if isinstance(err, OSError) and err.filename is not None:
        path = Path(os.fsdecode(err.filename))
        return f"{path}: {err.strerror}{_near(path) if isinstance(err, FileNotFoundError) else ''}"
    return " ".join(str(err).split()) or type(err).__name__


def _near(path: Path) -> str:
    """A file beside `path` whose name is nearly its own."""
    try:
        return did_you_mean(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def _make_parser() -> Parser:
    parser = Parser(prog="fastopt", description=_TEXT.strip(), epilog=_EPILOG.strip())
    parser.add_argument("--version", action="version", version=f"fastopt {_core.__version__}")
    commands = parser.add_subparsers(required=True, title="commands", metavar="COMMAND", parser_class=Parser)
    for module in (train, compare, predict, bench, info):
        module.add(commands)
    return parser
