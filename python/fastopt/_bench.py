"""``fastopt bench`` apart from its command line: the same work by fastopt and by the peers that are installed.

Providers take turns within one run, in an order drawn for each round, and medians are compared: what else the machine
does falls on all of them alike. Results are compared before anything is timed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import _core, _threads, functional, nn, optim
from fastopt.program import compile

Array = NDArray[Any]
Call = Callable[[], Any]

_LR = 1e-3
_WARM_SECONDS = 0.03  # calls that go untimed before a sample: sleeping threads come to speed in them
_SAMPLE_SECONDS = 0.02  # a short call is repeated until a sample lasts so long
_BUSY = 0.3  # of all CPUs, by the load average
# After a call OpenBLAS's workers spin for 2^28 cycles, some 100 ms, those of OpenMP and of our own pool for 1 to 3. A
# slice has several of the kernel's ticks, at which it counts the time of threads that run on.
_IDLE_SLICE, _LONGEST_PAUSE = 0.02, 0.5


class Net(NamedTuple):
    """A training task: weights (out, in) and biases to start from, and batches of features and classes."""

    weights: list[Array]
    biases: list[Array]
    batches: list[tuple[Array, Array]]


# ----------------------------------------------------------------------------------------------- providers


class Provider:
    """A library: each method returns a call that does one unit of work, or None where it has no such thing.

    A call returns arrays or numbers that all providers agree on.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def version(self) -> str:
        raise NotImplementedError

    def optimizer(self, arrays: list[Array], grads: list[Array]) -> Call | None:
        """A step of Adam over all arrays."""
        return None

    def linear(self, x: Array, w: Array, b: Array, dy: Array) -> Call | None:
        """Linear layer with ReLU, and its gradients for input, weight and bias."""
        return None

    def train(self, net: Net) -> Call | None:
        """A step - forward, cross-entropy, backward, Adam - on the next batch; the call returns its loss."""
        return None


class Fastopt(Provider):
    name = "fastopt"

    def version(self) -> str:
        return _core.__version__

    def optimizer(self, arrays: list[Array], grads: list[Array]) -> Call:
        own = [a.copy() for a in arrays]
        step = optim.Adam(own, lr=_LR).step

        def call() -> Array:
            step(grads)
            return own[0]

        return call

    def linear(self, x: Array, w: Array, b: Array, dy: Array) -> Call:
        y, dz = np.zeros_like(dy), np.zeros_like(dy)
        out = np.zeros_like(x), np.zeros_like(w), np.zeros_like(b)

        def call() -> tuple[Array, ...]:
            functional.linear(x, w, b, activation="relu", out=y)
            functional.linear_backward(dy, x, w, activation="relu", y=y, out=out, dz=dz)
            return y, *out

        return call

    def train(self, net: Net) -> Call:
        layers: list[nn.Module] = []
        for w, b in zip(net.weights, net.biases, strict=True):
            layer = nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": w, "bias": b})
            layers += [layer, nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        step = compile(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=_LR))
        batches = itertools.cycle(net.batches)
        return lambda: step(*next(batches))


class NumPy(Provider):
    """Matrix products into existing arrays and ufuncs in place, as one writes a network by hand."""

    name = "numpy"

    def version(self) -> str:
        return np.__version__

    def optimizer(self, arrays: list[Array], grads: list[Array]) -> Call:
        own = [a.copy() for a in arrays]
        step = _numpy_adam(own, grads)

        def call() -> Array:
            step()
            return own[0]

        return call

    def linear(self, x: Array, w: Array, b: Array, dy: Array) -> Call:
        y, dz, dx, dw = (np.zeros_like(a) for a in (dy, dy, x, w))

        def call() -> tuple[Array, ...]:
            np.matmul(x, w.T, out=y)
            np.maximum(np.add(y, b, out=y), 0, out=y)
            np.multiply(dy, y > 0, out=dz)
            return y, np.matmul(dz, w, out=dx), np.matmul(dz.T, x, out=dw), dz.sum(0)

        return call

    def train(self, net: Net) -> Call:
        weights, biases = ([a.copy() for a in arrays] for arrays in (net.weights, net.biases))
        dws, dbs = ([np.zeros_like(a) for a in arrays] for arrays in (weights, biases))
        update = _numpy_adam([*weights, *biases], [*dws, *dbs])
        batches = itertools.cycle(net.batches)

        def call() -> float:
            x, target = next(batches)
            loss = _numpy_gradients(x, target, weights, biases, dws, dbs)
            update()
            return loss

        return call


