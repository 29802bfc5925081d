"""fo.compat: other libraries' optimizers give the trajectories of the real packages, rates that change included."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pytest

import fastopt as fo
from fastopt.optim.rule import RuleOptimizer

STEPS, CHANGE = 24, 10
CLIPS_EACH = "clip_scope" in inspect.signature(RuleOptimizer.__init__).parameters
needs_scopes = pytest.mark.skipif(not CLIPS_EACH, reason="gradients are clipped together only")


def problem(dtype, clipped=False):
    rng = np.random.default_rng(3)
    shapes = [(5, 3), (7,)]
    start = [rng.standard_normal(s).astype(dtype) for s in shapes]
    scale = 3.0 if clipped else 1.0
    steps = [[(scale * (0.3 + rng.standard_normal(s))).astype(dtype) for s in shapes] for _ in range(STEPS)]
    return start, steps


def ours(make, start, steps, lr, options, change=True):
    """Parameters after each step of a preset, whose rate falls to a third on the way."""
    params = [p.copy() for p in start]
    opt = make(params, lr, **options)
    for t, grads in enumerate(steps):
        if change and t == CHANGE:
            opt.param_groups[0]["lr"] = lr / 3
        opt.step([g.copy() for g in grads])
    return params


def assert_same_way(ours, theirs, start, rtol):
    """What the parameters moved is the same."""
    for p, q, s in zip(ours, theirs, start, strict=True):
        moved = np.asarray(q, np.float64) - s
        np.testing.assert_allclose(p.astype(np.float64) - s, moved, rtol=0, atol=rtol * np.abs(moved).max())


# ---------------------------------------------------------------------------------------------------- optax

OPTAX = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adam", {"eps": 1e-3}),
    ("adam", {"eps": 0.0, "eps_root": 1e-3}),
    ("adam", {"nesterov": True, "b1": 0.8}),
    ("adamw", {"weight_decay": 0.1}),
    ("nadam", {"eps": 1e-3}),
    ("nadamw", {}),
    ("amsgrad", {"b2": 0.6}),
    ("amsgrad", {"eps": 0.0, "eps_root": 1e-3}),
    ("adamax", {"b2": 0.6, "eps": 1e-2}),
    ("adamaxw", {"weight_decay": 0.1}),
    ("radam", {"b2": 0.95, "eps": 1e-2}),
    ("radam", {"b2": 0.95, "threshold": 4.5}),
    ("adabelief", {}),
    ("yogi", {}),
    ("rmsprop", {"eps": 1e-3}),
    ("rmsprop", {"eps": 1e-3, "eps_in_sqrt": False, "initial_scale": 0.5}),
    ("rmsprop", {"momentum": 0.9}),
    ("rmsprop", {"momentum": 0.9, "centered": True, "eps": 1e-3}),
    ("adagrad", {"eps": 1e-2}),
    ("adadelta", {"weight_decay": 0.1}),
    ("lion", {"weight_decay": 0.1}),
    ("lars", {"weight_decay": 0.1, "trust_coefficient": 0.1}),
    ("lars", {"nesterov": True, "trust_coefficient": 0.1, "eps": 1e-2}),
    ("lamb", {"eps": 1e-3}),
    ("lamb", {"weight_decay": 0.1, "b2": 0.9}),
]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "options"), OPTAX)
def test_optax(name, options):
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    start, steps = problem("float64")
    lr = 0.05
    with jax.enable_x64(True):
        tx = getattr(optax, name)(lambda count: jax.numpy.where(count < CHANGE, lr, lr / 3), **options)
        params = [jax.numpy.asarray(p) for p in start]
        state = tx.init(params)
        for grads in steps:
            updates, state = tx.update([jax.numpy.asarray(g) for g in grads], state, params)
            params = optax.apply_updates(params, updates)
    got = ours(getattr(fo.compat.optax, name), start, steps, lr, options)
    assert_same_way(
        got, params, start, 1e-6
    )  # optax computes a schedule's rate and the counts' powers in float32


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted({name for name, _ in OPTAX}))
def test_optax_s_arguments_and_defaults(name):
    optax = pytest.importorskip("optax")
    theirs = inspect.signature(getattr(optax, name)).parameters
    for key, parameter in list(inspect.signature(getattr(fo.compat.optax, name)).parameters.items())[1:]:
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert parameter.default == theirs[key].default, key


def test_optax_s_two_epsilons():
    with pytest.raises(ValueError, match=r"one of eps and eps_root has to be 0, got 0.1 and 0.2"):
        fo.compat.optax.adam([np.ones(1)], 0.1, eps=0.1, eps_root=0.2)
    with pytest.raises(ValueError, match=r"nesterov has no eps_root, got 0.2"):
        fo.compat.optax.adam([np.ones(1)], 0.1, eps_root=0.2, nesterov=True)


# ---------------------------------------------------------------------------------------------------- Keras

KERAS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"epsilon": 1e-2}),
    ("Adam", {"epsilon": 1e-2, "amsgrad": True, "beta_2": 0.6, "weight_decay": 0.1}),
    ("Adam", {"clipvalue": 0.3}),
    ("Adam", {"global_clipnorm": 1.0}),
    pytest.param("Adam", {"clipnorm": 1.0}, marks=needs_scopes),
    ("AdamW", {"epsilon": 1e-2, "weight_decay": 0.3}),
    ("AdamW", {}),
    ("Adamax", {"epsilon": 1e-2, "beta_2": 0.6}),
    ("Nadam", {"epsilon": 1e-3}),
    ("RMSprop", {"epsilon": 1e-2}),
    ("RMSprop", {"momentum": 0.9, "epsilon": 1e-2}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "epsilon": 1e-2}),
    ("Adagrad", {"epsilon": 1e-2}),
    ("Adadelta", {"epsilon": 1e-2}),
    ("Ftrl", {}),
    ("Ftrl", {"l1_regularization_strength": 0.5, "l2_regularization_strength": 0.2, "beta": 1.0}),
    ("Ftrl", {"l2_shrinkage_regularization_strength": 0.05, "initial_accumulator_value": 1.0}),
    ("Ftrl", {"learning_rate_power": -0.3, "weight_decay": 0.1}),
    ("Lion", {"weight_decay": 0.1}),
]


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    return pytest.importorskip("keras")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
@pytest.mark.parametrize(("name", "options"), KERAS)
def test_keras(keras, name, options):
    start, steps = problem("float64", clipped="clip" in str(options))
    lr = 0.05
    variables = [keras.Variable(p, dtype="float64") for p in start]
    optimizer = getattr(keras.optimizers, name)(lr, **options)
    for t, grads in enumerate(steps):
        if t == CHANGE:
            optimizer.learning_rate = lr / 3
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
    got = ours(getattr(fo.compat.keras, name), start, steps, lr, options)
    assert_same_way(got, [v.numpy() for v in variables], start, 2e-5)  # NumPy below Keras computes in float32


@pytest.mark.peers
def test_keras_s_arguments_and_defaults(keras):
    for name in sorted({getattr(row, "values", row)[0] for row in KERAS}):
        theirs = inspect.signature(getattr(keras.optimizers, name)).parameters
        for key, parameter in list(inspect.signature(getattr(fo.compat.keras, name)).parameters.items())[1:]:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                assert parameter.default == theirs[key].default, (name, key)


def test_keras_limits_one_norm():
    with pytest.raises(
        ValueError, match=r"only one of clipnorm, global_clipnorm may be set, got 1.0 and 2.0"
    ):
        fo.compat.keras.SGD([np.ones(1)], clipnorm=1.0, global_clipnorm=2.0)


# --------------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGDOptimizer", {}),
        ("SGDOptimizer", {"nesterov": False, "momentum": 0.8}),
        ("SGDOptimizer", {"momentum": 0.0}),
        ("SGDOptimizer", {"lr_schedule": "invscaling", "power_t": 0.3}),
        ("SGDOptimizer", {"lr_schedule": "adaptive"}),
        ("AdamOptimizer", {"epsilon": 1e-2, "beta_1": 0.8}),
    ],
)
def test_sklearn(name, options):
    theirs_of = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    start, steps = problem("float64")
    params, copies = ([p.copy() for p in start] for _ in range(2))
    opt = getattr(fo.compat.sklearn, name)(params, 0.05, **options)
    theirs = getattr(theirs_of, name)(copies, learning_rate_init=0.05, **options)
    for t, grads in enumerate(steps):
        opt.step(grads)
        theirs.update_params(copies, grads)
        if name == "SGDOptimizer":
            opt.iteration_ends(10 * t)
            theirs.iteration_ends(10 * t)
            if t % 8 == 7:
                assert opt.trigger_stopping() == theirs.trigger_stopping("", False)
            assert opt.param_groups[0]["lr"] == pytest.approx(theirs.learning_rate, rel=1e-14)
    assert_same_way(params, copies, start, 1e-12)


def test_sklearn_s_schedule():
    with pytest.raises(
        ValueError, match=r"lr_schedule must be constant, invscaling or adaptive, got 'cosine'"
    ):
        fo.compat.sklearn.SGDOptimizer([np.ones(1)], lr_schedule="cosine")
    opt = fo.compat.sklearn.SGDOptimizer([np.ones(1)], 1e-6, lr_schedule="adaptive")
    assert opt.trigger_stopping()


# ---------------------------------------------------------------------------------------------------- thinc


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"grad_clip": 0.0, "L2": 0.1}),
        ("Adam", {"grad_clip": 0.0, "eps": 1e-2}),
        ("Adam", {"grad_clip": 0.0, "L2": 0.1}),
        ("Adam", {"grad_clip": 0.0, "L2": 0.1, "L2_is_weight_decay": False}),
        ("RAdam", {"grad_clip": 0.0, "L2": 0.1, "beta2": 0.95, "eps": 1e-2}),
        pytest.param("Adam", {}, marks=needs_scopes),
        pytest.param("SGD", {"grad_clip": 2.0}, marks=needs_scopes),
        pytest.param("RAdam", {}, marks=needs_scopes),
    ],
)
def test_thinc(name, options):
    optimizers = pytest.importorskip("thinc.optimizers")
    start, steps = problem("float32")
    copies = [p.copy() for p in start]
    theirs = getattr(optimizers, name)(0.05, use_averages=False, **options)
    for grads in steps:
        for i, g in enumerate(grads):
            copies[i] = theirs((i, "w"), copies[i], g.copy())[0]
        theirs.step_schedules()
    got = ours(getattr(fo.compat.thinc, name), start, steps, 0.05, options, change=False)
    assert_same_way(got, copies, start, 1e-5)


def test_thinc_s_penalty_is_not_clipped_here():
    with pytest.raises(ValueError, match=r"grad_clip must be 0, got 1.0"):
        fo.compat.thinc.Adam([np.ones(1)], L2=0.1, L2_is_weight_decay=False)


# ------------------------------------------------------------------------------------------- TensorFlow 1


def tensorflow_rmsprop(g, s, lr, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    ms = s["ms"] = s.get("ms", np.ones_like(g)) + (g * g - s.get("ms", np.ones_like(g))) * (1 - decay)
    mg = 0.0
    if centered:
        mg = s["mg"] = s.get("mg", np.zeros_like(g)) + (g - s.get("mg", np.zeros_like(g))) * (1 - decay)
    s["mom"] = momentum * s.get("mom", 0.0) + lr * g / np.sqrt(ms - mg * mg + epsilon)
    return s["mom"]


def tensorflow_adam(g, s, lr, beta1=0.9, beta2=0.999, epsilon=1e-8):
    t = s["t"] = s.get("t", 0) + 1
    s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g * g
    return lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * s["m"] / (np.sqrt(s["v"]) + epsilon)


def tensorflow_adagrad(g, s, lr, initial_accumulator_value=0.1):
    s["sum"] = s.get("sum", initial_accumulator_value) + g * g
    return lr * g / np.sqrt(s["sum"])


def tensorflow_momentum(g, s, lr, momentum, use_nesterov=False):
    a = s["a"] = momentum * s.get("a", 0.0) + g
    return lr * g + lr * momentum * a if use_nesterov else lr * a


def tensorflow_adadelta(g, s, lr, rho=0.95, epsilon=1e-8):
    s["g"] = rho * s.get("g", 0.0) + (1 - rho) * g * g
    d = np.sqrt(s.get("d", 0.0) + epsilon) / np.sqrt(s["g"] + epsilon) * g
    s["d"] = rho * s.get("d", 0.0) + (1 - rho) * d * d
    return lr * d


@pytest.mark.parametrize(
    ("name", "formula", "options"),
    [
        ("GradientDescentOptimizer", lambda g, s, lr: lr * g, {}),
        ("MomentumOptimizer", tensorflow_momentum, {"momentum": 0.9}),
        ("MomentumOptimizer", tensorflow_momentum, {"momentum": 0.9, "use_nesterov": True}),
        ("AdagradOptimizer", tensorflow_adagrad, {"initial_accumulator_value": 0.3}),
        ("AdadeltaOptimizer", tensorflow_adadelta, {}),
        ("RMSPropOptimizer", tensorflow_rmsprop, {}),
        ("RMSPropOptimizer", tensorflow_rmsprop, {"momentum": 0.9, "epsilon": 1e-2}),
        ("RMSPropOptimizer", tensorflow_rmsprop, {"momentum": 0.9, "centered": True, "epsilon": 1e-2}),
        ("AdamOptimizer", tensorflow_adam, {"epsilon": 1e-2}),
    ],
)
def test_tensorflow(name, formula, options):
    start, steps = problem("float64")
    params, states = [p.copy() for p in start], [{}, {}]
    for t, grads in enumerate(steps):
        lr = 0.05 if t < CHANGE else 0.05 / 3
        params = [p - formula(g, s, lr, **options) for p, g, s in zip(params, grads, states, strict=True)]
    got = ours(getattr(fo.compat.tensorflow, name), start, steps, 0.05, options)
    assert_same_way(got, params, start, 1e-12)
