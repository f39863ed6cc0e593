import dataclasses
import math
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    between,
    log_between,
    uniform,
)
from vfnet_tf.data.augmentation.visible_boxes import FILL, keep_visible


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomAffine(Augmentation):
    """Turns, enlarges and shifts an image around its centre, on the same canvas.

    A box becomes the hull of its moved corners. Pixels from outside are grey. Where no
    turn is wanted, `LargeScaleJitter` does the same in a quarter of the time.

    Args:
        probability: float in [0, 1].
        degrees: largest turn to either side.
        scale: (least, most) enlargement, drawn on a logarithmic scale.
        shift: largest shift as a part of the height and of the width.
        min_visible: least share of the hull's area that lies in the image; a box with
            less is dropped.
    """

    degrees: float = 10.0
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.1
    min_visible: float = 0.25

    limits: ClassVar[dict] = {
        "degrees": (0, 180),
        "scale": (0.01, 100),
        "shift": (0, 1),
        "min_visible": (0, 1),
    }

    def apply(self, example, rng):
        image = example["image"]
        size = tf.shape(image)[:2]
        draws = uniform(rng, [4])
        angle = between(draws[0], -1.0, 1.0) * math.radians(self.degrees)
        scale = log_between(draws[1], *self.scale)
        extent = tf.cast(size[::-1], "float32")  # (width, height)
        center = extent / 2
        target = center + between(draws[2:], -1.0, 1.0) * self.shift * extent
        cos, sin = tf.cos(angle), tf.sin(angle)
        # A point p, a column (x, y), moves to `forward @ (p - center) + target`.
        forward = scale * tf.stack([[cos, sin], [-sin, cos]])
        backward = tf.stack([[cos, -sin], [sin, cos]]) / scale
        # The operation counts from the centre of the first pixel, which is at (.5, .5).
        origin = center - 0.5 + tf.linalg.matvec(backward, 0.5 - target)
        rows = tf.concat([backward, origin[:, None]], axis=1)
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=tf.concat([tf.reshape(rows, [1, 6]), tf.zeros([1, 2])], axis=1),
            output_shape=size,
            fill_value=float(FILL),
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )[0]
        x1, y1, x2, y2 = tf.unstack(example["boxes"], axis=-1)
        corners = tf.stack([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])  # [4, 2, R]
        corners = tf.transpose(corners, [2, 0, 1]) - center
        corners = tf.matmul(corners, forward, transpose_b=True) + target
        boxes = tf.concat(
            [tf.reduce_min(corners, axis=1), tf.reduce_max(corners, axis=1)], axis=-1
        )
        moved = tf.ensure_shape(moved, [None, None, 3])
        return {
            **keep_visible(example, boxes, size, self.min_visible),
            "image": moved,
        }
