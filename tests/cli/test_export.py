import json
import pathlib

import keras
import pytest

from tests import tiny_run
from vfnet_tf.cli import export
from vfnet_tf.cli.__main__ import main

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny_run.write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    tiny_run.write_images(folder)
    return [str(folder / name) for name in ("a.jpg", "c.png")]


@pytest.fixture
def quick(monkeypatch):
    """Records the calls and writes a doubling function in place of a detector."""
    import tensorflow as tf

    from vfnet_tf.export.saved_model import exporter as saved_model
    from vfnet_tf.export.saved_model import verification

    calls = []

    def write(detector, directory, **settings):
        calls.append((detector.dtype_policy.name, settings))
        module = tf.Module()
        module.double = tf.function(
            lambda x: {"doubled": 2 * x},
            input_signature=[tf.TensorSpec((None, 4), "float32", name="x")],
        )
        signatures = {"serving_default": module.double.get_concrete_function()}
        tf.saved_model.save(module, str(directory), signatures=signatures)

    def verify(directory, detector, paths):
        calls.append(paths)
        return {
            "num_batches": 3,
            "num_detections": 142,
            "box_difference": 0.0,
            "score_difference": 2e-7,
        }

    monkeypatch.setattr(saved_model, "export_saved_model", write)
    monkeypatch.setattr(verification, "verify_saved_model", verify)
    return calls


