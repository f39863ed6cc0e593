import io
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytest.importorskip("tensorflow_serving", reason="the extra `serving` is not installed")

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from vfnet_tf.cli.__main__ import main
from vfnet_tf.export.saved_model import exporter as saved_model
from vfnet_tf.export.serving import model_repository as tf_serving
from vfnet_tf.export.serving.model_repository import export_for_serving


@pytest.fixture
def quick(monkeypatch, exported):
    """Copies the session's SavedModel in place of exporting; records the settings."""
    calls = []

    def write(detector, directory, **settings):
        calls.append(settings)
        shutil.copytree(exported, directory)
        return pathlib.Path(directory)

    monkeypatch.setattr(saved_model, "export_saved_model", write)
    return calls


def read_warmup(version):
    records = tf.data.TFRecordDataset(str(version / tf_serving.WARMUP_FILE))
    return [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in records.as_numpy_iterator()
    ]


def read_models(directory):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((directory / "models.config").read_text(), config)
    return config.model_config_list.config


def read_batching(directory):
    """`BatchingParameters` of session_bundle_config.proto, which no package has."""
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.field.add(name="value", number=1, type=3, label=1)
    message = file.message_type.add(name="BatchingParameters")
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches")
    for number, name in enumerate((*names, "num_batch_threads"), 1):
        message.field.add(
            name=name, number=number, type=11, label=1, type_name=".Value"
        )
    message.field.add(name="allowed_batch_sizes", number=6, type=3, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("BatchingParameters")
    )
    return text_format.Parse(
        (directory / "batching_parameters.txt").read_text(), kind()
    )


def test_a_version_has_the_files_that_a_server_reads(
    tmp_path, detector, exported, quick
):
    path = export_for_serving(detector, tmp_path / "models", image_size=(128, 160))
    assert path == tmp_path / "models" / "vfnet" / "1"
    assert quick == [{"image_size": (128, 160), "max_batch": 32}]
    assert (path / "saved_model.pb").is_file()
    assert (path / "variables" / "variables.index").is_file()
    (model,) = read_models(tmp_path / "models")
    assert (model.name, model.base_path) == ("vfnet", "/models/vfnet")
    assert model.model_platform == "tensorflow"
    batching = read_batching(tmp_path / "models")
    assert batching.max_batch_size.value == 8
    # "The entries must be in increasing order. The final one must be max_batch_size."
    assert list(batching.allowed_batch_sizes) == [1, 2, 4, 8]
    assert batching.batch_timeout_micros.value > 0
    assert batching.num_batch_threads.value > 0
    names = sorted(entry.name for entry in (tmp_path / "models").iterdir())
    assert names == ["batching_parameters.txt", "models.config", "vfnet"]


def test_the_warm_up_runs_in_the_model_at_batch_one_and_the_largest(
    tmp_path, detector, loaded, quick
):
    path = export_for_serving(detector, tmp_path, model_name="cells", max_batch_size=3)
    logs = read_warmup(path)
    sizes = []
    for log in logs:
        request = log.predict_log.request
        assert request.model_spec.name == "cells"
        assert request.model_spec.signature_name == "serving_default"
        assert set(request.inputs) == {"image_bytes"}
        contents = tf.make_ndarray(request.inputs["image_bytes"])
        found = loaded.signatures["serving_default"](
            image_bytes=tf.constant(contents.tolist())
        )
        assert found["num_detections"].shape == contents.shape
        sizes.append(len(contents))
    assert sizes == [1, 3]
    assert list(read_batching(tmp_path).allowed_batch_sizes) == [1, 2, 3]


@pytest.mark.parametrize("image_size", [(800, 1333), (128, 160), (480, 640), (96, 64)])
def test_the_warm_up_image_is_small_and_of_the_shape_of_the_input(image_size):
    contents = tf_serving.warmup_image(image_size)
    width, height = Image.open(io.BytesIO(contents)).size
    assert max(width, height) <= 256 and len(contents) < 20_000
    np.testing.assert_allclose(
        height / width, image_size[0] / image_size[1], atol=0.005
    )


def test_versions_count_on_from_the_largest_and_are_never_replaced(
    tmp_path, detector, quick
):
    (tmp_path / "vfnet" / "0007").mkdir(parents=True)
    (tmp_path / "vfnet" / "notes").mkdir()
    assert export_for_serving(detector, tmp_path).name == "8"
    assert export_for_serving(detector, tmp_path, version=20).name == "20"
    assert export_for_serving(detector, tmp_path).name == "21"
    with pytest.raises(ValueError, match="`version` must be new"):
        export_for_serving(detector, tmp_path, version=7)
    assert tf_serving.versions(tmp_path / "vfnet") == [7, 8, 20, 21]
    assert len(quick) == 3


def test_a_number_taken_by_another_export_is_skipped(
    tmp_path, detector, quick, monkeypatch
):
    look = tf_serving.versions

    def look_just_before_another(directory):
        monkeypatch.setattr(tf_serving, "versions", look)
        seen = look(directory)
        (directory / "1" / "theirs").mkdir(parents=True)
        return seen

    def finish(staging):
        monkeypatch.setattr(tf_serving, "versions", look_just_before_another)

    path = export_for_serving(detector, tmp_path, check=finish)
    assert path.name == "2" and (path / "saved_model.pb").is_file()
    assert [entry.name for entry in (path.parent / "1").iterdir()] == ["theirs"]


