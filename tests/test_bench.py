"""fastopt bench: providers agree, figures are those that were measured, nothing absent is imported."""

import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from cli_helpers import must_fail
from fastopt import _bench, _core, plot
from fastopt.cli import main


@pytest.fixture
def measured(monkeypatch):
    """Samples as if fastopt took 1, 2, 3 ... microseconds in each round, and every other provider twice that."""

    def interleave(calls, rounds):
        base = 1e-6 * np.arange(1, rounds + 1)
        return {name: base if name == "fastopt" else 2 * base for name in calls}

    monkeypatch.setattr(_bench, "interleave", interleave)


@pytest.fixture(autouse=True)
def same_threads(threads):
    threads(_core.num_threads())


@pytest.mark.parametrize("case", _bench.cases(), ids=lambda case: case.title)
def test_numpy_agrees(case):
    providers = [_bench.Fastopt(), _bench.NumPy()]
    calls = {p.name: case.build(p) for p in providers}
    assert _bench._different(case, calls) == {}


@pytest.mark.peers
@pytest.mark.parametrize("case", _bench.cases(), ids=lambda case: case.title)
@pytest.mark.parametrize("kind", _bench.PROVIDERS[2:], ids=lambda kind: kind.name)
def test_peers_agree(case, kind):
    for name in kind.needs:
        pytest.importorskip(name)
    calls = {p.name: call for p in (_bench.Fastopt(), kind()) if (call := case.build(p)) is not None}
    if len(calls) == 1:
        assert kind is _bench.Sklearn
        assert case.group != "train"
    assert _bench._different(case, calls) == {}


def test_training_losses_fall_alike():
    """Many steps, not only the three that are compared before a measurement."""
    case = _bench.cases(["train"])[0]
    ours, theirs = case.build(_bench.Fastopt()), case.build(_bench.NumPy())
    pairs = np.array([(ours(), theirs()) for _ in range(64)])
    np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], rtol=1e-3)
    assert pairs[-16:, 0].mean() < pairs[:16, 0].mean()


def test_a_provider_that_differs_is_left_out(measured):
    class Wrong(_bench.NumPy):
        name = "wrong"

        def linear(self, x, w, b, dy):
            call = super().linear(x, w, b, dy)
            return lambda: (call()[0] * 1.5, *call()[1:])

        def optimizer(self, arrays, grads):
            return None

    (case,) = _bench.cases(["linear"])
    result = _bench.measure(case, [_bench.Fastopt(), _bench.NumPy(), Wrong()], rounds=5)
    assert list(result.times) == ["fastopt", "numpy"]
    assert result.left_out == {"wrong": "its result differs from fastopt's by 5.0e-01"}
    lines = _bench.bar_lines(result)
    assert lines[-1] == "  wrong: left out, its result differs from fastopt's by 5.0e-01"
    first = _bench.measure(_bench.cases(["optimizer"])[0], [_bench.Fastopt(), Wrong()], rounds=5)
    assert list(first.times) == ["fastopt"]


def test_bars():
    times = {
        "fastopt": _bench.Timing(10e-6, 9e-6, 12e-6),
        "numpy": _bench.Timing(40e-6, 35e-6, 48e-6),
        "torch": _bench.Timing(5e-6, 4e-6, 6e-6),
    }
    result = _bench.Result(_bench.cases(["linear"])[0], times, {})
    assert result.ratios() == {"numpy": pytest.approx(4.0), "torch": pytest.approx(0.5)}
    title, *lines = _bench.bar_lines(result, width=8, block="#")
    assert title == result.case.title
    assert [line.split() for line in lines] == [
        ["fastopt", "10.0", "µs", "##", "(9.0", "to", "12.0)"],
        ["numpy", "40.0", "µs", "4.00x", "########", "(35.0", "to", "48.0)"],
        ["torch", "5.0", "µs", "0.50x", "#", "(4.0", "to", "6.0)"],
    ]
    assert len({line.index("µs") for line in lines}) == 1
    assert len({line.index("#") for line in lines}) == 1


def test_interleaving_takes_turns(monkeypatch):
    monkeypatch.setattr(_bench, "settle", lambda: None)
    monkeypatch.setattr(_bench, "_WARM_SECONDS", 0.0)
    monkeypatch.setattr(_bench, "_SAMPLE_SECONDS", 0.0)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = _bench.interleave(calls, rounds=6)
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6, "c": 6}
    assert all((values > 0).all() for values in samples.values())
    turns = [name for name, _ in itertools.groupby(order[6:])]  # after the calls that count repeats
    assert len(order) == 6 + 6 * 3 * 3
    assert {name: order.count(name) for name in "abc"} == {"a": 20, "b": 20, "c": 20}
    assert len(turns) > 12


