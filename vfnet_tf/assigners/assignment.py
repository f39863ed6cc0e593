from typing import Any, NamedTuple

from keras import ops

from vfnet_tf.ops.shapes import sizes_of


class Assignment(NamedTuple):
    """Which ground-truth box each point learns, from any assigner.

    Attributes:
        is_positive: bool `[B, P]`.
        labels: int32 `[B, P]`, class of the box, -1 at negatives.
        boxes: float32 `[B, P, 4]` pixels, zeros at negatives.
        gt_indices: int32 `[B, P]`, row of the box in its image, -1 at negatives.
        is_valid: bool `[B, P]`, False where a point is neither positive nor negative:
            beyond the image's own padded area, or ignored by the assigner.
    """

    is_positive: Any
    labels: Any
    boxes: Any
    gt_indices: Any
    is_valid: Any


class Assigner:
    """What all assigners share: a config of the arguments, each an attribute."""

    config_names = ()

    def get_config(self):
        return {name: getattr(self, name) for name in self.config_names}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def make_assignment(gt_indices, gt_boxes, gt_labels, is_valid):
    """An `Assignment` from the row that each point learns.

    Args:
        gt_indices: int32 `[B, P]`, -1 for none.
        gt_boxes, gt_labels: `[B, M, 4]` and `[B, M]`, M at least 1.
        is_valid: bool `[B, P]`.
    """
    is_positive = gt_indices >= 0
    # `maximum` would give floats on JAX where floatx is bfloat16.
    rows = ops.where(is_positive, gt_indices, 0)
    labels = ops.take_along_axis(gt_labels, rows, axis=1)
    boxes = ops.take_along_axis(gt_boxes, rows[..., None], axis=1)
    return Assignment(
        is_positive=is_positive,
        labels=ops.where(is_positive, labels, -1),
        boxes=ops.where(is_positive[..., None], boxes, 0.0),
        gt_indices=gt_indices,
        is_valid=is_valid,
    )


def ground_truth(gt_boxes, gt_labels):
    """Boxes float32 and labels int32, without gradients and with at least one row."""
    gt_boxes = ops.stop_gradient(ops.cast(gt_boxes, "float32"))
    gt_labels = ops.cast(gt_labels, "int32")
    if not gt_labels.shape[1]:  # none, or unknown: an empty axis has no maximum
        gt_boxes = ops.pad(gt_boxes, ((0, 0), (0, 1), (0, 0)))
        gt_labels = ops.pad(gt_labels, ((0, 0), (0, 1)), constant_values=-1)
    return gt_boxes, gt_labels


def own_points(points, image_size, padding_multiple=32):
    """Which points lie on an image's own padded area.

    In a batch, images are padded further, to one size. The official code leaves points
    beyond an image's own padding out of the assignment: docs/parity.md, S20.

    Args:
        points: float32 `[P, 2]`, `(x, y)` pixels.
        image_size: `[B, 2]`, `(height, width)` of the images without padding.
        padding_multiple: an image counts as padded up to a multiple of this many pixels.

    Returns:
        bool `[B, P]`.
    """
    multiple = float(padding_multiple)
    padded = ops.ceil(ops.cast(image_size, "float32") / multiple) * multiple
    height, width = padded[:, None, 0], padded[:, None, 1]
    return ops.logical_and(points[:, 0] < width, points[:, 1] < height)


def by_stride(point_strides, strides, values):
    """A value of each level at its points.

    Args:
        point_strides: float32 `[P]`, each one of `strides`.
        strides: of the levels.
        values: float or scalar tensor for each level.

    Returns:
        float32 `[P]`.
    """
    result = ops.zeros_like(point_strides)
    for stride, value in zip(strides, values, strict=True):
        result = ops.where(point_strides == stride, value, result)
    return result


def resolve_claims(indices, is_claim, priorities, num_points):
    """Gives every point to the box with the highest priority among its claimants.

    Args:
        indices: int32 `[B, M, C]`, points that box M may claim.
        is_claim: bool `[B, M, C]`, whether it does.
        priorities: float32 `[B, M, C]`; the first box of equals gets the point.
        num_points: P.

    Returns:
        int32 `[B, P]`, the row of the box, -1 for none.
    """
    batch, num_boxes = sizes_of(indices)[:2]
    # Each claim is a row (image * P + point, priority, box).
    first = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1)) * num_points
    slots = ops.reshape(first + indices, (-1,))
    num_slots = batch * num_points
    claims = ops.where(is_claim, priorities, float("-inf"))
    best = ops.segment_max(ops.reshape(claims, (-1,)), slots, num_slots)
    is_best = ops.logical_and(
        is_claim, claims == ops.reshape(ops.take(best, slots), sizes_of(claims))
    )
    rows = ops.arange(num_boxes, dtype="float32")[None, :, None]
    # Of equals the first box, which has the largest -row. Float, because `segment_max`
    # on PyTorch takes no integers.
    rows = ops.where(is_best, -rows, float("-inf"))
    first_row = ops.segment_max(ops.reshape(rows, (-1,)), slots, num_slots)
    first_row = ops.reshape(first_row, (batch, num_points))
    is_claimed = first_row > -1e9
    return ops.cast(ops.where(is_claimed, -first_row, -1.0), "int32")
