"""Matching of detections with the ground truth, for all analyses of a report.

Matching is COCO's at one IoU threshold, so a detection is right here exactly if it is
right for the AP. The results are flat arrays over all detections (N) and all objects (G),
in the order of the image ids.
"""

import collections
import dataclasses

import numpy as np

from vfnet_tf.ops.numpy_boxes import pairwise_intersection

# COCO's largest number of detections of one class in one image.
MAX_DETECTIONS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """All detections, all objects, and which detection found which object.

    Crowd regions are no objects. A detection that matches only a crowd region of its
    class is ignored, neither right nor wrong.

    Attributes:
        iou_threshold: float, lowest IoU of a right detection.
        image_ids: int `[I]`, ascending.
        class_names: K strings by label.
        boxes: float64 `[N, 4]`, `(x, y, width, height)` in pixels of the original image;
            of each image by falling score.
        scores: float64 `[N]`.
        labels: int `[N]` in [0, K).
        images: int `[N]`, index into `image_ids`.
        matched: int `[N]`, index of the object of a right detection, else -1.
        matched_iou: float64 `[N]`, IoU with that object, else 0.
        is_ignored: bool `[N]`.
        own_iou, own_object: float `[N]` and int `[N]`: largest IoU with an object of the
            detection's class, found or not, and its index; 0 and -1 without overlap.
        other_iou, other_object: the same over objects of other classes.
        gt_boxes, gt_labels, gt_images: as above, of the objects, `[G]`.
        gt_areas: float `[G]`, pixels, of the mask if there is one.
    """

    iou_threshold: float
    image_ids: np.ndarray
    class_names: tuple
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    matched: np.ndarray
    matched_iou: np.ndarray
    is_ignored: np.ndarray
    own_iou: np.ndarray
    own_object: np.ndarray
    other_iou: np.ndarray
    other_object: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    gt_images: np.ndarray
    gt_areas: np.ndarray

    @property
    def num_classes(self):
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def is_true(self):
        """Bool `[N]`, the true positives."""
        return self.matched >= 0

    @property
    def is_false(self):
        """Bool `[N]`, the false positives."""
        return ~self.is_true & ~self.is_ignored

    @property
    def is_found(self):
        """Bool `[G]`, the objects that a detection of any score found."""
        found = np.zeros(len(self.gt_labels), bool)
        found[self.matched[self.is_true]] = True
        return found


