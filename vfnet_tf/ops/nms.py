"""Class-wise non-maximum suppression with padded results."""

import keras
from keras import ops

from vfnet_tf.ops.boxes import elementwise_iou


def class_wise_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """Greedy NMS within each class, then the best `max_detections` of all classes.

    Every (box, class) pair with a score **above** `score_threshold` takes part; a box is
    dropped if its IoU with a better one of its class is **above** `iou_threshold`.

    Args:
        boxes: float32 `[B, N, 4]` pixels, shared by the classes.
        scores: float32 `[B, N, K]` in [0, 1].
        iou_threshold: float or scalar tensor.
        score_threshold: float or scalar tensor.
        max_detections: int, D.

    Returns:
        dict with `boxes` float32 `[B, D, 4]` (zeros after the last), `scores` float32
        `[B, D]` (descending, zeros), `labels` int32 `[B, D]` (-1) and `num_detections`
        int32 `[B]`.
    """
    if keras.backend.backend() == "tensorflow":
        return _combined_nms(
            boxes, scores, iou_threshold, score_threshold, max_detections
        )
    return _looped_nms(boxes, scores, iou_threshold, score_threshold, max_detections)


def _combined_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    import tensorflow as tf

    found = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    return _padded(
        found.nmsed_boxes,
        found.nmsed_scores,
        found.nmsed_classes,
        found.valid_detections,
    )


def _looped_nms(boxes, scores, iou_threshold, score_threshold, max_detections):
    """The same in `keras.ops`: takes the best pair left, D times, without a sort."""
    batch, num_boxes, num_classes = scores.shape
    scores = ops.where(scores > score_threshold, scores, -1.0)
    classes = ops.arange(num_classes, dtype="int32")
    kept_boxes, kept_scores, kept_labels = [], [], []
    for _ in range(max_detections):
        flat = ops.reshape(scores, (batch, num_boxes * num_classes))
        best = ops.cast(ops.argmax(flat, axis=-1), "int32")
        score = ops.take_along_axis(flat, best[:, None], axis=1)[:, 0]
        box_index, label = best // num_classes, best % num_classes
        box = ops.take_along_axis(boxes, box_index[:, None, None], axis=1)
        overlaps = elementwise_iou(boxes, box) > iou_threshold
        own = ops.arange(num_boxes, dtype="int32") == box_index[:, None]
        dropped = ops.logical_and(
            ops.logical_or(overlaps, own)[..., None],
            classes == label[:, None, None],
        )
        scores = ops.where(dropped, -1.0, scores)
        kept_boxes.append(box[:, 0])
        kept_scores.append(score)
        kept_labels.append(label)
    kept_scores = ops.stack(kept_scores, axis=1)
    return _padded(
        ops.stack(kept_boxes, axis=1),
        kept_scores,
        ops.stack(kept_labels, axis=1),
        ops.sum(ops.cast(kept_scores > 0, "int32"), axis=-1),
    )


def _padded(boxes, scores, labels, num_detections):
    slots = ops.arange(scores.shape[1], dtype="int32")
    is_kept = slots < num_detections[:, None]
    return {
        "boxes": ops.where(is_kept[..., None], boxes, 0.0),
        "scores": ops.where(is_kept, scores, 0.0),
        "labels": ops.where(is_kept, ops.cast(labels, "int32"), -1),
        "num_detections": ops.cast(num_detections, "int32"),
    }
