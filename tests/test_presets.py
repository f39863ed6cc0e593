"""Detectors by name, from a server on this machine that has one published file."""

import fnmatch
import hashlib
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

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
from vfnet_tf.inference.load import find_checkpoint, load_checkpoint
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
    assert_same(vfnet_tf.build_detector(NAME, weights="coco"), original)
    other = vfnet_tf.DenseDetector.from_preset(NAME, num_classes=3)
    assert other.num_classes == 3
    with pytest.raises(ValueError, match="must be of a FCOS"):
        vfnet_tf.FCOS.from_preset(NAME)
    assert not file.exists()


def test_weights_by_name_fill_the_cache_and_keep_the_rows_of_known_classes(
    home, original, monkeypatch, tmp_path
):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path))
    names = ("unicorn", "person")
    config = override(
        load_config(NAME), model__num_classes=2, class_names=names, category_ids=(1, 2)
    )
    detector = vfnet_tf.build_detector(config, weights="coco")
    assert (tmp_path / "coco" / NAME / "source.json").is_file()
    assert_same(detector, original, ["class_predictor"])
    own, other = (model.head.class_predictor for model in (detector, original))
    for new, old in zip(own.weights, other.weights, strict=True):
        np.testing.assert_array_equal(new.numpy()[..., 1], old.numpy()[..., 0])
    changed = override(config, model__class_loss="focal")
    with pytest.raises(ValueError, match="the model is not that of the config"):
        vfnet_tf.build_detector(changed, weights="coco")


def test_a_training_starts_from_the_published_weights_of_its_config(
    home, tmp_path, capsys, monkeypatch
):
    config = override(load_config(NAME), model__num_classes=3)
    same, weights, kind = with_weights(config, "coco", tmp_path)
    assert kind == "detector"
    assert same == config and weights == home / "coco" / NAME / "model.weights.h5"
    same, weights, kind = with_weights(config, None, tmp_path, tries_coco=True)
    assert weights == home / "coco" / NAME / "model.weights.h5"
    assert "weights    COCO, the published ones of" in capsys.readouterr().out
    # Another config of the same architecture, and a folder of the name that is no run.
    other = override(config, name="mine", training__epochs=1)
    assert with_weights(other, NAME, tmp_path)[1:] == (weights, "detector")
    monkeypatch.chdir(tmp_path)
    pathlib.Path(NAME).mkdir()
    for chosen in (None, "coco"):
        start = with_weights(config, chosen, tmp_path, tries_coco=True)
        assert start.weights == weights


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (NAME, {"model__class_loss": "focal"}, f"the model is not that of .*{NAME}: l"),
        (
            "vfnet_r101_fpn_2x_coco",
            {},
            "Results and Models.*--config vfnet_r101_fpn_2x",
        ),
        (
            "fcos_atss_r50_fpn_1x_coco",
            {},
            "no COCO weights are published for fcos_atss",
        ),
        (NAME, {"name": "mine"}, "no COCO weights are published for mine"),
    ],
)
def test_why_a_training_does_not_start_from_coco_is_said(
    monkeypatch, tmp_path, capsys, name, changes, reason
):
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    config = override(load_config(name), **changes)
    assert with_weights(config, None, tmp_path, tries_coco=True).kind == "none"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.match(f"weights    not COCO's: .*{reason}", lines[0])
    assert lines[1].startswith("weights    none: no ImageNet weights, since ")
    with pytest.raises(ValueError, match=f"--weights coco: .*{reason}"):
        with_weights(config, "coco", tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("cocoo", "must be 'coco', 'imagenet', 'none'.*cocoo. Did you mean coco"),
        ("vfnet_r101_fpn_1x_coc", "Did you mean vfnet_r101_fpn_1x_coco"),
        (
            "vfnet_r101_fpn_1x_coco",
            "--weights vfnet_r101_fpn_1x_coco: .* give --config vfnet_r101_fpn_1x_coco",
        ),
        (
            "vfnet_r50_fpn_mstrain_2x_coco",
            "--weights vfnet_r50_fpn_mstrain_2x_coco: .*VFNET_OFFLINE forbids",
        ),
        ("hf://someone/nothing", "--weights hf://someone/nothing: .*VFNET_OFFLINE"),
    ],
)
def test_weights_of_a_training_that_cannot_be_had_say_what_to_do(
    monkeypatch, tmp_path, weights, message
):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path))
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        with_weights(load_config(NAME), weights, tmp_path)


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


