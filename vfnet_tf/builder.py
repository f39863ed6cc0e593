"""Detectors from configs, by a table for each kind of part."""

import os
import pathlib

import keras
import numpy as np

from vfnet_tf.assigners import ATSSAssigner, FCOSAssigner
from vfnet_tf.backbones import KerasBackbone, Res2Net, ResNet, kerashub
from vfnet_tf.backbones.stages import stage_ends
from vfnet_tf.box_coders import DeltaCoder
from vfnet_tf.checkpoints.imagenet import make_application
from vfnet_tf.config import PRETRAINED, did_you_mean, load_config
from vfnet_tf.data.normalization import (
    CAFFE_BGR,
    IDENTITY,
    MINUS_ONE_TO_ONE,
    RGB_255_TORCH,
    TORCHVISION,
)
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, RetinaNet, VFNet
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss
from vfnet_tf.necks import FPN, PAFPN
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

BACKBONES = {
    "resnet18": lambda **settings: ResNet(18, **settings),
    "resnet34": lambda **settings: ResNet(34, **settings),
    "resnet50": lambda **settings: ResNet(50, **settings),
    "resnet101": lambda **settings: ResNet(101, **settings),
    "resnext101_32x4d": lambda **settings: ResNet(
        101, groups=32, width_per_group=4, name="resnext101_32x4d", **settings
    ),
    "resnext101_64x4d": lambda **settings: ResNet(
        101, groups=64, width_per_group=4, name="resnext101_64x4d", **settings
    ),
    "res2net101_v1d_26w_4s": lambda **settings: Res2Net(
        101, base_width=26, scales=4, name="res2net101_v1d_26w_4s", **settings
    ),
}

NECKS = {"fpn": FPN, "pafpn": PAFPN}

#: Assigners of detectors with one point in each cell.
POINT_ASSIGNERS = {"atss": ATSSAssigner, "fcos": FCOSAssigner}

