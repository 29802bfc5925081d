"""Ctrl-C at a random moment of a long call: it ends within a second of the processor, in a consistent state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from campaign import children
from campaign.counts import Counts

_WALL = 20.0  # seconds that a stopped or busy machine may take to come back
_READ = 300.0  # seconds in which a program has to end

_COMMON = """
    import json, signal, sys, time
    import numpy as np
    import fastopt as fo
    from campaign.training import digest

    def model(wide):
        fo.manual_seed(3)
        return fo.nn.Sequential(fo.nn.Linear(20, wide), fo.nn.ReLU(), fo.nn.Dropout(0.2), fo.nn.Linear(wide, 4))

    def state(net, opt):
        return digest([[np.asarray(p.data) for p in net.parameters()], opt.state, fo._random.get_rng_state()])

    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((512, 20)).astype(np.float32), rng.integers(0, 4, 512)

    def until_interrupted(call):
        print("ready", flush=True)
        try:
            call()
            return False
        except KeyboardInterrupt:
            return True
        finally:
            caught.append([time.monotonic(), time.process_time()])

    caught = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
"""

_PROGRAMS = {
    "a compiled run": """
        def make(wide=64):
            net = model(wide)
            opt = fo.optim.AdamW(net.parameters(), lr=1e-3)
            return net, opt, fo.compile(net, fo.nn.CrossEntropyLoss(), opt)
        net, opt, step = make()
        stopped = until_interrupted(lambda: step.run(x, y, 8, epochs=10**6))
        taken = int(opt.state[0]["step"])
        twin_net, twin_opt, twin = make()
        twin.run(x, y, 8, epochs=taken // 64)
        for k in range(taken % 64):
            twin(x[8 * k : 8 * k + 8], y[8 * k : 8 * k + 8])
        same = state(net, opt) == state(twin_net, twin_opt)
    """,
    "a compiled run of large steps": """
        big = np.tile(x, (40, 1))
        net = model(2000)
        opt = fo.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        step = fo.compile(net, fo.nn.CrossEntropyLoss(), opt)
        step(big, np.tile(y, 40))
        stopped = until_interrupted(lambda: step.run(big, np.tile(y, 40), epochs=10**6))
        same = all(np.isfinite(np.asarray(p.data)).all() for p in net.parameters())
    """,
    "a long prediction": """
        big = np.broadcast_to(x, (3000, 512, 20)).reshape(-1, 20)
        net = model(1000)
        step = fo.compile(net, fo.nn.CrossEntropyLoss(), fo.optim.SGD(net.parameters()))
        few = step.predict(x)
        stopped = until_interrupted(lambda: [step.predict(big) for _ in range(1000)])
        same = np.array_equal(step.predict(x), few)
    """,
    "eager steps": """
        net = model(64)
        opt = fo.optim.Adam(net.parameters(), lr=1e-3)
        loss_fn = fo.nn.CrossEntropyLoss()
        def loop():
            while True:
                opt.zero_grad()
                loss_fn(net(x), y).backward()
                opt.step()
        stopped = until_interrupted(loop)
        same = len({float(entry["step"]) for entry in opt.state.values()}) == 1
    """,
    "minimize": """
        def f(w):
            return float((w**4).sum()), 4 * w**3
        stopped = until_interrupted(lambda: fo.minimize(f, np.ones(5000), jac=True, method="adam",
                                                        options={"maxiter": 10**9}))
        same = True
    """,
    "a perceptron's fit": """
        from fastopt.sklearn import MLPClassifier
        import warnings
        warnings.simplefilter("ignore")
        net = MLPClassifier((50,), max_iter=10**7, tol=0, n_iter_no_change=10**7, random_state=0)
        until_interrupted(lambda: net.fit(x, y))
        stopped = True
        same = not hasattr(net, "coefs_") or all(np.isfinite(w).all() for w in net.coefs_)
    """,
}


def run(count: int, seed: int) -> Counts:
    """Interrupt so many calls, each kind in turn."""
    counts = Counts()
    rng = np.random.default_rng(seed)
    names = list(_PROGRAMS)
    slowest = 0.0
    for i in range(count):
        name = names[i % len(names)]
        seconds, failure = _interrupt(_PROGRAMS[name], float(rng.uniform(0.0, 1.5)))
        slowest = max(slowest, seconds)
        counts.check(not failure, f"interrupted: {name}", f"{name}, case {i} of seed {seed}: {failure}")
    counts.measure("ms of the processor until the slowest came back", round(1000 * slowest))
    return counts


def _interrupt(program: str, after: float) -> tuple[float, str]:
    """Send SIGINT to a program so many seconds after it is ready; return how long it took, and what is wrong."""
    end = "\nprint(json.dumps([stopped, bool(same), caught[0]]), flush=True)\n"
    with children.start(children.dedented(_COMMON, program) + end) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        if child.stdout.readline() != "ready\n":
            return 0.0, child.communicate(timeout=_READ)[1][-1500:]
        time.sleep(after)
        sent, used = time.monotonic(), _processor_seconds(child.pid)
        child.send_signal(signal.SIGINT)
        try:
            said, trouble = child.communicate(timeout=_READ)
        except subprocess.TimeoutExpired:
            child.kill()
            return 0.0, f"it had not ended after {_READ} s"
    if child.returncode or not said:
        return 0.0, f"status {child.returncode}: {trouble[-1500:]}"
    stopped, same, (at, processor) = json.loads(said)
    # A machine that is stopped or busy takes time, but none of this process's; a wait without an end takes none either.
    wall, seconds = at - sent, min(at - sent, processor - used)
    if not stopped or not same:
        return (
            seconds,
            "it was not interrupted" if not stopped else "the state is not that of the steps taken",
        )
    if wall > _WALL:
        return seconds, f"it took {wall:.1f} s, {seconds:.2f} s of the processor"
    return seconds, "" if seconds <= 1 else f"it took {seconds:.2f} s of the processor"


def _processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
