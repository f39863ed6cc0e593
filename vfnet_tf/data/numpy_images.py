"""Pixels to network inputs in numpy, for use without TensorFlow.

Each function gives the same as its namesake in `data.transforms`, to the last bit where
the processor rounds products and sums one by one, as numpy does.
"""

import numpy as np

from vfnet_tf.data.canvases import CANVAS_MULTIPLE, keep_ratio_sizes

# Kept importable from here.
from vfnet_tf.data.images.numpy_decode import load_image as load_image


def resize(image, height, width):
    """Resizes by bilinear interpolation, half-pixel centres, no antialiasing.

    Args:
        image: uint8 `[h, w, C]`.
        height, width: ints.

    Returns:
        uint8 `[height, width, C]`, rounded to even.
    """
    if image.shape[:2] == (height, width):
        return image
    top, bottom, down = _neighbors(image.shape[0], height)
    left, right, across = _neighbors(image.shape[1], width)
    down, across = down[:, None, None], across[:, None]

    def along_rows(rows):
        rows = image[rows].astype("float32")
        first = rows[:, left]
        return first + (rows[:, right] - first) * across

    upper, lower = along_rows(top), along_rows(bottom)
    return np.round(upper + (lower - upper) * down).astype("uint8")


def _neighbors(size, new_size):
    """Indices of both neighbours of each new cell, and the second one's weight."""
    scale = np.float32(size) / np.float32(new_size)
    places = np.arange(new_size, dtype="float32") + np.float32(0.5)
    places = places * scale - np.float32(0.5)
    floor = np.floor(places)
    low = np.maximum(floor, 0).astype("int64")
    high = np.minimum(np.ceil(places), size - 1).astype("int64")
    return low, high, places - floor


def prepare(pixels, image_size, keep_ratio, normalization, canvas=None):
    """One image as a network input: resized, normalised, padded to multiples of 32.

    Args:
        pixels: uint8 `[h, w, 3]` RGB.
        image_size: (short, long) in pixels, or (height, width) if not `keep_ratio`.
        keep_ratio: bool.
        normalization: `Normalization`.
        canvas: (height, width) to pad to; None for the next multiples of 32.

    Returns:
        dict of float32 arrays `images` `[H, W, 3]`, `image_size` `[2]`, `scale` `[2]`,
        see `data.example`.
    """
    size = np.asarray(image_size, "int64")
    if keep_ratio:
        (size,) = keep_ratio_sizes([pixels.shape[:2]], *image_size)
    height, width = size
    if canvas is None:
        canvas = -(-size // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    padded = np.zeros((*canvas, 3), "float32")
    padded[:height, :width] = normalization(resize(pixels, height, width))
    return {
        "images": padded,
        "image_size": size.astype("float32"),
        "scale": (size / np.asarray(pixels.shape[:2])).astype("float32"),
    }
