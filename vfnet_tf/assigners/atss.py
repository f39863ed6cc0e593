import keras
from keras import ops

from vfnet_tf.assigners.assignment import Assignment
from vfnet_tf.ops.boxes import boxes_to_distances, elementwise_iou


@keras.saving.register_keras_serializable("vfnet_tf")
class ATSSAssigner:
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

    Memory: one float32 and one int32 `[B, M, P]` array at a time; 2 x 27 MB per image at
    800x1344 with 300 boxes.
    """

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
        gt_boxes = ops.stop_gradient(ops.cast(gt_boxes, "float32"))
        gt_labels = ops.cast(gt_labels, "int32")
        if not gt_labels.shape[1]:  # none, or unknown: an empty axis has no maximum
            gt_boxes = ops.pad(gt_boxes, ((0, 0), (0, 1), (0, 0)))
            gt_labels = ops.pad(gt_labels, ((0, 0), (0, 1)), constant_values=-1)
        batch, num_boxes = ops.shape(gt_labels)
        num_points = ops.shape(points)[0]
        is_valid = self._own_points(points, image_size)

        indices, is_candidate = self._candidates(
            points, point_strides, gt_boxes, is_valid
        )
        is_candidate = ops.logical_and(is_candidate, gt_labels[..., None] >= 0)
        candidates = ops.take(points, indices, axis=0)
        half_side = ops.take(point_strides, indices, axis=0)[..., None] * (
            self.anchor_scale / 2
        )
        anchors = ops.concatenate([candidates - half_side, candidates + half_side], -1)
        boxes = gt_boxes[:, :, None]
        ious = elementwise_iou(anchors, boxes)
        ious = ops.where(is_candidate, ious, 0.0)
        threshold = _mean_plus_std(ious, is_candidate)
        margin = ops.min(boxes_to_distances(candidates, boxes), axis=-1)
        is_claim = ops.logical_and(
            is_candidate,
            ops.logical_and(ious >= threshold[..., None], margin > 0.01),
        )

        # Each claim is a row (image * P + point, IoU, box); the best row of a point wins.
        first = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1)) * num_points
        slots = ops.reshape(first + indices, (-1,))
        num_slots = batch * num_points
        claims = ops.where(is_claim, ious, -1.0)
        best = ops.segment_max(ops.reshape(claims, (-1,)), slots, num_slots)
        is_best = ops.logical_and(
            is_claim, claims == ops.reshape(ops.take(best, slots), ops.shape(claims))
        )
        rows = ops.arange(num_boxes, dtype="float32")[None, :, None]
        # The first box of equals: the largest -row. Float, as segment_max is on torch.
        rows = ops.where(is_best, -rows, float("-inf"))
        first_row = ops.segment_max(ops.reshape(rows, (-1,)), slots, num_slots)
        first_row = ops.reshape(first_row, (batch, num_points))
        is_positive = first_row > -1e9
        gt_indices = ops.cast(ops.where(is_positive, -first_row, 0.0), "int32")
        labels = ops.take_along_axis(gt_labels, gt_indices, axis=1)
        boxes = ops.take_along_axis(gt_boxes, gt_indices[..., None], axis=1)
        return Assignment(
            is_positive=is_positive,
            labels=ops.where(is_positive, labels, -1),
            boxes=ops.where(is_positive[..., None], boxes, 0.0),
            gt_indices=ops.where(is_positive, gt_indices, -1),
            is_valid=is_valid,
        )

    def _own_points(self, points, image_size):
        multiple = float(self.padding_multiple)
        padded = ops.ceil(ops.cast(image_size, "float32") / multiple) * multiple
        height, width = padded[:, None, 0], padded[:, None, 1]
        return ops.logical_and(points[:, 0] < width, points[:, 1] < height)

    def _candidates(self, points, point_strides, gt_boxes, is_valid):
        centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
        offsets_x = points[:, 0] - centers[..., 0:1]
        offsets_y = points[:, 1] - centers[..., 1:2]
        nearness = -(ops.square(offsets_x) + ops.square(offsets_y))
        nearness = ops.where(is_valid[:, None], nearness, float("-inf"))
        top_k = ops.minimum(self.top_k, ops.shape(points)[0])
        if points.shape[0] is not None:
            top_k = min(self.top_k, points.shape[0])
        indices, is_candidate = [], []
        for stride in self.strides:
            on_level = ops.where(point_strides == stride, nearness, float("-inf"))
            values, index = ops.top_k(on_level, top_k)
            indices.append(ops.cast(index, "int32"))
            is_candidate.append(values > float("-inf"))
        return ops.concatenate(indices, -1), ops.concatenate(is_candidate, -1)

    def get_config(self):
        return {
            "top_k": self.top_k,
            "anchor_scale": self.anchor_scale,
            "strides": self.strides,
            "padding_multiple": self.padding_multiple,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _mean_plus_std(values, mask):
    """Mean plus unbiased standard deviation over the last axis where `mask` holds."""
    mask = ops.cast(mask, values.dtype)
    count = ops.sum(mask, axis=-1)
    mean = ops.sum(values * mask, axis=-1) / ops.maximum(count, 1.0)
    squares = ops.sum(mask * ops.square(values - mean[..., None]), axis=-1)
    # torch.std divides by n - 1, ops.std by n: the IoU threshold would shift.
    return mean + ops.sqrt(squares / ops.maximum(count - 1.0, 1.0))
