import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    between,
    fold_in,
    integer_below,
    uniform,
)
from vfnet_tf.data.augmentation.visible_boxes import zoom

#: Rectangles that are drawn; the first that fits is taken.
_TRIES = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinIoUCrop(Augmentation):
    """Crops an image around an object (SSD, Liu et al., 2016, Sec. 2.2).

    A least IoU is drawn, then a rectangle whose IoU with one of the boxes reaches it and
    that holds the centre of that box. Boxes whose centre lies in the crop stay, clipped;
    the others are dropped. The crop is enlarged to the size of the image with its own
    proportions (SSD stretches it). An image without boxes, or without a rectangle that
    fits in 50 draws, stays as it is.

    Args:
        probability: float in [0, 1].
        min_ious: floats in [0, 1], one of which each image draws; 0 takes any crop that
            holds the centre of a box.
        side: (least, most) height and width of the crop as parts of the image's.
        max_ratio: most that the height differs from the width as such parts, >= 1.
    """

    min_ious: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    side: tuple[float, float] = (0.3, 1.0)
    max_ratio: float = 2.0

    limits: ClassVar[dict] = {
        "min_ious": (0, 1),
        "side": (0.01, 1),
        "max_ratio": (1, 100),
    }

    @property
    def is_idle(self):
        return self.probability == 0 or self.side[0] == 1

    def apply(self, example, rng):
        boxes, own = example["boxes"], tf.shape(example["image"])[:2]
        chosen = integer_below(uniform(fold_in(rng, 0)), len(self.min_ious))
        min_iou = tf.gather(tf.constant(self.min_ious, "float32"), chosen)
        draws = uniform(fold_in(rng, 1), [_TRIES, 4])
        parts = between(draws[:, :2], *self.side)
        ratio = parts[:, 0] / parts[:, 1]
        is_fitting = tf.maximum(ratio, 1.0 / ratio) <= self.max_ratio
        regions = tf.cast(tf.cast(own, "float32") * parts + 0.5, "int32")
        regions = tf.clip_by_value(regions, 1, own)
        room = tf.cast(own - regions + 1, "float32")
        corners = tf.minimum(tf.cast(draws[:, 2:] * room, "int32"), own - regions)
        # (x1, y1) and (x2, y2) of the rectangles, [tries, 1, 2].
        first = tf.cast(corners[:, None, ::-1], "float32")
        last = tf.cast((corners + regions)[:, None, ::-1], "float32")
        common = tf.minimum(last, boxes[:, 2:]) - tf.maximum(first, boxes[:, :2])
        common = tf.reduce_prod(tf.maximum(common, 0.0), axis=-1)
        area = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
        iou = common / (tf.reduce_prod(last - first, axis=-1) + area - common)
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        is_inside = tf.reduce_all((first <= center) & (center < last), axis=-1)
        is_around = tf.reduce_any(is_inside & (iou >= min_iou), axis=1)
        is_fitting &= is_around
        best = tf.argmax(tf.cast(is_fitting, "int32"), output_type="int32")

        def crop():
            kept = is_inside[best]
            inner = {
                **example,
                "boxes": tf.boolean_mask(boxes, kept),
                "labels": tf.boolean_mask(example["labels"], kept),
            }
            region = regions[best]
            factor = tf.reduce_min(own / region)
            size = tf.cast(tf.cast(region, "float64") * factor + 0.5, "int32")
            size = tf.clip_by_value(size, 1, own)
            return zoom(inner, corners[best], region, size, 0.0)

        return tf.cond(is_fitting[best], crop, lambda: example)
