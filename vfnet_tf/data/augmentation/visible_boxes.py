"""What is left of the boxes of an image that was moved or cut."""

import tensorflow as tf

from vfnet_tf.data.transforms import resize_exact

#: Grey of pixels that no image covers: the mean of `TORCHVISION.mean`, so about 0 in the
#: network, as the padding is.
FILL = 114


def keep_visible(example, boxes, size, min_visible):
    """Clips moved boxes to the image and drops those of which too little is left.

    Args:
        example: dict with `boxes` float32 `[R, 4]`, those before, and `labels`.
        boxes: float32 `[R, 4]`, `(x1, y1, x2, y2)` after the move, in pixels; they may
            reach outside the image.
        size: int32 `[2]`, (height, width) of the image.
        min_visible: float in [0, 1], the least share of a box's area that must lie in
            the image. A box without area is dropped, and one with a side below a pixel
            that was longer before.

    Returns:
        The example with the boxes that are left and their labels.
    """
    limit = tf.cast(tf.gather(size, [1, 0, 1, 0]), "float32")
    clipped = tf.clip_by_value(boxes, 0.0, limit)
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    before = example["boxes"][:, 2:] - example["boxes"][:, :2]
    area, whole_area = tf.reduce_prod(sides, axis=1), tf.reduce_prod(whole, axis=1)
    is_kept = (area >= min_visible * whole_area) & (area > 0)
    is_kept &= tf.reduce_all(sides >= tf.minimum(1.0, before), axis=1)
    return {
        **example,
        "boxes": tf.boolean_mask(clipped, is_kept),
        "labels": tf.boolean_mask(example["labels"], is_kept),
    }


def zoom(example, corner, region, size, min_visible):
    """Cuts a rectangle out of an image and resizes it.

    Args:
        example: dict, see `data.example`.
        corner: int32 `[2]`, (top, left) of the rectangle in pixels.
        region: int32 `[2]`, (height, width) of the rectangle, which lies in the image.
        size: int32 `[2]`, (height, width) that it is resized to.
        min_visible: float in [0, 1], see `keep_visible`.

    Returns:
        The example. `scale` stays: it is that of the whole image.
    """
    (top, left), (height, width) = tf.unstack(corner), tf.unstack(region)
    image = example["image"][top : top + height, left : left + width]
    shift = tf.cast(tf.stack([left, top, left, top]), "float32")
    cut = keep_visible(example, example["boxes"] - shift, region, min_visible)
    resized = resize_exact(size[0], size[1])({**cut, "image": image})
    image = tf.ensure_shape(resized["image"], [None, None, 3])
    return {**example, **cut, "image": image, "boxes": resized["boxes"]}


def cover(example, size, factor, places, min_visible):
    """Fills a rectangle with a part of an image.

    Args:
        example: dict, see `data.example`.
        size: int32 `[2]`, (height, width) to fill.
        factor: float, enlargement of the image; it is larger where the image would not
            fill the rectangle.
        places: float32 `[2]` in [0, 1), where the part lies, from the top and the left.
        min_visible: float in [0, 1], see `keep_visible`.
    """
    own = tf.shape(example["image"])[:2]
    wanted, available = tf.cast(size, "float32"), tf.cast(own, "float32")
    factor = tf.maximum(factor, tf.reduce_max(wanted / available))
    region = tf.cast(wanted / factor + 0.5, "int32")
    region = tf.minimum(tf.maximum(region, 1), own)
    room = tf.cast(own - region + 1, "float32")
    corner = tf.minimum(tf.cast(places * room, "int32"), own - region)
    return zoom(example, corner, region, size, min_visible)


def join(examples, image):
    """The first example with the boxes of all of them, and another image."""
    return {
        **examples[0],
        "image": tf.ensure_shape(image, [None, None, 3]),
        "boxes": tf.concat([example["boxes"] for example in examples], axis=0),
        "labels": tf.concat([example["labels"] for example in examples], axis=0),
    }
