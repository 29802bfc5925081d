"""A million steps of each kind in the memory of the first ones."""

from __future__ import annotations

import json

from campaign import children
from campaign.counts import Counts

#: KiB that a process may grow after a tenth of its steps.
_ALLOWED = 1024

_COMMON = """
    import json, os, resource, sys
    import numpy as np
    import fastopt as fo

    count = int(sys.argv[1])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 6)).astype(np.float32), rng.integers(0, 3, 8)
    net = fo.nn.Sequential(fo.nn.Linear(6, 8), fo.nn.ReLU(), fo.nn.Dropout(0.1), fo.nn.Linear(8, 3))
    opt = fo.optim.AdamW(net.parameters(), lr=1e-3, max_norm=1.0)
    loss_fn = fo.nn.CrossEntropyLoss()
    step = fo.compile(net, loss_fn, opt)
    grads = [np.ones_like(p.data) for p in net.parameters()]

    def eager():
        opt.zero_grad()
        loss_fn(net(x), y).backward()
        opt.step()

    def refused():
        try:
            opt.step(grads[:-1])
        except ValueError:
            return
        raise AssertionError

    def functions():
        z = fo.functional.linear(x, x, None, "gelu")
        fo.functional.cross_entropy_with_grad(z, y)
        fo.functional.softmax(z, 0)

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024

    call, steps, each = {
        "steps of an optimizer": (lambda: opt.step(grads), count, 1),
        "refused steps": (refused, count // 10, 1),
        "compiled steps": (lambda: step(x, y), count, 1),
        "steps of compiled runs": (lambda: step.run(np.tile(x, (125, 1)), np.tile(y, 125), 8, epochs=8), count, 1000),
        "eager steps": (eager, count // 4, 1),
        "calls of functions": (functions, count // 4, 1),
    }[sys.argv[2]]
    calls = max(10, steps // each)
    for _ in range(calls // 10):
        call()
    first = resident()
    for _ in range(calls - calls // 10):
        call()
    print(json.dumps([calls * each, resident() - first]))
"""

KINDS = (
    *("steps of an optimizer", "refused steps", "compiled steps", "steps of compiled runs"),
    *("eager steps", "calls of functions"),
)


def run(count: int, seed: int) -> Counts:
    """Take so many steps of each kind, of the slow ones a part."""
    counts = Counts()
    for kind in KINDS:
        done = children.run(_COMMON, count, kind)
        if done.returncode:
            counts.fail(f"{kind}: {done.stderr[-1500:]}")
            continue
        steps, growth = json.loads(done.stdout)
        counts.add(kind, steps)
        counts.check(growth <= _ALLOWED, "flat", f"{kind}: {growth} KiB more after {steps}")
        counts.measure(f"KiB of growth in {kind}", max(0, growth))
    return counts
