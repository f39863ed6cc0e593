import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from vfnet_tf.reports import curves
from vfnet_tf.reports.curves import plot_history


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


HISTORY = {
    "epoch": [1, 2, 3],
    "loss": [2.0, 1.5, 1.0],
    "class_loss": [1.0, 0.8, 0.5],
    "val_AP": [float("nan"), 0.2, 0.4],
    "learning_rate": [0.01, 0.01, 0.001],
    "num_positives": [9, 9, 9],
}


def test_a_history_becomes_three_panels(tmp_path):
    plot_history(HISTORY, tmp_path / "new" / "curves.png")
    assert pyplot.get_fignums() == []
    picture = read(tmp_path / "new" / "curves.png")
    one = {name: HISTORY[name] for name in ("epoch", "loss")}
    plot_history(one, tmp_path / "one.png")
    assert picture.shape[1] == 3 * read(tmp_path / "one.png").shape[1]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_a_csv_with_gaps_draws_the_same_as_the_dict(tmp_path):
    csv = "epoch,loss,class_loss,val_AP,learning_rate,num_positives\n"
    csv += "1,2.0,1.0,,0.01,9\n2,1.5,0.8,0.2,0.01,9\n3,1.0,0.5,0.4,0.001,9\n"
    (tmp_path / "history.csv").write_text(csv)
    plot_history(tmp_path / "history.csv", tmp_path / "a.png")
    plot_history(HISTORY, tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), read(tmp_path / "b.png"))


def test_epochs_without_evaluation_do_not_break_the_curve(tmp_path):
    gap = {"epoch": [1, 2, 3], "val_AP": [0.2, float("nan"), 0.4]}
    plot_history(gap, tmp_path / "gap.png")
    plot_history({"epoch": [1, 3], "val_AP": [0.2, 0.4]}, tmp_path / "line.png")
    gap, line = (read(tmp_path / name) for name in ("gap.png", "line.png"))
    np.testing.assert_array_equal(gap, line)


@pytest.mark.filterwarnings("error")
def test_one_epoch_and_a_metric_that_is_zero_are_drawn(tmp_path):
    history = {"loss": [1.0], "val_AP": [0.0], "learning_rate": [0.0]}
    plot_history(history, tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").shape[1] > 1000


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("nothing.csv", "nothing.csv"),
        ({}, "at least one row"),
        ({"epoch": [], "loss": []}, "at least one row"),
        ({"epoch": [1], "loss": [1.0, 2.0]}, "one length"),
        ({"epoch": [1], "loss": [float("nan")], "seconds": [3]}, "columns"),
    ],
)
def test_a_missing_history_or_one_without_curves_is_refused(tmp_path, history, message):
    with pytest.raises(ValueError, match=message):
        plot_history(history, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_each_panel_can_be_a_figure():
    figures = curves.history_figures(HISTORY)
    titles = [figure.axes[0].get_title() for figure in figures]
    assert titles == ["loss", "val_AP: best 0.400 at epoch 3", "learning rate"]


def test_runs_share_axes_and_what_none_has_is_left_out():
    longer = {"epoch": [1, 2, 3, 4], "loss": [4, 3, 2, 1], "val_AP": [float("nan")] * 4}
    figures = curves.compare_histories({"a": HISTORY, "b": longer})
    lines = {
        figure.axes[0].get_title(): {
            line.get_label(): line.get_xydata().tolist()
            for line in figure.axes[0].lines
        }
        for figure in figures
    }
    assert list(lines) == ["loss", "val_AP", "learning_rate"]
    assert lines["loss"]["b"] == [[1, 4], [2, 3], [3, 2], [4, 1]]
    assert lines["val_AP"] == {"a": [[2, 0.2], [3, 0.4]]}
    # A run keeps its colour in all figures.
    colors = {
        line.get_color()
        for figure in figures
        for line in figure.axes[0].lines
        if line.get_label() == "a"
    }
    assert len(colors) == 1
