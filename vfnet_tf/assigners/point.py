import math

import keras
from keras import ops

from vfnet_tf.assigners.assignment import (
    Assigner,
    ground_truth,
    make_assignment,
    own_points,
    resolve_claims,
)
from vfnet_tf.ops.shapes import sizes_of


@keras.saving.register_keras_serializable("vfnet_tf")
class PointAssigner(Assigner):
    """The first assignment of RepPoints (Yang et al., ICCV 2019, Sec. 3.3).

    A box belongs to the level whose stride, a power of two, is nearest below the
    geometric mean of its sides divided by `scale`. There the `num_points` points nearest
    to its centre, in units of its sides, learn it; of several boxes a point learns the
    nearest, the first of equals.

    Args:
        strides: pixels per cell of each level, powers of two.
        scale: strides that a box measures on its level.
        num_points: points for each box.
        padding_multiple: an image counts as padded up to a multiple of this many pixels;
            points beyond are not valid.

    Memory: three or four float32 `[B, M, P]` arrays at a time, each of 27 MB per image at
    800x1344 with 300 boxes; 70 to 100 MB were measured.
    """

    config_names = ("strides", "scale", "num_points", "padding_multiple")

    def __init__(
        self, strides=(8, 16, 32, 64, 128), scale=4, num_points=1, padding_multiple=32
    ):
        if num_points < 1:
            raise ValueError(
                f"`num_points` must be at least 1. Received: num_points={num_points}"
            )
        if any(stride & (stride - 1) for stride in strides):
            raise ValueError(
                f"`strides` must be powers of two. Received: strides={strides}"
            )
        self.strides = tuple(strides)
        self.scale = scale
        self.num_points = num_points
        self.padding_multiple = padding_multiple

    def __call__(self, points, point_strides, gt_boxes, gt_labels, image_size):
        """Assigns all points of a batch; see `ATSSAssigner.__call__`."""
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        is_valid = own_points(points, image_size, self.padding_multiple)
        sides = ops.maximum(gt_boxes[..., 2:] - gt_boxes[..., :2], 1e-6)
        levels = ops.sum(ops.log2(sides / self.scale), axis=-1) / 2
        # The official code casts to int, which rounds towards zero; what is below zero
        # is clipped to the finest level.
        levels = ops.clip(
            ops.floor(levels), math.log2(self.strides[0]), math.log2(self.strides[-1])
        )
        gt_strides = ops.power(2.0, levels)
        # Not ==: log2 and powers are not exact on every backend.
        is_level = ops.abs(gt_strides[..., None] - point_strides) < 0.5
        centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
        squares = [
            ops.square(
                (points[:, axis] - centers[..., axis, None]) / sides[..., axis, None]
            )
            for axis in (0, 1)
        ]
        nearness = -(squares[0] + squares[1])
        is_candidate = ops.logical_and(is_level, is_valid[:, None])
        is_candidate = ops.logical_and(is_candidate, gt_labels[..., None] >= 0)
        nearness = ops.where(is_candidate, nearness, float("-inf"))
        values, indices = ops.top_k(nearness, self.num_points)
        gt_indices = resolve_claims(
            ops.cast(indices, "int32"),
            values > float("-inf"),
            values,
            sizes_of(points)[0],
        )
        return make_assignment(gt_indices, gt_boxes, gt_labels, is_valid)
