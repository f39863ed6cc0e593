import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    as_image,
    between,
    fold_in,
    uniform,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianNoise(Augmentation):
    """Adds noise, drawn for each pixel and colour.

    Args:
        probability: float in [0, 1].
        deviation: (least, most), standard deviation in pixel values.
    """

    deviation: tuple[float, float] = (2.0, 12.0)

    limits: ClassVar[dict] = {"deviation": (0, 255)}

    @property
    def is_idle(self):
        return self.probability == 0 or self.deviation[1] == 0

    def apply(self, example, rng):
        image = example["image"]
        deviation = between(uniform(fold_in(rng, 0)), *self.deviation)
        noise = tf.random.stateless_normal(tf.shape(image), fold_in(rng, 1))
        return {
            **example,
            "image": as_image(tf.cast(image, "float32") + deviation * noise),
        }
