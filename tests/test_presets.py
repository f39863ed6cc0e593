"""Detectors by name, from a server on this machine that has one published file."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import vfnet_tf
from tests import tiny_run
from tests.loopback import serve_folder
from tests.official_file import write_official_file
from vfnet_tf import presets
from vfnet_tf.checkpoints import published
from vfnet_tf.config import load_config, override, save_config
from vfnet_tf.data.formats.coco_classes import COCO_CLASS_NAMES
from vfnet_tf.training.initial_weights import with_weights

NAME = "vfnet_r50_fpn_1x_coco"
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original():
    """A detector with the architecture and the size of the published one."""
    return vfnet_tf.build_detector(NAME)


@pytest.fixture(scope="module", params=["zip", "legacy"])
def home(request, tmp_path_factory, original):
    """An empty cache, and a server with the file in one of PyTorch's two formats."""
    folder = tmp_path_factory.mktemp("server")
    file = write_official_file(original, folder, NAME, request.param == "zip")
    with pytest.MonkeyPatch.context() as patch, serve_folder(folder) as address:
        cache = tmp_path_factory.mktemp("home")
        patch.setitem(published.PATHS, NAME, file)
        patch.setenv("VFNET_WEIGHTS_URL", address)
        patch.setenv("VFNET_HOME", str(cache))
        patch.setenv("VFNET_OFFLINE", "0")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield cache


def assert_same(detector, original, names=()):
    for own, other in zip(detector.weights, original.weights, strict=True):
        if not any(name in own.path for name in names):
            np.testing.assert_array_equal(own.numpy(), other.numpy())


def test_a_published_model_by_name_has_the_weights_of_its_file(home, original):
    detector = vfnet_tf.VFNet.from_preset(NAME)
    assert_same(detector, original)
    folder = home / "coco" / NAME
    record = json.loads((folder / "source.json").read_text())
    file = folder / record["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]
    assert load_config(folder).class_names == COCO_CLASS_NAMES
    # From now on neither the server nor the file is needed.
    file.unlink()
    assert presets.preset_directory(NAME) == folder
    other = vfnet_tf.DenseDetector.from_preset(NAME, num_classes=3)
    assert other.num_classes == 3
    with pytest.raises(ValueError, match="must be of a FCOS"):
        vfnet_tf.FCOS.from_preset(NAME)


def test_a_training_starts_from_the_published_weights_of_its_config(
    home, tmp_path, capsys
):
    config = override(load_config(NAME), model__num_classes=3)
    same, weights, kind = with_weights(config, "coco", tmp_path)
    assert kind == "detector"
    assert same == config and weights == home / "coco" / NAME / "model.weights.h5"
    same, weights, kind = with_weights(config, None, tmp_path, tries_coco=True)
    assert weights == home / "coco" / NAME / "model.weights.h5"
    assert "weights    COCO, the published ones of" in capsys.readouterr().out
    other = override(config, model__class_loss="focal")
    with pytest.raises(ValueError, match="--weights coco: the model is not that of"):
        with_weights(other, "coco", tmp_path)
    absent = load_config("vfnet_r101_fpn_2x_coco")
    with pytest.raises(ValueError, match="Results and Models"):
        with_weights(absent, "coco", tmp_path)


def test_the_command_takes_the_name_of_a_model(home, tmp_path):
    image = tmp_path / "street.jpg"
    tiny_run.write_images(tmp_path / "images")
    shutil.copy(tmp_path / "images" / "a.jpg", image)
    code = (
        "import sys\n"
        "from vfnet_tf.checkpoints import published\n"
        f"published.PATHS[{NAME!r}] = {published.PATHS[NAME]!r}\n"
        "from vfnet_tf.cli.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = [
        "predict",
        str(image),
        "--checkpoint",
        NAME,
        "--image-size",
        "64",
        "96",
    ]
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["name"] for row in content["categories"]] == list(COCO_CLASS_NAMES)


def test_a_detector_is_written_and_read_back(tmp_path):
    config = tiny_run.tiny_config()
    detector = tiny_run.tiny_detector(config)
    detector.save_to_preset(tmp_path / "preset")
    again = vfnet_tf.VFNet.from_preset(tmp_path / "preset")
    assert_same(again, detector)
    predictor = vfnet_tf.Predictor.from_pretrained(tmp_path / "preset")
    assert predictor.class_names == config.class_names
    by_hand = vfnet_tf.VFNet(detector.backbone, detector.neck, detector.head)
    with pytest.raises(ValueError, match="needs the config"):
        by_hand.save_to_preset(tmp_path / "other")
    by_hand.save_to_preset(tmp_path / "other", config)
    assert_same(vfnet_tf.VFNet.from_preset(tmp_path / "other"), detector)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("nothing_of_that_name", "name of a published model .vfnet_r50_fpn_1x_coco"),
        ("EMPTY", "must hold model.weights.h5"),
        (pathlib.Path("hf://someone/nothing"), "hf://someone/nothing is not"),
        ("vfnet_r101_fpn_1x_coco", "VFNET_OFFLINE forbids"),
        ("vfnet_r101_fpn_2x_coco", "convert FILE --config vfnet_r101_fpn_2x_coco"),
    ],
)
def test_a_preset_that_cannot_be_had_says_what_to_do(
    tmp_path, monkeypatch, preset, message
):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    if preset == "EMPTY":
        save_config(tiny_run.tiny_config(), tmp_path / "config.json")
        preset = tmp_path
    with pytest.raises(ValueError, match=message):
        vfnet_tf.VFNet.from_preset(preset)