#: The models of `keras.applications` with maps of the strides 8, 16 and 32, and the
#: normalisation that their weights expect: `IDENTITY` for models that scale pixels
#: themselves. Inception is missing because its convolutions do not pad, so that sizes do
#: not halve; NASNet because its cells read two maps, so that no single map ends a stage.
APPLICATIONS = {
    **dict.fromkeys(("ResNet50", "ResNet101", "ResNet152"), CAFFE_BGR),
    **dict.fromkeys(("VGG16", "VGG19"), CAFFE_BGR),
    **dict.fromkeys(("ResNet50V2", "ResNet101V2", "ResNet152V2"), MINUS_ONE_TO_ONE),
    **dict.fromkeys(("MobileNet", "MobileNetV2", "Xception"), MINUS_ONE_TO_ONE),
    **dict.fromkeys(("DenseNet121", "DenseNet169", "DenseNet201"), RGB_255_TORCH),
    **dict.fromkeys((f"EfficientNetB{number}" for number in range(8)), IDENTITY),
    **dict.fromkeys(
        (f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
        IDENTITY,
    ),
    **dict.fromkeys(("MobileNetV3Small", "MobileNetV3Large"), IDENTITY),
    **dict.fromkeys(
        (f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
        IDENTITY,
    ),
}

#: Largest values that are taken for meant: with more, a detector fills the memory.
LIMITS = {
    "num_classes": 30_000,
    "neck_filters": 2_048,
    "head_filters": 2_048,
    "head_convs": 32,
}

#: Ending of the names of the last norm in a residual branch.
APPLICATION_LAST_NORMS = dict.fromkeys(("ResNet50", "ResNet101", "ResNet152"), "_3_bn")


#: Loads published weights; `vfnet_tf.presets` sets it, which builds detectors for that.
load_published = None


def build_detector(config, weights=None):
    """Builds a detector.

    Args:
        config: a config's name such as `"vfnet_r50_fpn_1x_coco"`, a path, a run
            directory, or a `Config`.
        weights: path of a `.weights.h5` file of such a detector; `"coco"` for the
            published weights of that config, which are downloaded once (with other
            classes all but the classifier, whose rows are taken for classes of the same
            name); or None for initial weights.

    Returns:
        A built `keras.Model`, e.g. a `VFNet`; its `dtype` is the policy in force.

    Raises:
        ValueError: for an unknown config, backbone, loss or detector, or weights that
            cannot be loaded or downloaded.
    """
    config = load_config(config)
    model = config.model
    for name, table in (("detector", DETECTORS), ("neck", NECKS)):
        if getattr(model, name) not in table:
            raise ValueError(
                f"`{name}` must be one of {sorted(table)}. "
                f"Received: {name}={getattr(model, name)}."
                + did_you_mean(getattr(model, name), table)
            )
    for name, most in LIMITS.items():
        if not 1 <= getattr(model, name) <= most:
            raise ValueError(
                f"`{name}` must be from 1 to {most}. "
                f"Received: {name}={getattr(model, name)}"
            )
    if model.assigner is not None and (
        model.assigner not in POINT_ASSIGNERS
        or model.detector not in ("vfnet", "fcos", "atss")
    ):
        raise ValueError(
            f"`assigner` must be one of {sorted(POINT_ASSIGNERS)}, for VFNet, FCOS and "
            "ATSS, or None. Received: "
            f"assigner={model.assigner} for detector={model.detector}"
        )
    detector = DETECTORS[model.detector](model)
    if max(config.data.normalization.mean) == 0:  # not normalised: raw pixels are right
        detector.check_inputs = False
    detector._built_from = config
    if weights == "coco":
        load_published(detector, config)
    elif weights is not None:
        detector.load_weights(weights)
    return detector


def _parts(model):
    """The arguments that all detectors have, from a `ModelConfig`."""
    return {
        "backbone": build_backbone(model.backbone),
        "class_loss": _build_class_loss(model),
        "box_loss_weight": model.box_loss_weight,
        **{name: getattr(model, name) for name in DETECTION_SETTINGS},
        "name": model.detector,
    }


def _neck(model, **settings):
    return NECKS[model.neck](model.neck_filters, name=model.neck, **settings)


def _dense_head(model, **settings):
    head = (model.num_classes, model.head_filters, model.head_convs)
    return DenseHead(*head, name="head", **settings)


def _build_vfnet(model):
    assigner = POINT_ASSIGNERS[model.assigner or "atss"]
    return VFNet(
        neck=_neck(model),
        head=VFNetHead(
            model.num_classes,
            model.head_filters,
            model.head_convs,
            model.deformable_towers,
            star=model.star,
            refine=model.refine,
            name="head",
        ),
        assigner=assigner(),
        refined_box_loss_weight=model.refined_box_loss_weight,
        **_parts(model),
    )


def _build_fcos(model):
    name = model.assigner or "fcos"
    return FCOS(
        neck=_neck(model),
        head=_dense_head(model, centerness="box", level_scales=True),
        assigner=POINT_ASSIGNERS[name](),
        point_offset=0.5 if name == "fcos" else 0.0,
        centerness_loss_weight=model.centerness_loss_weight,
        **_parts(model),
    )


def _build_atss(model):
    return FCOS(
        neck=_neck(model, relu_before_extra=False),
        head=_dense_head(model, centerness="box", level_scales=True),
        assigner=POINT_ASSIGNERS[model.assigner or "atss"](),
        box_coder=DeltaCoder((0.1, 0.1, 0.2, 0.2), anchor_scale=8),
        point_offset=0.0,
        min_positives=1,
        centerness_loss_weight=model.centerness_loss_weight,
        **_parts(model),
    )


def _build_retinanet(model):
    return RetinaNet(
        neck=_neck(model, extra_from="input", relu_before_extra=False),
        head=_dense_head(model, norm=None, anchors_per_cell=9),
        **_parts(model),
    )


def _build_foveabox(model):
    return FoveaBox(
        neck=_neck(model, extra_from="input", relu_before_extra=False),
        head=_dense_head(model, norm=None),
        **_parts(model),
    )


def _build_reppoints(model):
    head = (model.num_classes, model.head_filters, model.head_convs)
    return RepPoints(
        neck=_neck(
            model, extra_from="input", relu_before_extra=False, norm="group_norm"
        ),
        head=RepPointsHead(*head, name="head"),
        refined_box_loss_weight=model.refined_box_loss_weight,
        **_parts(model),
    )


#: Function from a `ModelConfig` to a detector, by `ModelConfig.detector`.
DETECTORS = {
    "vfnet": _build_vfnet,
    "fcos": _build_fcos,
    "atss": _build_atss,
    "retinanet": _build_retinanet,
    "foveabox": _build_foveabox,
    "reppoints": _build_reppoints,
}


def _build_class_loss(model):
    if model.class_loss == "varifocal":
        return VarifocalLoss(model.loss_alpha, model.loss_gamma, model.iou_weighted)
    if model.class_loss == "focal":
        return FocalLoss(model.focal_alpha, model.focal_gamma)
    if model.class_loss == "quality_focal":
        return QualityFocalLoss()
    raise ValueError(
        "`class_loss` must be 'varifocal', 'focal' or 'quality_focal'. "
        f"Received: class_loss={model.class_loss}"
    )


def build_backbone(config):
    """A backbone from a `BackboneConfig`.

    Layers of a Keras model that `config.weights` does not contain keep their initial
    values, and their batch norms train.
    """
    kind, _, name = config.name.partition(":")
    if kind in ("keras", "kerashub") and config.deformable:
        raise ValueError(
            "`deformable` works for our own backbones only. "
            f"Received: deformable={config.deformable} for {config.name}"
        )
    if kind == "keras":
        model = _make_application(name, pretrained=config.weights == PRETRAINED)
        return _build_foreign(model, config, APPLICATION_LAST_NORMS.get(name))
    if kind == "kerashub":
        if config.architecture is None:
            model = kerashub.load_preset(
                name, load_weights=config.weights == PRETRAINED
            )
        else:
            model = kerashub.load_architecture(config.architecture)
        return _build_foreign(model, config)
    if config.name not in BACKBONES:
        known = [*BACKBONES, *(f"keras:{model}" for model in APPLICATIONS)]
        raise ValueError(
            f"`backbone` must be one of {sorted(BACKBONES)}, 'keras:MODEL' with one of "
            f"{sorted(APPLICATIONS)}, or 'kerashub:PRESET'. "
            f"Received: backbone={config.name}." + did_you_mean(config.name, known)
        )
    return BACKBONES[config.name](
        norm=config.norm,
        frozen_stages=config.frozen_stages,
        deformable=config.deformable,
    )


def _make_application(name, pretrained):
    """A model of `keras.applications`, with the ImageNet weights that Keras downloads."""
    if name not in APPLICATIONS:
        raise ValueError(
            f"The known `keras.applications` backbones are {sorted(APPLICATIONS)}; "
            "give any other one to `KerasBackbone` with its layer names. "
            f"Received: keras:{name}"
        )
    settings = {"include_top": False, "input_shape": (None, None, 3)}
    model = getattr(keras.applications, name)(weights=None, **settings)
    if pretrained:
        # Copied, because Keras gives an EfficientNet with weights another layer, and a run
        # is rebuilt without weights.
        model.set_weights(make_application(name, **settings).get_weights())
    return model


def _build_foreign(model, config, last_norm=None):
    """A `KerasBackbone` of a Keras model, with the weights of a file."""
    trainable_norms = "" if config.norm == "batch_norm" else None
    without = []
    if config.weights not in (None, PRETRAINED):
        without = load_layer_weights(model, config.weights)
        _initialise(model, without, last_norm)
        if config.norm != "batch_norm":
            trainable_norms = os.path.commonprefix(without) if without else None
    _include_second_scaling(model)
    if config.trainable_norms != "auto":
        trainable_norms = config.trainable_norms
    frozen_until = None
    if config.frozen_stages > 0:
        end = stage_ends(model).get(2 << config.frozen_stages)
        if end is not None:
            frozen_until = end._keras_history.operation.name
    backbone = KerasBackbone(
        model, frozen_until=frozen_until, trainable_norms=trainable_norms
    )
    backbone.layers_without_weights = tuple(without)
    sides = backbone.inputs[0].shape[1:3]
    if None not in sides:
        raise ValueError(
            "A backbone must take images of any size: they are padded to one of several. "
            f"Received: {config.name}, which takes {sides[0]}x{sides[1]} only"
        )
    return backbone


def _include_second_scaling(model):
    """Makes an EfficientNet normalise in the way that its ImageNet weights expect.

    The first EfficientNets divide by the square root of the standard deviation, stored as
    the variance of a `Normalization`. Keras adds a second layer that divides again, but
    only if it loads the weights itself. Dividing once by the standard deviation is the
    same.
    """
    deviation = np.array([0.229, 0.224, 0.225])
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            stored = keras.ops.convert_to_numpy(layer.adapt_variance)
            if stored.shape == (3,) and np.allclose(stored, deviation, atol=1e-4):
                layer.adapt_variance.assign(deviation**2)


def load_layer_weights(model, path):
    """Loads a file of weights into a Keras model.

    Args:
        model: a Keras model with unique layer names.
        path: of an `.npz` with the keys `layer/variable`, which may leave out layers and
            have float16 arrays; or of an `.h5` by Keras for the same model:
            `.weights.h5`, or a download of `keras.applications`.

    Returns:
        Names of the layers with weights that the file does not contain, in order.

    Raises:
        ValueError: if the file cannot be read or is of another model; if an `.npz` has a
            tensor that fits nowhere, or only some tensors of a layer. Nothing is loaded
            then.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"`weights` must be an existing file. Received: {path}")
    if path.suffix == ".h5":
        try:
            model.load_weights(path)
        except Exception as error:  # h5py's, or Keras's of several classes
            raise ValueError(
                f"`weights` must be of {model.name} without its classifier. "
                f"Received: {path}: {error}"
            ) from error
        return []
    try:
        arrays = np.load(path, allow_pickle=False)
        tensors = {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            f"`weights` must be an .npz file or an .h5 file. Received: {path}"
        ) from error
    variables = {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
    }
    loaded = {key.split("/")[0] for key in tensors}
    problems = [f"no such variable: {key}" for key in tensors if key not in variables]
    for key, variable in variables.items():
        if key.split("/")[0] not in loaded:
            continue
        if key not in tensors:
            problems.append(f"missing: {key}")
        elif tuple(tensors[key].shape) != tuple(variable.shape):
            problems.append(
                f"shape of {key}: {tensors[key].shape}, the model's {variable.shape}"
            )
    if problems:
        raise ValueError(
            f"{path} does not fit {model.name} ({len(problems)} problems), nothing was "
            "loaded:\n  " + "\n  ".join(problems)
        )
    for key, array in tensors.items():
        variables[key].assign(array.astype("float32"))
    return [
        layer.name
        for layer in model.layers
        if layer.weights and layer.name not in loaded
    ]


def _initialise(model, names, last_norm):
    """Gives layers without weights the initial values of the official ResNet.

    Kernels get He's normal distribution over the outputs (fan_out), the last norm of a
    residual branch gets zeros, so that a new block adds nothing at first.
    """
    for name in names:
        layer = model.get_layer(name)
        if isinstance(layer, keras.layers.Conv2D):
            # A new one each time: an initialiser repeats its values.
            draw = keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            )
            layer.kernel.assign(draw(layer.kernel.shape))
        elif last_norm is not None and name.endswith(last_norm):
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))


def normalization_for(backbone_name):
    """The normalisation that a backbone's pretrained weights expect.

    Args:
        backbone_name: as in `BackboneConfig.name`.

    Raises:
        ValueError: if it is not known for that Keras model.
        ImportError: for a preset of KerasHub, if KerasHub is not installed.
    """
    kind, _, name = backbone_name.partition(":")
    if kind == "kerashub":
        return kerashub.preset_normalization(name)
    if kind != "keras":
        return TORCHVISION
    if name not in APPLICATIONS:
        raise ValueError(
            f"The normalisation of {name} is not known: set it in the config. "
            f"Known: {sorted(APPLICATIONS)}"
        )
    return APPLICATIONS[name]
