import keras
import numpy as np
import pytest

from tests.contracts import assert_close_to_max, randomise, to_numpy
from vfnet_tf.assigners import ATSSAssigner, FCOSAssigner
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.backbones.stages import stage_ends
from vfnet_tf.box_coders import DistanceCoder
from vfnet_tf.builder import (
    APPLICATIONS,
    _include_second_scaling,
    build_backbone,
    build_detector,
    load_layer_weights,
    normalization_for,
)
from vfnet_tf.config import BackboneConfig, Config, ModelConfig, override, save_config
from vfnet_tf.data.normalization import TORCHVISION
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, RetinaNet
from vfnet_tf.layers import FrozenBatchNorm
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

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
    backbone, head, loss = detector.backbone, detector.head, detector.class_loss
    assert (backbone.depth, backbone.norm) == (18, "batch_norm")
    assert backbone.frozen_stages == 0
    assert (detector.neck.filters, head.filters, head.num_convs) == (32, 64, 2)
    assert (loss.alpha, loss.gamma, loss.iou_weighted) == (0.5, 1.5, False)
    kept = ("num_classes", "box_loss_weight", "refined_box_loss_weight")
    for name in (*kept, *DETECTION_SETTINGS):
        assert getattr(detector, name) == getattr(SMALL.model, name), name


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
    detector = build_detector(
        changed(**settings, assigner="atss", class_loss="quality_focal")
    )
    assert type(detector.assigner) is ATSSAssigner
    assert type(detector.class_loss) is QualityFocalLoss
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
    assert type(detector.class_loss) is VarifocalLoss
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
        ({"model__backbone__name": "keras:InceptionV3"}, "keras:InceptionV3"),
        ({"model__backbone__name": "keras:Nothing"}, "ConvNeXtTiny.*keras:Nothing"),
        ({"model__backbone__norm": "no_norm"}, "norm=no_norm"),
        ({"model__nms": "softer"}, "nms='softer'"),
        ({"model__neck_filters": 10**6}, "from 1 to 2048. Received: neck_filters="),
        ({"model__num_classes": 10**9}, "num_classes=1000000000"),
        ({"model__head_convs": 0}, "from 1 to 32. Received: head_convs=0"),
    ],
)
def test_unknown_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_detector(override(SMALL, **changes))


def names_of(backbone, kind):
    return [layer.name for layer in backbone.layers if isinstance(layer, kind)]


def make_application(name):
    return getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )


def test_a_keras_model_is_built_frozen_up_to_its_first_stage():
    backbone = build_backbone(BackboneConfig("keras:ResNet50", "frozen_batch_norm", 1))
    assert isinstance(backbone, KerasBackbone)
    names = {v.path.split("/")[0] for v in backbone.trainable_variables}
    assert "conv3_block1_1_conv" in names
    assert not any(name.startswith(("conv1", "conv2")) for name in names)
    assert names_of(backbone, keras.layers.BatchNormalization) == []


def test_norms_without_weights_in_the_file_are_trained(tmp_path):
    model = make_application("ResNet50")
    arrays = {
        f"{layer.name}/{v.name}": to_numpy(v).astype("float16")
        for layer in model.layers
        for v in layer.variables
        if not layer.name.startswith("conv5")
    }
    np.savez(tmp_path / "weights.npz", **arrays)
    config = BackboneConfig("keras:ResNet50", weights=str(tmp_path / "weights.npz"))
    backbone = build_backbone(config)
    trained = names_of(backbone, keras.layers.BatchNormalization)
    assert trained and all(name.startswith("conv5") for name in trained)
    kernel = to_numpy(backbone.get_layer("conv4_block6_3_conv").kernel)
    np.testing.assert_array_equal(
        kernel, arrays["conv4_block6_3_conv/kernel"].astype("float32")
    )
    # The other layers have the initial values of the official code.
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
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "text.h5").write_text("not HDF5")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, message in (
        ("none.npz", "existing file"),
        ("text.npz", "must be an .npz file or an .h5 file"),
        ("text.h5", "text.h5"),
        ("array.npy", "must be an .npz file or an .h5 file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_layer_weights(tiny(), tmp_path / name)


@pytest.mark.parametrize("name", ["own.weights.h5", "whole_model.h5"])
def test_files_by_keras_are_loaded_whole_or_refused(tmp_path, name):
    source, model = randomise(tiny()), tiny()
    if name.endswith(".weights.h5"):
        source.save_weights(tmp_path / name)
    else:  # the older format, in which keras.applications are published
        source.save(tmp_path / name)
    assert load_layer_weights(model, tmp_path / name) == []
    for new, old in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(*to_numpy([new, old]))
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match=f"without its classifier.*{name}"):
        load_layer_weights(other, tmp_path / name)


#: One small model of each family: layers that end C2, C3, C4 and C5 (None where the layer
#: has no name of its own), and the module with the family's `preprocess_input`.
FAMILIES = {
    "ResNet50": (
        "resnet",
        (
            "conv2_block3_out",
            "conv3_block4_out",
            "conv4_block6_out",
            "conv5_block3_out",
        ),
    ),
    "ResNet50V2": (
        "resnet_v2",
        ("conv2_block2_out", "conv3_block3_out", "conv4_block5_out", "post_relu"),
    ),
    "DenseNet121": ("densenet", ("pool2_conv", "pool3_conv", "pool4_conv", "relu")),
    "EfficientNetB0": (
        "efficientnet",
        tuple(f"block{stage}a_expand_activation" for stage in (3, 4, 6))
        + ("top_activation",),
    ),
    "EfficientNetV2B0": (
        "efficientnet_v2",
        (
            "block2b_add",
            "block4a_expand_activation",
            "block6a_expand_activation",
            "top_activation",
        ),
    ),
    "MobileNet": (
        "mobilenet",
        tuple(f"conv_pw_{number}_relu" for number in (3, 5, 11, 13)),
    ),
    "MobileNetV2": (
        "mobilenet_v2",
        tuple(f"block_{number}_expand_relu" for number in (3, 6, 13)) + ("out_relu",),
    ),
    "MobileNetV3Small": ("mobilenet_v3", None),
    "ConvNeXtTiny": ("convnext", None),
    "Xception": ("xception", None),
    "VGG16": (
        "vgg16",
        ("block3_conv3", "block4_conv3", "block5_conv3", "block5_pool"),
    ),
}
QUICK = ("MobileNet", "MobileNetV3Small")
FAMILY_CASES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in FAMILIES
]


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_a_family_gets_pixels_as_its_own_preprocessing_gives_them(name, tmp_path):
    module, ends = FAMILIES[name]
    model = make_application(name)
    found = stage_ends(model)
    if ends is not None:
        names = [x._keras_history.operation.name for x in found.values()]
        assert names == list(ends)
    model.save_weights(tmp_path / "model.weights.h5")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), "uint8")
    preprocess = getattr(keras.applications, module).preprocess_input
    expected = keras.Model(model.inputs, [found[stride] for stride in (8, 16, 32)])(
        [preprocess(pixels.astype("float32"))], training=False
    )
    backbone = build_backbone(
        BackboneConfig(f"keras:{name}", weights=str(tmp_path / "model.weights.h5"))
    )
    images = normalization_for(f"keras:{name}")(pixels)
    maps = to_numpy(backbone(images, training=name in DETERMINISTIC))
    assert [maps[level].shape[1:3] for level in maps] == [(8, 12), (4, 6), (2, 3)]
    for level, value in zip(maps, expected, strict=True):
        assert_close_to_max(maps[level], to_numpy(value), 2e-5)


