"""Heads and the decoding of detectors as ONNX nodes. See `export.onnx.layers`."""

import keras
import numpy as np

from vfnet_tf.box_coders import MAX_RATIO, DeltaCoder, DistanceCoder
from vfnet_tf.detectors import FCOS, FoveaBox, RepPoints, RetinaNet, VFNet
from vfnet_tf.export.onnx.layers import (
    _array,
    convert,
    convert_backbone,
    convert_neck,
    deformable_convolution,
)
from vfnet_tf.heads import DenseHead, RepPointsHead, VFNetHead
from vfnet_tf.heads.reppoints import _GRID
from vfnet_tf.priors import make_anchors


def predict(graph, detector, images):
    """Adds the nodes of a built `DenseDetector` for images float32 `[B, H, W, 3]`.

    Returns:
        Boxes float32 `[B, P, 4]`, class scores `[B, P, K]` and centerness `[B, P]` or
        None, see `DenseDetector.ranking`; the number of points of each level, list of
        int64 `[1]`.

    Raises:
        ValueError: for a part without a converter.
    """
    if type(detector) not in _DECODERS or type(detector.head) not in _HEADS:
        raise ValueError(
            "A detector and its head must be of this library to be exported to ONNX. "
            f"Received: {type(detector).__name__} with {type(detector.head).__name__}"
        )
    maps = graph.node("Transpose", images, perm=[0, 3, 1, 2])
    features = convert_neck(
        graph, detector.neck, convert_backbone(graph, detector.backbone, maps)
    )
    head, predictions = detector.head, {}
    for index, level in enumerate(head.levels):
        with graph.scope(f"head/{level}"):
            found = _HEADS[type(head)](graph, head, features[level], index)
        for name, value in found.items():
            predictions.setdefault(name, []).append(value)
    with graph.scope("decode"):
        logits = predictions["class_logits"]
        priors = _priors(graph, detector, logits)
        boxes = _DECODERS[type(detector)](graph, detector, priors, predictions)
        scores = graph.node("Sigmoid", _flatten(graph, logits, detector.num_classes))
        factors = None
        if "centerness_logits" in predictions:
            factors = _flatten(graph, predictions["centerness_logits"], 1)
            factors = graph.node("Squeeze", factors, np.array([2]))
            factors = graph.node("Sigmoid", factors)
    return boxes, scores, factors, priors["level_sizes"]


def _vfnet_head(graph, head, features, index):
    (class_features,) = convert(graph, head.class_tower, [features])
    (box_features,) = convert(graph, head.box_tower, [features])
    raw = _chain(graph, [head.box_conv, head.box_predictor], box_features)
    unit = np.float32(head.distance_units[index])
    distances = graph.node("Mul", _exp_scaled(graph, head.scales[index], raw), unit)
    results = {"distances": distances}
    if head.star:
        star = graph.node("Div", distances, np.float32(head.strides[index]))
        (class_features,) = convert(graph, head.class_star, [class_features, star])
        class_features = graph.node("Relu", class_features)
    else:
        (class_features,) = convert(graph, head.class_conv, [class_features])
    if head.refine:
        (refined,) = convert(graph, head.box_star, [box_features, star])
        refined = graph.node("Relu", refined)
        (raw,) = convert(graph, head.refine_predictor, [refined])
        factors = _exp_scaled(graph, head.refine_scales[index], raw)
        results["refined_distances"] = graph.node("Mul", factors, distances)
    (logits,) = convert(graph, head.class_predictor, [class_features])
    return {"class_logits": logits, **results}


def _dense_head(graph, head, features, index):
    towers = {}
    for name, tower in (("class", head.class_tower), ("box", head.box_tower)):
        (towers[name],) = convert(graph, tower, [features])
    (logits,) = convert(graph, head.class_predictor, [towers["class"]])
    (boxes,) = convert(graph, head.box_predictor, [towers["box"]])
    if head.level_scales:
        boxes = _scaled(graph, head.scales[index], boxes)
    results = {"class_logits": logits, "box_predictions": boxes}
    if head.centerness is not None:
        tower = towers[head.centerness]
        (results["centerness_logits"],) = convert(
            graph, head.centerness_predictor, [tower]
        )
    return results


