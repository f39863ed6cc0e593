import json
import pathlib

import pytest

from tests.conftest import build_small
from vfnet_tf.checkpoints.names import (
    classifier_name,
    is_ignorable,
    official_variables,
    resnet_names,
)
from vfnet_tf.detectors import DenseDetector
from vfnet_tf.losses import FocalLoss

STATE = pathlib.Path(__file__).parents[1] / "golden" / "vfnet_r50_state.json"


@pytest.mark.parametrize(
    ("ours", "conv", "norm"),
    [
        ("conv1", "conv1", "bn1"),
        ("layer2_0_conv1", "layer2.0.conv1", "layer2.0.bn1"),
        ("layer4_2_conv3", "layer4.2.conv3", "layer4.2.bn3"),
        ("layer3_22_conv2", "layer3.22.conv2", "layer3.22.bn2"),
        ("layer1_0_downsample", "layer1.0.downsample.0", "layer1.0.downsample.1"),
    ],
)
def test_layers_of_a_resnet_have_torchvisions_names(ours, conv, norm):
    assert resnet_names(ours) == (conv, norm)


def test_unknown_layers_have_no_name():
    with pytest.raises(ValueError, match="layer name=block_3"):
        resnet_names("block_3")


def test_every_tensor_of_the_official_model_has_one_variable(golden_detector):
    state = json.loads(STATE.read_text(encoding="utf-8"))
    variables = official_variables(golden_detector)
    needed = {name: shape for name, shape, _ in state if not is_ignorable(name)}
    assert set(variables) == set(needed)
    assert len({id(variable) for variable in variables.values()}) == len(variables)
    assert len(variables) == len(golden_detector.variables)
    for name, shape in needed.items():
        ours = tuple(variables[name].shape)
        if len(shape) == 4:
            out, inner, height, width = shape
            shape = (height, width, inner, out)
        assert ours == tuple(shape)


def test_only_the_batch_counters_are_left_out():
    assert is_ignorable("backbone.bn1.num_batches_tracked")
    assert not is_ignorable("backbone.bn1.running_mean")


@pytest.mark.parametrize(
    ("kind", "classifier", "others"),
    [
        ("vfnet", "vfnet_cls", {"vfnet_reg_refine_dconv", "scales_refine.4"}),
        ("vfnet_raw", "vfnet_cls", {"vfnet_cls_conv.gn", "vfnet_reg", "scales.4"}),
        ("fcos", "conv_cls", {"conv_reg", "conv_centerness", "scales.4"}),
        ("atss", "atss_cls", {"atss_reg", "atss_centerness", "scales.4"}),
        ("retinanet", "retina_cls", {"retina_reg", "cls_convs.0.conv"}),
        ("foveabox", "conv_cls", {"conv_reg", "reg_convs.0.conv"}),
        (
            "reppoints",
            "reppoints_cls_out",
            {"reppoints_pts_init_conv", "reppoints_pts_refine_out", "moment_transfer"},
        ),
    ],
)
def test_heads_have_the_official_names(kind, classifier, others):
    detector = build_small(kind)
    assert classifier_name(detector) == f"bbox_head.{classifier}."
    variables = official_variables(detector)
    # All variables have official names, except those of the Keras backbone.
    own = detector.neck.variables + detector.head.variables
    assert {id(v) for v in variables.values()} == {id(v) for v in own}
    assert len(variables) == len(own)
    weight = variables[f"bbox_head.{classifier}.weight"]
    assert weight is detector.head.class_predictor.conv.kernel
    # Without the endings weight, bias or scale.
    names = {name.removeprefix("bbox_head.") for name in variables}
    starts = names | {name.rpartition(".")[0] for name in names}
    assert others <= starts


def test_another_detector_has_no_official_names():
    class Other(DenseDetector):
        pass

    small = build_small("foveabox")
    detector = Other(small.backbone, small.neck, small.head, FocalLoss())
    with pytest.raises(ValueError, match="Received: Other"):
        official_variables(detector)
