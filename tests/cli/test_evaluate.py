import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest

import vfnet_tf
from tests import tiny_run
from tests.evaluation.scene import metrics_of
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import override, save_config
from vfnet_tf.data import synthetic
from vfnet_tf.data.formats.readers import read_split
from vfnet_tf.data.views import OFFICIAL_SIZES
from vfnet_tf.inference.dataset import config_at_size, view_sizes
from vfnet_tf.inference.predictor import Predictor

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "coco_results"


def lines_after(text, start):
    """The words of the first line that begins with `start`."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return line.split()


def test_a_results_file_gives_the_numbers_of_pycocotools(capsys, tmp_path):
    results = str(GOLDEN / "instances_val2014_fakebbox100_results.json")
    truth = str(GOLDEN / "instances_val2014_100.json")
    options = ["--results", results, "--data", truth, "--out", str(tmp_path / "new")]
    assert main(["evaluate", *options]) == 0
    out = capsys.readouterr().out
    # What pycocotools prints for these files.
    precision = "precision AP 0.505 AP50 0.697 AP75 0.573 APs 0.586 APm 0.519 APl 0.501"
    recall = "recall AR1 0.387 AR10 0.594 AR100 0.595 ARs 0.640 ARm 0.566 ARl 0.564"
    assert lines_after(out, "precision") == precision.split()
    assert lines_after(out, "recall") == recall.split()
    assert lines_after(out, "person")[0] == "person"
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert round(metrics["AP"], 3) == 0.505
    assert "person" in metrics["per_class"]


@pytest.fixture(scope="module")
def evaluated(run_dir, traced, data, tmp_path_factory):
    """(stdout, folder of the json files) of a run over the seven images."""
    out = tmp_path_factory.mktemp("evaluated")
    text = io.StringIO()
    arguments = ["--checkpoint", str(run_dir), "--data", str(data)]
    with contextlib.redirect_stdout(text):
        assert main(["evaluate", *arguments, "--out", str(out)]) == 0
    return text.getvalue(), out


def test_a_checkpoint_gives_detections_for_the_server_and_metrics(evaluated, data):
    text, out = evaluated
    truth = data / "annotations" / "instances_val.json"
    again = metrics_of(truth, out / "detections.json")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.pop("per_class") == again.pop("per_class")
    for name, value in metrics.items():
        expected = None if np.isnan(again[name]) else again[name]
        assert value == expected, name
    assert lines_after(text, "checkpoint")[1].endswith("best.weights.h5")
    assert "7 images with 21 boxes of 3 classes" in text
    assert lines_after(text, "disc")[0] == "disc"
    assert f"{out}/detections.json" in text and f"{out}/metrics.json" in text


def test_predict_finds_exactly_what_evaluate_counts(evaluated, data):
    results = json.loads((evaluated[1] / "detections.json").read_text())
    predictor = Predictor(tiny_run.shared_detector(), tiny_run.tiny_config())
    for name, image_id in (("a.jpg", 10), ("f.jpg", 15)):
        expected = [result for result in results if result["image_id"] == image_id]
        assert len(expected) > 5
        assert predictor(data / "val" / name).to_coco(image_id) == expected


TTA_SIZES = ((96, 128), (128, 160))


@pytest.fixture(scope="module")
def augmented(run_dir, traced, data):
    """(stdout, folder of the json files) of three images with two sizes each."""
    text = io.StringIO()
    arguments = ["--checkpoint", str(run_dir), "--data", str(data), "--limit", "3"]
    arguments += ["--tta-sizes", *(str(side) for size in TTA_SIZES for side in size)]
    with contextlib.redirect_stdout(text):
        assert main(["evaluate", *arguments]) == 0
    return text.getvalue(), run_dir / "evaluation_val_tta"


def test_views_of_each_image_are_evaluated_and_predict_sees_the_same(augmented, data):
    text, out = augmented
    assert "views      96x128, 128x160, each plain and mirrored" in text
    results = json.loads((out / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {10, 11, 12}
    assert json.loads((out / "metrics.json").read_text())["AP"] >= 0
    predictor = Predictor(
        tiny_run.shared_detector(), tiny_run.tiny_config(), tta_sizes=TTA_SIZES
    )
    expected = [result for result in results if result["image_id"] == 10]
    assert len(expected) > 5
    assert predictor(data / "val" / "a.jpg").to_coco(10) == expected
    # Not what the config's size alone gives.
    plain = Predictor(tiny_run.shared_detector(), tiny_run.tiny_config())
    assert plain(data / "val" / "a.jpg").to_coco(10) != expected


def test_another_size_than_that_of_training_is_evaluated_and_predicted(
    run_dir, traced, data, tmp_path
):
    size = ["--image-size", "96", "200"]
    run = ["--checkpoint", str(run_dir), *size]
    assert main(["evaluate", *run, "--data", str(data), "--limit", "1"]) == 0
    out = run_dir / "evaluation_val_96x200"
    results = json.loads((out / "detections.json").read_text())
    config = override(tiny_run.tiny_config(), data__image_size=(96, 200))
    predictor = Predictor(tiny_run.shared_detector(), config)
    expected = predictor(data / "val" / "a.jpg").to_coco(10)
    assert len(expected) > 5
    assert results == expected
    image = str(data / "val" / "a.jpg")
    out = ["--out", str(tmp_path), "--no-pictures", "--score-threshold", "0.05"]
    assert main(["predict", image, *run, *out]) == 0
    content = json.loads((tmp_path / "detections.json").read_text())
    boxes = [row["bbox"] for row in content["annotations"]]
    assert boxes == [row["bbox"] for row in expected]


def test_one_size_and_views_of_several_do_not_go_together():
    config = tiny_run.tiny_config()
    with pytest.raises(ValueError, match="with --tta"):
        config_at_size(config, (96, 200), has_views=True)
    with pytest.raises(ValueError, match=r"Received: image_size=\(200, 96\)"):
        config_at_size(config, (200, 96))


def test_the_official_sizes_are_taken_where_none_are_given():
    config = tiny_run.tiny_config()
    assert view_sizes(config, ()) == ()
    assert view_sizes(config, "official") == OFFICIAL_SIZES
    stretching = override(config, data__keep_ratio=False)
    assert view_sizes(stretching, TTA_SIZES) == TTA_SIZES
    with pytest.raises(ValueError, match="give --tta-sizes.*'tiny'"):
        view_sizes(stretching, "official")


def test_the_first_images_alone_and_a_json_file_as_data(data):
    path = data / "annotations" / "instances_val.json"
    dataset = read_split(path, class_names=("star", "disc"), limit=2)
    assert [record.image_id for record in dataset] == [10, 11]
    assert dataset.category_ids == (9, 3)
    everything = read_split(data, limit=100)
    assert len(everything) == 7


def test_images_without_objects_are_evaluated_too(data, tmp_path):
    content = json.loads((data / "annotations/instances_val.json").read_text())
    del content["annotations"][3:]
    path = tmp_path / "sparse.json"
    path.write_text(json.dumps(content))
    dataset = read_split(path, image_dir=data / "val")
    assert [len(record.boxes) for record in dataset] == [3, 0, 0, 0, 0, 0, 0]


def test_without_data_the_generated_images_are_taken_and_said(capsys, monkeypatch):
    small = synthetic.make_synthetic_dataset(
        num_train=1, num_val=2, image_size=(64, 96)
    )
    monkeypatch.setattr(synthetic, "make_synthetic_dataset", lambda: small)
    assert len(read_split(None, log=print)) == 2
    out = capsys.readouterr().out
    assert "none given (--data): the generated images in" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --checkpoint, --model and --results"),
        (["--checkpoint", "a", "--results", "b"], "Give one of --checkpoint, --model"),
        (["--model", "a.tflite", "--tta"], "Received: --model with --tta"),
        (["--model", "absent.tflite"], "must be a .tflite file by `export_litert`"),
        (["--results", "b"], "--results needs --data"),
        (["--checkpoint", "nowhere"], "nowhere, which does not exist"),
        (["--checkpoint", "RUN", "--data", "nowhere"], "--data must be an exis"),
        (["--checkpoint", "RUN", "--data", "DATA", "--split", "test"], "'test'. Rec"),
        (["--checkpoint", "RUN", "--data", "DATA", "--limit", "0"], "--limit must be"),
        (["--results", "nowhere.json", "--data", "DATA"], "path=nowhere.json"),
        (["--results", "a", "--data", "DATA", "--limit", "1"], "--limit goes with"),
        (["--results", "a", "--data", "DATA", "--tta"], "--tta runs a detector image"),
        (["--checkpoint", "RUN", "--tta", "--batch-size", "2"], "--batch-size 2"),
        (
            ["--checkpoint", "RUN", "--data", "DATA", "--tta-sizes", "160", "128"],
            "image_size=(160, 128)",
        ),
    ],
)
def test_mistakes_are_one_message(arguments, message, mistake):
    assert message in mistake("evaluate", *arguments)


def test_data_of_other_classes_is_refused(run_dir, data, mistake, tmp_path):
    content = json.loads((data / "annotations/instances_val.json").read_text())
    content["categories"][0]["name"] = "cell"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    options = ["--data", other, "--images", data / "val"]
    error = mistake("evaluate", "--checkpoint", run_dir, *options)
    assert "missing=['disc']" in error and "'cell'" in error

    # A detector without names of classes compares their number.
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    config = tiny_run.tiny_config(class_names=(), category_ids=())
    save_config(config, run / "config.json")
    content["categories"].append({"id": 99, "name": "other"})
    other.write_text(json.dumps(content))
    error = mistake("evaluate", "--checkpoint", run, *options)
    assert "must have the 3 classes of the detector" in error


def test_python_measures_as_the_command_does(evaluated, run_dir, data, capsys):
    written = json.loads((evaluated[1] / "metrics.json").read_text())
    metrics = vfnet_tf.evaluate(run_dir, data, verbose=False)
    assert capsys.readouterr().out == ""
    assert metrics["AP"] == pytest.approx(written["AP"])
    splits = vfnet_tf.open_dataset(data)
    config = tiny_run.tiny_config()
    detector = tiny_run.shared_detector()
    again = vfnet_tf.evaluate(detector, splits["val"], config=config, verbose=False)
    assert again["AP"] == metrics["AP"] and again["AP50"] == metrics["AP50"]
    predictor = vfnet_tf.Predictor(detector, config)
    again = vfnet_tf.evaluate(predictor, splits["val"], verbose=False)
    assert again["AP"] == metrics["AP"]


def test_a_detector_without_a_config_says_what_it_is_for(data):
    with pytest.raises(ValueError, match="needs `config`, which says how images"):
        vfnet_tf.evaluate(tiny_run.shared_detector(), data)