#: Without dropout the maps are the same in training: norms are frozen.
DETERMINISTIC = ("ResNet50", "ResNet50V2", "DenseNet121", "MobileNet", "ConvNeXtTiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(APPLICATIONS) - set(FAMILIES)))
def test_every_other_listed_model_has_maps_of_the_three_strides(name):
    assert {8, 16, 32} <= set(stage_ends(make_application(name)))


def test_normalisations_are_those_that_the_weights_expect():
    assert normalization_for("resnet50") == TORCHVISION
    with pytest.raises(ValueError, match="InceptionV3 is not known.*VGG16"):
        normalization_for("keras:InceptionV3")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 3), "uint8")
    for name, (module, _) in FAMILIES.items():
        preprocess = getattr(keras.applications, module).preprocess_input
        np.testing.assert_allclose(
            normalization_for(f"keras:{name}")(pixels),
            preprocess(pixels.astype("float32")),
            rtol=1e-5,
            atol=2e-5,
            err_msg=name,
        )


def test_stages_of_a_keras_model_are_frozen_up_to_the_number_asked_for():
    for stages, last in ((1, "conv_pw_3"), (2, "conv_pw_5"), (0, None)):
        config = BackboneConfig("keras:MobileNet", frozen_stages=stages)
        backbone = build_backbone(config)
        frozen = [
            layer.name
            for layer in backbone.layers
            if layer.weights and not layer.trainable_variables
        ]
        assert (frozen[-1] if frozen else None) == last


def test_an_efficientnet_divides_by_the_whole_deviation():
    inputs = keras.Input((None, None, 3))
    scaling = keras.layers.Normalization(name="normalization")
    x = scaling(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, x)
    mean, deviation = (
        np.float32([0.485, 0.456, 0.406]),
        np.float32([0.229, 0.224, 0.225]),
    )
    for variance, expected in ((deviation, deviation), (np.ones(3), np.ones(3))):
        scaling.set_weights([mean, np.float32(variance), np.int32(0)])
        _include_second_scaling(model)
        scaling.finalize_state()
        found = to_numpy(model(np.full((1, 1, 1, 3), 51.0, "float32")))
        np.testing.assert_allclose(found[0, 0, 0], (0.2 - mean) / expected, rtol=1e-5)


@pytest.mark.slow
def test_weights_that_keras_downloads_give_its_own_model(monkeypatch, tmp_path):
    model = make_application("EfficientNetB0")
    normalization = model.get_layer(index=2)
    normalization.set_weights(
        [
            np.float32([0.485, 0.456, 0.406]),
            np.float32([0.229, 0.224, 0.225]),
            np.int32(0),
        ]
    )
    model.save_weights(tmp_path / "downloaded.weights.h5")
    monkeypatch.setattr(
        "keras.src.utils.file_utils.get_file",
        lambda *arguments, **settings: str(tmp_path / "downloaded.weights.h5"),
    )
    reference = keras.applications.EfficientNetB0(include_top=False)
    assert len(reference.layers) == len(model.layers) + 1
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    backbone = build_backbone(
        BackboneConfig("keras:EfficientNetB0", weights="pretrained")
    )
    expected = to_numpy(reference([pixels], training=False))
    assert_close_to_max(to_numpy(backbone(pixels))["C5"], expected, 1e-4)


def test_frozen_norms_of_keras_models_keep_their_layers_names():
    backbone = build_backbone(BackboneConfig("keras:DenseNet121", frozen_stages=0))
    assert "conv2_block1_0_bn" in names_of(backbone, FrozenBatchNorm)
