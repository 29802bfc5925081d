"""What the commands share: a parser that explains itself, kinds of values, and the options of a training run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastopt import _train
from fastopt._drawing import check_path
from fastopt._wording import did_you_mean

USAGE_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a program stopped by Ctrl-C


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, and names what is nearest to a word that it does not know."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=_Formatter, **kwargs)
        self._strangers: list[str] = []  # words that begin as options do and are none

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required") and self._strangers:
            message = self._unknown(self._strangers)  # argparse looks at these only afterwards
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given = sys.argv[1:] if args is None else list(args)
        options = [word.partition("=")[0] for word in given if word.startswith("--") and word != "--"]
        known = tuple(self._option_string_actions)
        self._strangers = [o for o in options if not any(name.startswith(o) for name in known)]
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:  # a command's own parser sees them first, and knows its options
            self.error(self._unknown(rest))
        return namespace, rest

    def _unknown(self, rest: Sequence[str]) -> str:
        options = [word.partition("=")[0] for word in rest if word.startswith("-")]
        if not options:
            return f"unexpected argument {rest[0]!r}: {self.prog} --help shows what it takes"
        known = (name for name in self._option_string_actions if name.startswith("--"))
        near = did_you_mean(options[0], known)
        return f"no option {options[0]}" + (near or f": {self.prog} --help shows those that there are")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as err:
            err.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; names of values where argparse would list all choices."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=28, width=100, **kwargs)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.choices is not None and action.metavar is None and len(list(action.choices)) > 3:
            return "NAME"
        return super()._format_args(action, default_metavar)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str, examples: str
) -> Parser:
    """Add a command to the main parser's: its line there, its own description and examples."""
    body = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser: Parser = commands.add_parser(
        name, help=summary, description=text.strip(), epilog=f"examples:\n{body}"
    )
    parser.set_defaults(command=run, name=name)
    return parser


# -------------------------------------------------------------------------------------------- values


def _number(text: str, kind: type[int] | type[float], holds: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value


def count(text: str) -> int:
    return int(_number(text, int, lambda v: v >= 1, "a whole number from 1"))


def seed(text: str) -> int:
    return int(_number(text, int, lambda v: 0 <= v < 2**63, "a whole number from 0"))


def positive(text: str) -> float:
    return float(_number(text, float, lambda v: 0 < v < float("inf"), "a number above 0"))


def nonnegative(text: str) -> float:
    return float(_number(text, float, lambda v: 0 <= v < float("inf"), "a number from 0"))


def fraction(text: str) -> float:
    return float(_number(text, float, lambda v: 0 <= v < 1, "a number in [0, 1)"))


def share(text: str) -> float:
    return float(_number(text, float, lambda v: 0 < v < 1, "a number in (0, 1)"))


def device_name(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def column(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def layers(text: str) -> tuple[int, ...]:
    if text.strip() in ("", "none"):
        return ()
    try:
        return tuple(count(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected layer sizes such as 256,128 or none, got {text!r}"
        ) from None


def one_of(known: Sequence[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """The type of a list of names, separated by commas, out of those that are `known`."""

    def names(text: str) -> tuple[str, ...]:
        return tuple(_known(part, known, what) for part in _parts(text, what))

    return names


def _parts(text: str, what: str) -> Iterator[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"expected {what}s separated by commas, got {text!r}")
    yield from parts


def _known(name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        hint = did_you_mean(name, known) or f", expected some of {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"no {what} {name!r}{hint}")
    return name


def optimizers(text: str) -> tuple[tuple[str, float | None], ...]:
    """``sgd,adam=0.01`` as names and learning rates; None: the optimizer's own."""
    found: list[tuple[str, float | None]] = []
    for part in _parts(text, "optimizer"):
        name, equals, rate = part.partition("=")
        _known(name, tuple(_train.OPTIMIZERS), "optimizer")
        try:
            entry = (name, positive(rate) if equals else None)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(
                f"expected a learning rate above 0 in NAME=RATE, got {part!r}"
            ) from None
        if entry in found:
            raise argparse.ArgumentTypeError(f"{part!r} stands there twice")
        found.append(entry)
    return tuple(found)


def check_output(path: Path | None) -> None:
    """Raise what writing a file to `path` would, before anything is computed for it."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: no directory {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path}: a directory, expected a file")


def check_picture(path: Path | None) -> None:
    check_output(path)
    if path is not None:
        check_path(path)


# ----------------------------------------------------------------------------------- a training run


def add_data(p: argparse.ArgumentParser) -> None:
    """The options that say what is learned."""
    g = p.add_argument_group("data")
    g.add_argument(
        "dataset", nargs="?", metavar="DATA", help="digits (default), mnist, a .csv or a .npz file"
    )
    g.add_argument(
        "--data", metavar="DIR", default=".", help="folder of mnist's four IDX files (default: here)"
    )
    g.add_argument(
        "--label",
        type=column,
        metavar="COLUMN",
        help="label column of a CSV file: name, or position from 0 (default: the last)",
    )
    g.add_argument(
        "--test-size",
        type=share,
        metavar="SHARE",
        help="share of the rows kept for testing where no test set is given (default: 0.2)",
    )
    g.add_argument(
        "--scale",
        choices=("auto", "none", "standard"),
        help="standard: mean 0, variance 1 for each feature; auto (default): standard for CSV, else none",
    )


def add_network(p: argparse.ArgumentParser) -> None:
    """The options that say what learns."""
    g = p.add_argument_group("network")
    g.add_argument(
        "--hidden",
        type=layers,
        metavar="N,N",
        help="hidden layers, e.g. 256,128; none: linear model (default: 256 for digits and mnist, else 64)",
    )
    g.add_argument(
        "--activation",
        choices=_train.ACTIVATIONS,
        help=f"between the layers (default: relu): {', '.join(_train.ACTIVATIONS)}",
    )
    g.add_argument("--dropout", type=fraction, metavar="P", help="after each hidden layer (default: 0)")
    g.add_argument(
        "--batch-norm",
        action="store_true",
        default=None,
        help="normalise each hidden layer's batches before its activation",
    )


def add_schedule(g: Any) -> None:
    """The options of how it is trained that do not depend on the optimizer."""
    g.add_argument(
        "--scheduler",
        choices=_train.SCHEDULERS,
        help=f"course of the learning rate (default: none): {', '.join(_train.SCHEDULERS)}",
    )
    g.add_argument(
        "--batch-size",
        type=count,
        metavar="N",
        help="1: stochastic, all rows: batch gradient descent (default: 64)",
    )
    g.add_argument(
        "--epochs",
        type=count,
        metavar="N",
        help="passes over the training set (default: 60 for digits, 10 for mnist, else 30)",
    )
    g.add_argument("--seed", type=seed, metavar="N", help="the same seed gives the same bits (default: 0)")


def add_machine(p: argparse.ArgumentParser) -> None:
    """The options that change no result."""
    g = p.add_argument_group("machine")
    g.add_argument(
        "--threads", type=count, metavar="N", help="threads of the kernels; results do not depend on it"
    )
    g.add_argument(
        "--device",
        type=device_name,
        default="cpu",
        metavar="cpu|cuda|cuda:N",
        help="where model and data are kept and computed with (default: cpu)",
    )
