import gzip
import json
import pathlib

import pytest

from vfnet_tf.checkpoints.architecture import describe, is_detector, matching_configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture
def shapes():
    state = json.loads((GOLDEN / "vfnet_r50_state.json").read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape, _ in state}


def without(shapes, part):
    return {name: shape for name, shape in shapes.items() if part not in name}


def test_the_official_model_is_recognised(shapes):
    assert describe(shapes) == (
        "VFNet (3 tower convolutions, 256 channels), ResNet-50, FPN (256 channels)"
    )
    assert "vfnet_r50_fpn_1x_coco" in matching_configs(shapes)
    assert is_detector(shapes)


BLOCKS = {f"backbone.layer3.{n}.conv1.weight": (256, 1024, 1, 1) for n in range(6, 23)}


@pytest.mark.parametrize(
    ("left_out", "added", "said"),
    [
        (None, BLOCKS, "ResNet-101,"),
        (
            None,
            {**BLOCKS, "backbone.layer1.0.conv1.weight": (128, 64, 1, 1)},
            "ResNeXt-101-32x4d,",
        ),
        (
            None,
            {
                "backbone.stem.0.weight": (32, 3, 3, 3),
                "backbone.layer1.0.convs.0.weight": (26, 26, 3, 3),
            },
            "Res2Net-50 v1d,",
        ),
        (
            None,
            {"backbone.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3)},
            "ResNet-50 with DCNv2,",
        ),
        (
            None,
            {"neck.pafpn_convs.0.conv.weight": (256, 256, 3, 3)},
            "PAFPN (256 channels)",
        ),
        (
            "bbox_head.vfnet",
            {"bbox_head.atss_cls.weight": (80, 256, 3, 3)},
            "ATSS (3 tower convolutions",
        ),
        ("vfnet_cls_dconv.weight", {}, "VFNet without star convolutions (3"),
        ("vfnet_reg_refine.weight", {}, "VFNet without refinement (3"),
    ],
)
def test_another_architecture_is_described(shapes, left_out, added, said):
    shapes = {**(without(shapes, left_out) if left_out else shapes), **added}
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


@pytest.mark.parametrize(
    ("stem", "head"),
    [
        ("vfnet_raw_r50_fpn_1x_coco", "VFNet without star convolutions (3"),
        ("vfl_atss_r50_fpn_1x_coco", "ATSS (4"),
        ("vfl_retinanet_r50_fpn_4x4_1x_coco", "RetinaNet (4"),
        ("vfl_fovea_r50_fpn_4x4_1x_coco", "FoveaBox (4"),
        ("vfl_reppoints_moment_r50_fpn_gn-neck+head_4x4_1x_coco", "RepPoints (3"),
    ],
)
def test_the_rivals_are_recognised(stem, head):
    packed = (GOLDEN / "rivals" / f"{stem}_state.json.gz").read_bytes()
    state = json.loads(gzip.decompress(packed))
    found = {name: tuple(shape) for name, shape, _ in state}
    described = (
        f"{head} tower convolutions, 256 channels), ResNet-50, FPN (256 channels)"
    )
    assert describe(found) == described
    assert matching_configs(found) == [stem]


def test_fcos_is_recognised_by_its_centerness(shapes):
    shapes = without(shapes, "bbox_head.vfnet")
    shapes["bbox_head.conv_cls.weight"] = (80, 256, 3, 3)
    assert describe(shapes).startswith("FoveaBox (")
    shapes["bbox_head.conv_centerness.weight"] = (1, 256, 3, 3)
    assert describe(shapes).startswith("FCOS (")
    assert matching_configs(shapes) == ["fcos_r50_fpn_gn-head_1x_coco"]


def test_vfnet_without_refinement_has_a_config(shapes):
    found = matching_configs(without(shapes, "refine"))
    assert found == ["vfnet_star_r50_fpn_1x_coco"]