def test_options_reach_the_export_and_its_signatures_are_shown(
    run_dir, images, tmp_path, capsys, quick
):
    out = tmp_path / "models" / "cells" / "1"
    arguments = ["--out", str(out), "--image-size", "96", "128"]
    arguments += ["--score-threshold", "0.2", "--max-detections", "7"]
    arguments += ["--nms-iou-threshold", "0.5", "--precision", "mixed_bfloat16"]
    arguments += ["--box-format", "yxyx_normalized"]
    status = main(["export", str(run_dir), *arguments, "--verify", *images])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    (precision, settings), paths = quick
    assert precision == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    config = settings.pop("config")
    assert config.class_names == tiny_run.CLASS_NAMES
    assert settings == {
        "image_size": (96, 128),
        "score_threshold": 0.2,
        "nms_iou_threshold": 0.5,
        "max_detections": 7,
        "box_format": "yxyx_normalized",
        "overwrite": False,
    }
    assert [str(path) for path in paths] == images
    assert "serving_default(x: float32 [?, 4])" in captured.out
    assert "doubled            float32 [?, 4]" in captured.out
    assert f'tf.saved_model.load("{out}")' in captured.out
    assert "localhost:8501/v1/models/cells:predict" in captured.out
    assert "142 detections in 3 batches of 2 images" in captured.out

    assert main(["export", str(run_dir), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert "error: `directory` holds a SavedModel" in captured.err
    assert "weights" not in captured.out  # refused before anything is loaded


def test_an_existing_export_is_compared_and_left_as_it_is(
    run_dir, images, tmp_path, capsys, quick, monkeypatch
):
    from vfnet_tf.export import fingerprint
    from vfnet_tf.export.saved_model import verification

    out = tmp_path / "model"
    (out / "assets").mkdir(parents=True)
    weights = fingerprint.file_sha256(run_dir / "best.weights.h5")
    metadata = {
        "precision": "mixed_bfloat16",
        "weights_sha256": weights,
        "config_sha256": fingerprint.config_sha256(tiny_run.tiny_config()),
    }
    file = out / "assets" / "metadata.json"
    file.write_text(json.dumps(metadata))
    arguments = ["export", str(run_dir), "--out", str(out), "--existing"]
    assert main([*arguments, "--verify", *images]) == 0
    captured = capsys.readouterr()
    assert "is made of" in captured.out
    assert "142 detections in 3 batches of 2 images" in captured.out
    assert [[str(path) for path in paths] for paths in quick] == [images]

    def differ(directory, detector, paths):
        raise ValueError("Boxes and scores of the SavedModel must be the detector's.")

    monkeypatch.setattr(verification, "verify_saved_model", differ)
    assert main([*arguments, "--verify", *images]) == 2
    assert "error: Boxes and scores" in capsys.readouterr().err

    file.write_text(json.dumps({**metadata, "weights_sha256": "0" * 64}))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert f"must be that of the run, {weights}" in captured.err
    assert [path.name for path in out.rglob("*")] == ["assets", "metadata.json"]


def test_a_litert_file_is_exported_verified_evaluated_and_predicted_with(
    images, tmp_path, capsys
):
    run_dir = tiny_run.write_run(tmp_path / "run", tiny_run.quick_config())
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert (extra litert)")
    path = tmp_path / "models" / "cells.tflite"
    arguments = ["--format", "litert", "--out", str(path), "--image-size", "64", "96"]
    status = main(["export", str(run_dir), *arguments, "--verify", *images])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert f"LiteRT     {path}" in captured.out
    assert "verified   2 images in ai-edge-litert" in captured.out
    metadata = json.loads((tmp_path / "models" / "cells.tflite.json").read_text())
    assert metadata["image_size"] == [64, 96] and metadata["quantize"] == "none"
    assert main(["export", str(run_dir), *arguments]) == 2
    assert "`overwrite` must be True" in capsys.readouterr().err

    data = tiny_run.write_coco(tmp_path / "data")
    model = ["--model", str(path)]
    assert main(["evaluate", *model, "--data", str(data), "--limit", "2"]) == 0
    folder = path.with_name("cells_val")
    detections = json.loads((folder / "detections.json").read_text())
    assert json.loads((folder / "metrics.json").read_text())["AP"] >= 0

    # The same images in the same way: predict and evaluate find the same.
    first = data / "val" / "a.jpg"
    out = ["--out", str(tmp_path / "out"), "--score-threshold", "0.05"]
    assert main(["predict", str(first), *model, *out, "--no-pictures"]) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    found = [(a["bbox"], a["score"]) for a in found["annotations"]]
    counted = [d for d in detections if d["image_id"] == 10]
    assert found and found == [(d["bbox"], d["score"]) for d in counted]


@pytest.mark.slow
def test_a_run_is_exported_described_and_verified(run_dir, images, tmp_path, capsys):
    out = tmp_path / "models" / "cells" / "1"
    status = main(["export", str(run_dir), "--out", str(out), "--verify", *images])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert (out / "saved_model.pb").is_file()
    assert f"weights    {run_dir / 'best.weights.h5'}" in captured.out
    assert "serving_default(image_bytes: string [?])" in captured.out
    assert "in 3 batches of 2 images" in captured.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{run}", "--verify", "absent.jpg"], "--verify must name existing files"),
        (["absent.weights.h5"], "--out must say where to write"),
        (["absent", "--out", "{out}"], "absent"),
        (["{run}", "--out", "{out}", "--score-threshold", "2"], "`score_threshold`"),
        (["{run}", "--out", "{out}", "--existing"], "no assets/metadata.json"),
        (["{run}", "--format", "litert", "--out", "{out}"], "must be a file"),
        (
            ["{run}", "--format", "litert", "--precision", "mixed_bfloat16"],
            "has --quantize in place of --precision",
        ),
    ],
)
def test_mistakes_end_in_one_message(run_dir, tmp_path, mistake, arguments, message):
    places = {"run": run_dir, "out": tmp_path / "out"}
    filled = [argument.format(**places) for argument in arguments]
    assert message in mistake("export", *filled)
    assert not (tmp_path / "out").exists()


def test_the_snippet_tells_where_serving_wants_a_version():
    text = export.usage(pathlib.Path("/models/cells"))
    assert "/models/cells/1" in text
    assert "--model_base_path=/models/cells" in text
    assert "first move" not in export.usage(pathlib.Path("/models/cells/3"))
