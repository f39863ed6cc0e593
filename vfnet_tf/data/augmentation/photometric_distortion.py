import dataclasses
import math
from typing import ClassVar

import numpy as np
import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    as_image,
    between,
    uniform,
)

# Rows of RGB to YIQ (NTSC): the luma, and two axes of the colours.
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
# Grey has no colour, to the last digit.
_YIQ[1:] -= _YIQ[1:].mean(axis=1, keepdims=True)
_RGB = np.linalg.inv(_YIQ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotometricDistortion(Augmentation):
    """Brightness, contrast, saturation and hue, in the order of SSD (Liu et al., 2016).

    Each of the four is an affine map of the colours: brightness adds a number, contrast
    multiplies, saturation moves each colour away from its grey or towards it, and hue
    turns the colours around the grey axis (in YIQ). So the four are one 3x3 matrix and
    one offset, one product for each pixel, and values are rounded and cut off at 0 and
    255 once, at the end. SSD tosses a coin whether contrast comes before or after
    saturation and hue; as maps they can change places, so there is no coin here.

    Args:
        probability: float in [0, 1], of changing an image at all.
        brightness: largest number that is added or subtracted, in pixel values.
        contrast: largest part that is added to or taken from the factor 1.
        saturation: likewise, of the distance from grey.
        hue: largest turn of the colours in degrees.
        each: float in [0, 1], probability of each of the four.
    """

    probability: float = 1.0
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0
    each: float = 0.5

    limits: ClassVar[dict] = {
        "brightness": (0, 255),
        "contrast": (0, 1),
        "saturation": (0, 1),
        "hue": (0, 180),
        "each": (0, 1),
    }

    @property
    def is_idle(self):
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.probability == 0 or self.each == 0 or not any(strengths)

    def draw(self, rng):
        """Draws the map of an image.

        Returns:
            (matrix, offset): float32 `[3, 3]` and `[]`; a colour, a row `[3]`, becomes
            `colour @ matrix + offset`.
        """
        draws = uniform(rng, [2, 4])
        is_drawn = tf.cast(draws[0] < self.each, "float32")
        draws = is_drawn * between(draws[1], -1.0, 1.0)
        brightness = draws[0] * self.brightness
        contrast = 1.0 + draws[1] * self.contrast
        saturation = 1.0 + draws[2] * self.saturation
        angle = draws[3] * math.radians(self.hue)
        along, across = saturation * tf.cos(angle), saturation * tf.sin(angle)
        turn = tf.stack([[1.0, 0.0, 0.0], [0.0, along, -across], [0.0, across, along]])
        rgb, yiq = (tf.constant(values, "float32") for values in (_RGB, _YIQ))
        matrix = tf.matmul(rgb, tf.matmul(turn, yiq))
        return contrast * tf.transpose(matrix), contrast * brightness

    def apply(self, example, rng):
        image = example["image"]
        matrix, offset = self.draw(rng)
        colors = tf.reshape(tf.cast(image, "float32"), [-1, 3])
        mapped = tf.reshape(tf.matmul(colors, matrix), tf.shape(image))
        return {**example, "image": as_image(mapped + offset)}
