"""The command: train, predict, info; through main(argv) and as a process of its own."""

import csv
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_helpers import must_fail
from fastopt import _core, _train, checkpoint, data
from fastopt.cli import main

RESULT_KEYS = {"test_accuracy", "train_loss", "epochs", "train_seconds", "samples_per_second", "world_size"}


def fastopt(*argv, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "fastopt", *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        **kwargs,
    )


@pytest.fixture
def run(capsys, threads):
    """main(argv) with --json: the result of a run that must succeed."""
    threads(_core.num_threads())  # the fixture brings the number back after --threads

    def call(*argv):
        code = main([*map(str, argv), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return call


@pytest.fixture
def fails(capsys):
    """main(argv) must return 2 and say why in one line, which this returns."""
    return lambda *argv: must_fail(capsys, *argv)


def blobs(n=120, seed=0):
    """Three classes that a small network tells apart, and which a mean of the features does not."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 4)) * 0.3 + np.array([[0, 2, 0, 100], [2, 0, 0, 100], [0, 0, 2, 100]])[y]
    return x, y


NAMES = np.array(["ant", "bee", "cat"])


@pytest.fixture
def blob_csv(tmp_path):
    x, y = blobs()
    path = tmp_path / "blobs.csv"
    lines = ["a,b,c,d,kind"] + [
        ",".join(map(repr, map(float, row))) + f",{NAMES[k]}" for row, k in zip(x, y, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def blob_npz(tmp_path):
    x, y = blobs()
    np.savez(tmp_path / "blobs.npz", x=x, y=y)
    return tmp_path / "blobs.npz"


def arrays(path):
    """The trained weights and optimizer state of a checkpoint."""
    contents = checkpoint.read(path)
    state = contents["optimizer"]["state"]
    flat = {f"model.{k}": v for k, v in contents["model"].items()}
    return flat | {f"{i}.{k}": v for i in state for k, v in state[i].items()}


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes(), key


# -------------------------------------------------------------------------------------------- train


def test_digits_by_default(run):
    pytest.importorskip("sklearn")
    result = run("train")
    assert result["dataset"] == "digits"
    assert result["test_accuracy"] >= 0.97
    assert result.keys() >= RESULT_KEYS
    assert result["world_size"] == 1
    assert result["samples_per_second"] == pytest.approx(
        result["epochs"] * 1438 / result["train_seconds"], rel=0.01
    )


def test_printed_lines(capsys, blob_npz, tmp_path):
    assert (
        main(
            [
                "train",
                str(blob_npz),
                "--epochs",
                "12",
                "--batch-size",
                "16",
                "--plot",
                str(tmp_path / "p.png"),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert (
        "blobs.npz: 96 training and 24 test rows; 4-64-3 relu, 515 parameters; adam lr 0.001, batch 16"
        in lines[0]
    )
    pattern = r"epoch +(\d+)/12  loss \d+\.\d{4}  train \d+\.\d\d%  test \d+\.\d\d%  [\d,]+ samples/s"
    epochs = [re.fullmatch(pattern, line) for line in lines[1:13]]
    assert [int(match[1]) for match in epochs] == list(range(1, 13))
    assert lines[13] == "confusion on the test set: rows are true, columns predicted"
    rows = np.array([[int(cell.replace(".", "0")) for cell in line.split()[1:4]] for line in lines[15:18]])
    assert rows.sum() == 24
    assert lines[18].startswith("most confused: ")
    correct = re.fullmatch(r"test accuracy (\d+\.\d\d)% after 12 epochs, .*", lines[19])[1]
    assert float(correct) == pytest.approx(100 * np.trace(rows) / 24, abs=0.005)
    assert lines[20] == f"plotted {tmp_path / 'p.png'}"
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("optimizer", _train.OPTIMIZERS)
def test_every_optimizer_learns(run, blob_csv, optimizer):
    result = run("train", blob_csv, "--optimizer", optimizer, "--epochs", 20, "--batch-size", 8)
    assert result["optimizer"] == optimizer
    assert result["test_accuracy"] == 1.0
    assert result["train_loss"] < 0.5


@pytest.mark.parametrize("scheduler", _train.SCHEDULERS)
def test_every_schedule_learns_and_follows_its_course(run, blob_csv, tmp_path, scheduler):
    save = tmp_path / "m.safetensors"
    options = ("--optimizer", "sgd", "--lr", 0.05, "--scheduler", scheduler, "--epochs", 9, "--batch-size", 8)
    assert run("train", blob_csv, *options, "--save", save)["test_accuracy"] == 1.0
    rates = checkpoint.read(save)["extra"]["history"]["lr"]
    steps = 12 * np.arange(9)  # of 108
    courses = {
        "none": np.full(9, 0.05),
        "cosine": 0.05 * (1 + np.cos(np.pi * steps / 108)) / 2,
        "linear": 0.05 * (1 - steps / 108),
        "step": 0.05 * 0.1 ** (np.arange(9) // 3),
        "exponential": 0.05 * 0.01 ** (np.arange(9) / 9),
        "plateau": np.full(9, 0.05),
        "warmup_cosine": np.r_[0, 0.05 * (1 + np.cos(np.pi * (steps[1:] - 5) / 103)) / 2],
    }
    if scheduler == "onecycle":
        assert rates[0] == pytest.approx(0.05 / 25)
        assert max(rates) > 0.045
        assert rates[-1] < 0.01
    else:
        np.testing.assert_allclose(rates, courses[scheduler], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("activation", _train.ACTIVATIONS)
def test_every_activation_learns(run, blob_csv, activation):
    options = ("--hidden", "16,8", "--dropout", 0.1, "--lr", 0.01, "--epochs", 30, "--batch-size", 16)
    assert run("train", blob_csv, "--activation", activation, *options)["test_accuracy"] >= 0.95


def test_batch_normalisation(run, blob_csv, tmp_path):
    """96 rows in batches of 19: the row that is left over takes no part in an epoch."""
    save, once = tmp_path / "m.safetensors", tmp_path / "once.safetensors"
    options = ("--batch-norm", "--hidden", "16,8", "--lr", 0.01, "--batch-size", 19)
    assert run("train", blob_csv, *options, "--epochs", 20, "--save", once)["test_accuracy"] >= 0.95
    assert arrays(once)["model.1.num_batches_tracked"] == 20 * 5
    run("train", blob_csv, *options, "--epochs", 9, "--save", save)
    run("train", "--resume", save, "--epochs", 20)
    assert_same_bits(arrays(save), arrays(once))
    rows = run("predict", save, blob_csv, "--out", tmp_path / "p.csv")
    assert rows["accuracy"] >= 0.95


def test_linear_model(run, blob_csv):
    assert run("train", blob_csv, "--hidden", "none", "--lr", 0.1, "--epochs", 20)["sizes"] == [4, 3]


@pytest.mark.parametrize("batch_size", [1, 96])
def test_stochastic_and_batch_gradient_descent(run, blob_csv, batch_size):
    options = ("--optimizer", "sgd", "--momentum", 0, "--lr", 0.05 if batch_size == 1 else 1)
    assert (
        run("train", blob_csv, *options, "--batch-size", batch_size, "--epochs", 20)["test_accuracy"] == 1.0
    )


def test_same_seed_same_bits_for_any_number_of_threads(run, blob_npz, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    common = ("train", blob_npz, "--epochs", 3, "--dropout", 0.2, "--hidden", "300", "--optimizer", "adamw")
    for path, options in zip(
        paths, [("--threads", 1), ("--threads", 2), ("--threads", 3), ("--seed", 1)], strict=True
    ):
        run(*common, "--save", path, *options)
    one, two, three, other = map(arrays, paths)
    assert_same_bits(one, two)
    assert_same_bits(one, three)
    assert one["model.0.weight"].tobytes() != other["model.0.weight"].tobytes()


def test_labels_features_and_scales_of_a_csv(run, tmp_path):
    x, y = blobs()
    path = tmp_path / "first.csv"
    table = np.c_[y * 10 - 5, x]
    np.savetxt(path, table, delimiter=",", header="kind,a,b,c,d", comments="", fmt="%.9g")
    save = tmp_path / "m.safetensors"
    options = ("--label", "kind", "--lr", 0.01, "--epochs", 10, "--test-size", 0.5, "--save", save)
    assert run("train", path, *options)["test_accuracy"] >= 0.95
    extra = checkpoint.read(save)["extra"]
    assert extra["classes"] == ["-5", "5", "15"]
    x_train, _, y_train, _ = data.train_test_split(x, y, test_size=0.5, stratify=y)
    assert len(x_train) == len(y_train) == 60
    np.testing.assert_allclose(extra["mean"], x_train.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(extra["std"], x_train.std(axis=0), rtol=1e-5)
    run("train", path, "--label", "0", "--epochs", 1, "--scale", "none", "--save", save)
    assert checkpoint.read(save)["extra"]["mean"] is None


def test_npz_with_its_own_test_part(run, tmp_path):
    (x_train, y_train), (x_test, y_test) = blobs(), blobs(30, seed=1)
    path = tmp_path / "s.npz"
    np.savez(
        path,
        x_train=(x_train * 40 + 50).clip(0, 255).astype(np.uint8).reshape(120, 2, 2),
        y_train=NAMES[y_train],
        x_test=(x_test * 40 + 50).clip(0, 255).astype(np.uint8).reshape(30, 2, 2),
        y_test=NAMES[y_test][:, None],
    )
    result = run("train", path, "--lr", 0.01, "--epochs", 15)
    assert result["sizes"] == [4, 64, 3]
    assert result["test_accuracy"] == 1.0


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def small_mnist(tmp_path):
    """Four IDX files: 4x4 images whose bright quadrant is the class."""
    for part, n in (("train", 200), ("t10k", 50)):
        rng = np.random.default_rng(n)
        y = rng.integers(0, 4, n).astype(np.uint8)
        x = rng.integers(0, 60, (n, 4, 4)).astype(np.uint8)
        for i, k in enumerate(y):
            x[i, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] += 150
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", x)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", y)
    return tmp_path


def test_mnist_files_and_predict(run, small_mnist, tmp_path):
    save, out = tmp_path / "m.safetensors", tmp_path / "p.csv"
    result = run(
        "train", "mnist", "--data", small_mnist, "--epochs", 15, "--hidden", 16, "--lr", 0.01, "--save", save
    )
    assert result["test_accuracy"] == 1.0
    images = small_mnist / "t10k-images-idx3-ubyte.gz"
    labels = small_mnist / "t10k-labels-idx1-ubyte.gz"
    summary = run("predict", save, images, "--labels", labels, "--out", out)
    assert summary == {"rows": 50, "accuracy": 1.0, "out": str(out)}
    rows = read_rows(out)
    assert [int(row["prediction"]) for row in rows] == data.read_idx(labels).tolist()
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)


def test_real_mnist_subset(run, shared, tmp_path):
    x_train, y_train, x_test, y_test = data.load_mnist(shared / "data" / "mnist")
    path = tmp_path / "subset.npz"
    np.savez(
        path, x_train=x_train[:12000], y_train=y_train[:12000], x_test=x_test[:2000], y_test=y_test[:2000]
    )
    result = run("train", path, "--hidden", 128, "--epochs", 1)
    assert result["sizes"] == [784, 128, 10]
    assert result["test_accuracy"] >= 0.85  # torch on the same rows, four seeds: 0.870 to 0.877


# ------------------------------------------------------------------------------------ save and resume


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("scheduler", ["none", "plateau"])
def test_resumed_run_is_bit_identical(run, blob_csv, tmp_path, optimizer, scheduler):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    options = (
        "--optimizer",
        optimizer,
        "--scheduler",
        scheduler,
        "--dropout",
        0.3,
        "--batch-size",
        10,
        "--seed",
        3,
    )
    expected = run("train", blob_csv, *options, "--epochs", 6, "--save", whole)
    run("train", blob_csv, *options, "--epochs", 2, "--save", half)
    got = run("train", "--resume", half, "--epochs", 6)
    assert got["checkpoint"] == str(half)
    for key in ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "epochs"):
        assert got[key] == expected[key]
    assert_same_bits(arrays(half), arrays(whole))
    histories = [checkpoint.read(path)["extra"]["history"] for path in (half, whole)]
    assert histories[0] == histories[1]


def test_interrupted_run_resumes_bit_identically(run, capsys, blob_csv, tmp_path, monkeypatch):
    """Ctrl-C in the middle of epoch 4, with a schedule over steps; the run goes on from epoch 3."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    options = (
        "train",
        blob_csv,
        "--scheduler",
        "onecycle",
        "--dropout",
        0.2,
        "--epochs",
        6,
        "--batch-size",
        10,
    )
    run(*options, "--save", whole)

    gave = data.DataLoader.gave

    def interrupted(self, batches):
        if self.epoch == 3 and batches > 4:
            raise KeyboardInterrupt
        gave(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(data.DataLoader, "gave", interrupted)
        assert main([*map(str, options), "--save", str(broken)]) == 130
    err = capsys.readouterr().err
    assert f"interrupted in epoch 4 of 6; the last checkpoint, after epoch 3, is {broken}: go on with" in err
    run("train", "--resume", broken)
    assert_same_bits(arrays(broken), arrays(whole))


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("save", [True, False])
def test_ctrl_c(blob_csv, tmp_path, save):
    path = tmp_path / "m.safetensors"
    argv = ["train", str(blob_csv), "--epochs", "1000000", *(["--save", str(path)] if save else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastopt", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        while not process.stdout.readline().startswith("epoch"):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.count("\n") == 1
    if save:
        epoch = int(re.search(r"after epoch (\d+), is (.*):", err)[1])
        assert checkpoint.read(path)["epoch"] == epoch >= 1
        assert str(path) in err
    else:
        assert "nothing was saved" in err


def test_resume_refuses_other_settings(run, fails, blob_csv, tmp_path):
    save = tmp_path / "m.safetensors"
    run("train", blob_csv, "--epochs", 2, "--scheduler", "cosine", "--save", save)
    before = save.read_bytes()
    assert f"--lr: 0.5 differs from 0.001 in {save}" in fails("train", "--resume", save, "--lr", "0.5")
    assert "--hidden: (8,) differs from (64,)" in fails("train", "--resume", save, "--hidden", 8)
    assert "cosine schedule" in fails("train", "--resume", save, "--epochs", 4)
    assert "all 2 epochs are done" in fails("train", "--resume", save)
    assert save.read_bytes() == before


def test_resume_refuses_other_data(run, fails, blob_csv, tmp_path):
    save = tmp_path / "m.safetensors"
    run("train", blob_csv, "--epochs", 1, "--save", save)
    other = tmp_path / "other.csv"
    other.write_text("1,2,a\n3,4,b\n" * 5)
    assert "has the classes a, b, " in fails("train", other, "--resume", save, "--epochs", 2)
    other.write_text("1,2,ant\n3,4,bee\n5,6,cat\n" * 5)
    assert "has shape (64, 2)" in fails("train", other, "--resume", save, "--epochs", 2)


# ------------------------------------------------------------------------------------------ predict


@pytest.fixture
def model(run, blob_csv, tmp_path):
    path = tmp_path / "blobs.safetensors"
    run("train", blob_csv, "--epochs", 20, "--lr", 0.01, "--save", path)
    return path


def test_predict_with_and_without_labels(run, capsys, model, blob_csv, tmp_path):
    out = tmp_path / "p.csv"
    assert run("predict", model, blob_csv, "--out", out) == {"rows": 120, "accuracy": 1.0, "out": str(out)}
    labelled = read_rows(out)
    _, y = blobs()
    assert [row["label"] for row in labelled] == [row["prediction"] for row in labelled] == NAMES[y].tolist()

    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(line.rpartition(",")[0] for line in blob_csv.read_text().splitlines()))
    assert main(["predict", str(model), str(bare)]) == 0
    printed, err = capsys.readouterr()
    rows = list(csv.DictReader(printed.splitlines()))
    assert rows == [{k: row[k] for k in ("row", "prediction", "probability")} for row in labelled]
    assert err == "120 rows\n"

    np.savez(tmp_path / "b.npz", x=blobs()[0])
    assert run("predict", model, tmp_path / "b.npz", "--out", out) == {"rows": 120, "out": str(out)}
    assert read_rows(out) == rows


def test_predict_errors(run, fails, model, blob_csv, tmp_path):
    wide = tmp_path / "wide.csv"
    wide.write_text("1,2,3,4,5,6\n")
    assert f"{wide} has 6 features, {model} takes 4" in fails("predict", model, wide)
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("1,2,3,4,dog\n")
    assert "label 'dog' is none of the 3 classes ant, bee, cat" in fails("predict", model, unknown)
    assert "not a safetensors file" in fails("predict", blob_csv, blob_csv)
    assert "No such file" in fails("predict", tmp_path / "gone", blob_csv)
    assert "No such file" in fails("predict", model, tmp_path / "gone.csv")
    assert "--json: stdout holds the predictions" in fails("predict", model, blob_csv, "--json")
    assert "--labels: " in fails("predict", model, blob_csv, "--labels", blob_csv)
    assert "not an IDX file" in fails("predict", model, model)
    checkpoint.save(tmp_path / "other.safetensors")
    assert "not one that fastopt train saved" in fails("predict", tmp_path / "other.safetensors", blob_csv)
    inf = tmp_path / "inf.csv"
    inf.write_text("1,2,3,4\n1,2,inf,4\n")
    assert "row 2, feature 3 is inf" in fails("predict", model, inf)


def test_diverging_run_keeps_the_last_good_checkpoint(capsys, blob_npz, tmp_path):
    save = tmp_path / "m.safetensors"
    options = [
        "train",
        str(blob_npz),
        "--optimizer",
        "sgd",
        "--lr",
        "1e30",
        "--epochs",
        "9",
        "--save",
        str(save),
    ]
    assert main(options) == 2
    err = capsys.readouterr().err
    assert re.search(r"error: the loss is (nan|inf) in epoch 1: try a smaller --lr than 1e\+30\n$", err)
    assert not save.exists()


# ------------------------------------------------------------------------------- info and the process


def test_info(run, capsys):
    info = run("info")
    assert info["version"] == _core.__version__
    assert info["numpy"] == np.__version__
    assert info["isa"] in info["isas"]
    assert info["threads"] == _core.num_threads()
    assert info["gpu"]["available"] or info["gpu"]["reason"]
    assert main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["fastopt"] == _core.__version__
    assert shown["numpy"].startswith(np.__version__)
    assert set(shown) >= {"python", "compiler", "instruction", "threads", "gpu"}


def test_rejected_isa_is_told():
    process = fastopt("info", "--json", env={**os.environ, "FASTOPT_ISA": "v9"})
    assert json.loads(process.stdout)["rejected_isa"] == "v9"


def test_process_and_exit_codes(blob_csv, tmp_path):
    assert fastopt("--version").stdout == f"fastopt {_core.__version__}\n"
    assert "train a multilayer perceptron" in fastopt("--help").stdout
    assert fastopt("train", tmp_path / "gone.csv").returncode == 2
    package = str(Path(_core.__file__).parents[1])
    process = fastopt(
        *("train", blob_csv, "--epochs", 2, "--json"), cwd=tmp_path, env={**os.environ, "PYTHONPATH": package}
    )
    assert process.returncode == 0
    assert json.loads(process.stdout).keys() >= RESULT_KEYS
    assert process.stderr.count("epoch ") == 2
    assert os.listdir(tmp_path) == [blob_csv.name]  # nothing is written that was not asked for


def test_the_reader_of_stdout_may_leave(model, blob_csv):
    wide = Path(str(blob_csv) + ".many.csv")
    wide.write_text("1,2,3,4\n" * 50000)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastopt", "predict", str(model), str(wide)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "row,prediction,probability\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_progress_bar_on_a_terminal(tmp_path):
    pytest.importorskip("tqdm")
    import pty
    import termios

    x, y = blobs(10000)  # enough for the bar to move on its way
    np.savez(tmp_path / "many.npz", x=x, y=y)
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fastopt",
            "train",
            str(tmp_path / "many.npz"),
            "--epochs",
            "2",
            "--batch-size",
            "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=child,
    )
    os.close(child)
    shown = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(parent)
    assert process.wait() == 0
    assert b"epoch 1/2" in shown
    assert b"samples/s" in shown
    assert re.search(rb"epoch 2/2:.*loss \d\.\d{4}  test \d+\.\d\d%", shown)
