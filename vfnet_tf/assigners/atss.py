import keras
from keras import ops

from vfnet_tf.assigners.assignment import (
    Assigner,
    ground_truth,
    make_assignment,
    own_points,
    resolve_claims,
)
from vfnet_tf.ops.boxes import boxes_to_distances, elementwise_iou, square_anchors
from vfnet_tf.ops.shapes import sizes_of


@keras.saving.register_keras_serializable("vfnet_tf")
class ATSSAssigner(Assigner):
    """Adaptive training sample selection (Zhang et al., CVPR 2020, Alg. 1).

    Per ground-truth box, the `top_k` points nearest to its centre on each level are its
    candidates; those whose anchor, a square of `anchor_scale * stride` pixels, has at
    least the mean plus the standard deviation of all the candidates' IoUs, and which lie
    inside the box, become positives. A point that several boxes claim goes to the one
    with the largest IoU, the first of equals.

    Args:
        top_k: candidates per level (fewer where a level has fewer points).
        anchor_scale: side of the anchors in strides.
        strides: pixels per cell of each level.
        padding_multiple: an image counts as padded up to a multiple of this many pixels;
            points beyond are no candidates.

    Memory: two or three `[B, M, P]` arrays of 4 bytes at a time, each of 27 MB per image
    at 800x1344 with 300 boxes; 60 to 90 MB were measured.

    >>> from vfnet_tf.priors import make_points
    >>> points, strides = make_points([(8, 8)], strides=(8,))
    >>> boxes, labels = [[[8.0, 8.0, 56.0, 56.0]]], [[2]]
    >>> assigner = ATSSAssigner(strides=(8,))
    >>> learned = assigner(points, strides, boxes, labels, [[64, 64]])
    >>> int(ops.sum(ops.cast(learned.labels == 2, "int32")))
    9
    """

    config_names = ("top_k", "anchor_scale", "strides", "padding_multiple")

    def __init__(
        self, top_k=9, anchor_scale=8, strides=(8, 16, 32, 64, 128), padding_multiple=32
    ):
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1. Received: top_k={top_k}")
        self.top_k = top_k
        self.anchor_scale = anchor_scale
        self.strides = tuple(strides)
        self.padding_multiple = padding_multiple

    def __call__(self, points, point_strides, gt_boxes, gt_labels, image_size):
        """Assigns all points of a batch.

        Args:
            points: float32 `[P, 2]`, `(x, y)` pixels.
            point_strides: float32 `[P]`, each one of `strides`.
            gt_boxes: float32 `[B, M, 4]` pixels.
            gt_labels: int32 `[B, M]`, -1 marks a padding row.
            image_size: `[B, 2]`, `(height, width)` of the images without padding.

        Returns:
            An `Assignment`; nothing in it carries a gradient.
        """
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        is_valid = own_points(points, image_size, self.padding_multiple)

        indices, is_candidate = self._candidates(
            points, point_strides, gt_boxes, is_valid
        )
        is_candidate = ops.logical_and(is_candidate, gt_labels[..., None] >= 0)
        candidates = ops.take(points, indices, axis=0)
        candidate_strides = ops.take(point_strides, indices, axis=0)
        anchors = square_anchors(candidates, candidate_strides, self.anchor_scale)
        boxes = gt_boxes[:, :, None]
        ious = elementwise_iou(anchors, boxes)
        ious = ops.where(is_candidate, ious, 0.0)
        threshold = _mean_plus_std(ious, is_candidate)
        margin = ops.min(boxes_to_distances(candidates, boxes), axis=-1)
        is_claim = ops.logical_and(
            is_candidate,
            ops.logical_and(ious >= threshold[..., None], margin > 0.01),
        )

        gt_indices = resolve_claims(indices, is_claim, ious, sizes_of(points)[0])
        return make_assignment(gt_indices, gt_boxes, gt_labels, is_valid)

    def _candidates(self, points, point_strides, gt_boxes, is_valid):
        centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
        offsets_x = points[:, 0] - centers[..., 0:1]
        offsets_y = points[:, 1] - centers[..., 1:2]
        nearness = -(ops.square(offsets_x) + ops.square(offsets_y))
        nearness = ops.where(is_valid[:, None], nearness, float("-inf"))
        top_k = ops.minimum(self.top_k, sizes_of(points)[0])
        if points.shape[0] is not None:
            top_k = min(self.top_k, points.shape[0])
        indices, is_candidate = [], []
        for stride in self.strides:
            on_level = ops.where(point_strides == stride, nearness, float("-inf"))
            values, index = ops.top_k(on_level, top_k)
            indices.append(ops.cast(index, "int32"))
            is_candidate.append(values > float("-inf"))
        return ops.concatenate(indices, -1), ops.concatenate(is_candidate, -1)


def _mean_plus_std(values, mask):
    """Mean plus unbiased standard deviation over the last axis where `mask` holds."""
    mask = ops.cast(mask, values.dtype)
    count = ops.sum(mask, axis=-1)
    mean = ops.sum(values * mask, axis=-1) / ops.maximum(count, 1.0)
    squares = ops.sum(mask * ops.square(values - mean[..., None]), axis=-1)
    # The official code's torch.std divides by n - 1, `ops.std` by n.
    return mean + ops.sqrt(squares / ops.maximum(count - 1.0, 1.0))
