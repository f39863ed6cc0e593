import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    as_image,
    fold_in,
    uniform,
)
from vfnet_tf.data.augmentation.visible_boxes import cover, join


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixUp(Augmentation):
    """Shows two images through each other (Zhang et al., 2019, arXiv 1902.04103).

    The pixels are `share * image + (1 - share) * other`, and the boxes of both stay.
    The losses have no weights for boxes, so all count as one; a large `alpha` keeps the
    shares near a half, where both are visible.

    Args:
        probability: float in [0, 1].
        alpha: float > 0; the share is drawn from a Beta(alpha, alpha) distribution.
        min_visible: least share of a box's area that lies in the part of the other image
            that is shown; a box with less is dropped.
    """

    alpha: float = 8.0
    min_visible: float = 0.25

    num_partners: ClassVar[int] = 1
    limits: ClassVar[dict] = {"alpha": (0.01, 1000), "min_visible": (0, 1)}

    def most_boxes(self, own, of_partner):
        return own + of_partner

    def apply(self, example, rng, partner):
        image = example["image"]
        places = uniform(fold_in(rng, 0), [2])
        other = cover(partner(0), tf.shape(image)[:2], 1.0, places, self.min_visible)
        # A beta variate is a gamma variate over the sum of two.
        gammas = tf.random.stateless_gamma([2], fold_in(rng, 1), self.alpha)
        share = gammas[0] / tf.reduce_sum(gammas)
        first, second = (tf.cast(each["image"], "float32") for each in (example, other))
        return join([example, other], as_image(second + share * (first - second)))