def _numpy_adam(params: list[Array], grads: list[Array]) -> Callable[[], None]:
    state = [(p, g, *(np.zeros_like(p) for _ in range(4))) for p, g in zip(params, grads, strict=True)]
    count = itertools.count(1)

    def step() -> None:
        t = next(count)
        for p, g, m, v, a, b in state:
            m *= 0.9
            m += np.multiply(g, 0.1, out=a)
            v *= 0.999
            np.multiply(g, g, out=a)
            v += np.multiply(a, 0.001, out=a)
            np.sqrt(np.divide(v, 1 - 0.999**t, out=a), out=a)
            a += 1e-8
            p -= np.multiply(np.divide(m, a, out=b), _LR / (1 - 0.9**t), out=b)

    return step


def _numpy_gradients(
    x: Array, target: Array, weights: list[Array], biases: list[Array], dws: list[Array], dbs: list[Array]
) -> float:
    """Write the gradients of the mean cross-entropy into `dws` and `dbs`, and return the loss."""
    outputs = [x]
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = outputs[-1] @ w.T
        z += b
        outputs.append(np.maximum(z, 0, out=z) if layer < len(weights) - 1 else z)
    dz, rows = outputs.pop(), np.arange(len(x))
    dz -= dz.max(1, keepdims=True)
    chosen = dz[rows, target]
    np.exp(dz, out=dz)
    sums = dz.sum(1, keepdims=True)
    loss = float((np.log(sums[:, 0]) - chosen).mean())
    dz /= sums
    dz[rows, target] -= 1
    dz /= len(x)
    for layer in range(len(weights) - 1, -1, -1):
        np.matmul(dz.T, outputs[layer], out=dws[layer])
        np.sum(dz, 0, out=dbs[layer])
        if layer:
            dz = (dz @ weights[layer]) * (outputs[layer] > 0)
    return loss


class Torch(Provider):
    """Eager, with the fused optimizer."""

    name, needs = "torch", ("torch",)

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch
        torch.set_num_threads(_threads.get_num_threads())

    def version(self) -> str:
        return str(self.torch.__version__)

    def _adam(self, params: list[Any]) -> Any:
        return self.torch.optim.Adam(params, lr=_LR, fused=True)

    def optimizer(self, arrays: list[Array], grads: list[Array]) -> Call:
        params = [self.torch.nn.Parameter(self.torch.from_numpy(a.copy())) for a in arrays]
        for p, g in zip(params, grads, strict=True):
            p.grad = self.torch.from_numpy(g)
        step = self._adam(params).step

        def call() -> Array:
            step()
            first: Array = params[0].detach().numpy()
            return first

        return call

    def linear(self, x: Array, w: Array, b: Array, dy: Array) -> Call:
        torch = self.torch
        leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w, b)]
        grad = torch.from_numpy(dy)

        def call() -> tuple[Array, ...]:
            y = torch.relu(torch.nn.functional.linear(*leaves))
            grads = torch.autograd.grad(y, leaves, grad)
            return y.detach().numpy(), *(g.numpy() for g in grads)

        return call

    def train(self, net: Net) -> Call:
        torch = self.torch
        layers: list[Any] = []
        for w, b in zip(net.weights, net.biases, strict=True):
            layer = torch.nn.Linear(w.shape[1], w.shape[0])
            layer.load_state_dict({"weight": torch.from_numpy(w), "bias": torch.from_numpy(b)})
            layers += [layer, torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        optimizer, loss_fn = self._adam(list(model.parameters())), torch.nn.CrossEntropyLoss()
        batches = itertools.cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in net.batches])

        def call() -> float:
            x, y = next(batches)
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            return float(loss.item())

        return call


