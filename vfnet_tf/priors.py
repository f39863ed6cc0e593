"""The points and anchors of predictions, for all pyramid levels in one row."""

from keras import ops

from vfnet_tf.ops.deform_conv import cell_grid

#: Strides of P3..P7, pixels per cell.
STRIDES = (8, 16, 32, 64, 128)


def make_points(level_shapes, strides=STRIDES, offset=0.0):
    """Points `((x + offset) * stride, (y + offset) * stride)`, one for each cell.

    Args:
        level_shapes: `[(height, width), ...]` in cells, one pair per level, fine to
            coarse; ints, or scalar tensors for dynamic sizes.
        strides: pixels per cell, one per level.
        offset: place of the point in its cell: 0 the top-left corner (ATSS, VFNet), 0.5
            the centre (FCOS, FoveaBox).

    Returns:
        `points` float32 `[P, 2]`, `(x, y)` pixels, levels one after the other and
        row by row in each, and `strides` float32 `[P]`, the stride of each point.

    >>> points, strides = make_points([(1, 2), (1, 1)], strides=(8, 16), offset=0.5)
    >>> ops.convert_to_numpy(points).tolist()
    [[4.0, 4.0], [12.0, 4.0], [8.0, 8.0]]
    """
    points, point_strides = [], []
    for (height, width), stride in zip(level_shapes, strides, strict=True):
        y, x = cell_grid(height, width)
        place = [(x + offset) * stride, (y + offset) * stride]
        points.append(ops.stack(place, axis=-1))
        point_strides.append(ops.full_like(x, stride))
    return ops.concatenate(points, axis=0), ops.concatenate(point_strides, axis=0)


def make_anchors(points, strides, anchor_scale=4.0, octaves=3, ratios=(0.5, 1.0, 2.0)):
    """Anchors of several sizes and shapes about each point (RetinaNet, Sec. 4).

    Args:
        points: float32 `[P, 2]`, `(x, y)` pixels.
        strides: float32 `[P]`.
        anchor_scale: side of the smallest square in strides.
        octaves: int, sizes `anchor_scale * 2 ** (i / octaves)` for each ratio.
        ratios: height to width; the area is that of the square.

    Returns:
        float32 `[P, A, 4]`, ratio by ratio and in each from small to large.
    """
    anchors = []
    for ratio in ratios:
        for octave in range(octaves):
            side = anchor_scale * 2 ** (octave / octaves)
            half = [side / ratio**0.5 / 2, side * ratio**0.5 / 2]
            half = strides[:, None] * ops.convert_to_tensor(half, dtype="float32")
            anchors.append(ops.concatenate([points - half, points + half], axis=-1))
    return ops.stack(anchors, axis=1)
