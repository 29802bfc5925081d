"""``python -m tests.campaign [name ...] [--count N] [--seed S]``: run campaigns and print what they have counted."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it


def main() -> int:
    """Run the campaigns that the command line names; 1 where one has failed."""
    import fastopt
    from campaign import LONG

    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(LONG)}; all without one")
    parser.add_argument("--count", type=int, help="how often, in place of the long form's number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.names) - LONG.keys():
        parser.error(f"no campaign {', '.join(sorted(unknown))}, there are {', '.join(LONG)}")

    print(f"fastopt {fastopt.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    failed = False
    for name in options.names or LONG:
        began = time.monotonic()
        counts = importlib.import_module(f"campaign.{name}").run(options.count or LONG[name], options.seed)
        print(f"\n{name}, seed {options.seed}: {counts} in {time.monotonic() - began:.0f} s", flush=True)
        for failure in counts.failures:
            print(f"  failed: {failure}")
        failed = failed or bool(counts.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
