"""What all augmentations share: a probability, checked settings, and draws."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A transform of a training image, see `data.transforms`, with settings as fields.

    It is called with the example of a resized image, uint8 `[h, w, 3]`, and a seed,
    int32 `[2]`, and gives an example whose image is not larger. A subclass implements
    `apply(example, rng)`. If it has `num_partners`, it takes a third argument,
    `partner`: a function from an index below `num_partners` to the example of another
    image of the dataset, which is decoded only when that function is called.

    Args:
        probability: float in [0, 1], of being applied to an image. At 0 the example
            that comes in comes out.

    Raises:
        ValueError: a setting outside its limits.
    """

    probability: float = 0.5

    #: Images that are needed besides the one that is transformed.
    num_partners: ClassVar[int] = 0
    #: Setting -> (lowest, highest) of its numbers.
    limits: ClassVar[dict] = {}

    def __post_init__(self):
        limits = {"probability": (0, 1), **self.limits}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            numbers = np.atleast_1d(np.asarray(value, "float64"))
            is_inside = np.all((low <= numbers) & (numbers <= high))
            if not is_inside or np.any(np.diff(numbers) < 0):
                order = ", in ascending order" if len(numbers) > 1 else ""
                raise ValueError(
                    f"`{name}` of {type(self).__name__} must be within {low:g} and "
                    f"{high:g}{order}. Received: {name}={value}"
                )

    @property
    def is_idle(self):
        """Whether no image is ever changed."""
        return self.probability == 0

    def most_boxes(self, own, of_partner):
        """The most boxes that an image can have afterwards.

        Args:
            own: int, the most before.
            of_partner: int, the most that another image has.
        """
        return own

    def __call__(self, example, rng, partner=None):
        if self.is_idle:
            return example
        partners = (partner,) if self.num_partners else ()
        if self.probability == 1:
            return self.apply(example, fold_in(rng, 1), *partners)
        return tf.cond(
            uniform(fold_in(rng, 0)) < self.probability,
            lambda: self.apply(example, fold_in(rng, 1), *partners),
            lambda: example,
        )


fold_in = tf.random.experimental.stateless_fold_in


def uniform(rng, shape=()):
    """Draws float32 in [0, 1) of a shape from a seed."""
    return tf.random.stateless_uniform(shape, rng)


def between(share, low, high):
    """The number at a `share` of the way from `low` to `high`; exact if they are equal."""
    return low + share * (high - low)


def log_between(share, low, high):
    """As `between`, with factors: twice as large is as likely as half as large."""
    return tf.exp(between(share, math.log(low), math.log(high)))


def integer_below(share, limit):
    """The int32 in [0, limit) at a `share` in [0, 1); `limit` is an int32 >= 1."""
    drawn = tf.cast(share * tf.cast(limit, "float32"), "int32")
    return tf.minimum(drawn, limit - 1)


def as_image(pixels):
    """Float pixels, rounded to uint8 and cut off at 0 and 255; of rank three."""
    # One operation each; `tf.clip_by_value` takes two, and a cast cuts off decimals.
    pixels = tf.raw_ops.ClipByValue(
        t=pixels + 0.5, clip_value_min=0.0, clip_value_max=255.0
    )
    return tf.ensure_shape(tf.cast(pixels, "uint8"), [None, None, 3])
