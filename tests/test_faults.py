"""What the campaigns of faults have found: a test of each defect."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from cases import OPTIMIZERS
from fastopt import nn, optim
from optim_tools import make


def python(code: str, **options) -> subprocess.CompletedProcess:
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# --- threads ------------------------------------------------------------------------------------------

DAEMONS = """
    import threading, time
    import numpy as np
    import fastopt as fo

    def work(call):
        while True:
            call()

    x = np.ones((300, 300), np.float32)
    opt = fo.optim.Adam([x.copy()])
    model = fo.nn.Linear(300, 300)
    step = fo.compile(model, fo.nn.MSELoss(), fo.optim.SGD(model.parameters(), lr=1e-3))
    calls = [lambda: opt.step([x]), lambda: fo.relu(x), lambda: fo.functional.linear(x, x), lambda: step(x, x)]
    for call in calls:
        threading.Thread(target=work, args=(call,), daemon=True).start()
    time.sleep(0.05)
"""


def test_the_interpreter_ends_while_daemon_threads_compute():
    """A thread that came back for the GIL then was ended inside a destructor: the process aborted."""
    for _ in range(3):
        done = python(DAEMONS)
        assert (done.returncode, done.stderr) == (0, "")


def in_threads(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", ["Adam", "SGD", "SOAP", "LAMB", "Prodigy", "NAdam"])
def test_threads_that_step_one_optimizer_take_turns(name):
    """They lost steps, and wrote the coefficients that a native step of another thread was reading."""
    options = OPTIMIZERS[name]["options"][1]
    start = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    ours, alone = start.copy(), start.copy()
    opt, twin = make(name, [ours], options), make(name, [alone], options)
    g = np.ones_like(start)

    def work():
        for _ in range(25):
            opt.step([g])

    in_threads(4, work)
    for _ in range(100):
        twin.step([g])
    np.testing.assert_array_equal(ours, alone)
    for key, value in twin.state[0].items():
        np.testing.assert_array_equal(opt.state[0][key], value, err_msg=key)


def test_compiled_and_eager_steps_of_one_optimizer_take_turns():
    import fastopt

    model, twin = nn.Linear(30, 20), nn.Linear(30, 20)
    twin.load_state_dict(model.state_dict())
    x, y = np.ones((5, 30), np.float32), np.zeros((5, 20), np.float32)
    results = []
    for network, many in ((model, in_threads), (twin, lambda count, work: [work() for _ in range(count)])):
        opt = optim.Adam(network.parameters(), lr=0.0)
        step = fastopt.compile(network, nn.MSELoss(), opt)
        zero = [np.zeros_like(p.data) for p in network.parameters()]

        def work(step=step, opt=opt, zero=zero):
            for _ in range(50):
                step(x, y)
                opt.step(zero)

        many(4, work)
        results.append([float(entry["step"]) for entry in opt.state.values()])
    assert results == [[400.0, 400.0]] * 2
