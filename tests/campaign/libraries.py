"""Threads as the environment, threadpoolctl and other libraries' OpenMP want them: always the same bits."""

from __future__ import annotations

import importlib.util
import json

import numpy as np

from campaign import children
from campaign.counts import Counts

#: Values of OMP_NUM_THREADS, as schedulers and users write them.
THREADS = [*map(str, range(1, 65)), "", "0", "-1", "abc", "2,4", " 3", "1e3", "99999999999999999999"]

_CHILD = """
    import json, sys
    before, limit, after = json.loads(sys.argv[1])

    def work_with(names):
        import numpy as np
        if "torch" in names:
            import torch
            a = torch.randn(300, 300)
            (a @ a).relu().sum().item()
        if "sklearn" in names:
            from sklearn.cluster import KMeans
            KMeans(3, n_init=1).fit(np.random.default_rng(0).random((400, 5)))

    work_with(before)
    import threadpoolctl
    import numpy as np
    import fastopt as fo
    from campaign import training

    def results():
        eager = training.make(40)
        training.train(eager, 15)
        fo.manual_seed(2)
        net = fo.nn.Sequential(fo.nn.Linear(30, 300), fo.nn.GELU(), fo.nn.Linear(300, 5))
        opt = fo.optim.Adam(net.parameters(), lr=1e-3)
        rng = np.random.default_rng(4)
        x, y = rng.standard_normal((256, 30)).astype(np.float32), rng.integers(0, 5, 256)
        fo.compile(net, fo.nn.CrossEntropyLoss(), opt).run(x, y, 64, epochs=2)
        big = rng.standard_normal(100_000).astype(np.float32)
        whole = [fo.functional.softmax(big), fo.functional.mse_loss(big, big[::-1])]
        return [training.state_of(eager), training.digest([[np.asarray(p.data) for p in net.parameters()], whole])]

    found = [results()]
    work_with(after)
    with threadpoolctl.threadpool_limits(limit):
        assert limit is None or fo.get_num_threads() == limit
        found.append(results())
    found.append(results())
    print(json.dumps(found))
"""


def run(count: int, seed: int) -> Counts:
    """Compute so many times in other surroundings, and compare with one thread alone."""
    counts = Counts()
    rng = np.random.default_rng(seed)
    libraries = [name for name in ("torch", "sklearn") if importlib.util.find_spec(name)]
    expected = _results("1", [], None, [])
    order = rng.permutation(len(THREADS))  # as many rounds as values have each of them once
    for i in range(count):
        threads = THREADS[order[i % len(order)]]
        limit = [None, 1, 2, 5][rng.integers(4)]
        before, after = ([name for name in libraries if rng.random() < 0.4] for _ in range(2))
        text = f"case {i} of seed {seed}: OMP_NUM_THREADS={threads!r}, {before} before, {after} after, limit {limit}"
        try:
            found = _results(threads, before, limit, after)
        except AssertionError as err:
            counts.fail(f"{text}: {err}")
            continue
        counts.check(found == expected, "same bits", f"{text}: {found}, not {expected}")
        for name in {*before, *after}:
            counts.measure(f"with {name}")
    return counts


def _results(threads: str, before: list[str], limit: int | None, after: list[str]) -> list[str]:
    done = children.run(_CHILD, json.dumps([before, limit, after]), OMP_NUM_THREADS=threads)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-1500:]}"
    found: list[list[str]] = json.loads(done.stdout)
    assert found[0] == found[1] == found[2], f"three results: {found}"
    return found[0]
