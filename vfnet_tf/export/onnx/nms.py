"""Selection per level and class-wise NMS as ONNX nodes.

The nodes give what `detectors.postprocess.select_candidates` and `ops.nms.class_wise_nms`
give, also for equal scores. Only a pair whose IoU equals the threshold to its last digit
may differ, because the runtimes round differently.
"""

import numpy as np


def detect(graph, detector, settings, predictions, image_size, scale, thresholds):
    """Adds the nodes from predictions to detections.

    Args:
        graph: `Graph`.
        detector: the `DenseDetector` of the predictions.
        settings: dict with `candidates_per_level` and `max_detections`, ints.
        predictions: the result of `heads.predict`.
        image_size, scale: tensors float32 `[B, 2]`, see `DenseDetector.detect`.
        thresholds: tensors float32 `[1]`, the score above which a (box, class) pair
            takes part, and the IoU above which the weaker of two is dropped.

    Returns:
        dict of tensors `detection_boxes` float32 `[B, D, 4]`, `detection_scores` float32
        `[B, D]`, `detection_classes` int32 `[B, D]`, `num_detections` int32 `[B]`.
    """
    score_threshold, iou_threshold = thresholds
    factors = predictions[2]
    with graph.scope("select"):
        limit = settings["candidates_per_level"]
        boxes, scores = _select(graph, *predictions, limit, score_threshold)
        margin = np.float32(detector.clip_margin)
        limits = _xyxy(graph, graph.node("Sub", image_size, margin))
        boxes = graph.node("Min", graph.node("Max", boxes, np.float32(0)), limits)
        boxes = graph.node("Div", boxes, _xyxy(graph, scale))
        # An inverted box must have no area, but the operator exchanges its corners.
        low, high = graph.node("Split", boxes, outputs=2, num_outputs=2, axis=2)
        high = graph.node("Where", graph.node("Less", high, low), low, high)
        boxes = graph.concat([low, high], axis=2)
    if factors is not None:
        # `_select` has applied it to the scores without centerness.
        score_threshold = np.zeros(1, "float32")
    with graph.scope("nms"):
        limit = settings["max_detections"]
        return _suppress(graph, boxes, scores, limit, score_threshold, iou_threshold)


def _select(graph, boxes, scores, factors, level_sizes, limit, score_threshold):
    """The best points of each level by their best class, at most `limit` of each."""
    ranks = graph.node("ReduceMax", scores, np.array([2]), keepdims=0)
    if factors is not None:
        ranks = graph.node("Mul", ranks, factors)
        is_enough = graph.node("Greater", scores, score_threshold)
        factors = graph.node("Unsqueeze", factors, np.array([2]))
        product = graph.node("Mul", scores, factors)
        scores = graph.node("Where", is_enough, product, np.float32(0))
    # NaN comes last.
    is_rank = graph.node("GreaterOrEqual", ranks, np.float32(0))
    ranks = graph.node("Where", is_rank, ranks, np.float32(-1))
    splits = graph.concat(level_sizes, axis=0)
    count = len(level_sizes)
    levels = [
        graph.node("Split", tensor, splits, outputs=count, axis=1)
        for tensor in (ranks, boxes, scores)
    ]
    kept = []
    for level_ranks, *tensors, size in zip(*levels, level_sizes, strict=True):
        best = graph.node("Min", size, np.array([limit]))
        _, index = graph.node("TopK", level_ranks, best, outputs=2, axis=1)
        # In the order of points, like levels with fewer points.
        index, _ = graph.node("TopK", index, best, outputs=2, axis=1, largest=0)
        kept.append([_rows(graph, tensor, index) for tensor in tensors])
    return [graph.concat(parts, axis=1) for parts in zip(*kept, strict=True)]


def _rows(graph, tensor, index):
    """Rows `index` `[B, k]` of `[B, P, C]`, image by image."""
    index = graph.node("Unsqueeze", index, np.array([2]))
    return graph.node("GatherND", tensor, index, batch_dims=1)


def _xyxy(graph, sizes):
    """`[B, 2]` (vertical, horizontal) to `[B, 1, 4]` in the order of a box."""
    order = graph.node("Gather", sizes, np.array([1, 0, 1, 0]), axis=1)
    return graph.node("Unsqueeze", order, np.array([1]))


def _suppress(graph, boxes, scores, limit, score_threshold, iou_threshold):
    """Class-wise NMS, then the best of all classes, padded to `limit`."""
    by_class = graph.node("Transpose", scores, perm=[0, 2, 1])
    settings = (np.array([limit]), iou_threshold, score_threshold)
    chosen = graph.node("NonMaxSuppression", boxes, by_class, *settings)
    # Rows of (image, class, box). Pairs that are not chosen get the score 0.
    places = graph.node("Gather", chosen, np.array([0, 2, 1]), axis=1)
    zero = np.zeros((1, 1, 1), "float32")
    zeros = graph.node("Expand", zero, graph.node("Shape", scores))
    values = graph.node("GatherND", scores, places)
    left = graph.node("ScatterND", zeros, places, values)
    flat = graph.node("Reshape", left, np.array([0, -1]))
    # There may be fewer pairs than detections.
    flat = graph.node("Pad", flat, np.array([0, 0, 0, limit]))
    best, index = graph.node("TopK", flat, np.array([limit]), outputs=2, axis=1)
    is_found = graph.node("Greater", best, np.float32(0))
    index = graph.node("Where", is_found, index, np.int64(0))
    classes = graph.sizes(scores, 2)
    rows = graph.node("Div", index, classes)
    labels = graph.node("Sub", index, graph.node("Mul", rows, classes))
    labels = graph.node("Where", is_found, labels, np.int64(-1))
    is_row = graph.node("Unsqueeze", is_found, np.array([2]))
    found = _rows(graph, boxes, rows)
    count = graph.cast(is_found, "int32")
    return {
        "detection_boxes": graph.node("Where", is_row, found, np.float32(0)),
        "detection_scores": best,
        "detection_classes": graph.cast(labels, "int32"),
        "num_detections": graph.node("ReduceSum", count, np.array([1]), keepdims=0),
    }
