"""The names of our variables in the official checkpoints (mmdetection 2.x)."""

import re

from vfnet_tf.box_coders import DeltaCoder
from vfnet_tf.detectors import FCOS, FoveaBox, RetinaNet
from vfnet_tf.heads import RepPointsHead, VFNetHead

#: Variables of a norm: (official suffix, attribute of our layer).
_NORM_SUFFIXES = (
    ("weight", "gamma"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)


def official_variables(detector):
    """Every variable of a detector that a checkpoint must hold.

    Args:
        detector: a detector with one of our backbones, necks and heads.

    Returns:
        dict from the official tensor name to the Keras variable, in the order of our
        layers.

    Raises:
        ValueError: for a detector that has no official counterpart.
    """
    variables = backbone_variables(detector.backbone, "backbone.")
    _add_neck(variables, detector.neck)
    head = detector.head
    _add_towers(variables, head)
    if isinstance(head, VFNetHead):
        _add_vfnet_head(variables, head)
    elif isinstance(head, RepPointsHead):
        _add_reppoints_head(variables, head)
    else:
        _add_dense_head(variables, head, _dense_head_names(detector))
    return variables


def classifier_name(detector):
    """Start of the names of the convolution whose shape depends on the classes."""
    head = detector.head
    if isinstance(head, VFNetHead):
        return "bbox_head.vfnet_cls."
    if isinstance(head, RepPointsHead):
        return "bbox_head.reppoints_cls_out."
    return f"bbox_head.{_dense_head_names(detector)[0]}."


def _dense_head_names(detector):
    """Official names of the predictors of classes, boxes and centerness."""
    if isinstance(detector, FCOS):
        # The official ATSS predicts deltas, FCOS distances.
        if isinstance(detector.box_coder, DeltaCoder):
            return "atss_cls", "atss_reg", "atss_centerness"
        return "conv_cls", "conv_reg", "conv_centerness"
    for kind, names in (
        (RetinaNet, ("retina_cls", "retina_reg", None)),
        (FoveaBox, ("conv_cls", "conv_reg", None)),
    ):
        if isinstance(detector, kind):
            return names
    raise ValueError(
        "`detector` must be one that the official code has. "
        f"Received: {type(detector).__name__}"
    )


def backbone_variables(backbone, prefix=""):
    """Every variable of a `ResNet` or `Res2Net` by the official name.

    ResNet and ResNeXt have torchvision's names.

    Args:
        backbone: a `ResNet` or `Res2Net`.
        prefix: str before every name.

    Returns:
        dict from name to Keras variable, in the order of the layers.
    """
    variables = {}
    for layer in backbone.layers:
        if hasattr(layer, "conv"):
            conv, norm = resnet_names(layer.name)
            _add_conv(variables, layer, prefix + conv, prefix + norm)
    return variables


def resnet_names(name):
    """The official names of the convolution and the norm of one of our layers.

    >>> resnet_names("layer2_0_conv1")
    ('layer2.0.conv1', 'layer2.0.bn1')
    >>> resnet_names("layer2_0_downsample")
    ('layer2.0.downsample.0', 'layer2.0.downsample.1')
    >>> resnet_names("layer2_0_convs1")
    ('layer2.0.convs.1', 'layer2.0.bns.1')
    """
    if name == "conv1":
        return "conv1", "bn1"
    match = re.fullmatch(r"stem(\d)", name)
    if match is not None:
        # The stem is three times convolution, norm and ReLU.
        first = 3 * int(match.group(1))
        return f"stem.{first}", f"stem.{first + 1}"
    match = re.fullmatch(r"layer(\d)_(\d+)_([a-z_]+)(\d?)", name)
    parts = {
        "conv": "conv{n} bn{n}",
        "convs": "convs.{n} bns.{n}",
        "downsample": "downsample.0 downsample.1",
        # After the pooling, which is number 0.
        "pooled_downsample": "downsample.1 downsample.2",
    }
    if match is None or match.group(3) not in parts:
        raise ValueError(f"No official name is known. Received: layer name={name}")
    stage, block, part, number = match.groups()
    conv, norm = parts[part].format(n=number).split()
    return f"layer{stage}.{block}.{conv}", f"layer{stage}.{block}.{norm}"


def _add_conv(variables, layer, conv_name, norm_name=None):
    variables[f"{conv_name}.weight"] = layer.conv.kernel
    if layer.use_bias:
        variables[f"{conv_name}.bias"] = layer.conv.bias
    if layer.deformable:
        offset = layer.conv.conv_offset
        variables[f"{conv_name}.conv_offset.weight"] = offset.kernel
        variables[f"{conv_name}.conv_offset.bias"] = offset.bias
    if layer.norm_layer is not None:
        for suffix, attribute in _NORM_SUFFIXES:
            if hasattr(layer.norm_layer, attribute):
                variables[f"{norm_name}.{suffix}"] = getattr(
                    layer.norm_layer, attribute
                )


def _add_neck(variables, neck):
    """Adds an `FPN`, or a `PAFPN`, which has two more kinds of convolutions."""
    for ours, theirs in (
        ("laterals", "lateral_convs"),
        ("outputs", "fpn_convs"),
        ("downsamples", "downsample_convs"),
        ("final_outputs", "pafpn_convs"),
    ):
        for index, layer in enumerate(getattr(neck, ours, ())):
            name = f"neck.{theirs}.{index}"
            _add_conv(variables, layer, f"{name}.conv", f"{name}.gn")


def _add_towers(variables, head):
    for ours, theirs in (
        (head.class_tower, "cls_convs"),
        (head.box_tower, "reg_convs"),
    ):
        for index, layer in enumerate(ours.convs):
            name = f"bbox_head.{theirs}.{index}"
            _add_conv(variables, layer, f"{name}.conv", f"{name}.gn")


def _add_dense_head(variables, head, names):
    class_name, box_name, centerness_name = names
    _add_conv(variables, head.class_predictor, f"bbox_head.{class_name}")
    _add_conv(variables, head.box_predictor, f"bbox_head.{box_name}")
    if head.centerness is not None:
        _add_conv(variables, head.centerness_predictor, f"bbox_head.{centerness_name}")
    _add_scales(variables, head.scales, "scales")


def _add_reppoints_head(variables, head):
    start = "bbox_head.reppoints"
    _add_conv(variables, head.point_conv, f"{start}_pts_init_conv")
    _add_conv(variables, head.point_predictor, f"{start}_pts_init_out")
    variables[f"{start}_pts_refine_conv.weight"] = head.refine_kernel
    _add_conv(variables, head.refine_predictor, f"{start}_pts_refine_out")
    variables[f"{start}_cls_conv.weight"] = head.class_kernel
    _add_conv(variables, head.class_predictor, f"{start}_cls_out")
    variables["bbox_head.moment_transfer"] = head.moment_transfer


def _add_scales(variables, scales, name):
    for index, scale in enumerate(scales):
        variables[f"bbox_head.{name}.{index}.scale"] = scale.scale


def _add_vfnet_head(variables, head):
    name = "bbox_head.vfnet_reg_conv"
    _add_conv(variables, head.box_conv, f"{name}.conv", f"{name}.gn")
    _add_conv(variables, head.box_predictor, "bbox_head.vfnet_reg")
    if head.refine:
        variables["bbox_head.vfnet_reg_refine_dconv.weight"] = head.box_star.kernel
        _add_conv(variables, head.refine_predictor, "bbox_head.vfnet_reg_refine")
    if head.star:
        variables["bbox_head.vfnet_cls_dconv.weight"] = head.class_star.kernel
    else:
        name = "bbox_head.vfnet_cls_conv"
        _add_conv(variables, head.class_conv, f"{name}.conv", f"{name}.gn")
    _add_conv(variables, head.class_predictor, "bbox_head.vfnet_cls")
    _add_scales(variables, head.scales, "scales")
    _add_scales(variables, head.refine_scales, "scales_refine")


def is_ignorable(name):
    """Whether no variable needs a checkpoint's tensor of this name."""
    return name.endswith("num_batches_tracked")