def match_detections(evaluator, results, iou_threshold=0.5):
    """Matches detections with the ground truth of an evaluator as COCO does.

    In the order of their scores, detections take the free object of their class with the
    largest IoU, if that is at least `iou_threshold`.

    Args:
        evaluator: `CocoEvaluator`.
        results: list of dicts in COCO's results format, see `CocoEvaluator.results`.
            Results of other images or categories are left out. The 100 highest scores of
            a class in an image count.
        iou_threshold: float in (0, 1).

    Returns:
        `Matches`.
    """
    if not 0 < iou_threshold < 1:
        raise ValueError(
            f"`iou_threshold` must be in (0, 1). Received: iou_threshold={iou_threshold}"
        )
    label_of = {category: k for k, category in enumerate(evaluator.category_ids)}
    found, truth = collections.defaultdict(list), collections.defaultdict(list)
    for result in results:
        if result["category_id"] in label_of:
            found[result["image_id"]].append(result)
    for annotation in evaluator.truth["annotations"]:
        if annotation["category_id"] in label_of:
            truth[annotation["image_id"]].append(annotation)
    columns = collections.defaultdict(list)
    num_objects = 0
    for index, image_id in enumerate(evaluator.image_ids):
        objects = [a for a in truth[image_id] if not a["iscrowd"]]
        crowds = [a for a in truth[image_id] if a["iscrowd"]]
        rows = _match_image(
            _detections(found[image_id], label_of),
            (_boxes(objects), _labels(objects, label_of)),
            (_boxes(crowds), _labels(crowds, label_of)),
            iou_threshold,
        )
        for name in ("matched", "own_object", "other_object"):
            rows[name] = np.where(rows[name] >= 0, rows[name] + num_objects, -1)
        rows["images"] = np.full(len(rows["scores"]), index)
        rows["gt_images"] = np.full(len(objects), index)
        rows["gt_areas"] = np.array([a["area"] for a in objects], "float64")
        for name, values in rows.items():
            columns[name].append(values)
        num_objects += len(objects)
    return Matches(
        iou_threshold=iou_threshold,
        image_ids=np.array(evaluator.image_ids),
        class_names=evaluator.class_names,
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


def pairwise_iou(boxes, gt_boxes, is_crowd=False):
    """IoU of each detection with each object, in float64 as pycocotools computes it.

    Args:
        boxes: float64 `[D, 4]`, `(x, y, width, height)`.
        gt_boxes: float64 `[M, 4]`.
        is_crowd: bool, for crowd regions: divides by the area of the detection.

    Returns:
        float64 `[D, M]`.
    """
    corners = [
        np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)
        for b in (boxes, gt_boxes)
    ]
    inside = pairwise_intersection(*corners)
    # Areas of the given sides, since corners would round them.
    area, gt_area = boxes[:, 2:].prod(axis=1), gt_boxes[:, 2:].prod(axis=1)
    union = area[:, None] + 0 * inside if is_crowd else area[:, None] + gt_area - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def _match_image(detections, objects, crowds, iou_threshold):
    """The columns of `Matches` for one image; objects are counted from 0."""
    boxes, scores, labels = detections
    gt_boxes, gt_labels = objects
    iou = pairwise_iou(boxes, gt_boxes)
    is_own = labels[:, None] == gt_labels
    own = np.where(is_own, iou, 0.0)
    own_iou, own_object = _largest(own)
    other_iou, other_object = _largest(np.where(is_own, 0.0, iou))
    matched, matched_iou = np.full(len(scores), -1), np.zeros(len(scores))
    is_free = np.ones(len(gt_labels))
    for row in np.flatnonzero(own_iou >= iou_threshold):
        values = own[row] * is_free
        # pycocotools takes the last of equal ones.
        best = len(values) - 1 - np.argmax(values[::-1])
        if values[best] >= iou_threshold:
            matched[row], matched_iou[row] = best, values[best]
            is_free[best] = 0
    crowd_boxes, crowd_labels = crowds
    inside = pairwise_iou(boxes, crowd_boxes, is_crowd=True)
    inside, _ = _largest(np.where(labels[:, None] == crowd_labels, inside, 0.0))
    return {
        "boxes": boxes,
        "scores": scores,
        "labels": labels,
        "matched": matched,
        "matched_iou": matched_iou,
        "is_ignored": (matched < 0) & (inside >= iou_threshold),
        "own_iou": own_iou,
        "own_object": own_object,
        "other_iou": other_iou,
        "other_object": other_object,
        "gt_boxes": gt_boxes,
        "gt_labels": gt_labels,
    }


def _largest(iou):
    """Largest value of each row of `[D, M]` and its index; 0 and -1 if none is > 0."""
    if iou.shape[1] == 0:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    column = np.argmax(iou, axis=1)
    value = np.take_along_axis(iou, column[:, None], axis=1)[:, 0]
    return value, np.where(value > 0, column, -1)


def _detections(results, label_of):
    boxes, labels = _boxes(results), _labels(results, label_of)
    scores = np.array([result["score"] for result in results], "float64")
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    if len(labels) > MAX_DETECTIONS:
        keep = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            keep[np.flatnonzero(labels == label)[:MAX_DETECTIONS]] = True
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    return boxes, scores, labels


def _boxes(entries):
    return np.array([entry["bbox"] for entry in entries], "float64").reshape(-1, 4)


def _labels(entries, label_of):
    return np.array([label_of[entry["category_id"]] for entry in entries], "int64")
