import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny_run
from vfnet_tf.inference.predictor import Predictor

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from vfnet_tf.export.onnx import model as onnx_model  # noqa: E402
from vfnet_tf.export.onnx.verification import match, verify_onnx  # noqa: E402
from vfnet_tf.inference.onnx import SETTINGS, OnnxDetector, OnnxPredictor  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The tiny detector as two files: predictions of all points, and with NMS."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_model, "CHECKED_SIZES", ((1, 75, 107),))
        for name, has_nms in (("raw.onnx", False), ("nms.onnx", True)):
            paths[name] = folder / name
            onnx_model.export_onnx(
                tiny_run.shared_detector(),
                paths[name],
                config=tiny_run.tiny_config(),
                nms_in_graph=has_nms,
            )
    return paths


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    tiny_run.write_images(folder)
    return folder


def test_the_benchmark_measures_a_file_in_a_process_of_its_own(exported, capsys):
    from vfnet_tf.cli import benchmark

    options = benchmark.BenchmarkOptions(
        export=exported["raw.onnx"], batches=(1, 2), threads=(1,), repeats=1
    )
    assert benchmark.run(options) == 0
    header, rule, *lines = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| raw.onnx | images | threads |")
    assert [line.split("|")[2:4] for line in lines] == [[" 1 ", " 1 "], [" 2 ", " 1 "]]
    for line in (rule, *lines):
        assert line.count("|") == header.count("|")


@pytest.mark.parametrize("name", ["raw.onnx", "nms.onnx"])
def test_predictions_of_files_are_those_of_keras(exported, images, name):
    report = verify_onnx(
        exported[name], tiny_run.shared_detector(), sorted(images.iterdir())
    )
    assert report["num_detections"] > 100
    assert report["box_difference"] < 0.01
    assert report["score_difference"] < 1e-5


def test_predictions_have_names_thresholds_and_pictures(exported, images):
    predictor = OnnxPredictor(exported["raw.onnx"], batch_size=2)
    assert predictor.class_names == tiny_run.CLASS_NAMES
    found = predictor(images, score_threshold=0.4)
    # The same with NMS in the graph, where the threshold is an input.
    in_graph = OnnxPredictor(exported["nms.onnx"])(images, score_threshold=0.01)
    assert len(found) == len(in_graph) == 7
    for one, other in zip(found, in_graph, strict=True):
        keep = other.scores > 0.4
        assert one.names == [other.names[index] for index in np.flatnonzero(keep)]
        np.testing.assert_allclose(one.boxes, other.boxes[keep], atol=0.01)
        assert one.source == other.source
        assert one.draw().shape[-1] == 3
    assert sum(map(len, found)) > 5
    pixels = tiny_run.picture(3, 90, 70)
    np.testing.assert_array_equal(predictor(pixels).image, pixels)


def test_files_settings_and_images_that_do_not_fit_are_refused(
    exported, images, tmp_path
):
    detector = OnnxDetector(exported["nms.onnx"])
    with pytest.raises(ValueError, match=r"takes the settings .*Received: \['nms'\]"):
        detector.detect(np.zeros((1, 64, 96, 3)), nms="soft_linear")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="must be an ONNX file.*broken.onnx"):
        OnnxDetector(broken)
    model = onnx.load(exported["raw.onnx"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="that `vfnet export --format onnx` wrote"):
        OnnxDetector(tmp_path / "other.onnx")
    bad, predictor = tmp_path / "bad.jpg", OnnxPredictor(exported["raw.onnx"])
    cut = (images / "a.jpg").read_bytes()[:200]
    for content, problem in ((cut, "cannot be decoded"), (b"GIF", "is not an image")):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=f"bad.jpg {problem}"):
            predictor(bad)


def test_detections_are_matched_whatever_their_order():
    boxes = np.array([[0, 0, 5, 5], [9, 9, 20, 20], [0, 0, 5, 5]], "float32")
    scores = np.array([0.9, 0.5, 0.4999], "float32")
    labels = np.array([0, 1, 1])
    order = [0, 2, 1]
    swapped = (boxes[order], scores[order] + 1e-3, labels[order])
    box_off, score_off = match(swapped, (boxes, scores, labels))
    assert box_off == 0
    assert score_off == pytest.approx(1e-3, rel=1e-3)
    box_off, _ = match((boxes + 2, scores, labels), (boxes, scores, labels))
    assert box_off == 2
    assert match((boxes, scores, labels), (boxes, scores, 1 - labels)) is None
    nothing = (boxes[:0], scores[:0], labels[:0])
    assert match(nothing, nothing) == (0, 0)


def test_a_difference_is_an_error_that_names_the_image(exported, images):
    other = tiny_run.PlainDetector()
    for name in SETTINGS:
        setattr(other, name, getattr(tiny_run.shared_detector(), name))
    with pytest.raises(ValueError, match="other classes or counts for .*a.jpg"):
        verify_onnx(exported["raw.onnx"], other, [images / "a.jpg"])


def test_the_command_predicts_without_tensorflow_and_keras(exported, images, tmp_path):
    code = (
        "import sys\n"
        "from vfnet_tf.cli.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "print([m for m in ('tensorflow', 'keras', 'onnx') if m in sys.modules])\n"
        "sys.exit(status)"
    )
    out = tmp_path / "found"
    arguments = ["predict", str(images), "--model", str(exported["raw.onnx"])]
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"
    content = json.loads((out / "detections.json").read_text())
    assert len(content["images"]) == 7
    # The same as with TensorFlow.
    predictor = Predictor(tiny_run.shared_detector(), tiny_run.tiny_config())
    expected = [
        box["bbox"]
        for prediction in predictor(images, score_threshold=0.3)
        for box in prediction.to_coco()
    ]
    found = [box["bbox"] for box in content["annotations"]]
    assert len(found) > 20
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert (out / "a.jpg").stat().st_size > 1000
