import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    integer_below,
    uniform,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JpegQuality(Augmentation):
    """Codes an image as a JPEG of low quality and decodes it.

    Args:
        probability: float in [0, 1].
        quality: (least, most), whole numbers in 1..100 as libjpeg counts. 100 leaves the
            image as it is.
    """

    quality: tuple[int, int] = (30, 90)

    limits: ClassVar[dict] = {"quality": (1, 100)}

    @property
    def is_idle(self):
        return self.probability == 0 or self.quality[0] == 100

    def apply(self, example, rng):
        image, (least, most) = example["image"], self.quality
        quality = least + integer_below(uniform(rng), most - least + 1)

        def code():
            coded = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality)
            return tf.io.decode_jpeg(coded, 3, dct_method="INTEGER_ACCURATE")

        coded = tf.cond(quality < 100, code, lambda: image)
        return {**example, "image": tf.ensure_shape(coded, [None, None, 3])}
