import keras
import pytest

from tests import tiny_run
from vfnet_tf.cli.__main__ import main

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the metadata name TensorFlow's version", allow_module_level=True)

from vfnet_tf.export.onnx import model as onnx_model
from vfnet_tf.export.onnx import verification as onnx_verification


@pytest.fixture
def quick(monkeypatch):
    """Records the calls and writes a short file in place of a detector."""
    calls = []

    def write(detector, path, **settings):
        calls.append(settings)
        path.write_bytes(bytes(1500000))
        return {
            "num_nodes": 702,
            "box_difference": 3e-4,
            "score_difference": 1e-6,
            "sizes": [(2, 75, 107)],
        }

    def verify(path, detector, images):
        calls.append([image.name for image in images])
        return {"num_detections": 42, "box_difference": 1e-4, "score_difference": 2e-6}

    monkeypatch.setattr(onnx_model, "export_onnx", write)
    monkeypatch.setattr(onnx_verification, "verify_onnx", verify)
    return calls


def test_options_reach_the_export_and_the_check_is_told(
    run_dir, traced, tmp_path, capsys, quick
):
    image = tmp_path / "a.jpg"
    image.write_bytes(b"")
    out = tmp_path / "cells.onnx"
    arguments = ["--format", "onnx", "--nms", "--out", str(out), "--overwrite"]
    arguments += ["--image-size", "96", "128", "--score-threshold", "0.2"]
    arguments += ["--max-detections", "7", "--nms-iou-threshold", "0.5"]
    status = main(["export", str(run_dir), *arguments, "--verify", str(image)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    settings, verified = quick
    assert settings.pop("config").class_names == tiny_run.CLASS_NAMES
    assert settings == {
        "nms_in_graph": True,
        "image_size": (96, 128),
        "score_threshold": 0.2,
        "nms_iou_threshold": 0.5,
        "max_detections": 7,
        "overwrite": True,
    }
    assert verified == ["a.jpg"]
    assert f"{out}, 1.5 MB, 702 nodes" in captured.out
    assert (
        "images of 2 x 75 x 107: boxes differ by 0.0003 pixels at most, scores by 1e-06"
        in captured.out
    )
    assert "42 detections in 1 images" in captured.out
    assert f"vfnet predict street.jpg --model {out}" in captured.out


def test_the_file_lies_in_the_run_by_default(run_dir, traced, capsys, quick, mistake):
    assert main(["export", str(run_dir), "--format", "onnx"]) == 0
    path = run_dir / "model.onnx"
    assert str(path) in capsys.readouterr().out
    assert quick[0]["nms_in_graph"] is False
    error = mistake("export", run_dir, "--format", "onnx")
    assert "`overwrite` must be True" in error
    path.unlink()


def test_what_onnx_files_do_not_have_is_refused(quick, mistake):
    arguments = ["--format", "onnx", "--precision", "mixed_bfloat16"]
    error = mistake("export", "RUN", *arguments)
    assert "Received: --precision mixed_bfloat16" in error
    assert "--nms is for --format onnx" in mistake("export", "RUN", "--nms")
    assert not quick


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--checkpoint", "run", "--model", "a.onnx"],
            "either --checkpoint or --model",
        ),
        (["--model", "no.onnx", "--tta"], "Received: --tta"),
        (["--model", "no.onnx"], "must be an ONNX file"),
    ],
)
def test_prediction_is_by_a_checkpoint_or_a_model(options, message, mistake):
    assert message in mistake("predict", "DATA/val/a.jpg", *options)
