"""Bad command lines and bad files: exit code 2 and one line that says what is wrong and where."""

import sys

import numpy as np
import pytest

from cli_helpers import must_fail
from fastopt import checkpoint, cli, nn
from fastopt.cli import main


@pytest.fixture
def fails(capsys):
    """main(argv) must return 2 and say why in one line, which this returns."""
    return lambda *argv: must_fail(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--optimizer", "adamm"], "invalid choice: 'adamm' (choose from"),
        (["train", "--activation", "step"], "invalid choice: 'step' (choose from"),
        (["train", "--scheduler", "x"], "invalid choice: 'x' (choose from"),
        (["train", "--lr", "0"], "argument --lr: expected a number above 0, got '0'"),
        (["train", "--lr", "nan"], "argument --lr: expected a number above 0, got 'nan'"),
        (["train", "--lr", "fast"], "argument --lr: expected a number above 0, got 'fast'"),
        (["train", "--weight-decay", "-1"], "argument --weight-decay: expected a number from 0, got '-1'"),
        (["train", "--dropout", "1"], "argument --dropout: expected a number in [0, 1), got '1'"),
        (["train", "--epochs", "0"], "argument --epochs: expected a whole number from 1, got '0'"),
        (
            ["train", "--batch-size", "2.5"],
            "argument --batch-size: expected a whole number from 1, got '2.5'",
        ),
        (["train", "--threads", "0"], "argument --threads: expected a whole number from 1, got '0'"),
        (["train", "--seed", "-1"], "argument --seed: expected a whole number from 0, got '-1'"),
        (["train", "--device", "gpu"], "argument --device: expected cpu, cuda or cuda:N, got 'gpu'"),
        (["train", "--device", "cuda:"], "argument --device: expected cpu, cuda or cuda:N, got 'cuda:'"),
        (["train", "--device", "cuda:-1"], "argument --device: expected cpu, cuda or cuda:N, got 'cuda:-1'"),
        (["train", "--test-size", "1"], "argument --test-size: expected a number in (0, 1), got '1'"),
        (["train", "--hidden", "64,x"], "expected layer sizes such as 256,128 or none, got '64,x'"),
        (["train", "--hidden", "64,0"], "expected layer sizes"),
        (["train", "--momentum", "0.9"], "--momentum: adam has none, only sgd and rmsprop"),
        (["train", "--hidden", "99999999999"], "Unable to allocate"),
        (["train", "--label", "3"], "--label: is for a CSV file, got digits"),
        (["train", "mnist", "--test-size", "0.5"], "--test-size: mnist has a test set of its own"),
        (["train", "--save", "."], ".: a directory, expected a file"),
        (["train", "--save", "/gone/away/m"], "no directory /gone/away"),
        (["train", "--plot", "/gone/away/p.png"], "no directory /gone/away"),
        (["train", "--plot", "p.xyz"], "p.xyz: cannot write xyz, only "),
        (["train", "iris"], "'iris' is neither digits nor mnist nor a .csv or .npz file"),
        (["train", "gone.csv"], "gone.csv: No such file or directory"),
        (["train", "gone.npz"], "gone.npz: No such file or directory"),
        (["train", "mnist", "--data", "gone"], "gone: none of train-images-idx3-ubyte, "),
        (["train", "--resume", "gone"], "gone: No such file or directory"),
        (["fly"], "invalid choice: 'fly' (choose from"),
        ([], "the following arguments are required: COMMAND"),
        (["predict"], "the following arguments are required: model, file"),
        (["train", "--optimiser", "adam"], "no option --optimiser; did you mean --optimizer?"),
        (["train", "--epoch-count=3"], "no option --epoch-count"),
        (["train", "--dropuot", "x", "digits", "y"], "no option --dropuot; did you mean --dropout?"),
        (["train", "--zzz"], "no option --zzz: fastopt train --help shows those that there are"),
        (
            ["train", "digits", "mnist"],
            "unexpected argument 'mnist': fastopt train --help shows what it takes",
        ),
        (["predict", "--threds", "3", "m"], "no option --threds; did you mean --threads?"),
        (["--verison"], "no option --verison; did you mean --version?"),
        (["trainn"], "; did you mean train?"),
        (["train", "--optimizer", "Adam"], "; did you mean adam?"),
        (["train", "--activation", "sigmod"], "; did you mean sigmoid?"),
        (
            ["train", "--batch-norm", "--batch-size", "1"],
            "--batch-norm: needs a --batch-size of 2 or more, got 1",
        ),
        (["train", "digit"], "nor a .csv or .npz file; did you mean digits?"),
        (["predict", "m", "f", "--out", "/gone/away/p.csv"], "no directory /gone/away"),
    ],
)
def test_bad_command_lines(fails, argv, message):
    assert message in fails(*argv)


