"""plot.py: what the pictures show is what was given; errors; no global state of matplotlib."""

import subprocess
import sys

import numpy as np
import pytest

from fastopt import plot

pytest.importorskip("matplotlib")

HISTORY = {
    "epoch": [1, 2, 3],
    "train_loss": [0.9, 0.5, 0.25],
    "test_loss": [1.0, 0.75, 0.5],
    "train_accuracy": [0.5, 0.75, 0.875],
    "test_accuracy": [0.5, 0.625, 0.8125],
    "lr": [0.1, 0.1, 0.1],
}
MATRIX = np.array([[8, 0, 2], [1, 9, 0], [0, 0, 0]])


def curves(ax):
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in ax.lines}


def test_history_shows_the_numbers():
    loss, accuracy = plot.plot_history(HISTORY, title="a run").axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    assert curves(loss) == {
        "train 0.25": [(1, 0.9), (2, 0.5), (3, 0.25)],
        "test 0.5": [(1, 1.0), (2, 0.75), (3, 0.5)],
    }
    assert curves(accuracy) == {
        "train 87.50%": [(1, 0.5), (2, 0.75), (3, 0.875)],
        "test 81.25%": [(1, 0.5), (2, 0.625), (3, 0.8125)],
    }
    low, high = loss.get_ylim()
    assert low == 0
    assert high > 1.0


def test_history_with_what_there_is():
    (only,) = plot.plot_history({"test_loss": [2.0, 1.0]}).axes
    assert curves(only) == {"test 1": [(1, 2.0), (2, 1.0)]}
    diverged = plot.plot_history({"train_loss": [1.0, float("nan"), float("inf")]})
    assert diverged.axes[0].get_ylim()[0] == 0


def test_confusion_shows_the_counts():
    (ax,) = plot.plot_confusion(MATRIX, classes=["ant", "bee", "cat"], title="t").axes
    shown = {tuple(map(round, text.get_position()[::-1])): text.get_text() for text in ax.texts}
    assert shown == {(0, 0): "8", (0, 2): "2", (1, 0): "1", (1, 1): "9"}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ant", "bee", "cat"]
    expected = np.sqrt([[0.8, 0, 0.2], [0.1, 0.9, 0], [0, 0, 0]])
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert not plot.plot_confusion(np.eye(30, dtype=int)).axes[0].texts


def test_schedule_shows_the_rates():
    (ax,) = plot.plot_schedule({"step": [1.0, 1.0, 0.1], "cosine": [1.0, 0.5, 0.0]}, xlabel="epoch").axes
    assert curves(ax) == {"step": [(0, 1), (1, 1), (2, 0.1)], "cosine": [(0, 1), (1, 0.5), (2, 0)]}
    assert ax.get_xlabel() == "epoch"
    (ax,) = plot.plot_schedule([0.5, 0.25]).axes
    assert list(ax.lines[0].get_ydata()) == [0.5, 0.25]


def test_files(tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "h.png"
    plot.plot_history(HISTORY, path, confusion=MATRIX, title="run")
    picture = imread(path)[..., :3]
    height, width, _ = picture.shape
    assert width > 2.5 * height > 1000
    thirds = [picture[:, i * width // 3 : (i + 1) * width // 3] for i in range(3)]
    assert all((third < 0.5).mean() > 0.005 for third in thirds)  # something is drawn in each panel
    plot.plot_schedule([1, 2], tmp_path / "s.svg")
    assert "<svg" in (tmp_path / "s.svg").read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.plot_history({"lr": [1]}), r"no train_loss, test_loss ... in history, only \['lr'\]"),
        (
            lambda: plot.plot_history({"train_loss": [1, 2], "test_loss": [1]}),
            "test_loss has 1 values for 2 epochs",
        ),
        (lambda: plot.plot_confusion(np.zeros((2, 3), int)), r"shape \(2, 3\), expected \(k, k\)"),
        (lambda: plot.plot_confusion(np.zeros((0, 0), int)), r"shape \(0, 0\)"),
        (lambda: plot.plot_confusion(np.eye(2)), "must hold counts, got float64"),
        (lambda: plot.plot_confusion(-np.eye(2, dtype=int)), "got int64 with minimum -1"),
        (lambda: plot.plot_confusion(MATRIX, classes=["a"]), "1 names for a confusion matrix of 3"),
        (lambda: plot.plot_schedule([]), "rates is empty"),
        (lambda: plot.plot_schedule([1], "p.txt"), r"p\.txt: cannot write txt, only .*png"),
        (lambda: plot.plot_schedule([1], "p"), "p: cannot write a file without suffix"),
        (lambda: plot.plot_schedule({"a": []}), "rates is empty"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'plots need matplotlib: pip install "fastopt\[plot\]"'):
        plot.plot_schedule([1.0])


def test_pyplot_is_left_alone():
    code = (
        "import sys; from fastopt import plot; assert 'matplotlib' not in sys.modules;"
        "plot.plot_schedule([1.0]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
