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


def test_history_shows_a_schedule_where_there_is_one():
    _, _, rates = plot.plot_history({**HISTORY, "lr": [0.1, 0.05, 0.01]}).axes
    assert rates.get_ylabel() == "learning rate"
    assert list(curves(rates).values()) == [[(1, 0.1), (2, 0.05), (3, 0.01)]]
    assert rates.get_ylim()[0] == 0
    assert len(plot.plot_history({**HISTORY, "lr": [0.1, 0.05, 0.01]}, confusion=MATRIX).axes) == 4


def test_history_shows_gradients_of_the_last_epochs():
    axes = plot.plot_history(HISTORY, gradients={"0": [1e-3, 1e-2], "2": [0.5, 0.25]}, confusion=MATRIX).axes
    assert [ax.get_ylabel() for ax in axes] == ["loss", "accuracy", "gradient norm", "true"]
    assert curves(axes[2]) == {"0": [(2, 1e-3), (3, 1e-2)], "2": [(2, 0.5), (3, 0.25)]}
    corners = {tuple(ax.get_subplotspec().colspan) + tuple(ax.get_subplotspec().rowspan) for ax in axes}
    assert corners == {(0, 0), (1, 0), (0, 1), (1, 1)}  # more than three panels stand in two rows


def test_norms_show_the_records():
    gradients = {"0": [1e-6, 1e-5, 0.0], "2": [0.1, np.inf, 0.3]}
    weights = {"0": [3.0, 3.1, 3.2], "2": [1.0, 1.5, 2.0]}
    left, right = plot.plot_norms(gradients, weights=weights, steps=[5, 10, 15], xlabel="epoch").axes
    shown = {line.get_label(): line.get_xydata() for line in left.lines}
    np.testing.assert_array_equal(shown["0"], [(5, 1e-6), (10, 1e-5), (15, np.nan)])
    np.testing.assert_array_equal(shown["2"], [(5, 0.1), (10, np.nan), (15, 0.3)])
    assert curves(right) == {"0": [(5, 3.0), (10, 3.1), (15, 3.2)], "2": [(5, 1.0), (10, 1.5), (15, 2.0)]}
    assert (left.get_yscale(), right.get_yscale(), left.get_xlabel()) == ("log", "log", "epoch")
    assert (left.get_ylabel(), right.get_ylabel()) == ("gradient norm", "weight norm")
    (alone,) = plot.plot_norms(gradients).axes
    assert [list(line.get_xdata()) for line in alone.lines] == [[1, 2, 3]] * 2


def test_norms_of_many_layers_list_some_of_them():
    norms = {f"layer{i}": [float(i + 1)] * 2 for i in range(25)}
    (ax,) = plot.plot_norms(norms).axes
    assert len(ax.lines) == 25
    listed = [text.get_text() for text in ax.get_legend().get_texts()]
    assert listed == [f"layer{i}" for i in (0, 3, 6, 9, 12, 15, 18, 21, 24)]
    assert (
        len(
            {
                line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
                for line in ax.lines
            }
        )
        == 25
    )


def test_a_comparison_shows_every_run():
    runs = {
        "sgd": HISTORY,
        "adam": {
            "epoch": [1, 2],
            "train_loss": [0.4, 0.2],
            "test_loss": [0.6, 0.3],
            "test_accuracy": [0.1, 0.9],
        },
        "bad": {"epoch": [], "train_loss": [], "test_loss": [], "test_accuracy": []},
    }
    axes = plot.plot_comparison(runs).axes
    assert [ax.get_ylabel() for ax in axes] == ["training loss", "test loss", "test accuracy"]
    for ax, key in zip(axes, ("train_loss", "test_loss", "test_accuracy"), strict=True):
        assert curves(ax) == {
            name: list(zip(run["epoch"], run[key], strict=True)) for name, run in runs.items()
        }
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "linear"]
    assert [text.get_text() for text in axes[2].get_legend().get_texts()] == ["sgd", "adam", "bad"]
    low, high = axes[2].get_ylim()
    assert low == pytest.approx(0.8125 - 2 * (0.9 - 0.8125))  # the first epoch of adam lies below
    assert 0.9 < high < 0.95