def test_a_file_of_nearly_the_same_name(fails, tmp_path):
    (tmp_path / "measurements.csv").write_text("1,2,a\n")
    gone = tmp_path / "measurement.csv"
    expected = f"{gone}: No such file or directory; did you mean measurements.csv?\n"
    assert fails("train", gone).endswith(expected)
    assert fails("predict", gone, gone).endswith(expected)
    assert fails("train", tmp_path / "other.csv").endswith("other.csv: No such file or directory\n")


@pytest.mark.parametrize("command", [(), ("train",), ("compare",), ("predict",), ("bench",), ("info",)])
def test_help_reads_like_a_manual(capsys, command):
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:\n  fastopt " in text
    assert max(map(len, text.splitlines())) <= 112
    examples = text.partition("examples:\n")[2].partition("\n\n")[0]
    for line in examples.splitlines():
        words = line.split("  ")[1].split(" | ")[0].split(" > ")[0].split()
        args = cli._make_parser().parse_args(words[1:])
        assert args.name == words[1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b,y\n1,2,0\n1,x,1\n", [], "line 3, column 2 ('b'): expected a number, got 'x'"),
        ("a,b,y\n1,2,0\n1,2,1\n", ["--label", "z"], "0 columns named 'z'"),
        ("size,kind,y\n1,2,0\n1,2,1\n", ["--label", "knd"], ": size, kind, y; did you mean kind?"),
        ("a,b,y\n1,2,0\n1,2,1\n", ["--label", "7"], "column 7 is out of range"),
        ("1,2,0\n" * 5, [], "labels hold 1 class, training needs at least 2"),
        ("1,2,0.5\n3,4,1\n" * 5, [], "label of row 1 is 0.5, expected whole numbers or text"),
        ("1,nan,0\n3,4,1\n" * 5, [], "row 1, feature 2 is nan, expected a finite number"),
        ("1,2,a\n", [], "cannot take 1 test rows out of 1"),
        ("", [], "empty file"),
    ],
)
def test_bad_csv_files(fails, tmp_path, text, options, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert message in fails("train", path, *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": np.zeros((4, 2))}, "no labels, expected y beside x"),
        ({"x": np.zeros(4), "y": np.zeros(4)}, "features have shape (4,) and dtype float64"),
        ({"x": np.zeros((4, 2), complex), "y": np.zeros(4)}, "dtype complex128"),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 3))}, "labels have shape (4, 3)"),
        (
            {
                "x_train": np.zeros((4, 2)),
                "y_train": np.arange(4),
                "x_test": np.zeros((4, 3)),
                "y_test": np.arange(4),
            },
            "x_train has 2 features, x_test 3",
        ),
    ],
)
def test_bad_npz_files(fails, tmp_path, content, message):
    np.savez(tmp_path / "t.npz", **content)
    assert message in fails("train", tmp_path / "t.npz")


def test_missing_extras(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "fastopt[plot]"' in fails("train", "t.csv", "--plot", "p.png")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert 'digits needs scikit-learn: pip install "fastopt[demo]"' in fails("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda extra: extra.pop("classes"), "a checkpoint, but not one that fastopt train saved"),
        (lambda extra: extra["config"].pop("lr"), "settings of another version"),
        (lambda extra: extra["config"].update(depth=3), "settings of another version"),
    ],
)
def test_checkpoints_of_another_kind(fails, capsys, tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    np.savez(tmp_path / "t.npz", x=np.eye(8), y=np.arange(8) % 2)
    argv = ["train", str(tmp_path / "t.npz"), "--epochs", "1", "--hidden", "2", "--save", str(path)]
    assert main(argv) == 0
    capsys.readouterr()
    contents = checkpoint.read(path)
    change(contents["extra"])
    model = nn.Linear(1, 1)
    model.state_dict = lambda: contents["model"]
    checkpoint.save(path, model=model, extra=contents["extra"])
    assert message in fails("predict", path, tmp_path / "t.npz")
    assert message in fails("train", "--resume", path, "--epochs", "2")
