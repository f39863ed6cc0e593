import keras
from keras import ops

from vfnet_tf.assigners.assignment import (
    Assigner,
    by_stride,
    ground_truth,
    make_assignment,
)
from vfnet_tf.assigners.fcos import smallest_box


@keras.saving.register_keras_serializable("vfnet_tf")
class FoveaAssigner(Assigner):
    """The assignment of FoveaBox (Kong et al., TIP 2020): a box's shrunken centre.

    A box belongs to every level whose range the square root of its area falls into. On
    such a level the cells whose centres lie in the box shrunken by `sigma` about its
    centre learn it, with the rounding and the clipping to the map of the official code;
    of several boxes the smallest, the first of equals.

    Args:
        strides: pixels per cell of each level.
        scale_ranges: (smallest, largest) side in pixels for each level. None: 2 and 8
            strides, as published, and 1 pixel and 16 strides at the two ends.
        sigma: side of the shrunken box, 1 leaves the box.

    Every point is valid, those on padding too, as in the official code: docs/parity.md,
    S23.

    Memory: six to ten float32 `[B, M, P]` arrays at a time, each of 27 MB per image at
    800x1344 with 300 boxes; 170 to 270 MB were measured.
    """

    config_names = ("strides", "scale_ranges", "sigma")

    def __init__(
        self,
        strides=(8, 16, 32, 64, 128),
        scale_ranges=None,
        sigma=0.4,
    ):
        if scale_ranges is None:
            scale_ranges = [[2.0 * stride, 8.0 * stride] for stride in strides]
            scale_ranges[0][0], scale_ranges[-1][1] = 1.0, 16.0 * strides[-1]
        if len(strides) != len(scale_ranges):
            raise ValueError(
                "`strides` and `scale_ranges` must be of one length. "
                f"Received: strides={strides}, scale_ranges={scale_ranges}"
            )
        self.strides = tuple(strides)
        self.scale_ranges = tuple(tuple(pair) for pair in scale_ranges)
        self.sigma = sigma

    def __call__(self, points, point_strides, gt_boxes, gt_labels, image_size):
        """Assigns all points of a batch; see `ATSSAssigner.__call__`.

        The points must be the centres of their cells.
        """
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        sides = gt_boxes[..., 2:] - gt_boxes[..., :2]
        scales = ops.sqrt(ops.maximum(sides[..., 0] * sides[..., 1], 0.0))[..., None]
        lower, upper = (
            by_stride(point_strides, self.strides, bounds)
            for bounds in zip(*self.scale_ranges, strict=True)
        )
        is_learned = ops.logical_and(scales >= lower, scales <= upper)
        is_learned = ops.logical_and(is_learned, gt_labels[..., None] >= 0)
        for axis in (0, 1):
            # A cell's centre lies at (index + 1/2) strides.
            index = points[:, axis] / point_strides - 0.5
            last = [
                ops.max(ops.where(point_strides == stride, index, 0.0))
                for stride in self.strides
            ]
            last = by_stride(point_strides, self.strides, last)
            low = gt_boxes[..., axis, None] / point_strides
            high = gt_boxes[..., axis + 2, None] / point_strides
            middle, half = (low + high) / 2, self.sigma * (high - low) / 2
            first_cell = ops.clip(ops.ceil(middle - half - 0.5), 0.0, last)
            last_cell = ops.clip(ops.floor(middle + half - 0.5), 0.0, last)
            # Indices are whole numbers, so half a cell of room absorbs rounding.
            is_near = ops.logical_and(index > first_cell - 0.5, index < last_cell + 0.5)
            is_learned = ops.logical_and(is_learned, is_near)
        is_valid = ops.ones_like(is_learned[:, 0])
        return make_assignment(
            smallest_box(is_learned, gt_boxes), gt_boxes, gt_labels, is_valid
        )
