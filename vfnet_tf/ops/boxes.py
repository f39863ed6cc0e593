"""Boxes, points and distances (shape letters: README, "How the code is laid out").

A box is `(x1, y1, x2, y2)` in absolute pixels; a point is `(x, y)`; distances are
`(left, top, right, bottom)` from a point to the sides of a box, all float32.
"""

from keras import ops


def xywh_to_xyxy(boxes):
    """`(x, y, width, height)` `[..., 4]` to `(x1, y1, x2, y2)` `[..., 4]`."""
    x, y, width, height = ops.split(boxes, 4, axis=-1)
    return ops.concatenate([x, y, x + width, y + height], axis=-1)


def xyxy_to_xywh(boxes):
    """`(x1, y1, x2, y2)` `[..., 4]` to `(x, y, width, height)` `[..., 4]`."""
    x1, y1, x2, y2 = ops.split(boxes, 4, axis=-1)
    return ops.concatenate([x1, y1, x2 - x1, y2 - y1], axis=-1)


def distances_to_boxes(points, distances):
    """The boxes whose sides lie at `distances` from `points` (FCOS, Eq. 1).

    Args:
        points: float `[..., 2]`, `(x, y)` pixels.
        distances: float `[..., 4]`, `(left, top, right, bottom)` pixels.

    Returns:
        float `[..., 4]` boxes, not clipped.

    >>> box = distances_to_boxes(ops.array([16.0, 8.0]), ops.array([4.0, 3.0, 2.0, 1.0]))
    >>> ops.convert_to_numpy(box)
    array([12.,  5., 18.,  9.], dtype=float32)
    """
    x, y = points[..., 0], points[..., 1]
    return ops.stack(
        [
            x - distances[..., 0],
            y - distances[..., 1],
            x + distances[..., 2],
            y + distances[..., 3],
        ],
        axis=-1,
    )


def boxes_to_distances(points, boxes):
    """Signed distances from `points` to the sides of `boxes`.

    Args:
        points: float `[..., 2]`, `(x, y)` pixels.
        boxes: float `[..., 4]` pixels.

    Returns:
        float `[..., 4]`; all four are positive where the point is inside.
    """
    x, y = points[..., 0], points[..., 1]
    return ops.stack(
        [
            x - boxes[..., 0],
            y - boxes[..., 1],
            boxes[..., 2] - x,
            boxes[..., 3] - y,
        ],
        axis=-1,
    )


def centerness_of(points, boxes):
    """How central points lie in boxes (FCOS, Eq. 3).

        sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))

    Args:
        points: float32 `[..., 2]`, `(x, y)` pixels.
        boxes: float32 `[..., 4]` pixels.

    Returns:
        float32 `[...]` in [0, 1], 0 for points outside.
    """
    left, top, right, bottom = (
        boxes_to_distances(points, boxes)[..., side] for side in range(4)
    )
    ratios = [
        ops.maximum(ops.minimum(one, other), 0.0)
        / ops.maximum(ops.maximum(one, other), 1e-6)
        for one, other in ((left, right), (top, bottom))
    ]
    return ops.sqrt(ratios[0] * ratios[1])


def square_anchors(points, strides, anchor_scale):
    """Squares of `anchor_scale * stride` pixels about points.

    Args:
        points: float32 `[..., 2]`, `(x, y)` pixels.
        strides: float32 `[...]`.
        anchor_scale: float.

    Returns:
        float32 `[..., 4]` boxes, not clipped.
    """
    half_side = strides[..., None] * (anchor_scale / 2)
    return ops.concatenate([points - half_side, points + half_side], axis=-1)


def points_to_moment_boxes(points, factors):
    """The boxes that sets of points stand for (RepPoints, Sec. 3.2, moment-based).

    Args:
        points: float32 `[..., 2 * N]`, `(y, x)` of N points.
        factors: float32 `[2]`, `(horizontal, vertical)`, times the standard deviations.

    Returns:
        float32 `[..., 4]`: the mean minus and plus the unbiased standard deviation times
        its factor.
    """
    sides = []
    for axis in (1, 0):
        values = points[..., axis::2]
        mean = ops.mean(values, axis=-1)
        squares = ops.sum(ops.square(values - mean[..., None]), axis=-1)
        # The square root has no finite gradient at 0.
        deviation = ops.sqrt(ops.maximum(squares / (values.shape[-1] - 1), 1e-12))
        half = deviation * factors[1 - axis]
        sides.append((mean - half, mean + half))
    (x1, x2), (y1, y2) = sides
    return ops.stack([x1, y1, x2, y2], axis=-1)


def clip_boxes(boxes, image_size):
    """Clips boxes to their image.

    Args:
        boxes: float `[B, N, 4]` pixels.
        image_size: `[B, 2]`, `(height, width)` pixels.

    Returns:
        float `[B, N, 4]`, x in [0, width] and y in [0, height].
    """
    image_size = ops.cast(image_size, boxes.dtype)
    height, width = image_size[:, None, 0:1], image_size[:, None, 1:2]
    limits = ops.concatenate([width, height, width, height], axis=-1)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def box_area(boxes):
    """Areas `[...]` in square pixels of boxes `[..., 4]`; negative if inverted once."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(boxes1, boxes2):
    top_left = ops.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = ops.minimum(boxes1[..., 2:], boxes2[..., 2:])
    sides = ops.maximum(bottom_right - top_left, 0.0)
    return sides[..., 0] * sides[..., 1]


def elementwise_iou(boxes1, boxes2, epsilon=1e-6):
    """IoU of pairs of boxes, element by element.

    Args:
        boxes1, boxes2: float, shapes broadcast against each other, `[..., 4]` pixels.
        epsilon: floor of the union in square pixels, so that empty boxes give 0.

    Returns:
        float `[...]` in [0, 1] for boxes with x2 >= x1 and y2 >= y1.
    """
    intersection = _intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return intersection / ops.maximum(union, epsilon)


def pairwise_iou(boxes1, boxes2, epsilon=1e-6):
    """IoU of each of N boxes with each of M boxes.

    Args:
        boxes1: float `[..., N, 4]` pixels.
        boxes2: float `[..., M, 4]` pixels.
        epsilon: floor of the union in square pixels.

    Returns:
        float `[..., N, M]`.

    >>> boxes = ops.array([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]])
    >>> ops.convert_to_numpy(pairwise_iou(boxes, boxes)).round(3)
    array([[1.   , 0.333],
           [0.333, 1.   ]], dtype=float32)
    """
    return elementwise_iou(
        ops.expand_dims(boxes1, -2), ops.expand_dims(boxes2, -3), epsilon
    )


def elementwise_giou(boxes1, boxes2, epsilon=1e-6):
    """Generalised IoU (Rezatofighi et al., CVPR 2019, Alg. 1), element by element.

    Args:
        boxes1, boxes2: float, shapes broadcast against each other, `[..., 4]` pixels.
        epsilon: floor of the union and of the hull in square pixels.

    Returns:
        float `[...]` in [-1, 1] for valid boxes.
    """
    intersection = _intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - intersection
    union = ops.maximum(union, epsilon)
    top_left = ops.minimum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = ops.maximum(boxes1[..., 2:], boxes2[..., 2:])
    sides = ops.maximum(bottom_right - top_left, 0.0)
    hull = ops.maximum(sides[..., 0] * sides[..., 1], epsilon)
    return intersection / union - (hull - union) / hull
