import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    between,
    fold_in,
    log_between,
    uniform,
)
from vfnet_tf.data.augmentation.visible_boxes import cover, join


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mosaic(Augmentation):
    """Puts parts of four images into one (Bochkovskiy et al., 2020, YOLOv4, Sec. 3.3).

    The four meet at a point in the middle half of the image, and each fills its quarter:
    it draws an enlargement, or takes a larger one that is needed to fill the quarter,
    and is cut at a place drawn at random. The image itself is at the top left, three
    others are decoded for the rest.

    Args:
        probability: float in [0, 1].
        scale: (least, most) enlargement of an image before it is cut, drawn on a
            logarithmic scale; 1 leaves its size in the network.
        min_visible: least share of a box's area that lies in the cut; a box with less is
            dropped.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    min_visible: float = 0.25

    num_partners: ClassVar[int] = 3
    limits: ClassVar[dict] = {"scale": (0.01, 100), "min_visible": (0, 1)}

    def most_boxes(self, own, of_partner):
        return own + 3 * of_partner

    def apply(self, example, rng, partner):
        # A strip of one pixel has no quarters.
        size = tf.shape(example["image"])[:2]
        return tf.cond(
            tf.reduce_min(size) > 1,
            lambda: self._compose(example, size, rng, partner),
            lambda: example,
        )

    def _compose(self, example, size, rng, partner):
        middle = between(uniform(fold_in(rng, 0), [2]), 0.25, 0.75)
        middle = tf.cast(tf.cast(size, "float32") * middle + 0.5, "int32")
        middle = tf.clip_by_value(middle, 1, size - 1)
        (top, left), (bottom, right) = tf.unstack(middle), tf.unstack(size - middle)
        sources = [example, *(partner(index) for index in range(3))]
        sizes = [(top, left), (top, right), (bottom, left), (bottom, right)]
        tiles = []
        for number, (source, tile_size) in enumerate(zip(sources, sizes, strict=True)):
            draws = uniform(fold_in(rng, 1 + number), [3])
            factor = log_between(draws[0], *self.scale)
            tile_size = tf.stack(tile_size)
            tiles.append(cover(source, tile_size, factor, draws[1:], self.min_visible))
        corners = [(0, 0), (left, 0), (0, top), (left, top)]
        for tile, (x, y) in zip(tiles, corners, strict=True):
            tile["boxes"] += tf.cast(tf.stack([x, y, x, y]), "float32")
        images = [tile["image"] for tile in tiles]
        rows = [tf.concat(images[:2], axis=1), tf.concat(images[2:], axis=1)]
        return join(tiles, tf.concat(rows, axis=0))
