import keras
from keras import ops

from vfnet_tf.assigners.assignment import Assigner, ground_truth, make_assignment
from vfnet_tf.ops.boxes import pairwise_iou
from vfnet_tf.ops.shapes import sizes_of


@keras.saving.register_keras_serializable("vfnet_tf")
class MaxIoUAssigner(Assigner):
    """Assignment by the IoU of anchors with boxes (RetinaNet, Sec. 4; RepPoints).

    An anchor learns the box that it overlaps most if their IoU is `positive_iou` or
    more, and nothing if that is below `negative_iou`; in between it is ignored. Every
    box also gets the anchors that overlap it most, however little, the last box of
    several that claim the same.

    Args:
        positive_iou: float.
        negative_iou: float, at most `positive_iou`.
        min_iou: IoU from which a box gets the anchors that overlap it most; what does
            not overlap at all never counts.
        chunk: boxes that are compared with all anchors at a time.

    Memory: twelve to twenty float32 `[B, chunk, P]` arrays at a time, whatever the number
    of boxes, each of 13 MB per image with nine anchors a cell at 800x1344; 150 to 280 MB
    were measured.
    """

    config_names = ("positive_iou", "negative_iou", "min_iou", "chunk")

    def __init__(self, positive_iou=0.5, negative_iou=0.4, min_iou=0.0, chunk=16):
        if not 0 <= negative_iou <= positive_iou:
            raise ValueError(
                "`negative_iou` must be in [0, positive_iou]. Received: "
                f"negative_iou={negative_iou}, positive_iou={positive_iou}"
            )
        if chunk < 1:
            raise ValueError(f"`chunk` must be at least 1. Received: chunk={chunk}")
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.min_iou = min_iou
        self.chunk = chunk

    def __call__(self, anchors, is_valid, gt_boxes, gt_labels):
        """Assigns all anchors of a batch.

        Args:
            anchors: float32 `[P, 4]` or `[B, P, 4]` pixels.
            is_valid: bool `[B, P]`; anchors that are not valid take no part.
            gt_boxes: float32 `[B, M, 4]` pixels.
            gt_labels: int32 `[B, M]`, -1 marks a padding row.

        Returns:
            An `Assignment`; nothing in it carries a gradient. Ignored anchors are not
            valid in it.
        """
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        anchors = ops.stop_gradient(anchors)
        if len(anchors.shape) == 2:
            anchors = anchors[None]
        batch, num_boxes = sizes_of(gt_labels)
        num_points = sizes_of(is_valid)[1]
        # Padding rows fill the last chunk; they take part in nothing.
        missing = -num_boxes % self.chunk
        boxes = ops.pad(gt_boxes, ((0, 0), (0, missing), (0, 0)))
        labels = ops.pad(gt_labels, ((0, 0), (0, missing)), constant_values=-1)

        def compare(number, state):
            best_iou, best_row, claiming_row = state
            start = number * self.chunk
            rows = start + ops.arange(self.chunk, dtype="int32")
            some_boxes = ops.take(boxes, rows, axis=1)
            is_box = ops.take(labels, rows, axis=1)[..., None] >= 0
            takes_part = ops.logical_and(is_box, is_valid[:, None])
            ious = pairwise_iou(some_boxes, anchors)
            # Predicted boxes may be infinite, which makes their IoU NaN.
            ious = ops.where(ops.logical_and(takes_part, ious >= 0), ious, -1.0)
            # `argmax` takes the first of equals.
            chunk_iou = ops.max(ious, axis=1)
            chunk_row = start + ops.cast(ops.argmax(ious, axis=1), "int32")
            best_row = ops.where(chunk_iou > best_iou, chunk_row, best_row)
            best_iou = ops.maximum(best_iou, chunk_iou)
            largest = ops.max(ious, axis=2, keepdims=True)
            is_claimed = ops.logical_and(
                ious == largest,
                ops.logical_and(largest > 0, largest >= self.min_iou),
            )
            claims = ops.where(is_claimed, rows[:, None], -1)
            claiming_row = ops.maximum(claiming_row, ops.max(claims, axis=1))
            return best_iou, best_row, claiming_row

        nothing = ops.full((batch, num_points), -1, dtype="int32")
        state = (ops.cast(nothing, "float32"), nothing, nothing)
        best_iou, best_row, claiming_row = ops.fori_loop(
            0, (num_boxes + missing) // self.chunk, compare, state
        )
        gt_indices = ops.where(best_iou >= self.positive_iou, best_row, -1)
        gt_indices = ops.where(claiming_row >= 0, claiming_row, gt_indices)
        is_labelled = ops.logical_or(gt_indices >= 0, best_iou < self.negative_iou)
        return make_assignment(
            gt_indices, gt_boxes, gt_labels, ops.logical_and(is_valid, is_labelled)
        )
