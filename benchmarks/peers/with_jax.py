"""JAX on the CPU: whole functions compiled by XLA, parameters and state donated, so that they are updated in place.

Every call waits for its result, as a program does that reads its loss.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from harness import Many

Calls = dict[str, Callable[[], Any]]


def version() -> str:
    return jax.__version__


def set_threads(n: int) -> None:
    """XLA takes the CPUs that the process may use; run.py narrows those."""


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - chosen).mean()


def cross_entropy(logits_: np.ndarray, target_: np.ndarray) -> Calls:
    logits, target = jnp.asarray(logits_), jnp.asarray(target_)
    function = jax.jit(jax.value_and_grad(_cross_entropy))
    return {"jax": lambda: jax.block_until_ready(function(logits, target))}


_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": lambda x, t: jnp.mean((x - t) ** 2),
    "smooth_l1": lambda x, t: jnp.where(abs(x - t) < 1, 0.5 * (x - t) ** 2, abs(x - t) - 0.5).mean(),
    "bce_with_logits": lambda x, t: (jax.nn.softplus(x) - x * t).mean(),
}


def loss(name: str, input_: np.ndarray, target_: np.ndarray) -> Calls:
    input, target = jnp.asarray(input_), jnp.asarray(target_)
    function = jax.jit(jax.value_and_grad(_LOSSES[name]))
    return {"jax": lambda: jax.block_until_ready(function(input, target))}


def _loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jax.nn.relu(x @ v.T + c)
    return _cross_entropy(x @ w.T + b, y)


def _step(lr: float) -> Callable[[Any, Any], tuple[Any, jax.Array]]:
    """A training step with Adam: (parameters, moments, count), (x, y) -> the same, loss."""

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, m, v, t = state
        loss, g = jax.value_and_grad(_loss)(params, *batch)
        params, m, v, t = _adam(params, m, v, g, t, lr)
        return (params, m, v, t), loss

    return step


def _adam(p: Any, m: Any, v: Any, g: Any, t: Any, lr: float) -> tuple[Any, Any, Any, Any]:
    t = t + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    size, root = lr / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
    p = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + 1e-8), p, m, v)
    return p, m, v, t


def _state(params: Any) -> Any:
    zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
    return params, *zeros, jnp.zeros((), jnp.float32)


def train(net: Any) -> Calls:
    step = _step(net.lr)
    once = jax.jit(step, donate_argnums=0)
    many = jax.jit(lambda state, xs, ys: jax.lax.scan(step, state, (xs, ys)), donate_argnums=0)

    def fresh() -> Any:
        pairs = zip(net.weights, net.biases, strict=True)
        return _state([(jnp.array(w, copy=True), jnp.array(b, copy=True)) for w, b in pairs])

    state, many_state = fresh(), fresh()
    xs, ys = jnp.asarray(np.stack(net.xs)), jnp.asarray(np.stack(net.ys))
    batches = itertools.cycle([(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(net.xs, net.ys, strict=True)])

    def call() -> float:
        nonlocal state
        state, loss = once(state, next(batches))
        return float(loss)

    def scan() -> np.ndarray:
        nonlocal many_state
        many_state, losses = many(many_state, xs, ys)
        return np.asarray(losses)

    return {"jax": call, "jax-scan": Many(scan, len(net.xs))}


def adam(arrays: list[np.ndarray], grads_: list[np.ndarray]) -> Calls:
    state, grads = _state([jnp.array(a, copy=True) for a in arrays]), [jnp.asarray(g) for g in grads_]
    update = jax.jit(lambda s, g: _adam(s[0], s[1], s[2], g, s[3], 1e-3), donate_argnums=0)

    def call() -> jax.Array:
        nonlocal state
        state = jax.block_until_ready(update(state, grads))
        return state[0][0][:1000]

    return {"jax": call}


def steppers(name: str, options: dict[str, Any], arrays: list[np.ndarray], grads_: list[np.ndarray]) -> Calls:
    """Optax's transformation of the same name, jitted, with parameters and state donated."""
    import optax

    made = {"Adam": lambda lr: optax.adam(lr), "SGD": lambda lr, momentum: optax.sgd(lr, momentum)}[name]
    transformation = made(*options.values())
    params, grads = [jnp.array(a, copy=True) for a in arrays], [jnp.asarray(g) for g in grads_]
    state = transformation.init(params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def call() -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(jitted(params, state, grads))

    return {"jax-optax": call}
