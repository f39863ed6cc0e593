import keras
from keras import ops

from vfnet_tf.assigners.assignment import (
    Assigner,
    by_stride,
    ground_truth,
    make_assignment,
    own_points,
)
from vfnet_tf.ops.boxes import box_area


@keras.saving.register_keras_serializable("vfnet_tf")
class FCOSAssigner(Assigner):
    """The assignment of FCOS (Tian et al., ICCV 2019, Sec. 3.1 and 3.2).

    A point learns a box that it lies inside of, or near whose centre it lies, if the
    largest of its distances to the sides falls into the range of its level; of several
    such boxes the smallest, the first of equals.

    Args:
        strides: pixels per cell of each level.
        limits: largest distance in pixels that each level learns; the smallest is the
            limit of the finer level, 0 for the finest. None: 8 strides, as published,
            and no limit on the coarsest level.
        center_radius: positives lie within so many strides of the box's centre, left
            and right and above and below, and inside the box; None, as first published,
            takes all points inside.
        padding_multiple: an image counts as padded up to a multiple of this many pixels;
            points beyond are not valid.

    Memory: some five float32 `[B, M, P]` arrays at a time, each of 27 MB per image at
    800x1344 with 300 boxes; 150 MB were measured.
    """

    config_names = ("strides", "limits", "center_radius", "padding_multiple")

    def __init__(
        self,
        strides=(8, 16, 32, 64, 128),
        limits=None,
        center_radius=1.5,
        padding_multiple=32,
    ):
        if limits is None:
            limits = [*(8.0 * stride for stride in strides[:-1]), float("inf")]
        if len(strides) != len(limits):
            raise ValueError(
                "`strides` and `limits` must be of one length. "
                f"Received: strides={strides}, limits={limits}"
            )
        self.strides = tuple(strides)
        self.limits = tuple(limits)
        self.center_radius = center_radius
        self.padding_multiple = padding_multiple

    def __call__(self, points, point_strides, gt_boxes, gt_labels, image_size):
        """Assigns all points of a batch; see `ATSSAssigner.__call__`."""
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        is_valid = own_points(points, image_size, self.padding_multiple)
        x, y = points[:, 0], points[:, 1]
        x1, y1, x2, y2 = (gt_boxes[..., side, None] for side in range(4))
        largest = ops.maximum(ops.maximum(x - x1, x2 - x), ops.maximum(y - y1, y2 - y))
        lower = by_stride(point_strides, self.strides, (0.0, *self.limits[:-1]))
        upper = by_stride(point_strides, self.strides, self.limits)
        is_learned = ops.logical_and(largest >= lower, largest <= upper)
        if self.center_radius is not None:
            radius = self.center_radius * point_strides
            center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
            x1 = ops.maximum(x1, center_x - radius)
            y1 = ops.maximum(y1, center_y - radius)
            x2 = ops.minimum(x2, center_x + radius)
            y2 = ops.minimum(y2, center_y + radius)
        margin = ops.minimum(ops.minimum(x - x1, x2 - x), ops.minimum(y - y1, y2 - y))
        is_learned = ops.logical_and(is_learned, margin > 0)
        is_learned = ops.logical_and(is_learned, gt_labels[..., None] >= 0)
        is_learned = ops.logical_and(is_learned, is_valid[:, None])
        return make_assignment(
            smallest_box(is_learned, gt_boxes), gt_boxes, gt_labels, is_valid
        )


def smallest_box(is_candidate, gt_boxes):
    """The smallest box of each point's candidates, the first of equals.

    Args:
        is_candidate: bool `[B, M, P]`.
        gt_boxes: float32 `[B, M, 4]`.

    Returns:
        int32 `[B, P]`, its row, -1 for none.
    """
    areas = ops.where(is_candidate, box_area(gt_boxes)[..., None], float("inf"))
    rows = ops.cast(ops.argmin(areas, axis=1), "int32")
    return ops.where(ops.any(is_candidate, axis=1), rows, -1)
