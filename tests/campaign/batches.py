"""Cases by the thousand in child processes, so that a crash is an outcome too, with a limit on memory and time.

A module of cases has ``case(rng, folder)``, which returns the name of an outcome or raises; case i of a seed has a
generator of its own, so that it can be had again alone.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import numpy as np

from campaign import children
from campaign.counts import Counts

#: Cases of a child, and the processor's seconds that one may take.
_BATCH, _SECONDS = 2000, 20
#: The address sanitizer's shadow needs more addresses than any limit would leave.
LIMITED = "asan" not in os.environ.get("LD_PRELOAD", "")


def run(module: str, count: int, seed: int, memory: int) -> Counts:
    """Run so many cases of a module; a child may take `memory` bytes beyond what it has once all is imported."""
    counts = Counts()
    first = 0
    while first < count:
        first = _batch(module, seed, first, min(count, first + _BATCH), memory, counts)
    return counts


def _batch(module: str, seed: int, first: int, end: int, memory: int, counts: Counts) -> int:
    """Run the cases [first, end) in a child; return where to go on."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [module, str(seed), str(first), str(end), str(memory), folder]
        command = [sys.executable, "-m", "campaign.batches", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=children.environment()
        )
        progress = Path(folder, "progress")
        counted = Path(folder, "counts")
        if counted.is_file():
            counts.merge(json.loads(counted.read_text()))
        if done.returncode == 0:
            return end
        if not progress.is_file():
            raise RuntimeError(f"{module}: no case was begun:\n{done.stderr}")
        at = int(progress.read_text())
        counts.fail(f"crashed: case {at} of seed {seed}, status {done.returncode}: {done.stderr[-2000:]}")
        return at + 1


def _work(module: str, seed: int, first: int, end: int, memory: int, folder: str) -> None:
    """What a child does."""
    cases = importlib.import_module(module)
    counts = Counts()
    room = Path(folder, "work")
    room.mkdir()
    signal.signal(signal.SIGPROF, _late)
    progress = os.open(Path(folder, "progress"), os.O_CREAT | os.O_WRONLY)
    written = os.open(Path(folder, "counts"), os.O_CREAT | os.O_WRONLY)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if memory and LIMITED:
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    for i in range(first, end):
        os.pwrite(progress, f"{i:<20}".encode(), 0)
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        try:
            counts.add(cases.case(np.random.default_rng([seed, i]), room))
        except Exception:
            counts.fail(f"case {i} of seed {seed}: {traceback.format_exc(limit=-6)}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(counts.as_dict()).encode()
        os.ftruncate(written, len(text))
        os.pwrite(written, text, 0)


def _late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a case has taken {_SECONDS} s of the processor")


if __name__ == "__main__":
    name, *numbers, room = sys.argv[1:]
    _work(name, *map(int, numbers), room)
