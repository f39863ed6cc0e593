import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import Augmentation, log_between, uniform
from vfnet_tf.data.augmentation.visible_boxes import zoom


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeScaleJitter(Augmentation):
    """Makes an image larger or smaller (Ghiasi et al., CVPR 2021, Sec. 3).

    A larger one is cut to its size before, at a place drawn at random; a smaller one
    leaves the rest of its canvas to the padding.

    Args:
        probability: float in [0, 1].
        scale: (least, most) enlargement, drawn on a logarithmic scale. Ghiasi et al.
            take (0.8, 1.25) as the standard and (0.1, 2) as the large jitter.
        min_visible: least share of a box's area that lies in the cut; a box with less is
            dropped.
    """

    probability: float = 1.0
    scale: tuple[float, float] = (0.1, 2.0)
    min_visible: float = 0.25

    limits: ClassVar[dict] = {"scale": (0.01, 100), "min_visible": (0, 1)}

    @property
    def is_idle(self):
        return self.probability == 0 or self.scale == (1, 1)

    def apply(self, example, rng):
        own = tf.shape(example["image"])[:2]
        draws = uniform(rng, [3])
        scale = log_between(draws[0], *self.scale)
        exact = tf.cast(own, "float32")
        region = tf.cast(exact / tf.maximum(scale, 1.0) + 0.5, "int32")
        size = tf.cast(exact * tf.minimum(scale, 1.0) + 0.5, "int32")
        region, size = (tf.clip_by_value(each, 1, own) for each in (region, size))
        room = tf.cast(own - region + 1, "float32")
        corner = tf.minimum(tf.cast(draws[1:] * room, "int32"), own - region)
        return zoom(example, corner, region, size, self.min_visible)
