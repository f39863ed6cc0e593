"""Model cards: text on the architecture, recipe, results and use of a config."""

import ast
import textwrap

from vfnet_tf.checkpoints.published import PATHS
from vfnet_tf.config import config_files, list_configs, load_config, shipped_config
from vfnet_tf.paper.published import PARAMETERS, find_result

_DETECTORS = {
    "vfnet": "VFNet",
    "fcos": "FCOS",
    "atss": "ATSS",
    "retinanet": "RetinaNet",
    "foveabox": "FoveaBox",
    "reppoints": "RepPoints",
}
_OWN_ASSIGNERS = {
    "vfnet": "ATSS",
    "fcos": "FCOS: inside the box, near its centre",
    "atss": "ATSS",
    "retinanet": "largest IoU with the anchors",
    "foveabox": "the inner part of the box",
    "reppoints": "nearest points, then largest IoU",
}
_LICENCE = (
    "Apache-2.0 for this code and for the repository that released the weights; they "
    "were trained on COCO, whose images have licences of their own"
)

#: Fields of `ModelConfig` that decide what is computed in a forward pass.
ARCHITECTURE = (
    "detector",
    "backbone",
    "neck",
    "neck_filters",
    "head_filters",
    "head_convs",
    "deformable_towers",
    "star",
    "refine",
)


def model_card(config):
    """Describes a config: architecture, recipe, published results and use.

    Args:
        config: a name of `list_configs`, a file, a run directory or a `Config`.

    Returns:
        str of several lines, without a final line end. Only shipped configs without
        changes have published numbers.

    >>> print(model_card("vfnet_r50_fpn_1x_coco").splitlines()[0])
    vfnet_r50_fpn_1x_coco
    """
    config = load_config(config)
    name, is_shipped = config.name, _is_shipped(config)
    heading, used_as = [name], "CONFIG.py"
    if is_shipped:
        heading.append(_first_sentence(config_files()[name]))
        used_as = name
    parts = [
        heading,
        _lines(_architecture(config, is_shipped)),
        _lines(_recipe(config)),
    ]
    result = find_result(name) if is_shipped else None
    if result is not None:
        parts.append(_lines(_published(result)))
    use = {
        "build": f'vfnet_tf.build_detector("{used_as}")',
        "train": f"vfnet train --data DIR --config {used_as} --out RUN",
        "load": f"vfnet convert FILE.pth --config {used_as} --out RUN\n"
        'vfnet_tf.Predictor.from_checkpoint("RUN")',
    }
    if is_shipped and name in PATHS:
        use["train"] += " --weights coco"
        use["load"] = (
            f"vfnet predict IMAGES --checkpoint {name}\n"
            f'vfnet_tf.Predictor.from_pretrained("{name}")'
        )
    parts.append(_lines(use, width=None))  # not wrapped, to be copied
    return "\n\n".join("\n".join(part) for part in parts)


def config_table(names=None):
    """Lists configs with their size and published AP.

    Args:
        names: of configs that ship with the library; None for all.

    Returns:
        str, a heading and one line for each.
    """
    rows = [
        ("config", "detector", "backbone", "epochs", "M weights", "AP val", "test-dev")
    ]
    for name in list_configs() if names is None else names:
        config, result = shipped_config(name), find_result(name)
        backbone = config.model.backbone
        rows.append(
            (
                name,
                _DETECTORS[config.model.detector],
                backbone.name + "-DCN" * bool(backbone.deformable),
                str(config.training.epochs),
                _number(PARAMETERS.get(name)),
                _number(result and result.val),
                _number(result and result.test_dev),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _is_shipped(config):
    """Whether a config equals a shipped one, names of classes aside."""
    if config.name not in config_files():
        return False
    shipped = shipped_config(config.name)
    parts = ("model", "data", "training")
    return all(getattr(config, part) == getattr(shipped, part) for part in parts)


def _first_sentence(path):
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))).splitlines()[0]


