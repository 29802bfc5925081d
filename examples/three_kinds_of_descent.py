"""Logistic regression on plain NumPy arrays by batch, stochastic and mini-batch gradient descent.

No Tensor and no module: the gradient of the logits comes from `cross_entropy_with_grad`, the rest is NumPy.
"""

import numpy as np

import fastopt as fo

rng = np.random.default_rng(0)
centres = np.array([[0, 3], [3, 0], [-2, -2]])
y = rng.integers(0, 3, 600)
x = (centres[y] + rng.normal(size=(600, 2))).astype(np.float32)


def train(batch_size, lr, steps):
    """Take the same number of steps, however many epochs they are."""
    w, b = np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
    optimizer = fo.optim.SGD([w, b], lr=lr)
    loader = fo.data.DataLoader(x, y, batch_size=batch_size, shuffle=True, seed=0)
    done = 0
    while done < steps:
        for xb, yb in loader:
            _, grad = fo.functional.cross_entropy_with_grad(xb @ w + b, yb)
            optimizer.step([xb.T @ grad, grad.sum(axis=0)])
            done += 1
            if done == steps:
                break
    return np.mean((x @ w + b).argmax(axis=1) == y)


for name, batch_size, lr in (("batch", len(x), 0.5), ("mini-batch", 32, 0.2), ("stochastic", 1, 0.05)):
    accuracy = train(batch_size, lr, steps=300)
    print(f"{name:>10}: {batch_size:3} rows a step, accuracy {accuracy:.3f}")
    assert accuracy > 0.9
