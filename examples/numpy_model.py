"""A network written by hand in NumPy, forward and backward: fastopt does the update alone."""

import numpy as np

import fastopt as fo

rng = np.random.default_rng(0)
angle = rng.uniform(0, 3 * np.pi, 600)
label = rng.integers(0, 2, 600)
arm = angle + np.pi * label
x = (np.stack([angle * np.cos(arm), angle * np.sin(arm)], 1) / 5).astype(np.float32)  # two spirals

layers = [
    [(rng.standard_normal((i, o)) * np.sqrt(2 / i)).astype(np.float32), np.zeros(o, np.float32)]
    for i, o in ((2, 64), (64, 64), (64, 2))
]


def forward(x):
    """Return the input of each layer, and the logits."""
    inputs = []
    for w, b in layers:
        inputs.append(x)
        x = x @ w + b
        if w is not layers[-1][0]:
            x = np.maximum(x, 0)
    return inputs, x


optimizer = fo.optim.NAdam(layers, lr=0.005, weight_decay=1e-4, decoupled_weight_decay=True)
for _ in range(600):
    inputs, logits = forward(x)
    loss, grad = fo.functional.cross_entropy_with_grad(logits, label)
    grads = []
    for (w, _), a in zip(reversed(layers), reversed(inputs), strict=True):
        grads.append([a.T @ grad, grad.sum(axis=0)])
        grad = (grad @ w.T) * (a > 0)
    optimizer.step(grads[::-1])  # lists of lists, as the parameters

accuracy = np.mean(forward(x)[1].argmax(1) == label)
print(f"loss {float(loss):.4f}, accuracy {accuracy:.3f}")
assert accuracy > 0.95