def test_a_version_is_seen_whole_or_not_at_all(tmp_path, detector, quick):
    def refuse(staging):
        # Complete, but not yet in a numbered folder.
        assert (staging / tf_serving.WARMUP_FILE).is_file()
        assert tf_serving.versions(tmp_path / "vfnet") == []
        raise ValueError("boxes differ")

    with pytest.raises(ValueError, match="boxes differ"):
        export_for_serving(detector, tmp_path, check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_operator_are_kept(tmp_path, detector, quick):
    batching = "max_batch_size { value: 5 }  # measured in May\n"
    (tmp_path / "batching_parameters.txt").write_text(batching)
    models = (
        "model_config_list { config { name: 'cells' base_path: '/data/cells' "
        "model_version_policy { specific { versions: 42 } } } }"
    )
    (tmp_path / "models.config").write_text(models)
    path = export_for_serving(detector, tmp_path, model_name="cells")
    assert (tmp_path / "batching_parameters.txt").read_text() == batching
    assert (tmp_path / "models.config").read_text() == models
    sizes = [
        log.predict_log.request.inputs["image_bytes"].tensor_shape.dim[0].size
        for log in read_warmup(path)
    ]
    assert sizes == [1, 5]
    export_for_serving(detector, tmp_path, model_name="roads")
    first, second = read_models(tmp_path)
    assert first.base_path == "/data/cells"
    assert list(first.model_version_policy.specific.versions) == [42]
    assert (second.name, second.base_path) == ("roads", "/models/roads")
    with pytest.raises(ValueError, match="`max_batch_size` must be that of .* 5"):
        export_for_serving(detector, tmp_path, max_batch_size=8)


@pytest.mark.parametrize(
    "files, settings, rule",
    [
        ({}, {"model_name": "../up"}, "`model_name` must be"),
        ({}, {"model_name": ""}, "`model_name` must be"),
        ({}, {"version": 0}, "`version` must be >= 1"),
        ({}, {"max_batch_size": 0}, "`max_batch_size` must be >= 1"),
        ({"models.config": "models: {"}, {}, "must be a ModelServerConfig"),
        ({"models.config": "custom_model_config {}"}, {}, "model_config_list"),
        ({"batching_parameters.txt": "# empty"}, {}, "must set `max_batch_size"),
        ({"saved_model.pb": ""}, {}, "the folder above the models"),
    ],
)
def test_names_numbers_and_files_that_no_server_takes_are_refused_first(
    tmp_path, detector, quick, files, settings, rule
):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rule):
        export_for_serving(detector, tmp_path, **settings)
    assert not quick


def test_the_command_writes_checks_and_says_how_to_serve(
    tmp_path, detector, config, images, quick, capsys, monkeypatch
):
    from vfnet_tf.export.saved_model import verification
    from vfnet_tf.inference import load

    checked = []

    def verify(directory, detector, paths):
        checked.append((directory, tf_serving.versions(directory.parent / "cells")))
        return {
            "num_batches": 2,
            "num_detections": 9,
            "box_difference": 0.0,
            "score_difference": 0.0,
        }

    monkeypatch.setattr(verification, "verify_saved_model", verify)
    monkeypatch.setattr(
        load, "load_checkpoint", lambda *_: (detector, config, "best.weights.h5")
    )
    run_dir = tmp_path / "run"
    out = tmp_path / "my models"
    arguments = ["export", str(run_dir), "--serving", str(out), "--model-name", "cells"]
    arguments += ["--model-version", "4", "--max-batch-size", "2"]
    arguments += ["--score-threshold", "0.2", "--verify", str(images[0])]
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert (out / "cells" / "4" / tf_serving.WARMUP_FILE).is_file()
    assert list(read_batching(out).allowed_batch_sizes) == [1, 2]
    assert quick[0]["score_threshold"] == 0.2
    # Before a server can load it.
    ((directory, seen),) = checked
    assert directory.parent == out and seen == []
    for text in (
        "serving_default(image_bytes: string [?])",
        f"-v '{out}':/models:ro tensorflow/serving",
        "--model_config_file=/models/models.config",
        "--batching_parameters_file=/models/batching_parameters.txt",
        "http://localhost:8501/v1/models/cells:predict",
        'ServingClient("http://localhost:8501", model="cells")',
        "9 detections in 2 batches",
    ):
        assert text in captured.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--serving", "{dir}", "--out", "{dir}/1"], "without --out and --overwrite"),
        (["--serving", "{dir}", "--overwrite"], "without --out and --overwrite"),
        (["--model-version", "3"], "--model-version must stand beside --serving"),
        (["--max-batch-size", "3"], "--max-batch-size must stand beside --serving"),
        (["--serving", "{dir}", "--model-name", "a b"], "`model_name` must be"),
    ],
)
def test_options_that_contradict_are_one_message(tmp_path, capsys, arguments, message):
    filled = [argument.format(dir=tmp_path / "models") for argument in arguments]
    assert main(["export", str(tmp_path), *filled]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert not (tmp_path / "models").exists()


def test_without_the_extra_it_is_named_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_serving.apis", None)
    status = main(["export", str(tmp_path), "--serving", str(tmp_path / "models")])
    captured = capsys.readouterr()
    assert status == 2
    assert "pip install 'vfnet_tf[serving]'" in captured.err
    assert "weights" not in captured.out
