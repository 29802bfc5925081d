"""``kill -9`` at a random moment of a save: the file is the old or the new one, whole, and its run goes on bit by bit.

A child trains, saves and says when a save begins and ends. It is killed within one; the next child goes on from the
file. What the file holds, and what a run resumed from it comes to, is compared with a run that nobody broke.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from campaign import children, training
from campaign.counts import Counts

#: Wide enough that writing takes some milliseconds.
_WIDTH = 20_000
_FURTHER = 2  # steps that a resumed run takes

_CHILD = """
    import sys, time
    from pathlib import Path
    from campaign import training
    from fastopt import checkpoint

    path, width = Path(sys.argv[1]), int(sys.argv[2])
    run, steps = training.make(width), 0
    if path.exists():
        run, loaded = training.resume(path, width)
        steps = loaded["epoch"]
    while True:
        training.train(run, 1)
        steps += 1
        print("begin", steps, flush=True)
        began = time.perf_counter()
        checkpoint.save(path, **run, epoch=steps)
        print("end", time.perf_counter() - began, flush=True)
"""


def run(count: int, seed: int) -> Counts:
    """Kill so many children."""
    counts = Counts()
    rng = np.random.default_rng(seed)
    unbroken = training.make(_WIDTH)
    known: list[str] = [training.state_of(unbroken)]
    goes_on = training.random_state()

    def expected(steps: int) -> str:
        nonlocal goes_on
        while len(known) <= steps:
            with training.of_its_own(goes_on):
                training.train(unbroken, 1)
                known.append(training.state_of(unbroken))
                goes_on = training.random_state()
        return known[steps]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        seconds = 0.02
        for i in range(count):
            steps, within, seconds = _kill(path, rng, seconds)
            where = f"kill {i} of seed {seed}, in the save of step {steps}"
            for left in Path(folder).glob(".*.tmp"):
                counts.measure("temporary file left by a kill")
                left.unlink()
            counts.add("killed within a save" if within else "killed between saves")
            if not path.exists():
                counts.check(steps == 1, "no file yet", f"{where}: the file is gone")
                continue
            found, loaded = training.resume(path, _WIDTH)
            saved = loaded["epoch"]
            which = {steps - 1: "old file whole", steps: "new file whole"}.get(saved)
            counts.check(which is not None, str(which), f"{where}: the file has step {saved}")
            whole = training.state_of(found) == expected(saved)
            training.train(found, _FURTHER)
            exact = whole and training.state_of(found) == expected(saved + _FURTHER)
            counts.check(exact, "resumed bit by bit", f"{where}: the resumed run differs")
            if saved > 60:  # the unbroken run need not get longer
                path.unlink()
    return counts


def _kill(path: Path, rng: np.random.Generator, seconds: float) -> tuple[int, bool, float]:
    """Start a child and kill it in a save, which takes some `seconds`.

    Returns the step of that save, whether the child was still within it, and how long one took this time.
    """
    with children.start(_CHILD, path, _WIDTH) as child:
        assert child.stdout is not None
        steps = int(child.stdout.readline().split()[1])
        if rng.random() < 0.5:  # one is to be over before
            seconds = float(child.stdout.readline().split()[1])
            steps = int(child.stdout.readline().split()[1])
        time.sleep(rng.uniform(0, seconds))
        child.kill()
        rest = child.stdout.read().split()
        begun = [int(rest[i + 1]) for i in range(0, len(rest) - 1, 2) if rest[i] == "begin"]
        return max([steps, *begun]), not rest or rest[-2] == "begin", seconds
