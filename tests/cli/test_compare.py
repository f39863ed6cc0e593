import json

import pytest

from tests import tiny_run
from tests.browser import Page
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import override, save_config
from vfnet_tf.evaluation.coco import METRICS


def metrics(ap, disc, star):
    values = dict.fromkeys(METRICS, ap)
    per_class = {"disc": {"AP": disc, "AP50": 0.9}, "star": {"AP": star, "AP50": 0.8}}
    return {**values, "APs": None, "per_class": per_class}


def write(directory, config, history, **evaluations):
    directory.mkdir(parents=True)
    save_config(config, directory / "config.json")
    (directory / "history.csv").write_text(history)
    for place, values in evaluations.items():
        folder = directory if place == "training" else directory / place
        folder.mkdir(exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(values))
    return directory


@pytest.fixture
def runs(tmp_path):
    """Two runs: of other epochs, neck filters and flips; the second is better."""
    first = write(
        tmp_path / "first",
        tiny_run.tiny_config(),
        "epoch,step,seconds,loss,val_AP\n1,5,60,2.0,0.1\n2,10,60,1.5,0.4\n3,15,60,1,0.3\n",
        training=metrics(0.4, 0.3, 0.5),
        evaluation_val=metrics(0.41, 0.31, 0.5),
    )
    config = override(
        tiny_run.tiny_config(),
        model__neck_filters=32,
        data__flip=0.0,
        training__weight_decay=2e-4,
    )
    second = write(
        tmp_path / "second",
        config,
        "epoch,step,seconds,loss,val_AP\n1,5,90,1.8,nan\n2,10,90,1.2,0.5\n",
        training=metrics(0.5, 0.3, 0.7),
        evaluation_val=metrics(0.51, 0.32, 0.7),
    )
    return first, second


def rows(text, title):
    """The table below a title on the terminal, as lists of words."""
    lines = text.split(title + "\n")[1].split("\n\n")[0].splitlines()
    return [line.split() for line in lines]


def test_two_runs_are_compared_on_the_terminal(runs, capsys):
    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert rows(out, "Runs")[1:] == [
        ["first", "3", "0.400", "2", "0.300", "3.000"],
        ["second", "2", "0.500", "2", "0.500", "3.000"],
    ]
    assert rows(out, "Settings that differ") == [
        ["setting", "first", "second"],
        ["model.neck_filters", "64", "32"],
        ["data.flip", "0.5", "0.0"],
        ["training.weight_decay", "0.0001", "0.0002"],
    ]
    table = rows(out, "Metrics, end of training")
    assert table[0] == ["metric", "first", "second", "difference"]
    assert table[1] == ["AP", "0.400", "0.500", "+0.100"]
    assert table[4] == ["APs", "–", "–", "–"]
    assert rows(out, "Metrics, evaluation_val")[1] == ["AP", "0.410", "0.510", "+0.100"]
    # The evaluation goes before training's own; the largest difference comes first.
    assert rows(out, "AP by class, evaluation_val")[1:] == [
        ["star", "0.500", "0.700", "+0.200"],
        ["disc", "0.310", "0.320", "+0.010"],
    ]


def test_three_runs_have_differences_to_the_first(runs, tmp_path, capsys):
    third = write(
        tmp_path / "other" / "first",  # a name that exists
        tiny_run.tiny_config(),
        "epoch,step,loss\n1,5,2.0\n",
        training=metrics(0.3, 0.3, 0.3),
    )
    assert main(["compare", *map(str, (*runs, third))]) == 0
    out = capsys.readouterr().out
    table = rows(out, "Metrics, end of training")
    assert table[1] == ["AP", "0.400", "0.500", "0.300", "+0.100", "-0.100"]
    assert rows(out, "Runs")[3] == [str(third), "1", "–", "–", "–", "–"]
    table = rows(out, "Metrics, evaluation_val")
    assert table[1] == ["AP", "0.410", "0.510", "–", "+0.100", "–"]
    # Not all runs have that evaluation.
    assert "AP by class, end of training" in out


def test_equal_settings_are_said_to_be_none(runs, capsys):
    assert main(["compare", str(runs[0]), str(runs[0])]) == 0
    assert "Settings that differ\n  none\n" in capsys.readouterr().out


def detections(directory, data, score):
    """Finds each object of the data but the stars, which it sees where nothing is."""
    truth = json.loads((data / "annotations" / "instances_val.json").read_text())
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [0, 0, 2, 2] if a["category_id"] == 9 else a["bbox"],
            "score": score,
        }
        for a in truth["annotations"]
    ]
    path = directory / "evaluation_val" / "detections.json"
    path.write_text(json.dumps(found))


def test_with_data_errors_and_scores_are_compared(runs, data, capsys):
    detections(runs[0], data, 0.9)
    detections(runs[1], data, 1.0)
    assert main(["compare", *map(str, runs), "--data", str(data)]) == 0
    out = capsys.readouterr().out
    table = {
        " ".join(row[:-3]): row[-3:] for row in rows(out, "Errors and scores, val")
    }
    assert table["AP50"] == ["0.667", "0.667", "+0.000"]
    # Nothing is left of the class once its objects or its detections are left out.
    assert table["cost: missed"] == ["0.000", "0.000", "+0.000"]
    assert table["cost: classification"] == ["0.000", "0.000", "+0.000"]
    mean_distance = rows(out, "Errors and scores, val")[-1]
    assert mean_distance[-3:] == ["0.100", "0.000", "-0.100"]


def test_a_page_has_the_curves_of_all_runs_in_common_axes(runs, tmp_path, browser):
    out = tmp_path / "compare.html"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    page = Page(browser, tmp_path)
    page.open_file(out, width=900)
    assert page.texts("h2") == [
        "Runs",
        "Curves",
        "Settings that differ",
        "Metrics, end of training",
        "Metrics, evaluation_val",
        "AP by class, evaluation_val",
    ]
    images = page.images()
    assert len(images) == 2 and all(width > 0 for _, width in images)
    assert page.requests() == [out.resolve().as_uri()]
    page.check_clean()
    page.save("compare", whole=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FIRST"], "Two run directories or more"),
        (["FIRST", "absent"], "must hold history.csv, metrics.json or an evaluation"),
        (["FIRST", "FIRST", "--data", "DATA"], "detections.json, which does not exist"),
        (["FIRST", "FIRST", "--data", "DATA", "--split", "test"], "the split 'test'"),
    ],
)
def test_mistakes_are_one_message(arguments, message, runs, mistake):
    arguments = [argument.replace("FIRST", str(runs[0])) for argument in arguments]
    assert message in mistake("compare", *arguments)


def test_a_broken_metrics_file_is_named(runs, mistake):
    (runs[0] / "metrics.json").write_text("{")
    assert "first/metrics.json" in mistake("compare", *runs)
