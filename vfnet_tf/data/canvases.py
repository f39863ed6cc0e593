"""The padded shapes, called canvases, of a dataset's batches."""

import numpy as np

# P5 has stride 32; the official code pads to it too (docs/parity.md, S32).
CANVAS_MULTIPLE = 32


def keep_ratio_sizes(sizes, short, long):
    """Sizes after `transforms.resize_keep_ratio`, in numpy (docs/parity.md, S30).

    Args:
        sizes: `[N, 2]`, (height, width) in pixels.
        short: number or `[N]`, cap of the shorter side.
        long: number or `[N]`, cap of the longer side.

    Returns:
        int64 `[N, 2]`, (height, width), at least 1.
    """
    sizes = np.asarray(sizes, "float64").reshape(-1, 2)
    factor = np.minimum(long / sizes.max(axis=1), short / sizes.min(axis=1))
    return np.maximum((sizes * factor[:, None] + 0.5).astype("int64"), 1)


def resized_sizes(sizes, image_size, keep_ratio):
    """Sizes after the resize: int `[N, 2]`, equal to `transforms.keep_ratio_size`."""
    if not keep_ratio:
        return np.tile(np.asarray(image_size, "int64"), (len(sizes), 1))
    return keep_ratio_sizes(sizes, *image_size)


def check_image_size(image_size, keep_ratio):
    """Returns `image_size` as two ints; raises `ValueError` if it is wrong."""
    pair = tuple(image_size) if np.ndim(image_size) == 1 else ()
    is_right = len(pair) == 2 and all(int(v) == v and v >= 1 for v in pair)
    if not is_right or (keep_ratio and pair[0] > pair[1]):
        rule = "(short, long) with short <= long" if keep_ratio else "(height, width)"
        raise ValueError(
            f"`image_size` must be {rule}, positive whole pixels. "
            f"Received: image_size={image_size}"
        )
    return int(pair[0]), int(pair[1])


def check_scale_range(scale_range, keep_ratio):
    """Returns the range as two pairs (short, long); raises `ValueError` if it is wrong."""
    if not keep_ratio:
        raise ValueError(
            "`scale_range` needs `keep_ratio=True`. "
            f"Received: scale_range={scale_range}, keep_ratio={keep_ratio}"
        )
    pairs = [check_image_size(pair, keep_ratio) for pair in scale_range]
    if len(pairs) != 2 or np.any(np.less(pairs[1], pairs[0])):
        raise ValueError(
            "`scale_range` must be the smallest and the largest (short, long). "
            f"Received: scale_range={scale_range}"
        )
    return tuple(pairs)


def is_landscape(sizes):
    """Whether w / h > 1; the official code groups images so (docs/parity.md, S33)."""
    sizes = np.asarray(sizes)
    return sizes[:, 1] > sizes[:, 0]


def choose_canvas_shapes(sizes, image_size, max_shapes=4, keep_ratio=True):
    """Chooses a few padded shapes that together waste little area on `sizes`.

    It starts from every shape that occurs, rounded up to multiples of 32. Then the two
    shapes of one orientation whose common hull adds the least padding become one, until
    at most `max_shapes` are left. A graph is traced and memory is allocated for each
    shape, so that few shapes are fast.

    Args:
        sizes: sequence of (height, width) of the original images, pixels.
        image_size: (short, long) in pixels, or (height, width) if not `keep_ratio`.
        max_shapes: int >= 1. With 1, both orientations share one shape.
        keep_ratio: bool, see `build_pipeline`.

    Returns:
        Sorted list of (height, width), multiples of 32; every image fits into one.

    Raises:
        ValueError: for no sizes, a bad `image_size` or `max_shapes` below 1.
    """
    if len(sizes) == 0:
        raise ValueError("`sizes` must hold at least one size. Received: sizes=[]")
    if max_shapes < 1:
        raise ValueError(
            f"`max_shapes` must be >= 1. Received: max_shapes={max_shapes}"
        )
    image_size = check_image_size(image_size, keep_ratio)
    resized = resized_sizes(sizes, image_size, keep_ratio)
    padded = -(-resized // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    rows = np.column_stack([is_landscape(sizes), padded])
    rows, counts = np.unique(rows, axis=0, return_counts=True)
    landscape, shapes = rows[:, 0], rows[:, 1:]
    while len(shapes) > max_shapes:
        hulls = np.maximum(shapes[:, None], shapes[None, :])
        cost = counts * shapes.prod(axis=-1)
        added = (counts[:, None] + counts) * hulls.prod(axis=-1)
        added = (added - cost[:, None] - cost).astype("float64")
        is_mixed = landscape[:, None] != landscape
        # Orientations are mixed only when nothing else is left to merge.
        added = added + is_mixed * (1.0 + np.abs(added).max())
        added[np.tril_indices(len(shapes))] = np.inf
        first, second = np.unravel_index(np.argmin(added), added.shape)
        shapes[first] = hulls[first, second]
        counts[first] += counts[second]
        landscape, shapes, counts = (
            np.delete(values, second, axis=0) for values in (landscape, shapes, counts)
        )
    return sorted({(int(height), int(width)) for height, width in shapes})


def assign_canvases(dataset, resized, canvas_shapes):
    """Index of the smallest canvas that holds each image: int `[N]`."""
    canvases = np.asarray(canvas_shapes, "int64").reshape(-1, 2)
    area = canvases.prod(axis=1).astype("float64")
    fits = np.all(resized[:, None] <= canvases, axis=-1)
    too_large = np.flatnonzero(~fits.any(axis=1))
    if len(too_large):
        index = int(too_large[0])
        raise ValueError(
            f"Every resized image must fit into one of `canvas_shapes`; "
            f"{dataset[index].path!r} is {resized[index].tolist()} (height, width). "
            f"Received: canvas_shapes={canvases.tolist()}"
        )
    return np.argmin(np.where(fits, area, np.inf), axis=1)
