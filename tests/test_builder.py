import keras
import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.assigners import ATSSAssigner, FCOSAssigner
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.box_coders import DistanceCoder
from vfnet_tf.builder import (
    BACKBONES,
    build_backbone,
    build_detector,
    load_layer_weights,
    normalization_for,
)
from vfnet_tf.config import BackboneConfig, Config, ModelConfig, override, save_config
from vfnet_tf.data.normalization import CAFFE_BGR, RGB_255_TORCH, TORCHVISION
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, RetinaNet
from vfnet_tf.layers import FrozenBatchNorm
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss

SMALL = Config(
    model=ModelConfig(
        backbone=BackboneConfig("resnet18", "batch_norm", 0),
        num_classes=3,
        neck_filters=32,
        head_filters=64,
        head_convs=2,
        loss_alpha=0.5,
        loss_gamma=1.5,
        iou_weighted=False,
        box_loss_weight=0.7,
        refined_box_loss_weight=0.9,
        score_threshold=0.2,
        nms_iou_threshold=0.4,
        candidates_per_level=50,
        max_detections=7,
        nms="soft_gaussian",
        soft_nms_sigma=0.3,
        soft_nms_min_score=0.02,
    )
)


def test_every_setting_of_the_model_reaches_the_detector():
    detector = build_detector(SMALL)
    assert detector.built and detector.name == "vfnet"
    backbone = detector.backbone
    assert (backbone.depth, backbone.norm, backbone.frozen_stages) == (
        18,
        "batch_norm",
        0,
    )
    assert detector.num_classes == 3
    assert (detector.neck.filters, detector.head.filters) == (32, 64)
    assert detector.head.num_convs == 2
    loss = detector.class_loss
    assert (loss.alpha, loss.gamma, loss.iou_weighted) == (0.5, 1.5, False)
    assert detector.box_loss_weight == 0.7
    assert detector.refined_box_loss_weight == 0.9
    assert (detector.score_threshold, detector.nms_iou_threshold) == (0.2, 0.4)
    assert (detector.candidates_per_level, detector.max_detections) == (50, 7)
    assert detector.nms == "soft_gaussian"
    assert (detector.soft_nms_sigma, detector.soft_nms_min_score) == (0.3, 0.02)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("varifocal", VarifocalLoss),
        ("focal", FocalLoss),
        ("quality_focal", QualityFocalLoss),
    ],
)
def test_class_losses_go_by_name(name, kind):
    detector = build_detector(override(SMALL, model__class_loss=name))
    assert type(detector.class_loss) is kind


def changed(**changes):
    """`SMALL` with another detector, its head of one convolution."""
    settings = {"model__head_convs": 1, "model__head_filters": 32}
    changes = {f"model__{name}": value for name, value in changes.items()}
    return override(SMALL, **settings, **changes)


def test_fcos_has_points_and_boxes_of_its_own_and_of_atss():
    settings = {"detector": "fcos", "centerness_loss_weight": 0.6}
    detector = build_detector(changed(**settings))
    assert type(detector) is FCOS and detector.name == "fcos"
    assert type(detector.assigner) is FCOSAssigner
    assert type(detector.box_coder) is DistanceCoder
    assert (detector.point_offset, detector.min_positives) == (0.5, 0)
    assert detector.neck.relu_before_extra and detector.neck.extra_from == "output"
    head = detector.head
    assert (head.centerness, head.level_scales) == ("box", True)
    assert (head.num_classes, head.filters, head.num_convs) == (3, 32, 1)
    assert (detector.box_loss_weight, detector.centerness_loss_weight) == (0.7, 0.6)
    assert detector.max_detections == 7
    detector = build_detector(changed(**settings, assigner="atss"))
    assert type(detector.assigner) is ATSSAssigner
    assert detector.point_offset == 0.0


def test_atss_has_anchors_and_may_have_the_assignment_of_fcos():
    detector = build_detector(changed(detector="atss", centerness_loss_weight=0.6))
    assert type(detector) is FCOS and detector.name == "atss"
    assert type(detector.assigner) is ATSSAssigner
    coder = detector.box_coder
    assert coder.get_config() == {"stds": (0.1, 0.1, 0.2, 0.2), "anchor_scale": 8}
    assert (detector.point_offset, detector.min_positives) == (0.0, 1)
    assert not detector.neck.relu_before_extra
    assert detector.neck.extra_from == "output"
    assert detector.centerness_loss_weight == 0.6
    detector = build_detector(changed(detector="atss", assigner="fcos"))
    assert type(detector.assigner) is FCOSAssigner


@pytest.mark.parametrize(
    ("name", "kind"),
    [("retinanet", RetinaNet), ("foveabox", FoveaBox), ("reppoints", RepPoints)],
)
def test_the_other_rivals_go_by_name(name, kind):
    settings = {"class_loss": "focal", "focal_alpha": 0.4, "focal_gamma": 1.5}
    detector = build_detector(changed(detector=name, **settings))
    assert type(detector) is kind and detector.name == name
    neck, head = detector.neck, detector.head
    assert (neck.extra_from, neck.relu_before_extra) == ("input", False)
    assert neck.norm == ("group_norm" if name == "reppoints" else None)
    assert (head.num_classes, head.filters, head.num_convs) == (3, 32, 1)
    if name != "reppoints":
        assert (head.norm, head.centerness, head.level_scales) == (None, None, False)
        assert head.anchors_per_cell == (9 if name == "retinanet" else 1)
    else:
        assert detector.refined_box_loss_weight == 0.9
    assert detector.box_loss_weight == 0.7
    loss = detector.class_loss
    assert (type(loss), loss.alpha, loss.gamma) == (FocalLoss, 0.4, 1.5)
    assert (detector.score_threshold, detector.nms_iou_threshold) == (0.2, 0.4)


