"""Transforming one example, in TensorFlow; `images.decode` makes it.

A transform is a function `(example, rng) -> example`; `rng` is an int32 `[2]` seed for
`tf.random.stateless_*`. So the same place of the same epoch gives the same transform,
independent of threads. Transforms that draw nothing ignore it. A transform that has the
attribute `num_partners` > 0 takes a third argument, see `data.augmentation`.

An example passes through in this order; keys beyond those of `data.example` are added:

    decode         image uint8 [h, w, 3], boxes, labels, image_id
    crop
    resize         + scale float32 [2], (y, x) resized / before (after the crop)
    augmentations  see `data.augmentation`
    cut out
    flip
    normalize      image float32
    pad            + image_size float32 [2], (height, width) before padding
"""

import numpy as np
import tensorflow as tf

from vfnet_tf.data.canvases import CANVAS_MULTIPLE

# Kept importable from here.
from vfnet_tf.data.images.decode import decode_image as decode_image
from vfnet_tf.data.images.decode import load_image as load_image

_HOLES = "4x4 4x8 8x4 8x8 16x8 8x16 16x16 16x32 32x16 32x32 32x48 48x32 48x48"
#: (width, height) in pixels of the holes that VFNet-X's official config draws from.
CUT_OUT_SIZES = tuple(tuple(map(int, size.split("x"))) for size in _HOLES.split())


def keep_ratio_size(size, short, long):
    """The size of an image after `resize_keep_ratio` (docs/parity.md, S30).

    Args:
        size: int `[2]` tensor, array or pair: (height, width).
        short: pixels, cap of the shorter side.
        long: pixels, cap of the longer side.

    Returns:
        int32 `[2]` tensor, (height, width), at least 1.
    """
    # float64 as in Python: float32 rounds some x.5 to the other side.
    size = tf.cast(size, "float64")
    factor = tf.minimum(
        tf.cast(long, "float64") / tf.reduce_max(size),
        tf.cast(short, "float64") / tf.reduce_min(size),
    )
    return tf.maximum(tf.cast(size * factor + 0.5, "int32"), 1)


def _resize(example, size):
    """Resizes image and boxes to `size`, int32 `[2]`, and adds `scale`."""
    image = example["image"]
    old_size = tf.shape(image)[:2]

    def interpolate():
        # From float32 the kernel takes 2.1 ms for 800x1067, from uint8 4.4, with the
        # same result. It reads four pixels for each that it writes: to convert all of
        # a photograph first takes longer, and 12 bytes a pixel.
        is_shrunk = tf.reduce_prod(old_size) > tf.reduce_prod(size)
        pixels = tf.cond(
            is_shrunk,
            lambda: tf.image.resize(image, size, "bilinear", antialias=False),
            lambda: tf.image.resize(
                tf.cast(image, "float32"), size, "bilinear", antialias=False
            ),
        )
        # Rounded to 8 bits before the normalisation, as OpenCV does.
        return tf.cast(tf.round(pixels), "uint8")

    is_same = tf.reduce_all(size == old_size)
    resized = tf.cond(is_same, lambda: image, interpolate)
    scale = tf.cast(size / old_size, "float32")
    # (height, width) to the order of (x1, y1, x2, y2). At [::-1] of a constant size
    # TensorFlow's optimiser reports INVALID_ARGUMENT and optimises nothing.
    limit, factors = (tf.gather(pair, [1, 0, 1, 0]) for pair in (size, scale))
    # Rounding may put an edge beyond the border by a few millionths.
    boxes = tf.minimum(example["boxes"] * factors, tf.cast(limit, "float32"))
    return {**example, "image": resized, "boxes": boxes, "scale": scale}


def resize_keep_ratio(short, long):
    """Makes the transform that fits an image into `short` x `long`, either way up.

    The factor is `min(long / longer side, short / shorter side)`, sizes are
    `int(x * factor + 0.5)`, interpolation is bilinear with half-pixel centres and no
    antialiasing (docs/parity.md, S30).

    Args:
        short: int or int tensor `[]`, pixels.
        long: int or int tensor `[]`, pixels.

    Returns:
        The transform.
    """

    def transform(example, rng=None):
        size = tf.shape(example["image"])[:2]
        return _resize(example, keep_ratio_size(size, short, long))

    return transform


def resize_exact(height, width):
    """Makes the transform that stretches an image to `height` x `width` pixels."""

    def transform(example, rng=None):
        return _resize(example, tf.stack([height, width]))

    return transform


def resize_to(image_size, keep_ratio):
    """Makes `resize_keep_ratio` or `resize_exact`, as a `DataConfig` says."""
    return (resize_keep_ratio if keep_ratio else resize_exact)(*image_size)


def network_input(image_size, keep_ratio, normalization):
    """Makes the function from bare pixels to a network input that is not padded yet.

    Args:
        image_size, keep_ratio, normalization: as in `DataConfig`.

    Returns:
        Function of a uint8 `[h, w, 3]` tensor to an example with the float32 `image`,
        no `boxes`, and `scale`; `pad_to` takes it.
    """
    resize, scale_values = resize_to(image_size, keep_ratio), normalize(normalization)

    def transform(image):
        example = {"image": image, "boxes": tf.zeros([0, 4], "float32")}
        return scale_values(resize(example))

    return transform


