"""What an installed wheel has to do anywhere: train a network, step an optimizer, save and load, run the command.

python -I tools/smoke.py     # in an environment that has fastopt and NumPy alone, away from the source tree
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np

import fastopt as fo
from fastopt.cli import main


def check(holds: bool, what: str) -> None:
    """Raise where something does not hold, with assertions turned off too."""
    if not holds:
        raise SystemExit(f"smoke test: {what}")


def exclusive_or() -> None:
    """A compiled step learns what no linear model can."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([0, 1, 1, 0])
    fo.manual_seed(0)
    model = fo.nn.Sequential(fo.nn.Linear(2, 16), fo.nn.Tanh(), fo.nn.Linear(16, 2))
    step = fo.compile(model, fo.nn.CrossEntropyLoss(), fo.optim.Adam(model.parameters(), lr=0.05))
    losses = step.run(x, y, epochs=300)
    check(losses[-1] < 0.05 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    check(bool((step.predict(x).argmax(1) == y).all()), "exclusive or is not learnt")


def arrays_and_files() -> None:
    """A step on plain arrays, and its state through a file."""
    w = np.ones(1000, np.float32)
    opt = fo.optim.AdamW([w], lr=0.1)
    opt.step([np.ones_like(w)])
    # The first step of Adam is the rate, beside the decay of 0.1 * 0.01.
    check(bool(np.allclose(w, 1 - 0.001 - 0.1, atol=1e-5)), f"AdamW moved to {w[0]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.fo"
        fo.checkpoint.save(path, optimizer=opt)
        again = fo.optim.AdamW([w.copy()], lr=0.1)
        fo.checkpoint.load(path, optimizer=again)
    same = again.state[0]["exp_avg"].tobytes() == opt.state[0]["exp_avg"].tobytes()
    check(same, "state is not what was saved")


def command() -> None:
    """``fastopt info`` works without what is optional."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        check(main(["info"]) == 0, "fastopt info failed")
    check(fo.__version__ in out.getvalue(), "fastopt info has no version")


if __name__ == "__main__":
    exclusive_or()
    arrays_and_files()
    command()
    print(f"fastopt {fo.__version__} works from {Path(fo.__file__).parent}")