def _architecture(config, is_shipped):
    model, backbone = config.model, config.model.backbone
    kind = _DETECTORS[model.detector]
    if model.detector == "vfnet":
        parts = {"star convolution": model.star, "box refinement": model.refine}
        kind += ", ".join(["", *(part for part, there in parts.items() if there)])
    stages = (
        f"{backbone.norm.replace('_', ' ')}, "
        f"stages without gradients: {backbone.frozen_stages + 1}"
    )
    if backbone.deformable:
        stages += f", deformable convolutions in {', '.join(backbone.deformable)}"
    head = (
        f"{model.head_convs} convolutions of {model.head_filters} channels in a tower"
    )
    if model.deformable_towers:
        head += ", the last deformable"
    assigner = model.assigner.upper() if model.assigner else None
    rows = {
        "detector": kind,
        "backbone": f"{backbone.name}, {stages}",
        "neck": f"{model.neck.upper()}, {model.neck_filters} channels, P3 to P7",
        "head": f"{head}; {model.num_classes} classes",
        "assigner": assigner or _OWN_ASSIGNERS[model.detector],
        "losses": _losses(model),
    }
    if is_shipped and config.name in PARAMETERS:
        rows["weights"] = f"{PARAMETERS[config.name]:.1f} million"
    return rows


def _losses(model):
    classes = {
        "varifocal": f"varifocal (alpha {model.loss_alpha:g}, gamma {model.loss_gamma:g}"
        + ("" if model.iou_weighted else ", positives not weighted by IoU")
        + ")",
        "focal": f"focal (alpha {model.focal_alpha:g}, gamma {model.focal_gamma:g})",
        "quality_focal": "quality focal",
    }
    text = f"{classes.get(model.class_loss, model.class_loss)}; boxes x "
    text += f"{model.box_loss_weight:g}"
    has_refined = model.detector == "reppoints" or (
        model.detector == "vfnet" and model.refine
    )
    if has_refined:
        text += f", refined boxes x {model.refined_box_loss_weight:g}"
    if model.detector in ("fcos", "atss"):
        text += f", centerness x {model.centerness_loss_weight:g}"
    return text


def _recipe(config):
    data, training, model = config.data, config.training, config.model
    sides = "{0}x{1}".format
    if data.keep_ratio:
        size = (
            f"short side {data.image_size[0]}, long side {data.image_size[1]} at most"
        )
    else:
        size = f"stretched to {sides(*data.image_size)} (height x width)"
    normalization = data.normalization
    values = [
        ", ".join(f"{value:g}" for value in values)
        for values in (normalization.mean, normalization.std)
    ]
    augmentation = [f"flips {data.flip:g}"]
    if data.scale_range:
        augmentation.append(
            "sizes drawn from {} to {} (short x long)".format(
                *(sides(*size) for size in data.scale_range)
            )
        )
    if data.scales:
        augmentation.append(f"scales {', '.join(sides(*size) for size in data.scales)}")
    for name in ("random_crop", "cut_out"):
        if getattr(data, name):
            augmentation.append(f"{name.replace('_', ' ')} {getattr(data, name):g}")
    drops = ", ".join(f"{epoch:g}" for epoch in training.drop_epochs)
    schedule = (
        f"x 0.1 after {drops}" if training.schedule == "step" else "cosine cycles"
    )
    nms = model.nms.replace("_", " ")
    return {
        "input": f"{size}; sides padded to a multiple of 32",
        "pixels": f"{normalization.channel_order.upper()} minus {values[0]}, "
        f"divided by {values[1]}",
        "training": f"{training.epochs} epochs of {training.batch_size} images a step, "
        + "; ".join(augmentation),
        "optimizer": f"{training.optimizer.upper()}, learning rate "
        f"{training.base_learning_rate:g} for {training.base_batch_size} images, "
        f"{schedule}; weight decay {training.weight_decay:g}",
        "detection": f"scores above {model.score_threshold:g}, {nms} NMS at IoU "
        f"{model.nms_iou_threshold:g}, {model.max_detections} detections at most",
    }


def _published(result):
    found = {"COCO val2017": result.val, "test-dev": result.test_dev}
    aps = ", ".join(f"{ap} on {split}" for split, ap in found.items() if ap is not None)
    rows = {"AP": f"{aps}; {result.source}"}
    if result.images_per_second is not None:
        rows["speed"] = f"{result.images_per_second} images per second on a V100"
    rows["file"] = result.checkpoint or "none with a name that is known here"
    rows["licence"] = _LICENCE
    return rows


def _lines(rows, width=76):
    """A dict of texts as lines; further lines of a text stand below its first."""
    lines = []
    for key, text in rows.items():
        wrapped = text.splitlines()
        if width is not None:
            wrapped = textwrap.wrap(text, width, break_on_hyphens=False)
        for place, line in enumerate(wrapped):
            lines.append(f"{'' if place else key:<10} {line}")
    return lines


def _number(value):
    return "-" if value is None else f"{value:.1f}"
