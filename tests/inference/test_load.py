import numpy as np
import pytest

from tests import tiny_run
from vfnet_tf.checkpoints.pytorch import Checkpoint
from vfnet_tf.config import Config
from vfnet_tf.data.formats.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from vfnet_tf.inference.load import load_checkpoint
from vfnet_tf.presets import with_classes


def test_a_run_gives_its_detector_config_and_file(tmp_path):
    run_dir = tiny_run.write_run(tmp_path / "run")
    detector, config, weights = load_checkpoint(run_dir)
    assert detector.num_classes == 3
    assert config == tiny_run.tiny_config()
    assert weights == run_dir / "best.weights.h5"


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_an_official_file_needs_a_config(tmp_path, ending):
    path = tmp_path / f"vfnet{ending}"
    path.touch()
    with pytest.raises(ValueError, match=rf"A \{ending} file needs --config"):
        load_checkpoint(path)


def official(num_classes, class_names=None):
    bias = np.zeros(num_classes, "float32")
    return Checkpoint({"bbox_head.vfnet_cls.bias": bias}, class_names)


def test_eighty_nameless_classes_are_cocos():
    config = with_classes(Config(), official(80))
    assert config.class_names == COCO_CLASS_NAMES
    assert config.category_ids == COCO_CATEGORY_IDS


def test_other_nameless_classes_stay_nameless():
    config = with_classes(Config(), official(5))
    assert config.model.num_classes == 5
    assert config.class_names == () and config.category_ids == ()


def test_names_of_the_file_come_before_those_of_the_config():
    config = tiny_run.tiny_config()
    kept = with_classes(config, official(3))
    assert kept == config
    named = with_classes(config, official(3, ("a", "b", "c")))
    assert named.class_names == ("a", "b", "c")
    assert named.category_ids == (1, 2, 3)


def test_a_run_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="no_run, which does not exist"):
        load_checkpoint(tmp_path / "no_run")
