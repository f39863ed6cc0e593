import dataclasses
from typing import ClassVar

import tensorflow as tf

from vfnet_tf.data.augmentation.augmentation import (
    Augmentation,
    fold_in,
    integer_below,
    uniform,
)

#: Places that are drawn for an object; the first that is free is taken.
_TRIES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyPaste(Augmentation):
    """Pastes objects elsewhere, with all pixels of their boxes.

    The objects are those of the image itself, or with `from_partner` those of another
    one. An object that others cover too much is not copied, as these would come along
    without boxes. A place is taken only if it leaves enough of all boxes there.

    Args:
        probability: float in [0, 1].
        count: most objects that are pasted into an image.
        max_covered: float in [0, 1], the most that may be covered of a box, by the
            object pasted and by others of an object copied.
        from_partner: bool, whether the objects come from another image.
    """

    count: int = 3
    max_covered: float = 0.2
    from_partner: bool = False

    limits: ClassVar[dict] = {"count": (0, 100), "max_covered": (0, 1)}

    @property
    def num_partners(self):
        return int(self.from_partner)

    @property
    def is_idle(self):
        return self.probability == 0 or self.count == 0

    def most_boxes(self, own, of_partner):
        return own + self.count

    def apply(self, example, rng, partner=None):
        source = partner(0) if self.from_partner else example
        # Not its own shadow: a pasted object is not copied again.
        covered = _covered(source["boxes"], source["boxes"])
        covered = tf.linalg.set_diag(covered, tf.zeros(tf.shape(covered)[:1]))
        can_copy = tf.reduce_all(covered <= self.max_covered, axis=1)
        candidates = tf.cast(tf.where(can_copy)[:, 0], "int32")
        for number in range(self.count):
            draws = uniform(fold_in(rng, number), [1 + 2 * _TRIES])
            example = self._paste(example, source, candidates, draws)
        return example

    def _paste(self, example, source, candidates, draws):
        image, boxes = example["image"], example["boxes"]
        size = tf.shape(image)[:2]
        count = tf.size(candidates)

        def paste_one():
            row = candidates[integer_below(draws[0], count)]
            box = source["boxes"][row]
            limit = tf.shape(source["image"])[1::-1]
            # All pixels that the box touches.
            first = tf.cast(tf.floor(box[:2]), "int32")
            last = tf.minimum(tf.cast(tf.math.ceil(box[2:]), "int32"), limit)
            extent = last - first
            room = size[::-1] - extent + 1
            places = tf.reshape(draws[1:], [_TRIES, 2])
            places = tf.cast(places * tf.cast(room, "float32"), "int32")
            shifts = tf.minimum(places, room - 1) - first
            moved = box + tf.cast(tf.tile(shifts, [1, 2]), "float32")
            is_free = _covered(boxes, moved) <= self.max_covered
            is_free = tf.reduce_all(is_free, axis=0) & tf.reduce_all(room > 0)
            best = tf.argmax(tf.cast(is_free, "int32"), output_type="int32")

            def place():
                left, top = tf.unstack(first + shifts[best])
                patch = source["image"][first[1] : last[1], first[0] : last[0]]
                bottom, right = top + extent[1], left + extent[0]
                band = tf.concat(
                    [image[top:bottom, :left], patch, image[top:bottom, right:]], axis=1
                )
                pasted = tf.concat([image[:top], band, image[bottom:]], axis=0)
                label = source["labels"][row]
                return (
                    tf.ensure_shape(pasted, [None, None, 3]),
                    tf.concat([boxes, moved[best][None]], axis=0),
                    tf.concat([example["labels"], label[None]], axis=0),
                )

            return tf.cond(is_free[best], place, unchanged)

        def unchanged():
            return image, boxes, example["labels"]

        values = tf.cond(count > 0, paste_one, unchanged)
        return {
            **example,
            **dict(zip(("image", "boxes", "labels"), values, strict=True)),
        }


def _covered(boxes, others):
    """Shares of the areas of boxes `[R, 4]` that lie in others `[N, 4]`: `[R, N]`."""
    first = tf.maximum(boxes[:, None, :2], others[:, :2])
    common = tf.minimum(boxes[:, None, 2:], others[:, 2:]) - first
    common = tf.reduce_prod(tf.maximum(common, 0.0), axis=-1)
    area = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    return common / area[:, None]
