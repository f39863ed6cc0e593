"""Every command takes the name of a published model, here a small one in the cache."""

import json

import pytest

import vfnet_tf
from tests import tiny_run
from vfnet_tf.checkpoints import published
from vfnet_tf.cli import demo, training_options
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import override, save_config, shipped_config
from vfnet_tf.export import latency
from vfnet_tf.export.litert import exporter as litert
from vfnet_tf.export.onnx import model as onnx_model
from vfnet_tf.export.saved_model import exporter as saved_model
from vfnet_tf.inference import load, predictor
from vfnet_tf.training.initial_weights import with_weights

NAME = "vfnet_r50_fpn_1x_coco"
OWN = f"runs/published/{NAME}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with one published model, converted."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "coco" / NAME
    tiny_run.shared_detector().save_to_preset(folder, tiny_run.tiny_config())
    (folder / "source.json").write_text("{}")
    return home


@pytest.fixture
def quick(cache, monkeypatch):
    """Nothing is downloaded, traced or measured; exports are one small file."""

    def write(detector, path, **settings):
        folder = path if not path.suffix else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "saved_model.pb" if not path.suffix else path).write_bytes(b"x")
        sides = "box_difference", "score_difference"
        return (
            path
            if not path.suffix
            else dict.fromkeys(sides, 0.0)
            | {
                "sizes": [(1, 64, 96)],
                "num_nodes": 1,
            }
        )

    monkeypatch.setenv("VFNET_HOME", str(cache))
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    monkeypatch.setattr(load, "load_detector", lambda *_: tiny_run.shared_detector())
    monkeypatch.setattr(saved_model, "export_saved_model", write)
    monkeypatch.setattr(saved_model, "describe_signatures", str)
    monkeypatch.setattr(litert, "export_litert", write)
    monkeypatch.setattr(onnx_model, "export_onnx", write)
    monkeypatch.setattr(latency, "measure", lambda path, *_: [str(path)])
    monkeypatch.setattr(demo, "ServedDetector", lambda directory: None)

    class Stopped:
        def run(self):
            pass

    monkeypatch.setattr(demo, "make_server", lambda *_: Stopped())


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("predict IMAGE --checkpoint NAME --out found", "found/detections.json"),
        ("evaluate --checkpoint NAME --data DATA --limit 1", f"{OWN}/evaluation_val"),
        ("oracle --checkpoint NAME --data DATA --limit 1 --out o.json", "o.json"),
        ("export NAME", f"{OWN}/saved_model/saved_model.pb"),
        ("export NAME --format onnx", f"{OWN}/model.onnx"),
        ("export NAME --format litert", f"{OWN}/model.tflite"),
        ("demo NAME --port 0", f"{OWN}/saved_model/saved_model.pb"),
        ("benchmark NAME --json rows.json", "rows.json"),
        ("convert NAME --out run", "run/best.weights.h5"),
        ("convert NAME --to-pytorch --out mine.safetensors", "mine.safetensors"),
    ],
    ids=lambda value: value.partition(" -")[0],
)
def test_a_command_takes_a_name_and_leaves_the_cache_as_it_is(
    quick, cache, data, tmp_path, arguments, written
):
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    places = {"NAME": NAME, "DATA": str(data), "IMAGE": str(data / "val" / "a.jpg")}
    assert main([places.get(word, word) for word in arguments.split()]) == 0
    here = tmp_path / "here"
    assert (here / written).exists()
    assert {path.name for path in here.iterdir()} <= {written.split("/")[0], "runs"}
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_default_is_the_published_model_whatever_folders_there_are(
    quick, cache, data, tmp_path, monkeypatch
):
    other = override(tiny_run.tiny_config(), name="other")
    save_config(other, tmp_path / "here" / NAME / "config.json")
    monkeypatch.setattr(published, "DEFAULT_PRESET", NAME)
    monkeypatch.setattr(predictor, "DEFAULT_PRESET", NAME)
    image = str(data / "val" / "a.jpg")
    assert main(["predict", image, "--out", "found"]) == 0
    assert vfnet_tf.Predictor.from_pretrained().config == tiny_run.tiny_config()
    options = training_options.TrainingOptions(data="any", weights="coco")
    config = training_options.resolve(options)
    assert (config.name, config.model) == (NAME, shipped_config(NAME).model)
    start = with_weights(config, "coco", tmp_path)
    assert start.weights == cache / "coco" / NAME / "model.weights.h5"


def test_the_page_and_the_benchmark_use_the_export_of_the_name(quick, tmp_path):
    for _ in range(2):
        assert main(["benchmark", NAME, "--json", "rows.json"]) == 0
        found = json.loads((tmp_path / "here" / "rows.json").read_text())
        assert found == [f"{OWN}/saved_model"]


@pytest.mark.parametrize(
    "arguments",
    [
        "predict IMAGE --checkpoint",
        "evaluate --data DATA --checkpoint",
        "oracle --data DATA --checkpoint",
        "export",
        "demo --port 0",
        "benchmark",
        "convert --out run",
    ],
)
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("vfnet_r101_fpn_1x_coco", "VFNET_OFFLINE forbids to download it. Fetch "),
        (
            "vfnet_r101_fpn_2x_coco",
            "vfnet convert FILE --config vfnet_r101_fpn_2x_coco",
        ),
        ("vfnet_r101_fpn_3x_coco", "Did you mean vfnet_r101_fpn_2x_coco or "),
    ],
    ids=["offline", "without address", "no model"],
)
def test_a_name_that_cannot_be_had_is_one_message(
    quick, data, mistake, tmp_path, arguments, name, remedy
):
    words = [
        str(data / "val" / "a.jpg") if w == "IMAGE" else w for w in arguments.split()
    ]
    assert remedy in mistake(*words, name)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_of_the_same_config_is_not_mixed_with_the_published_model(
    quick, tmp_path
):
    run = tiny_run.write_run(tmp_path / "here" / "runs" / NAME)
    assert load.output_folder(run) == run
    assert str(load.output_folder(NAME)) == OWN
    assert (
        str(load.output_folder("hf://someone/cells")) == "runs/published/someone/cells"
    )
    assert load.output_folder(run / "best.weights.h5") is None
    assert load.output_folder("nothing") is None