class Jax(Provider):
    """Functions compiled by XLA, optax's Adam, parameters and state donated; on the CPU."""

    name, needs = "jax", ("jax", "optax")

    def __init__(self) -> None:
        import jax
        import optax

        self.jax: Any = jax
        self.optax: Any = optax
        self.cpu = jax.devices("cpu")[0]

    def version(self) -> str:
        return f"{self.jax.__version__}, optax {self.optax.__version__}"

    def _here(self, tree: Any) -> Any:
        return self.jax.device_put(self.jax.tree.map(np.array, tree), self.cpu)

    def optimizer(self, arrays: list[Array], grads: list[Array]) -> Call:
        adam, params, g = self.optax.adam(_LR), self._here(arrays), self._here(grads)

        def update(params: Any, state: Any, g: Any) -> Any:
            updates, state = adam.update(g, state, params)
            return self.optax.apply_updates(params, updates), state

        step = self.jax.jit(update, donate_argnums=(0, 1))
        state = adam.init(params)

        def call() -> Any:
            nonlocal params, state
            params, state = self.jax.block_until_ready(step(params, state, g))
            return params[0]  # not as a NumPy array, which would keep it from being donated

        return call

    def linear(self, x: Array, w: Array, b: Array, dy: Array) -> Call:
        def both(x: Any, w: Any, b: Any, dy: Any) -> Any:
            y, pull = self.jax.vjp(lambda x, w, b: self.jax.nn.relu(x @ w.T + b), x, w, b)
            return y, *pull(dy)

        step, arguments = self.jax.jit(both), self._here([x, w, b, dy])
        return lambda: self.jax.block_until_ready(step(*arguments))

    def train(self, net: Net) -> Call:
        jax, optax, adam = self.jax, self.optax, self.optax.adam(_LR)

        def loss(params: Any, x: Any, y: Any) -> Any:
            for i, (w, b) in enumerate(params):
                x = x @ w.T + b
                x = jax.nn.relu(x) if i < len(params) - 1 else x
            return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

        def update(params: Any, state: Any, x: Any, y: Any) -> Any:
            value, g = jax.value_and_grad(loss)(params, x, y)
            updates, state = adam.update(g, state, params)
            return optax.apply_updates(params, updates), state, value

        step = jax.jit(update, donate_argnums=(0, 1))
        params = self._here(list(zip(net.weights, net.biases, strict=True)))
        state = adam.init(params)
        batches = itertools.cycle([self._here(batch) for batch in net.batches])

        def call() -> float:
            nonlocal params, state
            params, state, value = step(params, state, *next(batches))
            return float(value)

        return call


class Sklearn(Provider):
    """MLPClassifier.partial_fit, which draws initial weights of its own: its losses are not compared."""

    name, needs = "scikit-learn", ("sklearn",)

    def __init__(self) -> None:
        import sklearn
        import sklearn.neural_network

        self.sklearn: Any = sklearn

    def version(self) -> str:
        return str(self.sklearn.__version__)

    def train(self, net: Net) -> Call:
        x, y = net.batches[0]
        hidden = [len(b) for b in net.biases[:-1]]
        model = self.sklearn.neural_network.MLPClassifier(
            hidden, alpha=0.0, batch_size=len(x), learning_rate_init=_LR, shuffle=False, random_state=0
        )
        model.partial_fit(x, y, classes=np.arange(len(net.biases[-1])))
        batches = itertools.cycle(net.batches)

        def call() -> None:
            model.partial_fit(*next(batches))

        return call


PROVIDERS: tuple[type[Provider], ...] = (Fastopt, NumPy, Torch, Jax, Sklearn)
PEERS = tuple(kind.name for kind in PROVIDERS[1:])


