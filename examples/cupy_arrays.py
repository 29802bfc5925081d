"""Arrays of CuPy: the same calls, computed where the arrays lie. Needs an NVIDIA GPU and the extra ``cuda13``."""

import sys

import numpy as np

import fastopt as fo

try:
    import cupy as cp

    if not cp.cuda.is_available():
        raise RuntimeError("no device")
except (ImportError, RuntimeError) as error:
    print(f"left out: this example needs CuPy and an NVIDIA GPU ({error})")
    sys.exit()

rng = np.random.default_rng(0)
true_w = rng.standard_normal((20, 3)).astype(np.float32)
x = rng.standard_normal((1000, 20)).astype(np.float32)
x, y = cp.asarray(x), cp.asarray(x @ true_w)

w = cp.zeros((20, 3), cp.float32)
optimizer = fo.optim.AdamW([w], lr=0.05, weight_decay=0.0)
for _ in range(500):
    error = x @ w - y
    optimizer.step([2 * x.T @ error / len(x)])  # queued on CuPy's current stream; nothing is copied

largest = float(cp.abs(w - cp.asarray(true_w)).max())
print(f"largest error of a weight {largest:.2e}")
assert largest < 1e-2