def _reppoints_head(graph, head, features, index):
    (class_features,) = convert(graph, head.class_tower, [features])
    (box_features,) = convert(graph, head.box_tower, [features])
    shifts = _chain(graph, [head.point_conv, head.point_predictor], box_features)
    grid = np.asarray(_GRID, "float32")[:, None, None]
    offsets = graph.node("Sub", shifts, grid)

    def on_points(features, kernel):
        found = deformable_convolution(graph, features, offsets, _array(kernel))
        return graph.node("Relu", found)

    refined = on_points(box_features, head.refine_kernel)
    (refined,) = convert(graph, head.refine_predictor, [refined])
    refined = graph.node("Add", refined, shifts)
    on_class_points = on_points(class_features, head.class_kernel)
    (logits,) = convert(graph, head.class_predictor, [on_class_points])
    factors = np.exp(_array(head.moment_transfer)).astype("float32")
    boxes = _moment_boxes(graph, refined, factors)
    return {"class_logits": logits, "refined_box_shifts": boxes}


def _moment_boxes(graph, points, factors):
    """`ops.boxes.points_to_moment_boxes` of `[B, 18, H, W]`."""
    sides = []
    for axis in (1, 0):
        values = graph.slice(points, axis, len(_GRID), 1, 2)
        axes = np.array([1])
        mean = graph.node("ReduceMean", values, axes)
        squares = graph.node("Sub", values, mean)
        squares = graph.node("Mul", squares, squares)
        squares = graph.node("ReduceSum", squares, axes)
        variance = graph.node("Div", squares, np.float32(len(_GRID) // 2 - 1))
        variance = graph.node("Max", variance, np.float32(1e-12))
        half = graph.node("Sqrt", variance)
        half = graph.node("Mul", half, factors[1 - axis])
        sides.append((graph.node("Sub", mean, half), graph.node("Add", mean, half)))
    (x1, x2), (y1, y2) = sides
    return graph.concat([x1, y1, x2, y2], axis=1)


def _chain(graph, layers, inputs):
    for layer in layers:
        (inputs,) = convert(graph, layer, [inputs])
    return inputs


def _scaled(graph, scale, inputs):
    return graph.node("Mul", inputs, np.float32(_array(scale.scale)))


def _exp_scaled(graph, scale, inputs):
    return graph.node("Exp", _scaled(graph, scale, inputs))


def _flatten(graph, maps, channels):
    """`detectors.dense_detector.flatten_levels` of maps `[B, C, H, W]`."""
    flat = []
    for level in maps:
        level = graph.node("Transpose", level, perm=[0, 2, 3, 1])
        flat.append(graph.node("Reshape", level, np.array([0, -1, channels])))
    return graph.concat(flat, axis=1)


def _priors(graph, detector, maps):
    """`DenseDetector.make_priors` for maps `[B, C, H, W]` of each level, a dict.

    `points` `[P, 2]`, `strides` `[P, 1]`, for RetinaNet `anchors` `[P, 4]`, and the list
    `level_sizes`.
    """
    points, strides, sizes = [], [], []
    for level, stride in zip(maps, detector.strides, strict=True):
        height, width = (graph.sizes(level, axis) for axis in (2, 3))
        place = []
        for size, axis in ((width, 0), (height, 1)):
            last = graph.node("Squeeze", size)
            steps = graph.node("Range", np.int64(0), last, np.int64(1))
            steps = graph.cast(steps, "float32")
            steps = graph.node("Add", steps, np.float32(detector.point_offset))
            steps = graph.node("Mul", steps, np.float32(stride))
            place.append(graph.node("Unsqueeze", steps, np.array([axis])))
        cells = graph.concat([height, width], axis=0)
        place = [
            graph.node("Unsqueeze", graph.node("Expand", x, cells), np.array([2]))
            for x in place
        ]
        place = graph.node("Reshape", graph.concat(place, axis=2), np.array([-1, 2]))
        points.append(place)
        first = graph.slice(place, 0, 1, 1)
        own = graph.node("Expand", np.float32([[stride]]), graph.node("Shape", first))
        strides.append(own)
        size = graph.node("Mul", height, width)
        cells_each = np.array([detector.anchors_per_cell])
        sizes.append(graph.node("Mul", size, cells_each))
    priors = {
        "points": graph.concat(points, axis=0),
        "strides": graph.concat(strides, axis=0),
        "level_sizes": sizes,
    }
    if type(detector) is RetinaNet:
        # About the origin, in strides.
        anchors = make_anchors(
            keras.ops.zeros((1, 2)),
            keras.ops.ones((1,)),
            octaves=detector.octaves,
            ratios=detector.ratios,
        )
        shapes = keras.ops.convert_to_numpy(anchors).astype("float32")
        sides = graph.node("Mul", _at(graph, priors["strides"]), shapes)
        points = graph.concat([priors["points"]] * 2, axis=1)
        anchors = graph.node("Add", _at(graph, points), sides)
        priors["anchors"] = graph.node("Reshape", anchors, np.array([-1, 4]))
    return priors


def _at(graph, tensor):
    return graph.node("Unsqueeze", tensor, np.array([1]))


def _halves(graph, tensor):
    """The first and the last two of four numbers."""
    return graph.node("Split", tensor, np.array([2, 2]), outputs=2, axis=-1)


def _around(graph, points, before, after):
    sides = [graph.node("Sub", points, before), graph.node("Add", points, after)]
    return graph.concat(sides, axis=-1)


def _from_distances(graph, points, distances):
    return _around(graph, points, *_halves(graph, distances))


def _decode_vfnet(graph, detector, priors, predictions):
    name = detector._box_names[-1].replace("boxes", "distances")
    distances = _flatten(graph, predictions[name], 4)
    return _from_distances(graph, priors["points"], distances)


def _decode_with_coder(graph, detector, priors, predictions):
    coder = detector.box_coder
    numbers = _flatten(graph, predictions["box_predictions"], 4)
    if type(coder) is DistanceCoder:
        kind = "Relu" if coder.activation == "relu" else "Exp"
        units = graph.node("Mul", priors["strides"], np.float32(coder.unit))
        distances = graph.node("Mul", graph.node(kind, numbers), units)
        return _from_distances(graph, priors["points"], distances)
    if type(coder) is not DeltaCoder:
        raise ValueError(
            "`box_coder` must be a DistanceCoder or a DeltaCoder. "
            f"Received: {type(coder).__name__}"
        )
    if coder.anchor_scale is None:
        first, last = _halves(graph, priors["anchors"])
    else:
        half = graph.node("Mul", priors["strides"], np.float32(coder.anchor_scale / 2))
        first = graph.node("Sub", priors["points"], half)
        last = graph.node("Add", priors["points"], half)
    two = np.float32(2)
    centers = graph.node("Div", graph.node("Add", first, last), two)
    sizes = graph.node("Sub", last, first)
    shifts, logs = _halves(
        graph, graph.node("Mul", numbers, np.asarray(coder.stds, "float32"))
    )
    limit = np.float32(np.log(MAX_RATIO))
    growth = graph.node("Exp", graph.node("Clip", logs, -limit, limit))
    centers = graph.node("Add", centers, graph.node("Mul", shifts, sizes))
    half = graph.node("Div", graph.node("Mul", sizes, growth), two)
    return _around(graph, centers, half, half)


def _decode_reppoints(graph, detector, priors, predictions):
    shifts = _flatten(graph, predictions["refined_box_shifts"], 4)
    points = graph.concat([priors["points"]] * 2, axis=1)
    return graph.node("Add", points, graph.node("Mul", priors["strides"], shifts))


_HEADS = {
    VFNetHead: _vfnet_head,
    DenseHead: _dense_head,
    RepPointsHead: _reppoints_head,
}
_DECODERS = {
    VFNet: _decode_vfnet,
    FCOS: _decode_with_coder,
    RetinaNet: _decode_with_coder,
    FoveaBox: _decode_with_coder,
    RepPoints: _decode_reppoints,
}
