"""Detections from dense predictions in numpy, for exported files without NMS.

`detectors.postprocess` and `ops.nms` do the same on tensors.
"""

import numpy as np

from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS, check_settings
from vfnet_tf.ops.numpy_boxes import pairwise_iou


def detect(boxes, scores, centerness, image_size, scale, settings):
    """Selection per level, clipping, scaling and class-wise NMS.

    Args:
        boxes: float32 `[B, P, 4]`, pixels of the network input.
        scores: float32 `[B, P, K]` in [0, 1], times the centerness where there is one.
        centerness: float32 `[B, P]` or None.
        image_size: `[B, 2]`, `(height, width)` of the images without padding.
        scale: `[B, 2]`, `(vertical, horizontal)` factors that they were resized by.
        settings: dict of `level_sizes` (points of each level), `clip_margin`, and those
            of `DETECTION_SETTINGS`.

    Returns:
        dict of numpy arrays, see `DenseDetector.detect`. `ops.nms.class_wise_nms` says
        what happens to equal scores, inverted boxes and NaN.

    Raises:
        ValueError: for settings out of range.
    """
    check_settings(**{name: settings[name] for name in DETECTION_SETTINGS})
    limit = settings["max_detections"]
    batch = len(boxes)
    found = {
        "boxes": np.zeros((batch, limit, 4), "float32"),
        "scores": np.zeros((batch, limit), "float32"),
        "labels": np.full((batch, limit), -1, "int32"),
        "num_detections": np.zeros(batch, "int32"),
    }
    for row in range(batch):
        rows = best_of_each_level(
            scores[row].max(axis=-1),
            settings["level_sizes"],
            settings["candidates_per_level"],
        )
        own_scores = scores[row][rows]
        threshold = settings["score_threshold"]
        takes_part = own_scores > threshold
        if centerness is not None:
            # The threshold is for the scores without centerness: docs/parity.md, S25.
            takes_part = own_scores > threshold * centerness[row][rows][:, None]
        height, width = np.asarray(image_size[row], "float32") - np.float32(
            settings["clip_margin"]
        )
        own_boxes = np.clip(boxes[row][rows], 0, [width, height, width, height])
        own_boxes = own_boxes / np.asarray(scale[row], "float32")[[1, 0, 1, 0]]
        low, high = own_boxes[:, :2], own_boxes[:, 2:]
        own_boxes[:, 2:] = np.where(high < low, low, high)
        places, labels = np.nonzero(takes_part)
        pairs = (own_boxes[places], own_scores[places, labels], labels)
        if settings["nms"] == "hard":
            kept, kept_scores = _suppress(*pairs, settings["nms_iou_threshold"], limit)
        else:
            kept, kept_scores = _suppress_softly(*pairs, settings, limit)
        count = len(kept)
        found["boxes"][row, :count] = pairs[0][kept]
        found["scores"][row, :count] = kept_scores
        found["labels"][row, :count] = labels[kept]
        found["num_detections"][row] = count
    return found


def best_of_each_level(ranks, level_sizes, limit):
    """Indices of the points with the highest rank, at most `limit` of each level.

    Args:
        ranks: float `[P]`.
        level_sizes: list of ints that add up to P.
        limit: int.

    Returns:
        int64 `[N]`, ascending; of equals those that come first.
    """
    kept, start = [], 0
    for size in level_sizes:
        index = np.arange(size)
        if size > limit:
            index = np.argsort(-ranks[start : start + size], kind="stable")[:limit]
            index = np.sort(index)
        kept.append(start + index)
        start += size
    return np.concatenate(kept)


def _suppress(boxes, scores, labels, iou_threshold, limit):
    """Greedy NMS within each class: (indices of kept pairs, best first; scores)."""
    kept = []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        left = left[np.argsort(-scores[left], kind="stable")]
        count = 0
        while len(left) and count < limit:
            best, left = left[0], left[1:]
            kept.append(best)
            count += 1
            (ious,) = pairwise_iou(boxes[best : best + 1], boxes[left])
            left = left[ious <= iou_threshold]
    # In the order of pairs, so that of equals the first come first.
    kept = np.sort(np.asarray(kept, "int64"))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:limit]
    return kept, scores[kept]


def _suppress_softly(boxes, scores, labels, settings, limit):
    """Soft-NMS within each class, see `ops.nms.class_wise_soft_nms`."""
    scores = scores.copy()
    kept, kept_scores = [], []
    while len(kept) < limit and np.any(scores >= 0):
        best = int(np.argmax(scores))
        kept.append(best)
        kept_scores.append(scores[best])
        (ious,) = pairwise_iou(boxes[best : best + 1], boxes)
        if settings["nms"] == "soft_linear":
            is_near = ious >= settings["nms_iou_threshold"]
            weights = np.where(is_near, 1 - ious, np.float32(1))
        else:
            weights = np.exp(-np.square(ious) / settings["soft_nms_sigma"])
        weights = np.where(labels == labels[best], weights, np.float32(1))
        scores = np.where(scores >= 0, scores * weights, scores)
        scores[scores < settings["soft_nms_min_score"]] = -1
        scores[best] = -1
    return np.asarray(kept, "int64"), np.asarray(kept_scores, "float32")