def test_lines_are_told_apart():
    runs = {str(i): {"train_loss": [1.0, 2.0]} for i in range(28)}
    (ax,) = plot.plot_comparison(runs).axes
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 28


def bowl(x):
    return x[0] ** 2 + 4 * x[1] ** 2, np.array([2 * x[0], 8 * x[1]])


def test_paths_show_the_points():
    paths = {"a": [[2.0, 1.0], [1.0, 0.5], [0.0, 0.0]], "b": np.array([[2.0, 1.0], [1.5, -1.0]])}
    (ax,) = plot.plot_path(bowl, paths, minimum=(0, 0)).axes
    assert curves(ax) == {
        "a": [(2, 1), (1, 0.5), (0, 0)],
        "_end of a": [(0, 0)],
        "b": [(2, 1), (1.5, -1)],
        "_end of b": [(1.5, -1)],
        "start": [(2, 1)],
        "minimum": [(0, 0)],
    }
    low, high = ax.get_xlim()
    assert low < 0
    assert high > 2
    (ax,) = plot.plot_path(lambda x: bowl(x)[0], paths, xlim=(-1, 1), ylim=(-3, 3)).axes
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-3, 3))
    assert "minimum" not in curves(ax)


def test_the_surface_is_the_function():
    """Contours of equal height of x^2 + 4 y^2 are ellipses with axes of 2 to 1."""
    (ax,) = plot.plot_path(bowl, {"a": [[2.0, 1.0]]}, xlim=(-2, 2), ylim=(-2, 2)).axes
    lines = ax.collections[-1]
    checked = 0
    for contour in lines.get_paths():
        points = contour.vertices
        if len(points) > 100:
            heights = points[:, 0] ** 2 + 4 * points[:, 1] ** 2
            np.testing.assert_allclose(heights, np.median(heights), rtol=0.02)
            checked += 1
    assert checked >= 4


def test_a_path_that_left_the_numbers():
    (ax,) = plot.plot_path(bowl, {"a": [[1.0, 1.0], [2.0, 2.0], [np.inf, np.nan]]}).axes
    assert ax.get_xlim() == pytest.approx((0.88, 2.12))
    (ax,) = plot.plot_path(bowl, {"a": [[1.0, 1.0]]}).axes
    assert ax.get_xlim() == (0, 2)


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
        (lambda: plot.plot_history({**HISTORY, "lr": [1, 2]}), "lr has 2 values for 3 epochs"),
        (
            lambda: plot.plot_history(HISTORY, gradients={"0": [1.0] * 4}),
            "gradients has 4 values for 3 epochs",
        ),
        (lambda: plot.plot_history(HISTORY, gradients={}), "gradients has 0 values for 3 epochs"),
        (lambda: plot.plot_norms({}), "gradients is empty"),
        (lambda: plot.plot_norms({"0": []}), "gradients is empty"),
        (lambda: plot.plot_norms({"0": [1], "1": [1, 2]}), "gradient norm of 1 has 2 values for 1 steps"),
        (lambda: plot.plot_norms({"0": [1]}, weights={"0": []}), "weight norm of 0 has 0 values for 1 steps"),
        (lambda: plot.plot_comparison({}), r"no losses or accuracies in the histories of \[\]"),
        (lambda: plot.plot_comparison({"a": {"lr": [1]}}), r"in the histories of \['a'\]"),
        (lambda: plot.plot_path(bowl, {}), "paths is empty"),
        (lambda: plot.plot_path(bowl, {"a": [1.0, 2.0]}), r"path of a has shape \(2,\), expected \(n, 2\)"),
        (lambda: plot.plot_path(bowl, {"a": np.empty((0, 2))}), r"path of a has shape \(0, 2\)"),
        (lambda: plot.plot_path(bowl, {"a": [[np.nan, 1.0]]}), "no point of paths is finite"),
        (lambda: plot.plot_bars({}), "groups is empty"),
        (lambda: plot.plot_bars({"a": {}}), "groups is empty"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("fun", [lambda x: 1.0, lambda x: np.nan, lambda x: np.inf if x[0] > 0 else x[1]])
def test_surfaces_that_are_flat_or_end(fun):
    (ax,) = plot.plot_path(fun, {"a": [[-1.0, -1.0], [1.0, 1.0]]}).axes
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [-1.0, 1.0])


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