def test_the_command(measured, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bars.png"
    argv = ["bench", "--peers", "numpy", "--rounds", "5", "--plot", str(path), "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["threads"] == _core.num_threads()
    assert result["versions"] == {"fastopt": _core.__version__, "numpy": np.__version__}
    assert [b["group"] for b in result["benchmarks"]] == [
        "optimizer",
        "optimizer",
        "linear",
        "train",
        "train",
    ]
    for bench in result["benchmarks"]:
        assert bench["microseconds"]["fastopt"] == pytest.approx({"median": 3.0, "p20": 1.8, "p80": 4.2})
        assert bench["microseconds"]["numpy"]["median"] == pytest.approx(6.0)
        assert bench["ratios"] == {"numpy": pytest.approx(2.0)}
        assert bench["left_out"] == {}
        assert f"\n{bench['title']}\n  fastopt " in err
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert main(["bench", "--peers", "numpy", "--only", "linear,train"]) == 0
    shown = capsys.readouterr().out
    assert "linear layer" in shown
    assert "Adam step" not in shown
    assert shown.count("2.00x") == 3


def test_a_terminal_without_unicode(measured, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert main(["bench", "--peers", "numpy", "--only", "linear"]) == 0
    sys.stdout.flush()
    lines = written.getvalue().decode("ascii").splitlines()
    assert lines[-1].split()[:5] == ["numpy", "16.0", "us", "2.00x", "#" * 32]


def test_the_picture_has_a_bar_for_each_figure():
    pytest.importorskip("matplotlib")
    groups = {
        "one": {"fastopt": 2.0, "numpy": 5.0},
        "two": {"fastopt": 1200.0, "torch": 300.0, "jax": 1800.0},
    }
    figure = plot.plot_bars(groups, title="t")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    for ax, values in zip(figure.axes, groups.values(), strict=True):
        assert [bar.get_width() for bar in ax.patches] == list(values.values())
        assert [label.get_text() for label in ax.get_yticklabels()] == list(values)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["1,200 µs", "300 µs  0.25x", "1,800 µs  1.50x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peers", "pytorch"), "no peer 'pytorch'; did you mean torch?"),
        (("--only", "trainn"), "no benchmark 'trainn'; did you mean train?"),
        (("--only", "speed"), "no benchmark 'speed', expected some of optimizer, linear, train"),
        (("--rounds", "0"), "argument --rounds: expected a whole number from 1, got '0'"),
        (("--plot", "/gone/away/p.png"), "no directory /gone/away"),
        (("x",), "unexpected argument 'x'"),
    ],
)
def test_errors(capsys, options, message):
    assert message in must_fail(capsys, "bench", *options)


def test_what_is_absent_is_told_and_not_imported(monkeypatch, capsys):
    monkeypatch.setattr(_bench, "_installed", lambda name: name not in ("torch", "optax", "sklearn"))
    found, missing = _bench.find_peers()
    assert [p.name for p in found] == ["fastopt", "numpy"]
    assert missing == {name: f"{what} not installed" for name, what in ABSENT.items()}
    assert "--peers: torch: torch not installed" in must_fail(capsys, "bench", "--peers", "torch")


ABSENT = {"torch": "torch", "jax": "optax", "scikit-learn": "sklearn"}


def test_a_broken_peer_is_told(monkeypatch):
    class Broken(_bench.Provider):
        name = "broken"

        def __init__(self):
            raise OSError("libbroken.so.1: cannot open shared object file")

    monkeypatch.setattr(_bench, "PROVIDERS", (_bench.Fastopt, _bench.NumPy, Broken))
    found, missing = _bench.find_peers()
    assert [p.name for p in found] == ["fastopt", "numpy"]
    assert missing == {"broken": "OSError: libbroken.so.1: cannot open shared object file"}


def test_the_command_line_imports_no_peer():
    code = (
        "import sys; from fastopt import _bench; from fastopt.cli import main;"
        "assert main(['bench', '--only', 'linear', '--peers', 'numpy', '--rounds', '1']) == 0;"
        "assert not {'torch', 'jax', 'optax', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