def find_peers(wanted: Sequence[str] | None = None) -> tuple[list[Provider], dict[str, str]]:
    """Return fastopt and the peers that are installed, and why the others are missing.

    Parameters
    ----------
    wanted
        Names out of `PEERS`; None: all. What is not installed is not imported.
    """
    found: list[Provider] = [Fastopt()]
    missing: dict[str, str] = {}
    for kind in PROVIDERS[1:]:
        if wanted is not None and kind.name not in wanted:
            continue
        absent = [name for name in kind.needs if not _installed(name)]
        if absent:
            missing[kind.name] = f"{' and '.join(absent)} not installed"
            continue
        try:
            found.append(kind())
        except Exception as err:  # a broken installation may raise anything
            missing[kind.name] = f"{type(err).__name__}: {err}"
    _limit_blas()
    return found, missing


def _limit_blas() -> None:
    """Give the BLAS of NumPy and scikit-learn as many threads as fastopt has; JAX has no such setting."""
    try:
        import threadpoolctl
    except ImportError:  # it takes as many threads as it likes
        return
    threadpoolctl.threadpool_limits(_threads.get_num_threads(), "blas")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it was imported in an odd way, without a spec
        return False


# --------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A benchmark: its group for ``--only``, its title, what each provider does, and how closely they agree."""

    group: str
    title: str
    build: Callable[[Provider], Call | None]
    tolerance: float


def cases(only: Sequence[str] | None = None) -> list[Case]:
    """The benchmarks of these groups, of all by default."""
    wide = [(784, 256), (256, 10)]
    small = [shape for i, o in wide for shape in ((o, i), (o,))]
    made = [
        Case("optimizer", "Adam step, network 784-256-10", partial(_optimizer, small), 1e-4),
        Case("optimizer", "Adam step, 4 million parameters", partial(_optimizer, [(2000, 2000)]), 1e-4),
        Case("linear", "linear layer + ReLU, 128 x 784 to 512, forward and backward", _linear, 1e-4),
        Case("train", "training step, 784-256-10, batch 64, Adam", partial(_train, (784, 256, 10), 64), 1e-3),
        Case(
            "train",
            "training step, 784-512-512-10, batch 128, Adam",
            partial(_train, (784, 512, 512, 10), 128),
            1e-3,
        ),
    ]
    return [case for case in made if only is None or case.group in only]


GROUPS = ("optimizer", "linear", "train")


def _optimizer(shapes: Sequence[tuple[int, ...]], provider: Provider) -> Call | None:
    rng = np.random.default_rng(0)
    arrays, grads = ([rng.standard_normal(s, dtype=np.float32) for s in shapes] for _ in range(2))
    return provider.optimizer(arrays, grads)


def _linear(provider: Provider) -> Call | None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((128, 784), (512, 784), (128, 512)))
    return provider.linear(x, w / np.float32(28.0), rng.standard_normal(512, dtype=np.float32), dy)


def _train(sizes: Sequence[int], batch: int, provider: Provider) -> Call | None:
    rng = np.random.default_rng(0)
    weights, biases = [], []
    for inside, outside in pairwise(sizes):
        bound = inside**-0.5
        weights.append(rng.uniform(-bound, bound, (outside, inside)).astype(np.float32))
        biases.append(rng.uniform(-bound, bound, outside).astype(np.float32))
    classes = np.arange(batch) % sizes[-1]
    batches = [(rng.random((batch, sizes[0]), dtype=np.float32), rng.permutation(classes)) for _ in range(16)]
    return provider.train(Net(weights, biases, batches))


# -------------------------------------------------------------------------------------------------- timing


class Timing(NamedTuple):
    """Quantiles of a provider's seconds for one unit of work."""

    median: float
    p20: float
    p80: float


