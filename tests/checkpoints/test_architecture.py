import gzip
import json
import pathlib

import pytest

from vfnet_tf.checkpoints.architecture import describe, is_detector, matching_configs

STATE = pathlib.Path(__file__).parents[1] / "golden" / "vfnet_r50_state.json"


@pytest.fixture
def shapes():
    state = json.loads(STATE.read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape, _ in state}


def test_the_official_model_is_recognised(shapes):
    assert describe(shapes) == (
        "VFNet (3 tower convolutions, 256 channels), ResNet-50, FPN (256 channels)"
    )
    assert "vfnet_r50_fpn_1x_coco" in matching_configs(shapes)
    assert is_detector(shapes)


def add_blocks(shapes):
    for block in range(6, 23):
        shapes[f"backbone.layer3.{block}.conv1.weight"] = (256, 1024, 1, 1)


def widen(shapes):
    shapes["backbone.layer1.0.conv1.weight"] = (128, 64, 1, 1)
    add_blocks(shapes)


def split(shapes):
    shapes["backbone.stem.0.weight"] = (32, 3, 3, 3)
    shapes["backbone.layer1.0.convs.0.weight"] = (26, 26, 3, 3)


def deform(shapes):
    shapes["backbone.layer2.0.conv2.conv_offset.weight"] = (27, 128, 3, 3)


def add_paths(shapes):
    shapes["neck.pafpn_convs.0.conv.weight"] = (256, 256, 3, 3)


def swap_heads(shapes):
    for name in [n for n in shapes if n.startswith("bbox_head.vfnet")]:
        del shapes[name]
    shapes["bbox_head.atss_cls.weight"] = (80, 256, 3, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_blocks, "ResNet-101,"),
        (widen, "ResNeXt-101-32x4d,"),
        (split, "Res2Net-50 v1d,"),
        (deform, "ResNet-50 with DCNv2,"),
        (add_paths, "PAFPN (256 channels)"),
        (swap_heads, "ATSS (3 tower convolutions"),
        (
            lambda shapes: shapes.pop("bbox_head.vfnet_cls_dconv.weight"),
            "VFNet without star convolutions (3",
        ),
        (
            lambda shapes: shapes.pop("bbox_head.vfnet_reg_refine.weight"),
            "VFNet without refinement (3",
        ),
    ],
)
def test_what_differs_is_said(shapes, change, said):
    change(shapes)
    assert said in describe(shapes)
    assert "vfnet_r50_fpn_1x_coco" not in matching_configs(shapes)


def test_a_backbone_and_anything_else_are_not_detectors(shapes):
    bare = {
        name.removeprefix("backbone."): shape
        for name, shape in shapes.items()
        if name.startswith("backbone.")
    }
    assert not is_detector(bare)
    assert describe(bare) is None
    assert matching_configs(bare) == []


RIVALS = pathlib.Path(__file__).parents[1] / "golden" / "rivals"


@pytest.mark.parametrize(
    ("stem", "head"),
    [
        ("vfnet_raw_r50_fpn_1x_coco", "VFNet without star convolutions (3"),
        ("vfl_atss_r50_fpn_1x_coco", "ATSS (4"),
        ("vfl_retinanet_r50_fpn_4x4_1x_coco", "RetinaNet (4"),
        ("vfl_fovea_r50_fpn_4x4_1x_coco", "FoveaBox (4"),
        (
            "vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco",
            "RepPoints (3",
        ),
    ],
)
def test_the_rivals_are_recognised(stem, head):
    packed = (RIVALS / f"{stem}_state.json.gz").read_bytes()
    state = json.loads(gzip.decompress(packed))
    found = {name: tuple(shape) for name, shape, _ in state}
    described = (
        f"{head} tower convolutions, 256 channels), ResNet-50, FPN (256 channels)"
    )
    assert describe(found) == described
    assert matching_configs(found) == [stem]


def test_fcos_is_told_by_its_centerness(shapes):
    for name in [n for n in shapes if n.startswith("bbox_head.vfnet")]:
        del shapes[name]
    shapes["bbox_head.conv_cls.weight"] = (80, 256, 3, 3)
    assert describe(shapes).startswith("FoveaBox (")
    shapes["bbox_head.conv_centerness.weight"] = (1, 256, 3, 3)
    assert describe(shapes).startswith("FCOS (")
    assert matching_configs(shapes) == ["fcos_r50_fpn_gn-head_1x_coco"]


def test_vfnet_without_refinement_has_a_config(shapes):
    for name in [n for n in shapes if "refine" in n]:
        del shapes[name]
    assert matching_configs(shapes) == ["vfnet_star_r50_fpn_1x_coco"]
