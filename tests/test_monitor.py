"""GradientMonitor: norms against NumPy, and verdicts on networks that were made to vanish, explode and die."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from fastopt.monitor import GradientMonitor

LOSS = fo.nn.CrossEntropyLoss()
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 20)).astype(np.float32)
Y = RNG.integers(0, 5, 64)


def network(depth, activation=fo.nn.ReLU, gain=1.0):
    """`depth` hidden layers of 32; their initial weights keep the variance before ReLU, times `gain`."""
    fo.manual_seed(0)
    layers = []
    for i in range(depth):
        linear = fo.nn.Linear(32 if i else 20, 32)
        fo.nn.init.kaiming_normal_(linear.weight)
        linear.weight.data[...] *= gain
        layers += [linear, activation()]
    return fo.nn.Sequential(*layers, fo.nn.Linear(32, 5))


def gradients(model, monitor=None):
    model.zero_grad()
    LOSS(model(X), Y).backward()
    if monitor is not None:
        monitor.record()


def norm(*arrays):
    return math.sqrt(sum(float((np.asarray(a, np.float64) ** 2).sum()) for a in arrays))


def test_norms_are_those_of_all_parameters_of_a_layer():
    model = network(1)
    monitor = GradientMonitor(model)
    for step in range(3):
        gradients(model)
        monitor.record(step=10 * step)
        for name, layer in (("0", model[0]), ("2", model[2])):
            expected = norm(layer.weight.grad.numpy(), layer.bias.grad.numpy())
            assert monitor.gradients[name][-1] == pytest.approx(expected, rel=1e-6)
            assert monitor.weights[name][-1] == pytest.approx(
                norm(layer.weight.data, layer.bias.data), rel=1e-6
            )
        for p in model.parameters():
            p.data[...] *= 2
    assert monitor.steps == [0, 10, 20]
    assert monitor.weights["0"][2] == pytest.approx(4 * monitor.weights["0"][0], rel=1e-6)
    assert list(monitor.gradients) == ["0", "2"]


def test_a_report_has_the_medians_of_the_last_records():
    monitor = GradientMonitor({"a": np.array([3.0, 4.0]), "b": np.array([10.0])}, window=3)
    for g in (100.0, 5.0, 1.0, 2.0):
        monitor.record({"a": np.array([0.0, g]), "b": np.array([g])})
    assert monitor.steps == [1, 2, 3, 4]
    a, b = monitor.report().layers
    assert (a.name, a.gradient, a.weight, a.ratio, a.verdict) == ("a", 2.0, 5.0, 0.4, "ok")
    assert (b.name, b.gradient, b.weight, b.ratio) == ("b", 2.0, 10.0, 0.2)
    assert monitor.report().records == 4


def test_a_healthy_network_is_ok():
    for activation in (fo.nn.ReLU, fo.nn.GELU, fo.nn.Tanh):
        model = network(6, activation)
        monitor = GradientMonitor(model)
        for _ in range(12):
            gradients(model, monitor)
        report = monitor.report()
        assert report.ok, report
        assert report.advice == []
        assert "what to try" not in str(report)


def test_deep_sigmoid_vanishes_from_the_input_on():
    model = network(10, fo.nn.Sigmoid)
    monitor = GradientMonitor(model)
    gradients(model, monitor)
    report = monitor.report()
    assert not report.ok
    assert [layer.verdict for layer in report.layers[:3]] == ["vanishing"] * 3
    assert [layer.verdict for layer in report.layers[-2:]] == ["ok", "ok"]
    verdicts = [layer.verdict for layer in report.layers]
    assert verdicts == sorted(verdicts, key=["vanishing", "ok"].index)
    largest = max(layer.gradient for layer in report.layers)
    for layer in report.layers:
        assert (layer.verdict == "vanishing") == (layer.gradient < 1e-3 * largest)
    assert report.with_verdict("vanishing")[0] == "0"
    assert "in place of Sigmoid, whose slope is at most 1/4" in report.advice[0]
    assert "of the largest layer's gradient" in report.layers[0].reason
    assert str(report).splitlines()[1].startswith("0 ")
    tanh = network(40, fo.nn.Tanh, gain=0.4)
    monitor = GradientMonitor(tanh)
    gradients(tanh, monitor)
    assert "in place of Tanh, which saturate" in monitor.report().advice[0]


def test_weights_too_large_explode():
    model = network(8, gain=4.0)
    monitor = GradientMonitor(model)
    gradients(model, monitor)
    report = monitor.report()
    assert report.layers[0].verdict == "exploding"
    assert report.layers[0].ratio > 100
    assert "times as large as its weights" in report.layers[0].reason
    assert "clipping: max_norm=1.0 of the optimizer" in report.advice
    assert "vanishing" not in {layer.verdict for layer in report.layers}


def test_a_learning_rate_too_large_explodes_over_time():
    model = network(2, fo.nn.Identity)  # ReLU would die on the way
    monitor = GradientMonitor(model)
    opt = fo.optim.SGD(model.parameters(), lr=0.01)
    loss = fo.nn.MSELoss()
    target = RNG.standard_normal((64, 5)).astype(np.float32)
    with np.errstate(all="ignore"):
        for step in range(40):
            if step == 8:
                opt.param_groups[0]["lr"] = 3.0
            opt.zero_grad()
            loss(model(X), target).backward()
            monitor.record()
            opt.step()
            if step == 7:
                assert monitor.report().ok
    report = monitor.report()
    assert report.with_verdict("exploding") == ["0", "2", "4"]
    assert "is nan at step" in report.layers[0].reason or "is inf at step" in report.layers[0].reason


def test_sudden_growth_explodes():
    monitor = GradientMonitor({"w": np.ones(4)}, exploding=1e6)
    for g in (0.1, 0.2, 0.1, 0.3, 0.2):
        monitor.record({"w": np.full(4, g)})
    monitor.record({"w": np.full(4, 15.0)})
    assert monitor.report().ok  # 75 times the median of those before
    monitor.record({"w": np.full(4, 30.0)})
    (layer,) = monitor.report().layers
    assert layer.verdict == "exploding"
    assert layer.reason == "its last gradient is 1.5e+02 times as large as those before"
    calm = GradientMonitor({"w": np.ones(4)})
    for g in (1e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-3):
        calm.record({"w": np.full(4, g)})
    assert calm.report().ok  # large only beside what had converged


def test_dead_layers():
    model = network(2)
    model[2].bias.data[...] = -1e6  # no unit of the second layer ever answers
    monitor = GradientMonitor(model)
    gradients(model, monitor)
    report = monitor.report()
    assert report.with_verdict("dead") == ["0", "2"]
    assert report.layers[2].verdict == "ok"
    assert report.advice[0].startswith("LeakyReLU or GELU in place of ReLU")
    apart = {"used": np.ones(2), "unused": np.ones(2)}
    monitor = GradientMonitor(apart)
    monitor.record({"used": np.ones(2)})
    assert monitor.report().with_verdict("dead") == ["unused"]


def test_a_layer_that_starts_at_zero_makes_no_other_vanish():
    monitor = GradientMonitor({"a": np.ones(4), "head": np.full(4, 1e-5)}, exploding=1e9)
    monitor.record({"a": np.full(4, 0.1), "head": np.full(4, 0.2)})
    a, head = monitor.report().layers
    assert a.ratio < 1e-3 * head.ratio
    assert a.verdict == head.verdict == "ok"
    zero = GradientMonitor({"w": np.zeros(3)})
    zero.record({"w": np.ones(3)})
    (layer,) = zero.report().layers
    assert math.isnan(layer.ratio)
    assert layer.verdict == "ok"
    assert zero.report().as_dict()["layers"][0]["ratio"] is None
    json.dumps(zero.report().as_dict(), allow_nan=False)


def test_measure_leaves_everything_as_it_was():
    fo.manual_seed(3)
    model = fo.nn.Sequential(fo.nn.Linear(20, 8), fo.nn.Dropout(0.5), fo.nn.Linear(8, 5))
    model[2].eval()
    plain = fo.nn.Sequential(model[0], model[2])
    gradients(plain)
    expected = [p.grad.numpy().copy() for p in plain.parameters()]
    model.zero_grad()
    kept = fo.tensor(np.ones((8, 20), np.float32))
    model[0].weight.grad = kept
    state = fo.get_rng_state()
    monitor = GradientMonitor(model)
    monitor.measure(LOSS, X, Y, step=7)
    assert fo.get_rng_state() == state
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert np.array_equal(model[0].weight.grad.numpy(), kept.numpy())
    assert model[2].weight.grad is None
    assert monitor.steps == [7]
    assert monitor.gradients["0"] == [pytest.approx(norm(*expected[:2]), rel=1e-6)]
    assert monitor.gradients["2"] == [pytest.approx(norm(*expected[2:]), rel=1e-6)]
    with pytest.raises(ValueError, match="target"):
        monitor.measure(LOSS, X, Y[:3])
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert model[2].weight.grad is None
    assert monitor.steps == [7]


def test_frozen_parameters_and_plain_parameters_of_a_module():
    class Own(fo.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = fo.nn.Parameter(np.ones(3, np.float32))
            self.frozen = fo.nn.Linear(3, 3)
            for p in self.frozen.parameters():
                p.requires_grad = False

        def forward(self, x):
            return x * self.scale

    monitor = GradientMonitor(Own())
    assert list(monitor.gradients) == ["Own"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GradientMonitor(3), TypeError, "model is int, expected a Module or a mapping"),
        (lambda: GradientMonitor({}), ValueError, "no parameters to watch"),
        (lambda: GradientMonitor(network(1), window=0), ValueError, "window must be at least 1, got 0"),
        (lambda: GradientMonitor(network(1), vanishing=-1), ValueError, "vanishing must be above 0, got -1"),
        (
            lambda: GradientMonitor(network(1), growth=float("nan")),
            ValueError,
            "growth must be above 0, got nan",
        ),
        (lambda: GradientMonitor(network(1)).record(), ValueError, "call it after backward"),
        (lambda: GradientMonitor(network(1)).record({}), ValueError, "grads is empty"),
        (lambda: GradientMonitor(network(1)).report(), ValueError, "nothing was recorded yet"),
        (
            lambda: GradientMonitor({"w": np.ones(2)}).record({"v": np.ones(2)}),
            ValueError,
            "grads has 'v', which is not one of w",
        ),
        (lambda: GradientMonitor({"w": np.ones(2)}).measure(LOSS, X, Y), TypeError, "use record"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_refused_record_changes_nothing():
    monitor = GradientMonitor({"w": np.ones(2), "v": np.ones(2)})
    with pytest.raises(ValueError, match="grads has 'u'"):
        monitor.record({"w": np.ones(2), "u": np.ones(2)})
    assert monitor.steps == []
    assert monitor.gradients == monitor.weights == {"w": [], "v": []}


def test_the_picture_shows_the_records():
    pytest.importorskip("matplotlib")
    model = network(1)
    monitor = fo.GradientMonitor(model)
    for step in (5, 10):
        gradients(model)
        monitor.record(step=step)
    left, right = monitor.plot(title="t").axes
    for ax, norms in ((left, monitor.gradients), (right, monitor.weights)):
        assert {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines} == {
            layer: ([5, 10], values) for layer, values in norms.items()
        }


def test_it_is_imported_when_asked_for():
    code = "import sys, fastopt as fo; assert 'fastopt.monitor' not in sys.modules; fo.GradientMonitor"
    subprocess.run([sys.executable, "-c", code], check=True)
