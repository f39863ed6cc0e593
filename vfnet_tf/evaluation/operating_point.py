"""Measures at one score threshold: precision, confusions, and quality of images."""

import dataclasses

import numpy as np

from vfnet_tf.evaluation.matching import pairwise_iou

#: The threshold if no detection is right, so that all have the same F1.
DEFAULT_THRESHOLD = 0.3


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """Measures of the detections above a score, all classes together.

    Attributes:
        score_threshold: float.
        precision: float, share of right detections; NaN without a detection.
        recall: float, share of found objects; NaN without an object.
        f1: float, `2 TP / (2 TP + FP + FN)`; NaN without either.
    """

    score_threshold: float
    precision: float
    recall: float
    f1: float


def operating_point(matches, score_threshold=None):
    """Precision, recall and F1 at a score threshold.

    Args:
        matches: `Matches`.
        score_threshold: float, or None for the one with the largest F1.

    Returns:
        `OperatingPoint`.
    """
    counted = ~matches.is_ignored
    scores, is_true = matches.scores[counted], matches.is_true[counted]
    num_objects = len(matches.gt_labels)
    if score_threshold is None:
        score_threshold = DEFAULT_THRESHOLD
        order = np.argsort(-scores, kind="stable")
        true = np.cumsum(is_true[order])
        f1 = 2 * true / (np.arange(1, len(order) + 1) + num_objects)
        # A threshold keeps equal scores together.
        ordered = scores[order]
        is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
        if true.any():
            score_threshold = float(ordered[np.argmax(np.where(is_last, f1, -1))])
    num_true = int(np.sum(is_true & (scores >= score_threshold)))
    num_found = int(np.sum(scores >= score_threshold))
    return OperatingPoint(
        score_threshold=score_threshold,
        precision=ratio(num_true, num_found),
        recall=ratio(num_true, num_objects),
        f1=ratio(2 * num_true, num_found + num_objects),
    )


def confusion_matrix(matches, score_threshold):
    """Counts which class was detected as which.

    The diagonal holds the true positives, as COCO matches them. The other detections then
    take objects of other classes: in the order of their scores, each takes the free
    object with the largest IoU, if that is at least the threshold of the matching.

    Args:
        matches: `Matches`.
        score_threshold: float, detections with a lower score do not count.

    Returns:
        int64 `[K + 1, K + 1]`: rows are true classes, columns detected ones. The last
        row, background, counts detections without an object, duplicates too; the last
        column counts missed objects. The last corner is 0.
    """
    background = matches.num_classes
    shown = ~matches.is_ignored & (matches.scores >= score_threshold)
    found = np.where(shown, matches.matched, -1)
    is_free = np.ones(len(matches.gt_labels), bool)
    is_free[found[found >= 0]] = False
    # Only these can lie on an object of another class.
    rest = np.flatnonzero(
        shown & (found < 0) & (matches.other_iou >= matches.iou_threshold)
    )
    for rows in np.split(rest, np.flatnonzero(np.diff(matches.images[rest])) + 1):
        if not len(rows):
            continue
        first, last = np.searchsorted(
            matches.gt_images, matches.images[rows[0]] + np.array([0, 1])
        )
        iou = pairwise_iou(matches.boxes[rows], matches.gt_boxes[first:last])
        for row, values in zip(rows, iou, strict=True):
            values = np.where(is_free[first:last], values, 0.0)
            if values.max() >= matches.iou_threshold:
                found[row] = first + np.argmax(values)
                is_free[found[row]] = False
    matrix = np.zeros((background + 1, background + 1), "int64")
    labels = np.append(matches.gt_labels, background)  # for -1, its last
    np.add.at(matrix, (labels[found[shown]], matches.labels[shown]), 1)
    np.add.at(matrix, (matches.gt_labels[is_free], background), 1)
    return matrix


def most_confused(matrix, count):
    """The most frequent confusions of two classes, background left out.

    Args:
        matrix: int `[K + 1, K + 1]` of `confusion_matrix`.
        count: int, at most so many.

    Returns:
        list of (true label, detected label, number), most frequent first; equal numbers
        by their share of the class's objects.
    """
    between = matrix[:-1, :-1] * (1 - np.eye(len(matrix) - 1, dtype="int64"))
    share = between / np.maximum(matrix[:-1].sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.ravel(), -between.ravel()))[:count]
    pairs = np.stack(np.unravel_index(order, between.shape), axis=-1)
    return [(int(i), int(j), int(between[i, j])) for i, j in pairs if between[i, j]]


def image_quality(matches, score_threshold):
    """The panoptic quality of each image (Kirillov et al., CVPR 2019), for boxes.

    It is the sum of the IoUs of the true positives of all classes, divided by
    `TP + FP / 2 + FN / 2`, and 1 if each object has one box that fits exactly.

    Args:
        matches: `Matches`.
        score_threshold: float, detections with a lower score do not count.

    Returns:
        dict of `[I]` arrays: `quality` float in [0, 1], NaN for an image without objects
        and detections; `true`, `false` and `missed` ints.
    """
    shown = matches.scores >= score_threshold
    is_true, is_false = matches.is_true & shown, matches.is_false & shown
    num_images = len(matches.image_ids)
    true, false = (
        np.bincount(matches.images[rows], minlength=num_images)
        for rows in (is_true, is_false)
    )
    missed = np.bincount(matches.gt_images, minlength=num_images) - true
    total = np.bincount(
        matches.images[is_true], matches.matched_iou[is_true], num_images
    )
    size = true + false / 2 + missed / 2
    quality = np.divide(total, size, out=np.full(num_images, np.nan), where=size > 0)
    return {"quality": quality, "true": true, "false": false, "missed": missed}


def rank_images(quality, count):
    """The best and the worst images.

    Args:
        quality: dict of `image_quality`.
        count: int, largest number of best and of worst images; no image is both.

    Returns:
        `best` and `worst`, int arrays of indices of images, the most extreme first. Of
        equal ones, more objects and false detections come first.
    """
    size = quality["true"] + quality["missed"] + quality["false"]
    rated = np.flatnonzero(~np.isnan(quality["quality"]))
    values, size = quality["quality"][rated], size[rated]
    worst = rated[np.lexsort((-size, values))]
    best = rated[np.lexsort((-size, -values))]
    half = len(rated) // 2
    best = best[: min(count, len(rated) - half)]
    worst = worst[~np.isin(worst, best)]
    return best, worst[: min(count, half)]


def ratio(numerator, denominator):
    """A quotient; NaN if the denominator is 0."""
    return numerator / denominator if denominator else float("nan")
