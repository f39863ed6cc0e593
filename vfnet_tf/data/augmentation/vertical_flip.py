import dataclasses

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import Augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerticalFlip(Augmentation):
    """Mirrors top and bottom: `(x1, y1, x2, y2)` becomes `(x1, h - y2, x2, h - y1)`.

    For images without a top, such as those of microscopes and satellites.

    Args:
        probability: float in [0, 1].
    """

    def apply(self, example, rng):
        height = tf.cast(tf.shape(example["image"])[0], "float32")
        x1, y1, x2, y2 = tf.unstack(example["boxes"], axis=-1)
        boxes = tf.stack([x1, height - y2, x2, height - y1], axis=-1)
        image = tf.reverse(example["image"], axis=[0])
        return {**example, "image": image, "boxes": boxes}