class Result(NamedTuple):
    """One case: times by provider, fastopt's first, and why a provider has none."""

    case: Case
    times: dict[str, Timing]
    left_out: dict[str, str]

    def ratios(self) -> dict[str, float]:
        """How many times as long as fastopt each peer takes."""
        ours = self.times["fastopt"].median
        return {name: t.median / ours for name, t in self.times.items() if name != "fastopt"}


def measure(case: Case, providers: Sequence[Provider], rounds: int) -> Result:
    """Compare the providers' results and time them in turns; one that differs is left out."""
    calls = {p.name: call for p in providers if (call := case.build(p)) is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers' advice on how they are used
        left_out = _different(case, calls)
        samples = interleave({n: c for n, c in calls.items() if n not in left_out}, rounds)
    times = {name: Timing(*np.quantile(a, [0.5, 0.2, 0.8]).tolist()) for name, a in samples.items()}
    return Result(case, times, left_out)


def _different(case: Case, calls: Mapping[str, Call]) -> dict[str, str]:
    """Those whose results after three calls are not fastopt's, with the error."""
    results = {name: [call() for _ in range(3)][-1] for name, call in calls.items()}
    ours = _parts(results["fastopt"])
    different = {}
    for name, result in results.items():
        if result is None:
            continue
        theirs = _parts(result)
        errors = [
            np.abs(a - b).max() / max(np.abs(a).max(), 1e-30) if a.shape == b.shape else np.inf
            for a, b in zip(ours, theirs, strict=True)
        ]
        if not max(errors) <= case.tolerance:
            different[name] = f"its result differs from fastopt's by {max(errors):.1e}"
    return different


def _parts(result: Any) -> list[NDArray[np.float64]]:
    return [np.array(a, np.float64) for a in (result if isinstance(result, tuple) else (result,))]


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Time each call once a round and return its seconds for every round."""
    repeats = {name: max(1, round(_SAMPLE_SECONDS / _warm_up(call))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(calls)).tolist():
            call = calls[name]
            settle()
            _warm_up(call)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            samples[name].append((time.perf_counter() - start) / repeats[name])
    return {name: np.array(values) for name, values in samples.items()}


def _warm_up(call: Call) -> float:
    """Make calls for a while, two at least, and return the seconds that the last one took."""
    begin = last = time.perf_counter()
    for calls in itertools.count(1):
        call()
        now = time.perf_counter()
        if calls > 1 and now - begin >= _WARM_SECONDS:
            break
        last = now
    return max(now - last, 1e-9)


def settle() -> None:
    """Wait until no thread of this process runs: workers of OpenMP and BLAS spin for a while after a call."""
    end = time.perf_counter() + _LONGEST_PAUSE
    while time.perf_counter() < end:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(_IDLE_SLICE)
        if time.process_time() - used < 0.1 * (time.perf_counter() - start):
            return


def busy() -> str:
    """A warning where other programs leave the CPUs no rest; nothing where they do, or the system does not tell."""
    try:
        load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):
        return ""
    share = load / cpus
    return f"other programs use {share:.0%} of {cpus} CPUs: expect noise" if share > _BUSY else ""


# --------------------------------------------------------------------------------------------------- report


def bar_lines(result: Result, width: int = 32, block: str = "█", unit: str = "µs") -> list[str]:
    """A case as text: medians in `unit` (microseconds), ratios to fastopt, bars of the medians, and the spread."""
    longest = max(t.median for t in result.times.values())
    column = max(map(len, result.times))
    ratios = result.ratios()
    lines = [result.case.title]
    for name, t in result.times.items():
        bar = block * max(1, round(width * t.median / longest))
        ratio = f"{ratios[name]:6.2f}x" if name in ratios else " " * 7
        spread = f"({t.p20 * 1e6:,.1f} to {t.p80 * 1e6:,.1f})"
        lines.append(f"  {name:<{column}} {t.median * 1e6:>10,.1f} {unit} {ratio}  {bar:<{width}}  {spread}")
    lines += [f"  {name}: left out, {why}" for name, why in result.left_out.items()]
    return lines
