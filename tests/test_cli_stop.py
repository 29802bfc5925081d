"""Ctrl-C in the middle of an epoch: a checkpoint from which the run goes on bit by bit; and what --monitor says."""

import json
import re
import signal

import numpy as np
import pytest

from fastopt import checkpoint, data
from fastopt._cli.train import interruptible
from fastopt.cli import main


@pytest.fixture
def problem(tmp_path):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 150)
    np.savez(tmp_path / "p.npz", x=rng.normal(size=(150, 4)) * 0.8 + 2 * np.eye(3, 4)[y], y=y)
    return str(tmp_path / "p.npz")


@pytest.fixture
def interrupt(monkeypatch):
    """Send SIGINT, `times` times, when so many batches of an epoch were given out."""
    gave = data.DataLoader.gave

    def install(epoch, batches, times=1):
        def interrupted(self, given):
            at = self.epoch
            gave(self, given)
            if at == epoch and given >= batches and not sent:
                sent.append(given)
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        sent = []
        monkeypatch.setattr(data.DataLoader, "gave", interrupted)
        return sent

    yield install
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def same(a, b):
    """Checkpoints of the same weights, state and history, but for the time that it took."""
    one, two = checkpoint.read(a), checkpoint.read(b)
    for contents in (one, two):
        contents["extra"].pop("train_seconds")
    assert one["model"].keys() == two["model"].keys()
    for key in one["model"]:
        assert np.asarray(one["model"][key]).tobytes() == np.asarray(two["model"][key]).tobytes(), key
    assert one["extra"]["history"] == two["extra"]["history"]
    assert one["loader"] == two["loader"]
    for i, state in one["optimizer"]["state"].items():
        for key, value in state.items():
            assert np.asarray(value).tobytes() == np.asarray(two["optimizer"]["state"][i][key]).tobytes(), key
    assert one["extra"].keys() == two["extra"].keys()


@pytest.mark.parametrize("scheduler", ["none", "onecycle", "step", "plateau"])
@pytest.mark.parametrize("epoch", [0, 2, 5])
def test_a_run_goes_on_from_the_middle_of_an_epoch(problem, interrupt, capsys, tmp_path, scheduler, epoch):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    options = [
        "train",
        problem,
        "--epochs",
        "6",
        "--batch-size",
        "7",
        "--dropout",
        "0.3",
        "--scheduler",
        scheduler,
    ]
    assert main([*options, "--save", str(whole)]) == 0
    sent = interrupt(epoch, 3)
    assert main([*options, "--save", str(broken)]) == 130
    assert 3 <= sent[0] < 18  # blocks of steps grow from 1 to 8 and more
    place = f"{sent[0]} of 18 batches after epoch {epoch}"
    err = capsys.readouterr().err
    assert err == (
        f"interrupted in epoch {epoch + 1} of 6; the last checkpoint, {place}, is {broken}: "
        f"go on with fastopt train --resume {broken}\n"
    )
    saved = checkpoint.read(broken)
    assert saved["epoch"] == epoch
    assert saved["loader"]["batch"] == sent[0]
    assert main(["train", "--resume", str(broken)]) == 0
    assert f"; resumed {place}\n" in capsys.readouterr().out
    same(whole, broken)


def test_interrupted_twice_within_an_epoch(problem, interrupt, capsys, tmp_path):
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    options = ["train", problem, "--epochs", "2", "--batch-size", "1", "--scheduler", "cosine"]
    assert main([*options, "--save", str(whole)]) == 0
    first = interrupt(1, 5)
    assert main([*options, "--save", str(broken)]) == 130
    second = interrupt(1, first[0] + 1)
    assert main(["train", "--resume", str(broken)]) == 130
    assert first[0] < second[0]
    assert checkpoint.read(broken)["loader"]["batch"] == second[0]
    assert main(["train", "--resume", str(broken)]) == 0
    same(whole, broken)
    capsys.readouterr()


def test_a_second_ctrl_c_does_not_wait(problem, interrupt, capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    interrupt(2, 3, times=2)
    assert main(["train", problem, "--epochs", "6", "--batch-size", "7", "--save", str(path)]) == 130
    assert (
        f"interrupted in epoch 3 of 6; the last checkpoint, after epoch 2, is {path}"
        in capsys.readouterr().err
    )
    assert checkpoint.read(path)["epoch"] == 2


def test_without_a_file_to_save_to(problem, interrupt, capsys):
    interrupt(0, 1)
    assert main(["train", problem, "--epochs", "6", "--batch-size", "7"]) == 130
    assert capsys.readouterr().err == "interrupted in epoch 1 of 6; nothing was saved (no --save)\n"


def test_predict_takes_a_checkpoint_of_the_first_epoch(problem, interrupt, capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    interrupt(0, 3)
    assert main(["train", problem, "--epochs", "6", "--batch-size", "1", "--save", str(path)]) == 130
    capsys.readouterr()
    assert main(["predict", str(path), problem, "--out", str(tmp_path / "p.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 150


# ------------------------------------------------------------------------------------------- --monitor


def test_monitor_changes_nothing(problem, capsys, tmp_path):
    plain, watched = tmp_path / "plain.safetensors", tmp_path / "watched.safetensors"
    options = ["train", problem, "--epochs", "3", "--dropout", "0.3", "--json"]
    assert main([*options, "--save", str(plain)]) == 0
    assert "gradients" not in json.loads(capsys.readouterr().out)
    assert main([*options, "--save", str(watched), "--monitor"]) == 0
    out, err = capsys.readouterr()
    gradients = json.loads(out)["gradients"]
    assert gradients["ok"] is True
    assert gradients["advice"] == []
    assert gradients["records"] == 3
    assert [layer["name"] for layer in gradients["layers"]] == ["0", "3"]
    assert "\nlayer  gradient   weights     ratio  verdict\n0 " in err
    same(plain, watched)


def test_monitor_tells_why_a_run_diverges(problem, capsys):
    argv = ["train", problem, "--optimizer", "sgd", "--lr", "1e30", "--epochs", "3", "--monitor"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fastopt train: error: the loss is ")
    assert err.count("\n") == 1
    assert re.search(r"\n0 .* exploding: norm of the (gradient|weights) is (nan|inf) at step 0\n", out)
    assert "  - a smaller learning rate, with a warm-up (WarmupCosineLR)\n" in out


def test_monitor_tells_a_deep_sigmoid_network(problem, capsys):
    hidden = ",".join(["16"] * 10)
    argv = ["train", problem, "--epochs", "2", "--hidden", hidden, "--activation", "sigmoid", "--monitor"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "vanishing: " in out
    assert "  - ReLU or GELU between the layers in place of Sigmoid, whose slope is at most 1/4\n" in out


def test_an_ignored_interrupt_stays_ignored():
    """As of a job in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(True) as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