def test_without_its_weights_a_preset_is_a_new_detector_of_its_config(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("VFNET_HOME", str(tmp_path / "home"))
    for name in (NAME, "vfnet_r101_fpn_2x_coco"):
        monkeypatch.setattr(presets, "build_detector", lambda config, weights: config)
        config = presets.from_preset(name, load_weights=False)
        assert config.class_names == COCO_CLASS_NAMES and len(config.category_ids) == 80
        assert config.model == load_config(name).model
    monkeypatch.undo()
    assert not (tmp_path / "home").exists()
    save_config(tiny_run.tiny_config(), tmp_path / "config.json")
    for num_classes in (None, 5):
        new = vfnet_tf.VFNet.from_preset(tmp_path, False, num_classes=num_classes)
        own = tiny_run.tiny_config().model.num_classes
        assert new.num_classes == (num_classes or own)
    with pytest.raises(TypeError, match="`num_classes=...`. Received: load_weights=5"):
        vfnet_tf.VFNet.from_preset(tmp_path, 5)


@pytest.mark.parametrize("name", ["DenseDetector", "FCOS", "VFNet", "RepPoints"])
def test_signatures_begin_as_those_of_kerashub(name):
    task = pytest.importorskip("keras_hub").models.Task
    own = getattr(vfnet_tf, name)
    for method, count in (("from_preset", 2), ("save_to_preset", 2)):
        theirs = list(inspect.signature(getattr(task, method)).parameters.values())
        ours = list(inspect.signature(getattr(own, method)).parameters.values())
        for mine, other in zip(ours[:count], theirs[:count], strict=True):
            if other.kind is not other.VAR_KEYWORD and other.name != "max_shard_size":
                assert (mine.name, mine.default) == (other.name, other.default)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub with one repository; `asked` are the patterns of calls."""
    source, cache = tmp_path / "cells", tmp_path / "snapshot"
    tiny_run.shared_detector().save_to_preset(source, tiny_run.tiny_config())
    (source / "README.md").write_text("cells")
    module = types.ModuleType("huggingface_hub")
    module.asked = []

    def download(repo_id, allow_patterns):
        assert repo_id == "someone/cells"
        module.asked.append(allow_patterns)
        cache.mkdir(exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch.fnmatch(path.name, one) for one in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setenv("VFNET_OFFLINE", "0")
    return cache


def test_a_repository_of_the_hub_is_a_preset(hub, tmp_path, monkeypatch):
    address, detector = "hf://someone/cells", tiny_run.shared_detector()
    vfnet_tf.VFNet.from_preset(address, load_weights=False)
    assert [path.name for path in hub.iterdir()] == ["config.json"]
    assert_same(vfnet_tf.VFNet.from_preset(address), detector)
    names = {"config.json", "model.weights.h5"}
    assert {path.name for path in hub.iterdir()} == names
    # As commands see it: a path, with one slash.
    for given in (address, pathlib.Path(address)):
        config, weights = find_checkpoint(given)
        assert (config, weights) == (tiny_run.tiny_config(), hub / "model.weights.h5")
        assert load_checkpoint(given)[2] == weights
    start = with_weights(tiny_run.tiny_config(), address, tmp_path)
    assert start.weights == hub / "model.weights.h5" and start.kind == "detector"


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("nothing_of_that_name", "must be a folder .*`vfnet configs` lists them"),
        ("vfnet_r50_fpn_1x_coc", "Did you mean vfnet_r50_fpn_1x_coco"),
        ("EMPTY", "must hold model.weights.h5"),
        (pathlib.Path("hf://someone/nothing"), "nothing is not .*VFNET_OFFLINE"),
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
