"""Threads that step different optimizers and the same one, forks, spawned processes, and the end of the interpreter.

Each round is a program of its own whose results have to be those of one thread, bit by bit; one that neither ends
nor fails within ten minutes counts as a failure, too.
"""

from __future__ import annotations

import subprocess

import numpy as np

from campaign import children
from campaign.counts import Counts

_COMMON = """
    import multiprocessing, os, random, sys, threading, time, warnings
    # CPython from 3.12 on warns of what is done here on purpose.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    import numpy as np
    import fastopt as fo
    from campaign.training import digest

    seed = int(sys.argv[1])
    rng = random.Random(seed)
    fo.set_num_threads(rng.choice([1, 2, 3, 4]))
    size = rng.choice([10, 1000, 40_000, 150_000])
    name = rng.choice(["SGD", "Adam", "AdamW", "Lion", "RMSprop", "LAMB", "Muon", "NAdam"])

    def make():
        p = np.random.default_rng(seed).standard_normal((size // 10, 10)).astype(np.float32)
        return p, getattr(fo.optim, name)([p], lr=1e-3)

    def steps(opt, p, n):
        g = np.full_like(p, 0.5)
        for _ in range(n):
            opt.step([g])

    def result(n):
        p, opt = make()
        steps(opt, p, n)
        return digest([p, opt.state])

    def together(works):
        threads = [threading.Thread(target=work) for work in works]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
"""

_PROGRAMS = {
    "different optimizers": """
        found = []
        together([lambda: found.append(result(20))] * 6)
        assert set(found) == {result(20)}
    """,
    "one optimizer": """
        p, opt = make()
        together([lambda: steps(opt, p, 20)] * 5)
        assert digest([p, opt.state]) == result(100)
    """,
    "functions": """
        x = np.random.default_rng(seed).standard_normal((size // 10, 10)).astype(np.float32)
        F = fo.functional
        def all_of_them():
            y = F.linear(x, x[:10] if len(x) >= 10 else np.ones((4, 10), np.float32), None, "gelu")
            loss = F.mse_loss_with_grad(y, np.zeros_like(y))
            return digest([y, *loss, F.softmax(x), F.dropout(x, 0.3, seed=1, offset=2), F.tanh(x)])
        alone, found = all_of_them(), []
        together([lambda: found.extend(all_of_them() for _ in range(10))] * 5)
        assert set(found) == {alone}
    """,
    "compiled and eager steps": """
        def run(many):
            fo.manual_seed(seed)
            model = fo.nn.Sequential(fo.nn.Linear(10, 20), fo.nn.ReLU(), fo.nn.Linear(20, 3))
            opt = fo.optim.Adam(model.parameters(), lr=1e-3)
            step = fo.compile(model, fo.nn.MSELoss(), opt)
            x, y = np.ones((16, 10), np.float32), np.zeros((16, 3), np.float32)
            many([lambda: [step(x, y) for _ in range(20)]] * 4)
            return digest([np.asarray(p.data) for p in model.parameters()] + [opt.state])
        assert run(together) == run(lambda works: [work() for work in works])
    """,
    "fork after use": """
        expected = result(10)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(result(10) != expected)
            assert os.waitpid(child, 0)[1] == 0
            assert result(10) == expected
    """,
    "fork while threads step": """
        expected, stop = result(5), threading.Event()
        def busy():
            p, opt = make()
            while not stop.is_set():
                steps(opt, p, 1)
        threads = [threading.Thread(target=busy) for _ in range(3)]
        [thread.start() for thread in threads]
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(result(5) != expected)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        [thread.join() for thread in threads]
    """,
    "pools of processes": """
        expected = result(5)
        for way in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(way).Pool(2) as pool:
                assert set(pool.map(result, [5] * 4)) == {expected}
    """,
    "end with daemon threads": """
        def forever(call):
            while True:
                call()
        x = np.ones((size // 10, 10), np.float32)
        p, opt = make()
        for call in (lambda: opt.step([x]), lambda: result(1), lambda: fo.functional.tanh(x)):
            threading.Thread(target=forever, args=(call,), daemon=True).start()
        time.sleep(rng.uniform(0, 0.05))
        print("done", flush=True)
        if rng.random() < 0.5:
            sys.exit(0)
    """,
}


def run(count: int, seed: int) -> Counts:
    """Run so many programs, each kind in turn."""
    counts = Counts()
    rng = np.random.default_rng(seed)
    names = list(_PROGRAMS)
    for i in range(count):
        name, number = names[i % len(names)], int(rng.integers(2**31))
        try:
            done = children.run_file(_COMMON, _PROGRAMS[name], number)
        except subprocess.TimeoutExpired:
            counts.fail(f"{name}, seed {number}: no end")
            continue
        text = f"{name}, seed {number}: status {done.returncode}, {done.stderr[-1500:]}"
        counts.check(done.returncode == 0 and done.stdout == "done\n" and not done.stderr, name, text)
    return counts
