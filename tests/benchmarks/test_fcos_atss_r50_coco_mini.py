from pathlib import Path

from vfnet_tf.config import load_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_is_fcos_with_atss_and_the_focal_loss():
    config = load_config(str(BENCHMARKS / "fcos_atss_r50_coco_mini.py"))
    model = config.model
    assert config.name == "fcos_atss_r50_coco_mini"
    parts = (model.detector, model.assigner, model.class_loss)
    assert parts == ("fcos", "atss", "focal")
