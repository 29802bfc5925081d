"""Gradients from HIPS autograd (``pip install autograd``): a curve fitted to noisy points, in NumPy throughout."""

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import fastopt as fo

rng = np.random.default_rng(0)
x = np.linspace(-3, 3, 200)
y = 1.5 * np.sin(2.0 * x) * np.exp(-0.3 * x) + 0.05 * rng.standard_normal(x.size)


def loss(p):
    """Mean squared error of a damped wave; `p` is a dict of NumPy arrays."""
    prediction = p["height"] * anp.sin(p["frequency"] * x) * anp.exp(-p["damping"] * x)
    return anp.mean((prediction - y) ** 2)


params = {"height": np.array(1.0), "frequency": np.array(1.8), "damping": np.array(0.0)}
optimizer = fo.optim.Adam(params, lr=0.03)
evaluate = value_and_grad(loss)
for _ in range(400):
    _, grads = evaluate(params)
    optimizer.step(grads)  # a dict of gradients for a dict of parameters, updated in place

fitted = {name: round(float(p), 3) for name, p in params.items()}
print(f"{fitted}, mean squared error {loss(params):.5f}")
np.testing.assert_allclose(
    [params["height"], params["frequency"], params["damping"]], [1.5, 2.0, 0.3], atol=0.02
)
