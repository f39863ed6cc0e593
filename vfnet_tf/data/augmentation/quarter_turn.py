import dataclasses

import numpy as np
import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    integer_below,
    uniform,
)
from vfnet_tf.data.augmentation.visible_boxes import zoom


def turn(example, turns):
    """Turns an image to the left by a number of quarters, an int in 0..3."""
    image, boxes = example["image"], example["boxes"]
    if turns == 0:
        return example
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], "float32"))
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    if turns == 1:
        boxes = [y1, width - x2, y2, width - x1]
        image = tf.reverse(tf.transpose(image, [1, 0, 2]), axis=[0])
    elif turns == 2:
        boxes = [width - x2, height - y2, width - x1, height - y1]
        image = tf.reverse(image, axis=[0, 1])
    else:
        boxes = [height - y2, x1, height - y1, x2]
        image = tf.reverse(tf.transpose(image, [1, 0, 2]), axis=[1])
    return {**example, "image": image, "boxes": tf.stack(boxes, axis=-1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuarterTurn(Augmentation):
    """Turns an image by a multiple of 90 degrees to the left.

    An image that is not square, turned by 90 or 270 degrees, is made smaller until it
    fits into the place that it had.

    Args:
        probability: float in [0, 1].
        turns: quarters, each in 0..3, one of which each image draws.

    Raises:
        ValueError: there is no number in `turns`, or another one.
    """

    probability: float = 1.0
    turns: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self):
        super().__post_init__()
        if not self.turns or not set(self.turns) <= {0, 1, 2, 3}:
            raise ValueError(
                "`QuarterTurn.turns` must hold some of 0, 1, 2 and 3. "
                f"Received: turns={self.turns}"
            )

    @property
    def is_idle(self):
        return self.probability == 0 or not np.any(self.turns)

    def apply(self, example, rng):
        place = tf.shape(example["image"])[:2]

        def turn_and_fit(turns):
            turned = turn(example, turns)
            size = tf.shape(turned["image"])[:2]
            factor = tf.reduce_min(place / size)
            fitting = tf.cast(tf.cast(size, "float64") * factor + 0.5, "int32")
            fitting = tf.minimum(tf.maximum(fitting, 1), place)
            return zoom(turned, tf.zeros(2, "int32"), size, fitting, 0.0)

        return tf.switch_case(
            integer_below(uniform(rng), len(self.turns)),
            [lambda turns=turns: turn_and_fit(turns) for turns in self.turns],
        )
