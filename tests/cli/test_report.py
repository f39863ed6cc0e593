import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny_run
from tests.browser import Page
from vfnet_tf.cli.__main__ import main
from vfnet_tf.inference import load

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "coco_results"
TRUTH = GOLDEN / "instances_val2014_100.json"
RESULTS = GOLDEN / "instances_val2014_fakebbox100_results.json"
HEADINGS = [
    "Metrics",
    "Training",
    "Classes",
    "Precision and recall",
    "Sizes",
    "Score and IoU",
    "Errors",
    "Confusions",
    "Best and worst images",
]
HISTORY = """epoch,step,loss,val_AP,learning_rate
1,10,2.5,0.1,0.01
2,20,1.5,0.3,0.01
"""


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint_report(data, tmp_path_factory):
    """The report of a run with a history over seven images."""
    run_dir = tmp_path_factory.mktemp("report") / "run"
    run_dir.mkdir()
    (run_dir / "history.csv").write_text(HISTORY)
    weights = run_dir / "best.weights.h5"
    loaded = (tiny_run.PlainDetector(), tiny_run.tiny_config(), weights)
    report = run_dir / "new" / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_checkpoint", lambda *arguments: loaded)
        # Its scores are what the image's pixels make them.
        out = ["--report", report, "--score-threshold", "-1"]
        assert evaluate("--checkpoint", run_dir, "--data", data, *out) == 0
    return report


@pytest.fixture(scope="module")
def results_report(tmp_path_factory):
    """The report of a results file of eighty classes, without images."""
    report = tmp_path_factory.mktemp("report") / "report.html"
    assert evaluate("--results", RESULTS, "--data", TRUTH, "--report", report) == 0
    return report


@pytest.fixture
def page(browser, tmp_path):
    return Page(browser, tmp_path)


@pytest.mark.parametrize(
    "size", [{"width": 1280, "dark": True}, {"width": 390}], ids=["dark", "phone"]
)
def test_a_report_is_whole_in_a_browser_and_asks_for_nothing(
    page, checkpoint_report, size
):
    page.open_file(checkpoint_report, **size)
    assert page.texts("h2") == HEADINGS
    # Two curves of training and its rate, PR, size, calibration, errors, confusions,
    # and seven pictures.
    images = page.images()
    assert len(images) == 3 + 2 + 1 + 2 + 1 + 1 + 7
    assert all(width > 0 for _, width in images)
    assert page.requests() == [checkpoint_report.resolve().as_uri()]
    page.check_clean()
    screenshot = Image.open(page.save(f"report_{size['width']}", whole=True))
    assert screenshot.height > 2000


def test_the_numbers_of_the_page_are_those_of_the_metrics(page, checkpoint_report):
    page.open_file(checkpoint_report)
    metrics = json.loads(
        (checkpoint_report.parents[1] / "evaluation_val" / "metrics.json").read_text()
    )
    rows = [text.split("\t") for text in page.texts("#s0 tr")]
    assert [row[0] for row in rows[1:13]] == list(metrics)[:12]
    for name, value, _ in rows[1:13]:
        expected = "–" if metrics[name] is None else f"{metrics[name]:.3f}"
        assert value == expected
    assert rows[13][0] == "at one threshold, given"
    assert rows[14] == ["score threshold", "-1.000"]
    classes = [text.split("\t") for text in page.texts("#s2 tr")][1:]
    assert [row[0] for row in classes] == list(tiny_run.CLASS_NAMES)
    for row in classes:
        assert row[1] == f"{metrics['per_class'][row[0]]['AP']:.3f}"
        assert row[9] == "7"  # objects


def test_eighty_classes_without_images_and_without_a_run(page, results_report):
    page.open_file(results_report)
    assert page.texts("h2") == [name for name in HEADINGS if name != "Training"]
    assert all(width > 0 for _, width in page.images())
    last = page.texts("section:last-of-type")[0]
    assert "Left out" in last and "img" not in last
    assert len(page.texts("#s1 tbody tr")) == 80
    # All twelve, as pycocotools prints them.
    assert page.texts("#s0 tbody tr")[0].startswith("AP\t0.505\t")
    page.check_clean()
    page.save("report_80_classes", whole=True)


@pytest.fixture
def almost_perfect(data, tmp_path):
    """Almost all: one object is missed, one has another's class, one lies elsewhere."""
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [
        {**{key: a[key] for key in keys}, "score": 0.9} for a in content["annotations"]
    ]
    del results[3]
    results[0]["category_id"] = 5
    results[1]["bbox"] = [90, 80, 9, 9]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path


def test_results_with_images_show_what_is_right_false_and_missed(
    data, almost_perfect, tmp_path
):
    report = tmp_path / "report.html"
    results = ["--results", almost_perfect, "--data", data]
    assert evaluate(*results, "--report", report) == 0
    text = report.read_text()
    assert "<h3>Best</h3>" in text and "<h3>Worst</h3>" in text
    # The disc's box as a square overlaps the square by 65 of 85: 1.765 / 3.
    assert "a.jpg: quality 0.588, 2 right, 1 false, 1 missed" in text
    assert "c.png: quality 1.000, 3 right, 0 false, 0 missed" in text


def test_images_that_are_gone_are_named_and_the_others_shown(
    data, almost_perfect, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "val" / "a.jpg").write_bytes(b"no image")
    report = tmp_path / "report.html"
    results = ["--results", almost_perfect, "--data", copy]
    assert evaluate(*results, "--report", report) == 0
    text = report.read_text()
    assert "1 images cannot be read, such as" in text and "a.jpg." in text
    assert text.count("quality") >= 6


def test_a_report_without_any_detection_is_written(data, tmp_path):
    empty, report = tmp_path / "empty.json", tmp_path / "report.html"
    empty.write_text("[]")
    assert evaluate("--results", empty, "--data", data, "--report", report) == 0
    assert "Evaluation: AP 0.000" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score-threshold", "0.5"], "without --report"),
        (["--report", "DATA"], "must be a file to write"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(arguments, message, mistake):
    assert message in mistake("evaluate", "--checkpoint", "absent", *arguments)


def test_a_model_file_has_a_report_too(data, tmp_path, monkeypatch):
    from vfnet_tf.inference import litert
    from vfnet_tf.inference.runtime import RuntimePredictor

    class Predictor(RuntimePredictor):
        """Finds one disc in each image."""

        config = tiny_run.tiny_config()
        detector = tiny_run.PlainDetector()

        def __init__(self, path, num_threads):
            pass

        def __call__(self, path):
            self.boxes = np.array([[5, 8, 80, 68]], "float32")
            self.scores, self.labels = np.array([0.9]), np.array([0])
            return self

    monkeypatch.setattr(litert, "LiteRTPredictor", Predictor)
    report = tmp_path / "report.html"
    model = ["--model", tmp_path / "a.tflite", "--report", report]
    assert evaluate(*model, "--data", data) == 0
    assert "a.tflite on " in report.read_text()
