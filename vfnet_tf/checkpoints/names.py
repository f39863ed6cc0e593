"""Names of the official checkpoints' tensors (mmdetection 2.x) for our variables."""

import re

#: Ours to theirs inside a ConvNormAct: (official suffix, attribute path).
_NORM_SUFFIXES = (
    ("weight", "gamma"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)


def official_variables(detector):
    """Every variable of a detector that a checkpoint must hold.

    Args:
        detector: a `VFNet`.

    Returns:
        dict from the official tensor name to the Keras variable, in the order of our
        layers.
    """
    variables = {}
    for layer in detector.backbone.layers:
        if hasattr(layer, "conv"):
            conv, norm = resnet_names(layer.name)
            _add_conv(variables, layer, f"backbone.{conv}", f"backbone.{norm}")
    _add_fpn(variables, detector.neck)
    _add_vfnet_head(variables, detector.head)
    return variables


def resnet_names(name):
    """Torchvision's names of the convolution and the norm of one of our layers.

    >>> resnet_names("layer2_0_conv1")
    ('layer2.0.conv1', 'layer2.0.bn1')
    >>> resnet_names("layer2_0_downsample")
    ('layer2.0.downsample.0', 'layer2.0.downsample.1')
    """
    if name == "conv1":
        return "conv1", "bn1"
    match = re.fullmatch(r"layer(\d)_(\d+)_(conv(\d)|downsample)", name)
    if match is None:
        raise ValueError(f"No official name is known. Received: layer name={name}")
    stage, block, part, number = match.groups()
    prefix = f"layer{stage}.{block}"
    if part == "downsample":
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    return f"{prefix}.{part}", f"{prefix}.bn{number}"


def _add_conv(variables, layer, conv_name, norm_name=None):
    variables[f"{conv_name}.weight"] = layer.conv.kernel
    if layer.use_bias:
        variables[f"{conv_name}.bias"] = layer.conv.bias
    if layer.norm_layer is not None:
        for suffix, attribute in _NORM_SUFFIXES:
            if hasattr(layer.norm_layer, attribute):
                variables[f"{norm_name}.{suffix}"] = getattr(
                    layer.norm_layer, attribute
                )


def _add_fpn(variables, neck):
    for index, lateral in enumerate(neck.laterals):
        _add_conv(variables, lateral, f"neck.lateral_convs.{index}.conv")
    for index, output in enumerate(neck.outputs):
        _add_conv(variables, output, f"neck.fpn_convs.{index}.conv")


def _add_vfnet_head(variables, head):
    for ours, theirs in (
        (head.class_tower, "cls_convs"),
        (head.box_tower, "reg_convs"),
    ):
        for index, layer in enumerate(ours.convs):
            name = f"bbox_head.{theirs}.{index}"
            _add_conv(variables, layer, f"{name}.conv", f"{name}.gn")
    name = "bbox_head.vfnet_reg_conv"
    _add_conv(variables, head.box_conv, f"{name}.conv", f"{name}.gn")
    _add_conv(variables, head.box_predictor, "bbox_head.vfnet_reg")
    variables["bbox_head.vfnet_reg_refine_dconv.weight"] = head.box_star.kernel
    _add_conv(variables, head.refine_predictor, "bbox_head.vfnet_reg_refine")
    variables["bbox_head.vfnet_cls_dconv.weight"] = head.class_star.kernel
    _add_conv(variables, head.class_predictor, "bbox_head.vfnet_cls")
    for index, scale in enumerate(head.scales):
        variables[f"bbox_head.scales.{index}.scale"] = scale.scale
    for index, scale in enumerate(head.refine_scales):
        variables[f"bbox_head.scales_refine.{index}.scale"] = scale.scale


def is_ignorable(name):
    """Tensors that a checkpoint may hold and that no variable needs."""
    return name.endswith("num_batches_tracked")
