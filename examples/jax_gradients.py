"""Gradients from JAX, parameters in NumPy: a compiled loss, and fastopt's update of the arrays where they are."""

import jax
import jax.numpy as jnp
import numpy as np

import fastopt as fo

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (512, 2)).astype(np.float32)
y = (x[:, 0] * x[:, 1] > 0).astype(np.float32)  # no straight line separates the two classes


def loss(params, x, y):
    """Cross-entropy of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    logit = hidden @ params["w2"] + params["b2"]
    return jnp.mean(jnp.logaddexp(0.0, logit) - y * logit)


params = {
    "w1": rng.standard_normal((2, 32)).astype(np.float32),
    "b1": np.zeros(32, np.float32),
    "w2": (rng.standard_normal(32) / 6).astype(np.float32),
    "b2": np.zeros((), np.float32),
}
evaluate = jax.jit(jax.value_and_grad(loss))
optimizer = fo.optim.AdamW(params, lr=0.02, max_norm=1.0)
for _ in range(300):
    value, grads = evaluate(params, x, y)
    optimizer.step(grads)  # JAX's arrays are read where they lie

hidden = np.tanh(x @ params["w1"] + params["b1"])
accuracy = np.mean((hidden @ params["w2"] + params["b2"] > 0) == (y > 0))
print(f"loss {float(value):.4f}, accuracy {accuracy:.3f}")
assert accuracy > 0.97
