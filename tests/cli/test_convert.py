import json

import numpy as np
import pytest

from tests import tiny_run
from tests.contracts import to_numpy
from vfnet_tf.checkpoints.names import is_ignorable, official_variables
from vfnet_tf.checkpoints.pytorch import read_checkpoint, to_pytorch_state_dict
from vfnet_tf.checkpoints.tensors import to_keras_layout
from vfnet_tf.cli.__main__ import main
from vfnet_tf.config import load_config
from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from vfnet_tf.inference.load import find_checkpoint, load_detector
from vfnet_tf.inference.predictor import Predictor

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def state():
    return to_pytorch_state_dict(tiny_run.shared_detector())


@pytest.fixture
def official(tmp_path, run_dir, state):
    """Writes a file as the official code does; gives the command's arguments."""

    def write(meta=None, **changes):
        tensors = {**state, **changes}
        path = tmp_path / "official.pth"
        saved = {
            "meta": meta or {},
            "state_dict": {name: torch.tensor(t) for name, t in tensors.items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        }
        torch.save(saved, path)
        config = ["--config", str(run_dir / "config.json")]
        return ["convert", str(path), *config, "--out", str(tmp_path / "run")]

    return write


def test_the_official_model_becomes_a_run(tmp_path, golden_weights, capsys):
    tensors = {name: torch.tensor(array) for name, array in golden_weights.items()}
    meta = {"epoch": 12, "CLASSES": COCO_CLASS_NAMES, "config": "model = dict()"}
    path, out = tmp_path / "vfnet_r50.pth", tmp_path / "run"
    torch.save({"meta": meta, "state_dict": tensors}, path)
    stem = "vfnet_r50_fpn_1x_coco"
    assert main(["convert", str(path), "--config", stem, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    used = {n: a for n, a in golden_weights.items() if not is_ignorable(n)}
    size = sum(array.size for array in used.values()) / 1e6
    assert f"{stem}: {len(used)} tensors, {size:.1f} M parameters" in said
    assert "classes    80: person, bicycle, car" in said
    config, weights = find_checkpoint(out)
    assert config.class_names == COCO_CLASS_NAMES
    assert config.category_ids == COCO_CATEGORY_IDS
    detector = load_detector(config, weights)
    for name, variable in official_variables(detector).items():
        np.testing.assert_array_equal(
            to_numpy(variable), to_keras_layout(golden_weights[name])
        )


def test_what_is_converted_is_the_run_it_came_from(tmp_path, official, run_dir, state):
    assert main(official({"CLASSES": tiny_run.CLASS_NAMES})) == 0
    predictor = Predictor.from_checkpoint(tmp_path / "run")
    assert predictor.config == load_config(run_dir)
    for name, array in to_pytorch_state_dict(predictor.detector).items():
        np.testing.assert_array_equal(array, state[name])


def test_the_way_there_and_back_keeps_every_bit(tmp_path, run_dir, state, capsys):
    for ending in ("pth", "safetensors"):
        if ending == "safetensors":
            pytest.importorskip("safetensors")
        path = tmp_path / "new" / f"mine.{ending}"
        assert main(["convert", str(run_dir), "--to-pytorch", "--out", str(path)]) == 0
        assert f"{len(state)} tensors" in capsys.readouterr().out
        read = read_checkpoint(path)
        assert read.class_names == tiny_run.CLASS_NAMES
        arguments = ["convert", str(path), "--config", str(run_dir / "config.json")]
        assert main([*arguments, "--out", str(tmp_path / ending)]) == 0
        detector = load_detector(*find_checkpoint(tmp_path / ending))
        for name, array in to_pytorch_state_dict(detector).items():
            assert array.tobytes() == state[name].tobytes()


def test_the_number_of_classes_and_their_names_are_the_files(official, tmp_path):
    kernel = np.zeros((2, 64, 3, 3), "float32")
    changes = {
        "bbox_head.vfnet_cls.weight": kernel,
        "bbox_head.vfnet_cls.bias": np.zeros(2, "float32"),
    }
    assert main(official({"dataset_meta": {"classes": ("a", "b")}}, **changes)) == 0
    config = load_config(tmp_path / "run")
    assert config.model.num_classes == 2
    assert config.class_names == ("a", "b")
    assert config.category_ids == (1, 2)


def test_names_that_are_too_many_are_not_the_models(official, tmp_path):
    # As in files of models that were fine-tuned without telling their classes.
    assert main(official({"CLASSES": COCO_CLASS_NAMES})) == 0
    config = load_config(tmp_path / "run")
    assert config.class_names == tiny_run.CLASS_NAMES
    assert config.category_ids == tiny_run.CATEGORY_IDS


def test_a_wrong_config_is_one_error_and_leaves_nothing(official, tmp_path, mistake):
    arguments = official()
    arguments[arguments.index("--config") + 1] = "vfnet_r50_fpn_1x_coco"
    assert "ResNet-18" in mistake(*arguments)
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_replaced_only_when_asked_for(official, tmp_path, mistake):
    arguments = official()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.weights.h5").write_text("of a stopped training")
    assert "last.weights.h5" in mistake(*arguments)
    assert main([*arguments, "--overwrite"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "best.weights.h5"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["name"] == "tiny"


def test_mistakes_are_told_before_anything_is_built(
    official, tmp_path, run_dir, mistake
):
    out = str(tmp_path / "run")
    for arguments, said in (
        (["convert", str(run_dir), "--out", out], "--to-pytorch"),
        (["convert", str(tmp_path / "no.pth"), "--out", out], "no.pth"),
        (["convert", str(run_dir), "--to-pytorch", "--out", out], ".safetensors"),
        (official()[:2] + ["--out", out], "needs --config"),
        (official()[:-1] + [str(run_dir / "config.json"), "--overwrite"], "a folder"),
    ):
        assert said in mistake(*arguments)