def padded_size(size):
    """Int `[2]` tensor, (height, width) rounded up to multiples of 32."""
    return -(-size // CANVAS_MULTIPLE) * CANVAS_MULTIPLE


def crop(top, left, height, width):
    """Makes the transform that keeps a rectangle of an image (docs/parity.md, S31).

    Boxes are clipped to it; those without area in it are removed. `data.random_sizes`
    draws the rectangle and replaces images that would lose all boxes.

    Args:
        top, left: int or int tensor `[]`, pixels, the corner of the rectangle.
        height, width: int or int tensor `[]`, pixels; the rectangle lies in the image.
    """

    def transform(example, rng=None):
        image = example["image"][top : top + height, left : left + width]
        corner = tf.cast(tf.stack([left, top, left, top]), "float32")
        limit = tf.cast(tf.stack([width, height, width, height]), "float32")
        boxes = tf.clip_by_value(example["boxes"] - corner, 0.0, limit)
        is_kept = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=-1)
        return {
            **example,
            "image": image,
            "boxes": tf.boolean_mask(boxes, is_kept),
            "labels": tf.boolean_mask(example["labels"], is_kept),
        }

    return transform


def cut_out(num_holes=(5, 10), sizes=CUT_OUT_SIZES, probability=0.5):
    """Makes the transform that blackens small rectangles with a probability.

    The top left corner of a hole is a pixel of the image; the hole ends at the right and
    the bottom edge. Boxes stay as they are. It comes before `normalize`: a hole is black,
    unlike padding, which has the mean colour (docs/parity.md, S31).

    Args:
        num_holes: (fewest, most), both possible.
        sizes: sequence of (width, height) in pixels, one of which each hole draws.
        probability: float in [0, 1].
    """
    if probability == 0:
        return _unchanged
    fewest, most = num_holes
    widest, highest = np.max(sizes, axis=0).tolist()

    def transform(example, rng):
        image = example["image"]

        def draw(index, shape, limit):
            seed = tf.random.experimental.stateless_fold_in(rng, index)
            return tf.random.stateless_uniform(shape, seed, 0, limit, "int32")

        def cut():
            height, width = tf.unstack(tf.shape(image)[:2])
            count = fewest + draw(1, [], most - fewest + 1)
            top, left = draw(2, [most], height), draw(3, [most], width)
            size = tf.gather(tf.constant(sizes), draw(4, [most], len(sizes)))
            # All pixels of the largest hole; those outside a smaller one are dropped.
            y, x = tf.range(highest), tf.range(widest)
            is_in_y = (y < size[:, 1:]) & (y < height - top[:, None])
            is_in_x = (x < size[:, :1]) & (x < width - left[:, None])
            is_in = is_in_y[:, :, None] & is_in_x[:, None, :]
            is_in &= (tf.range(most) < count)[:, None, None]
            hole, y, x = tf.unstack(tf.cast(tf.where(is_in), "int32"), axis=-1)
            pixels = tf.stack(
                [tf.gather(top, hole) + y, tf.gather(left, hole) + x], axis=-1
            )
            black = tf.zeros([tf.shape(pixels)[0], 3], image.dtype)
            return tf.tensor_scatter_nd_update(image, pixels, black)

        is_cut = tf.random.stateless_uniform([], rng) < probability
        return {**example, "image": tf.cond(is_cut, cut, lambda: image)}

    return transform


def flip_horizontal(probability=0.5):
    """Makes the transform that mirrors left and right with a probability.

    A box `(x1, y1, x2, y2)` becomes `(w - x2, y1, w - x1, y2)`.
    """
    if probability == 0:
        return _unchanged

    def transform(example, rng):
        image, boxes = example["image"], example["boxes"]

        def flip():
            width = tf.cast(tf.shape(image)[1], "float32")
            x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
            mirrored = tf.stack([width - x2, y1, width - x1, y2], axis=-1)
            # Six times as fast as image[:, ::-1].
            return tf.reverse(image, axis=[1]), mirrored

        is_flipped = tf.random.stateless_uniform([], rng) < probability
        image, boxes = tf.cond(is_flipped, flip, lambda: (image, boxes))
        return {**example, "image": image, "boxes": boxes}

    return transform


def _unchanged(example, rng=None):
    return example


def normalize(normalization):
    """Makes the transform that applies a `Normalization` to the image."""

    def transform(example, rng=None):
        return {**example, "image": normalization(example["image"])}

    return transform


def pad_to(height, width):
    """Makes the transform that pads right and bottom with zeros and adds `image_size`.

    It comes after `normalize`: the padding has the mean colour (docs/parity.md, S32).

    Args:
        height: int or int tensor `[]`, pixels, at least the image's.
        width: int or int tensor `[]`, pixels, at least the image's.
    """

    def transform(example, rng=None):
        image = example["image"]
        size = tf.shape(image)[:2]
        padding = tf.stack([height, width]) - size
        image = tf.pad(image, [[0, padding[0]], [0, padding[1]], [0, 0]])
        return {**example, "image": image, "image_size": tf.cast(size, "float32")}

    return transform


def compose(transforms):
    """Makes one transform of a list, applied in its order.

    The last one draws with the seed itself, those before it with seeds derived from it. So
    a transform that is put in front of a list does not change the draws of the others.
    """

    def transform(example, rng):
        fold = tf.random.experimental.stateless_fold_in
        for index, step in enumerate(transforms):
            place = len(transforms) - 1 - index
            example = step(example, fold(rng, place) if place else rng)
        return example

    return transform
