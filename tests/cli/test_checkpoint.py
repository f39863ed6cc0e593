import pytest

from tests import tiny_run
from vfnet_tf.cli.checkpoint import load_checkpoint


def test_a_run_gives_its_detector_config_and_file(run_dir):
    detector, config, weights = load_checkpoint(run_dir)
    assert detector.num_classes == 3
    assert config == tiny_run.tiny_config()
    assert weights == run_dir / "best.weights.h5"


def test_an_official_file_needs_a_config(tmp_path):
    path = tmp_path / "vfnet.pth"
    path.touch()
    with pytest.raises(ValueError, match=r"\.pth file needs --config"):
        load_checkpoint(path)


def test_a_run_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="no_run, which does not exist"):
        load_checkpoint(tmp_path / "no_run")
