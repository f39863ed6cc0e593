"""The detector of a checkpoint, from the names and shapes of its tensors."""

import re

from vfnet_tf.config import list_configs

#: Start of a tensor's name -> detector whose head has such a tensor.
_HEADS = (
    ("bbox_head.vfnet_cls.", "VFNet"),
    ("bbox_head.atss_cls.", "ATSS"),
    ("bbox_head.retina_cls.", "RetinaNet"),
    ("bbox_head.reppoints_cls_out.", "RepPoints"),
    ("bbox_head.gfl_cls.", "GFL"),
    ("bbox_head.conv_centerness.", "FCOS"),
    ("bbox_head.conv_cls.", "FoveaBox"),
    ("rpn_head.", "an R-CNN"),
)
#: Start of `_head`'s text -> start of the names of its configs.
_CONFIGS = (
    ("VFNet without star", "vfnet_raw"),
    ("VFNet without refinement", "vfnet_star"),
    ("VFNet (", "vfnet"),
    ("ATSS", "vfl_atss"),
    ("RetinaNet", "vfl_retinanet"),
    ("RepPoints", "vfl_reppoints_moment"),
    ("FCOS", "fcos"),
    ("FoveaBox", "vfl_fovea"),
)
#: (blocks of the third stage, whether they are bottlenecks) -> depth.
_DEPTHS = {
    (2, False): 18,
    (6, False): 34,
    (6, True): 50,
    (23, True): 101,
    (36, True): 152,
}
#: Channels of a bottleneck in the first stage -> cardinality and width of a group.
_RESNEXTS = {128: "32x4d", 256: "64x4d"}


def describe(shapes):
    """Describes the architecture of a checkpoint in words.

    Args:
        shapes: dict from the official tensor name to the shape in PyTorch's layout.

    Returns:
        str such as "VFNet (3 tower convolutions, 256 channels), ResNet-101 with DCNv2,
        FPN (256 channels)"; None if neither a head nor a backbone is recognised.
    """
    parts = [_head(shapes), _backbone(shapes), _neck(shapes)]
    if parts[0] is None and parts[1] is None:
        return None
    return ", ".join(part for part in parts if part is not None)


def is_detector(names):
    """Whether tensors of these names belong to a whole detector, not to a backbone."""
    starts = ("bbox_head.", "neck.", "rpn_head.", "roi_head.")
    return any(name.startswith(starts) for name in names)


def matching_configs(shapes):
    """Names of the shipped configs with the checkpoint's architecture."""
    backbone, found = _backbone(shapes), _head(shapes) or ""
    head = next((stem for start, stem in _CONFIGS if found.startswith(start)), None)
    if backbone is None or head is None:
        return []
    name, _, dcn = backbone.partition(" with ")
    name = name.replace("Res2Net-101 v1d", "r2_101").replace("ResNeXt-", "x")
    name = name.replace("ResNet-", "r").replace("-", "_")
    if head == "vfnet" and "PAFPN" in (_neck(shapes) or ""):
        head = "vfnetx"
    return [
        config
        for config in list_configs()
        if config.startswith(f"{head}_{name}_fpn")
        and config.endswith("_coco")
        and ("mdconv" in config) == bool(dcn)
    ]


def _head(shapes):
    heads = (
        head for start, head in _HEADS if any(name.startswith(start) for name in shapes)
    )
    head = next(heads, None)
    convs = {re.match(r"bbox_head\.cls_convs\.(\d+)\.", name) for name in shapes}
    count = len({match.group(1) for match in convs if match is not None})
    first = shapes.get("bbox_head.cls_convs.0.conv.weight")
    if head is None or not count or first is None:
        return head
    if head == "VFNet" and "bbox_head.vfnet_cls_dconv.weight" not in shapes:
        head = "VFNet without star convolutions"
    elif head == "VFNet" and "bbox_head.vfnet_reg_refine.weight" not in shapes:
        head = "VFNet without refinement"
    return f"{head} ({count} tower convolutions, {first[0]} channels)"


def _backbone(shapes):
    blocks = {re.match(r"backbone\.layer3\.(\d+)\.", name) for name in shapes}
    count = len({match.group(1) for match in blocks if match is not None})
    bottleneck = "backbone.layer1.0.conv3.weight" in shapes
    depth = _DEPTHS.get((count, bottleneck))
    if depth is None:
        return None
    if "backbone.layer1.0.convs.0.weight" in shapes:
        name = f"Res2Net-{depth}"
        if "backbone.stem.0.weight" in shapes:
            name += " v1d"
    else:
        first = shapes.get("backbone.layer1.0.conv1.weight", (0,))
        resnext = _RESNEXTS.get(first[0]) if bottleneck else None
        name = f"ResNeXt-{depth}-{resnext}" if resnext else f"ResNet-{depth}"
    has_dcn = any(".conv_offset." in n for n in shapes if n.startswith("backbone."))
    return f"{name} with DCNv2" if has_dcn else name


def _neck(shapes):
    first = shapes.get("neck.lateral_convs.0.conv.weight")
    if first is None:
        return None
    has_paths = any(name.startswith("neck.pafpn_convs.") for name in shapes)
    return f"{'PAFPN' if has_paths else 'FPN'} ({first[0]} channels)"
