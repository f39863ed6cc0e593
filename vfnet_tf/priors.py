"""Where predictions stand on the image: the points of all pyramid levels in one row."""

from keras import ops

from vfnet_tf.ops.deform_conv import cell_grid

#: Strides of P3..P7, pixels per cell.
STRIDES = (8, 16, 32, 64, 128)


def make_points(level_shapes, strides=STRIDES):
    """Points `(x * stride, y * stride)`, the top-left corners of the cells.

    Args:
        level_shapes: `[(height, width), ...]` in cells, one pair per level, fine to
            coarse; ints, or scalar tensors where a graph has dynamic sizes.
        strides: pixels per cell, one per level.

    Returns:
        `points` float32 `[P, 2]`, `(x, y)` pixels, levels one after the other and
        row by row in each, and `strides` float32 `[P]`, the stride of each point.
    """
    points, point_strides = [], []
    for (height, width), stride in zip(level_shapes, strides, strict=True):
        y, x = cell_grid(height, width)
        points.append(ops.stack([x * stride, y * stride], axis=-1))
        point_strides.append(ops.full_like(x, stride))
    return ops.concatenate(points, axis=0), ops.concatenate(point_strides, axis=0)
