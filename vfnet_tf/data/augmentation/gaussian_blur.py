import dataclasses
import math
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    as_image,
    between,
    uniform,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBlur(Augmentation):
    """Blurs an image; beyond its edges the outermost pixels go on.

    Args:
        probability: float in [0, 1].
        sigma: (least, most), standard deviation of the blur in pixels. The kernel ends
            at twice the most.
    """

    sigma: tuple[float, float] = (0.2, 1.5)

    limits: ClassVar[dict] = {"sigma": (0, 10)}

    @property
    def is_idle(self):
        return self.probability == 0 or self.sigma[1] == 0

    def apply(self, example, rng):
        image = example["image"]
        radius = math.ceil(2 * self.sigma[1])
        # A sigma of 0 leaves the weight of the pixel itself alone.
        sigma = tf.maximum(between(uniform(rng), *self.sigma), 1e-3)
        distance = tf.range(-radius, radius + 1, dtype="float32")
        weights = tf.exp(-0.5 * tf.square(distance / sigma))
        weights /= tf.reduce_sum(weights)
        for axis in (0, 1):
            last = tf.shape(image)[axis] - 1
            places = tf.clip_by_value(tf.range(-radius, last + radius + 1), 0, last)
            image = tf.gather(image, places, axis=axis)
        pixels = tf.cast(image, "float32")[None]
        for shape in ([-1, 1, 1, 1], [1, -1, 1, 1]):
            kernel = tf.tile(tf.reshape(weights, shape), [1, 1, 3, 1])
            pixels = tf.nn.depthwise_conv2d(pixels, kernel, [1, 1, 1, 1], "VALID")
        return {**example, "image": as_image(pixels[0])}
