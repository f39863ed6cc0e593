import pathlib

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
        report = {
            "num_nodes": 702,
            "box_difference": 3e-4,
            "score_difference": 1e-6,
            "sizes": [(2, 75, 107)],
        }
        if settings["quantize"] != "none":
            off = {"box_difference": 0.004, "score_difference": 0.03, "num_images": 4}
            report |= {"quantized": off, "float32_seconds": 0.5, "seconds": 0.6}
        return report

    def verify(path, detector, images):
        calls.append([image.name for image in images])
        report = {"num_detections": 42, "score_difference": 2e-6}
        if calls[0]["quantize"] != "none":
            return {**report, "lowest_iou": 0.93}
        return {**report, "box_difference": 1e-4}

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
        "quantize": "none",
        "calibration": (),
        "allow_slower": False,
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


@pytest.mark.parametrize(
    ("quantize", "note"),
    [("float16", "Float16 pays on GPUs"), ("int8", "as --allow-slower says")],
)
def test_a_quantised_file_is_described_with_its_differences_and_time(
    quantize, note, run_dir, traced, data, tmp_path, capsys, quick
):
    image = data / "val" / "a.jpg"
    arguments = ["--format", "onnx", "--quantize", quantize, "--verify", str(image)]
    arguments += ["--out", str(tmp_path / "cells.onnx")]
    if quantize == "int8":
        arguments += ["--data", str(data), "--allow-slower"]
    status = main(["export", str(run_dir), *arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert quick[0]["quantize"] == quantize
    assert quick[0]["allow_slower"] is (quantize == "int8")
    images = {pathlib.Path(path).parent.name for path in quick[0]["calibration"]}
    assert images == ({"val"} if quantize == "int8" else set())
    assert f"quantize   {quantize}\n" in captured.out
    bounds = {"float16": ("0.002", "0.005"), "int8": ("0.05", "0.1")}[quantize]
    assert f"differ by 0.004 of the longer side at most ({bounds[0]} " in captured.out
    assert f"scores by 0.03 ({bounds[1]})" in captured.out
    assert "600 ms for an image of the config's size, 500 ms with" in captured.out
    assert f"note: {quantize} is slower than float32 here. " in captured.out
    assert note in captured.out
    assert "those above 0.3 overlap by 0.93 or more" in captured.out


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
    for format, quantize, formats in (
        ("onnx", "dynamic_int8", "litert"),
        ("litert", "int8", "onnx"),
        ("saved_model", "float16", "onnx and litert"),
    ):
        error = mistake("export", "RUN", "--format", format, "--quantize", quantize)
        assert f"--quantize {quantize} is for --format {formats}. " in error
    onnx = ("export", "RUN", "--format", "onnx")
    for wrong in (
        ["--quantize", "int8"],
        ["--quantize", "float16", "--data", "DATA"],
        ["--quantize", "float16", "--allow-slower"],
        ["--data", "DATA"],
    ):
        assert "--quantize int8 needs --data" in mistake(*onnx, *wrong)
    error = mistake(*onnx, "--quantize", "int8", "--data", "absent")
    assert "--data must be an existing folder" in error
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