def test_vfnet_may_be_raw_and_have_the_assignment_of_fcos():
    settings = {"star": False, "refine": False, "assigner": "fcos"}
    detector = build_detector(changed(**settings))
    assert not detector.head.star and not detector.head.refine
    assert detector.loss_names == ("class_loss", "box_loss")
    assert type(detector.assigner) is FCOSAssigner


def test_weights_and_run_directories_bring_a_detector_back(tmp_path):
    detector = build_detector(SMALL)
    detector.save_weights(tmp_path / "best.weights.h5")
    save_config(SMALL, tmp_path / "config.json")
    copy = build_detector(tmp_path, weights=tmp_path / "best.weights.h5")
    for ours, theirs in zip(detector.variables, copy.variables, strict=True):
        np.testing.assert_array_equal(*to_numpy([ours, theirs]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__detector": "yolo"}, "detector=yolo"),
        ({"model__neck": "bifpn"}, "neck=bifpn"),
        ({"model__assigner": "max_iou"}, "assigner=max_iou for detector=vfnet"),
        (
            {"model__assigner": "atss", "model__detector": "foveabox"},
            "assigner=atss for detector=foveabox",
        ),
        ({"model__class_loss": "softmax"}, "class_loss=softmax"),
        ({"model__backbone__name": "resnet19"}, "backbone=resnet19"),
        ({"model__backbone__name": "keras:VGG16"}, "keras:VGG16"),
        ({"model__backbone__norm": "no_norm"}, "norm=no_norm"),
        ({"model__nms": "softer"}, "nms='softer'"),
    ],
)
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_detector(override(SMALL, **changes))


def test_the_table_of_backbones_is_complete():
    assert sorted(BACKBONES) == [
        "res2net101_v1d_26w_4s",
        "resnet101",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnext101_32x4d",
        "resnext101_64x4d",
    ]


def test_a_keras_model_is_built_frozen_up_to_its_first_stage():
    backbone = build_backbone(BackboneConfig("keras:ResNet50", "frozen_batch_norm", 1))
    assert isinstance(backbone, KerasBackbone)
    names = {v.path.split("/")[0] for v in backbone.trainable_variables}
    assert "conv3_block1_1_conv" in names
    assert not any(name.startswith(("conv1", "conv2")) for name in names)
    batch_norms = [
        layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert batch_norms == []


def test_norms_without_weights_in_the_file_are_trained(tmp_path):
    model = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    arrays = {
        f"{layer.name}/{v.name}": to_numpy(v).astype("float16")
        for layer in model.layers
        for v in layer.variables
        if not layer.name.startswith("conv5")
    }
    np.savez(tmp_path / "weights.npz", **arrays)
    config = BackboneConfig("keras:ResNet50", weights=str(tmp_path / "weights.npz"))
    backbone = build_backbone(config)
    trained = [
        layer.name
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert trained and all(name.startswith("conv5") for name in trained)
    kernel = to_numpy(backbone.get_layer("conv4_block6_3_conv").kernel)
    np.testing.assert_array_equal(
        kernel, arrays["conv4_block6_3_conv/kernel"].astype("float32")
    )
    # And the layers start as the official code's stages without weights do.
    first, second = (
        to_numpy(backbone.get_layer(f"conv5_block{block}_2_conv").kernel)
        for block in (2, 3)
    )
    assert abs(first.std() / np.sqrt(2 / (9 * 512)) - 1) < 0.01
    assert np.abs(first - second).max() > 0.01
    assert not to_numpy(backbone.get_layer("conv5_block1_3_bn").gamma).any()
    assert to_numpy(backbone.get_layer("conv5_block1_2_bn").gamma).all()


def tiny():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="first")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="second")(x), name="tiny")


def test_layer_weights_are_loaded_and_the_layers_without_are_named(tmp_path):
    kernel = np.arange(12, dtype="float16").reshape(4, 3)
    np.savez(tmp_path / "w.npz", **{"first/kernel": kernel, "first/bias": np.ones(3)})
    model = tiny()
    assert load_layer_weights(model, tmp_path / "w.npz") == ["second"]
    np.testing.assert_array_equal(to_numpy(model.get_layer("first").kernel), kernel)


def test_layer_weights_that_do_not_fit_are_listed_and_not_loaded(tmp_path):
    model = tiny()
    before = model.get_weights()
    np.savez(
        tmp_path / "w.npz",
        **{"first/kernel": np.zeros((4, 4)), "third/bias": np.zeros(3)},
    )
    with pytest.raises(ValueError) as error:
        load_layer_weights(model, tmp_path / "w.npz")
    message = str(error.value)
    assert "3 problems" in message and "no such variable: third/bias" in message
    assert "missing: first/bias" in message
    assert "first/kernel: (4, 4), the model's (4, 3)" in message
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_files_that_hold_no_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match="existing file"):
        load_layer_weights(tiny(), tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="must be an .npz file"):
        load_layer_weights(tiny(), tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="must be an .npz file"):
        load_layer_weights(tiny(), tmp_path / "array.npy")


def test_normalisations_are_those_that_the_weights_expect():
    assert normalization_for("resnet50") == TORCHVISION
    assert normalization_for("keras:ResNet50") == CAFFE_BGR
    assert normalization_for("keras:DenseNet169") == RGB_255_TORCH
    with pytest.raises(ValueError, match="MobileNetV2"):
        normalization_for("keras:MobileNetV2")


def test_frozen_norms_of_keras_models_keep_their_layers_names():
    backbone = build_backbone(BackboneConfig("keras:DenseNet121", frozen_stages=0))
    kinds = {layer.name: type(layer) for layer in backbone.layers}
    assert kinds["conv2_block1_0_bn"] is FrozenBatchNorm
