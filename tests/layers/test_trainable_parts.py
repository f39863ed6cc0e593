"""Frozen stays frozen: in files, copies, clones and configs."""

import copy

import keras
import numpy as np
import pytest

from tests.conftest import build_two_levels, tiny_model
from vfnet_tf.backbones import KerasBackbone, ResNet
from vfnet_tf.detectors import VFNet
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.layers import ConvNormAct, DeformableConv2D, FoldedConv2D
from vfnet_tf.layers.trainable_parts import set_trainable_parts, trainable_parts
from vfnet_tf.necks import FPN, PAFPN


def _freeze(*paths):
    """Freezes parts of a detector by attributes such as `"head.class_tower"`."""

    def change(detector):
        for path in paths:
            part = detector
            for name in path.split("."):
                part = part[int(name)] if name.isdigit() else getattr(part, name)
            part.trainable = False

    return change


def _thaw_one_of_a_frozen_neck(detector):
    detector.neck.trainable = False
    detector.neck.laterals[0].trainable = True


#: what -> the change of a detector whose C3 stage is frozen by `frozen_until`
CHANGES = {
    "nothing": lambda detector: None,
    "the whole": lambda detector: setattr(detector, "trainable", False),
    "the neck": _freeze("neck"),
    "a tower": _freeze("head.class_tower"),
    "a convolution of a tower": _freeze("head.box_tower.convs.0"),
    "a norm within": _freeze("head.box_tower.convs.0.norm_layer"),
    "a scale": _freeze("head.scales.1"),
    "a variable": _freeze("neck.outputs.0.conv.kernel"),
    "all but one lateral": _thaw_one_of_a_frozen_neck,
    "a layer of the backbone": lambda d: setattr(
        d.backbone.get_layer("c5"), "trainable", False
    ),
    "nothing of the backbone": lambda d: [
        setattr(layer, "trainable", True) for layer in d.backbone.layers
    ],
}


def build():
    levels = ("P3", "P4")
    return VFNet(
        KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5"), frozen_until="c3"),
        FPN(8, ("C3", "C4"), levels, name="fpn"),
        VFNetHead(2, 32, 1, levels=levels, name="head"),
        name="detector",
    )


def flags(model):
    layers = [
        layer
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    return [layer.trainable for layer in layers] + [
        variable.trainable for variable in model.weights
    ]


@pytest.mark.parametrize("what", CHANGES)
def test_flags_of_a_detector_survive(what, tmp_path):
    detector = build()
    CHANGES[what](detector)
    if what == "nothing of the backbone":
        detector.compile(keras.optimizers.Adam(1e-3))
        detector.optimizer.build(detector.trainable_variables)
        detector.optimizer.iterations.assign(7)
        detector.optimizer.variables[2].assign_add(
            np.ones(detector.optimizer.variables[2].shape)
        )
    expected = flags(detector)
    assert (expected == flags(build())) == (what == "nothing")
    detector.save(tmp_path / "detector.keras")
    loaded = keras.saving.load_model(tmp_path / "detector.keras")
    copies = {
        "file": loaded,
        "deepcopy": copy.deepcopy(detector),
        "clone_model": keras.models.clone_model(detector),
        "config": VFNet.from_config(detector.get_config()),
        "config of a copy": VFNet.from_config(loaded.get_config()),
    }
    for name, found in copies.items():
        assert flags(found) == expected, name
        assert len(found.trainable_weights) == len(detector.trainable_weights), name
    if detector.compiled:
        for stored, found in zip(
            detector.optimizer.variables, loaded.optimizer.variables, strict=True
        ):
            np.testing.assert_array_equal(found, stored)


#: what -> (how the layer is made, the part that is frozen)
LAYERS = {
    "FPN": (lambda: FPN(8, name="x"), lambda x: x.laterals[1]),
    "PAFPN": (lambda: PAFPN(32), lambda x: x.final_outputs[0].conv),
    "VFNetHead": (lambda: VFNetHead(2, 32, 1), lambda x: x.box_star),
    "DenseHead": (lambda: DenseHead(2, 32, 1), lambda x: x.box_tower.convs[0]),
    "RepPointsHead": (lambda: RepPointsHead(2, 32, 1), lambda x: x.point_conv),
    "ConvNormAct": (
        lambda: ConvNormAct(32, 3, norm="group_norm"),
        lambda x: x.norm_layer,
    ),
    "FoldedConv2D": (lambda: FoldedConv2D(4, 3), lambda x: x.norm),
}


@pytest.mark.parametrize("what", LAYERS)
def test_flags_of_a_layer_survive_before_it_is_built(what):
    make, part_of = LAYERS[what]
    layer = make()
    part_of(layer).trainable = False
    cls = type(layer)
    found = cls.from_config(layer.get_config())
    assert not part_of(found).trainable and found.trainable
    assert trainable_parts(found) == trainable_parts(layer) != {}
    # The argument of the constructor reaches the parts, as its setter does.
    frozen = cls.from_config({**make().get_config(), "trainable": False})
    assert not any(part.trainable for part in frozen._flatten_layers())


def test_flags_of_a_backbone_survive():
    backbone = ResNet(depth=18, name="backbone")
    first = flags(backbone)
    for layer in backbone.layers:
        layer.trainable = True
    backbone.get_layer("layer2_0_conv1").conv.trainable = False
    expected = flags(backbone)
    assert expected != first
    found = ResNet.from_config(backbone.get_config())
    assert flags(found) == expected
    assert flags(ResNet.from_config(found.get_config())) == expected
    assert not any(flags(ResNet(depth=18, trainable=False)))
    layers = {layer.name: layer for layer in keras.models.clone_model(backbone).layers}
    assert not layers["layer2_0_conv1"].conv.trainable
    assert layers["layer1_0_conv1"].conv.trainable


def test_a_deformable_layer_has_no_parts():
    assert trainable_parts(DeformableConv2D(4, 3)) == {}


def test_configs_are_copies_and_are_not_consumed(tmp_path):
    detector = build_two_levels()
    config = detector.get_config()
    before = copy.deepcopy(config)
    for _ in range(2):
        VFNet.from_config(config)
        assert config == before
    config["backbone"]["config"]["model"]["config"].clear()
    backbone = detector.backbone.get_config()
    backbone["model"]["config"].clear()
    assert detector.get_config() == before
    copied = VFNet.from_config(before)
    for model in (copied, detector, copied):
        model.save(tmp_path / "detector.keras")
        keras.saving.load_model(tmp_path / "detector.keras")


def test_parts_that_there_are_not_are_refused():
    detector = build_two_levels()
    with pytest.raises(ValueError, match=r"parts of 'vf_net.*\['fpn/lateral_C9'\]"):
        set_trainable_parts(detector, {"fpn/lateral_C9": False})
