"""fastopt compare: its numbers are those of single runs, its picture shows them."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from cli_helpers import must_fail
from fastopt import _compare, _core, plot
from fastopt.cli import main

EQUAL = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "epochs", "lr", "optimizer")


@pytest.fixture
def problem(tmp_path):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 150)
    x = rng.normal(size=(150, 4)) * 0.8 + 2 * np.eye(3, 4)[y]
    np.savez(tmp_path / "p.npz", x=x, y=y)
    return str(tmp_path / "p.npz")


@pytest.fixture
def run(capsys, threads):
    threads(_core.num_threads())

    def call(*argv):
        code = main([*map(str, argv), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out), err

    return call


COMMON = ("--epochs", 4, "--batch-size", 16, "--hidden", "16,8", "--dropout", 0.3, "--seed", 5)


def test_the_numbers_are_those_of_single_runs(run, problem):
    """Dropout's masks, batches and initial weights too: the runs take turns, and each draws as if it were alone."""
    result, _ = run(
        "compare", problem, *COMMON, "--optimizers", "sgd,momentum,adam,adam=0.02,adam=0.02000001,adamw"
    )
    rows = {row["name"]: row for row in result["runs"]}
    assert set(rows) == {"sgd", "momentum", "adam", "adam=0.02", "adam=0.02000001", "adamw"}
    alone = {
        "sgd": ("--optimizer", "sgd", "--momentum", 0),
        "momentum": ("--optimizer", "sgd"),
        "adam": ("--optimizer", "adam"),
        "adam=0.02": ("--optimizer", "adam", "--lr", 0.02),
        "adamw": ("--optimizer", "adamw"),
    }
    for name, options in alone.items():
        single, _ = run("train", problem, *COMMON, *options)
        for key in EQUAL:
            if (name, key) != ("momentum", "optimizer"):
                assert rows[name][key] == single[key], (name, key)
    accuracies = [row["test_accuracy"] for row in result["runs"]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_settings_of_all_runs(run, problem):
    shared = ("--epochs", 3, "--scheduler", "cosine", "--momentum", 0.5, "--weight-decay", 0.01)
    result, _ = run("compare", problem, *shared, "--optimizers", "sgd,rmsprop")
    for row in result["runs"]:
        single, _ = run("train", problem, *shared, "--optimizer", row["name"])
        assert all(row[key] == single[key] for key in EQUAL)


def test_the_table(capsys, problem):
    assert main(["compare", problem, "--epochs", "3", "--optimizers", "adam,muon,sgd=1e30"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r".*p\.npz: 120 training and 30 test rows; 4-64-3 relu.*; batch 64, 3 epochs; .*", lines[0]
    )
    starts = [line.split()[0] for line in lines[1:-4]]
    assert starts == [
        "adam",
        "muon",
        "sgd=1e+30",
        "adam",
        "muon",
        "adam",
        "muon",
    ]  # in turns, until one diverges
    header, first, second, last = lines[-4:]
    assert header.split("  ")[0].strip() == "optimizer"
    assert header.rstrip().endswith("s/epoch")
    assert {first.split()[0], second.split()[0]} == {"adam", "muon"}
    assert last.startswith("sgd=1e+30  1e+30")
    assert last.endswith("the loss is nan in epoch 1: try a smaller --lr than 1e+30")
    ends = [m.end() for m in re.finditer(r"(lr|loss|test|epoch)(?=  |$)", header)]
    assert all(
        line[end - 1] != " " and line[end : end + 2] in ("  ", "") for line in (first, second) for end in ends
    )


def test_best_epoch(run, problem, monkeypatch):
    rows = {}

    def kept(self):
        rows.update(self.histories())
        return original(self)

    original = _compare.Comparison.rows
    monkeypatch.setattr(_compare.Comparison, "rows", kept)
    result, _ = run("compare", problem, "--epochs", 6, "--optimizers", "sgd,lion", "--batch-size", 8)
    for row in result["runs"]:
        curve = rows[row["name"]]["test_accuracy"]
        assert row["best_test_accuracy"] == max(curve)
        assert row["best_epoch"] == 1 + int(np.argmax(curve))
        assert row["test_accuracy"] == curve[-1]


def test_the_picture_shows_the_histories(run, problem, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shown = {}
    original = plot.plot_comparison

    def kept(histories, path, title):
        shown.update(histories)
        shown["figure"] = original(histories, path, title=title)

    monkeypatch.setattr(plot, "plot_comparison", kept)
    path = tmp_path / "race.png"
    result, err = run("compare", problem, "--epochs", 3, "--optimizers", "sgd,adam,sgd=1e30", "--plot", path)
    assert result["plot"] == str(path)
    assert f"plotted {path}\n" in err
    assert path.read_bytes()[:4] == b"\x89PNG"
    figure = shown.pop("figure")
    assert set(shown) == {"sgd", "adam", "sgd=1e+30 (diverged)"}
    for ax, key in zip(figure.axes, ("train_loss", "test_loss", "test_accuracy"), strict=True):
        drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
        assert drawn == {name: history[key] for name, history in shown.items()}
    rows = {row["name"]: row for row in result["runs"]}
    assert shown["adam"]["test_loss"][-1] == rows["adam"]["test_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimizers", "adm"), "no optimizer 'adm'; did you mean adam?"),
        (("--optimizers", "adam,lion", "--momentum", "0.5"), "--momentum is for sgd and rmsprop"),
        (("--optimizers", "zzz"), "no optimizer 'zzz', expected some of sgd, momentum, "),
        (("--optimizers", "adam,,sgd"), "expected optimizers separated by commas, got 'adam,,sgd'"),
        (("--optimizers", "adam=fast"), "expected a learning rate above 0 in NAME=RATE, got 'adam=fast'"),
        (("--optimizers", "adam=0"), "in NAME=RATE, got 'adam=0'"),
        (("--optimizers", "adam,sgd,adam"), "'adam' stands there twice"),
        (("--lr", "3"), "no option --lr"),
        (("--plot", "p.xyz"), "p.xyz: cannot write xyz"),
        (("gone.csv",), "gone.csv: No such file or directory"),
    ],
)
def test_errors(capsys, options, message):
    assert message in must_fail(capsys, "compare", *options)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_shows_what_was_finished(problem, tmp_path):
    argv = ["compare", problem, "--epochs", "1000000", "--optimizers", "sgd,adam", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastopt", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        while not process.stderr.readline().startswith("adam"):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted; what follows is what was finished" in err
    rows = json.loads(out)["runs"]
    assert {row["name"] for row in rows} == {"sgd", "adam"}
    assert all(1 <= row["epochs"] < 1000000 for row in rows)
