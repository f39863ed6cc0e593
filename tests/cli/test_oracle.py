import contextlib
import dataclasses
import io
import json

import pytest

from tests import tiny_run
from vfnet_tf.cli import oracle
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import load_config, save_config
from vfnet_tf.paper.oracle import COLUMNS


def cells_of(text):
    """dict first cell -> other cells of the Markdown table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def studied(*arguments):
    """stdout and the numbers of a run of the command with `--out`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["oracle", *(str(argument) for argument in arguments)]) == 0
    return text.getvalue(), json.loads(arguments[-1].read_text())


@pytest.fixture(scope="module")
def fcos_run(tmp_path_factory):
    """Run directory of an FCOS+ATSS in miniature."""
    tiny = tiny_run.tiny_config()
    model = dataclasses.replace(
        tiny.model, detector="fcos", assigner="atss", class_loss="focal"
    )
    config = dataclasses.replace(tiny, name="tiny_fcos", model=model)
    directory = tmp_path_factory.mktemp("oracle") / "fcos"
    directory.mkdir()
    detector = tiny_run.tiny_detector(config)
    for variable in detector.head.box_predictor.weights:
        if variable.name == "bias":
            variable.assign([4.0] * 4)  # squares of 8 strides, some of which fit
    detector.save_weights(directory / "best.weights.h5")
    save_config(config, directory / "config.json")
    return directory


@pytest.fixture(scope="module")
def fcos(fcos_run, data):
    """(stdout, numbers) of FCOS+ATSS over three images, in batches of up to two."""
    out = fcos_run / "numbers" / "oracle.json"
    arguments = ["--checkpoint", fcos_run, "--data", data, "--limit", 3]
    arguments += ["--batch-size", 2, "--max-canvas-shapes", 2]
    return studied(*arguments, "--out", out)


def test_fcos_with_atss_has_ten_columns_and_the_row_of_the_paper(fcos):
    text, numbers = fcos
    cells = cells_of(text)
    assert "tiny_fcos, percent" in cells
    assert cells["w/ctr"] == ["", "✓", "✓", "✓", "", "✓", "", "✓", "", "✓"]
    assert cells["gt_bbox"] == ["", "", "", "", "✓", "✓", "", "", "", ""]
    paper = ["38.5", "39.2", "41.1", "43.5", "56.1", "56.3", "43.1", "58.1"]
    assert cells["AP of the paper (COCO val2017)"] == [*paper, "74.7", "67.4"]
    for name in ("AP", "AP50", "AP75"):
        expected = [f"{100 * column[name]:.1f}" for column in numbers["columns"]]
        assert cells[name] == expected
    assert "gt_ctr_iou  centerness by the gt_IoU" in text


def test_the_numbers_say_what_they_were_measured_on(fcos, fcos_run, data):
    numbers = fcos[1]
    assert numbers["config"] == "tiny_fcos"
    assert numbers["weights"] == str(fcos_run / "best.weights.h5")
    assert numbers["annotations"] == str(data / "annotations" / "instances_val.json")
    assert numbers["num_images"] == 3
    kinds = [(c["oracle"], c["with_centerness"]) for c in numbers["columns"]]
    assert kinds == [(c.oracle, c.with_centerness) for c in COLUMNS]
    # Random scores rank wrong classes high; still the truth finds more.
    columns = dict(zip(kinds, numbers["columns"], strict=True))
    plain = columns[None, False]
    assert columns["gt_bbox", False]["AR100"] > 2 * plain["AR100"] > 0
    assert columns["gt_cls", False]["AP"] > 2 * plain["AP"] > 0
    assert list(numbers["columns"][0]["per_class"]) == ["disc", "square", "star"]


def test_the_plain_column_with_centerness_is_what_evaluate_measures(
    fcos, fcos_run, data, tmp_path, capsys
):
    arguments = ["--checkpoint", fcos_run, "--data", data, "--limit", "3"]
    arguments += ["--max-canvas-shapes", "2", "--out", tmp_path]
    assert main(["evaluate", *(str(argument) for argument in arguments)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    column = fcos[1]["columns"][1]
    assert metrics["AR100"] > 0  # not for nothing
    assert {name: column[name] for name in metrics} == metrics


def test_vfnet_has_four_columns_and_none_of_the_paper(run_dir, traced, data, tmp_path):
    arguments = ["--checkpoint", run_dir, "--data", data, "--limit", 1]
    text, numbers = studied(*arguments, "--out", tmp_path / "oracle.json")
    cells = cells_of(text)
    rows = ["tiny, percent", "---", "gt_bbox", "gt_cls", "gt_cls_iou"]
    assert list(cells) == [*rows, "AP", "AP50", "AP75"]
    assert all(len(row) == 4 for row in cells.values())
    oracles = [column["oracle"] for column in numbers["columns"]]
    assert oracles == [None, "gt_bbox", "gt_cls", "gt_cls_iou"]
    assert "gt_ctr" not in text


def test_the_row_of_the_paper_is_for_fcos_with_atss_alone():
    names = ("fcos_atss_r50_fpn_1x_coco", "fcos_r50_fpn_gn-head_1x_coco")
    names += ("vfl_atss_r50_fpn_1x_coco", "vfnet_r50_fpn_1x_coco")
    are = [oracle.is_of_paper(load_config(name)) for name in names]
    assert are == [True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere, which does not exist"),
        (["--checkpoint", "RUN", "--data", "nowhere"], "--data must be an exis"),
        (["--checkpoint", "RUN", "--data", "DATA", "--split", "test"], "'test'. Rec"),
        (["--checkpoint", "RUN", "--data", "DATA", "--limit", "0"], "--limit must be"),
        (["--checkpoint", "RUN", "--out", "DATA"], "--out must be a .json file"),
    ],
)
def test_mistakes_are_one_message(arguments, message, traced, mistake):
    assert message in mistake("oracle", *arguments)
