"""Checks of what a transform of the user's own gives, by its name.

The library's own transforms are tested, and run without them.
"""

import functools

import tensorflow as tf

#: Key of an example after the resize -> (dtype, shape, remedy of another dtype).
_PARTS = {
    "image": (
        "uint8",
        [None, None, 3],
        "colours are 0 to 255: round and cast them, or for 0 to 1 take "
        "tf.image.convert_image_dtype(image, 'uint8', saturate=True)",
    ),
    "boxes": ("float32", [None, 4], "tf.cast(boxes, 'float32')"),
    "labels": ("int32", [None], "tf.cast(labels, 'int32')"),
    "image_id": ("int64", [], "leave it as it comes"),
    "scale": ("float32", [2], "leave it as it comes"),
}
#: Pixels that a box may reach beyond the image, for rounding.
_SLACK = 1.0


def check_transforms(transforms):
    """A list of transforms; a ValueError for what is none."""
    if callable(transforms) or isinstance(transforms, str | bytes):
        raise ValueError(
            f"`transforms` must be a list of functions. Received: {transforms!r}"
        )
    transforms = list(transforms)
    for each in transforms:
        if isinstance(each, type) or not callable(each):
            raise ValueError(
                "`transforms` must hold functions of (example, rng), or augmentations "
                f"such as VerticalFlip(). Received: {each!r}"
            )
    return transforms


def is_own(transform):
    """Whether a transform is the user's, and none of this library."""
    module = str(getattr(transform, "__module__", ""))
    return module.partition(".")[0] != __name__.partition(".")[0]


def name_of(transform):
    """What a transform is called in a message."""
    if isinstance(transform, functools.partial):
        return name_of(transform.func)
    transform = getattr(transform, "python_function", transform)  # of tf.function
    return getattr(transform, "__qualname__", type(transform).__qualname__)


def with_checks(transform, name, num_classes):
    """The transform with a check of each example that it gives.

    Keys, dtypes and ranks are checked where the graph is made, values in it. A right
    example comes out bit by bit.

    Args:
        transform: function of an example and a seed.
        name: str, for the messages.
        num_classes: int, K.

    Returns:
        Function of an example and a seed. It raises a ValueError where the graph is made
        and a `tf.errors.InvalidArgumentError` in it.
    """

    def transform_and_check(example, rng):
        given = _with_right_parts(transform(example, rng), example, name)
        checks = [
            check
            for check in _checks_of_values(given, example, name, num_classes)
            if check is not None
        ]
        with tf.control_dependencies(checks):
            return {key: tf.identity(value) for key, value in given.items()}

    return transform_and_check


def _with_right_parts(given, example, name):
    """The example as tensors; a ValueError for missing keys, dtypes or ranks."""
    if not isinstance(given, dict):
        raise ValueError(
            f"The transform {name} must return the example, a dict: "
            f"{{**example, 'image': image}}. Received: {type(given).__name__}"
        )
    missing = [key for key in example if key not in given]
    if missing:
        raise ValueError(
            f"The transform {name} must return all keys of the example: "
            f"{{**example, 'image': image}}. Received: no {', '.join(missing)}"
        )
    parts = dict(given)
    for key, (dtype, shape, remedy) in _PARTS.items():
        if key not in given:
            continue
        part = parts[key] = tf.convert_to_tensor(given[key])
        if part.dtype != dtype:
            raise ValueError(
                f"The transform {name} must return `{key}` as {dtype}: {remedy}. "
                f"Received: {part.dtype.name}"
            )
        if not part.shape.is_compatible_with(shape):
            text = ", ".join("n" if size is None else str(size) for size in shape)
            raise ValueError(
                f"The transform {name} must return `{key}` of shape [{text}]. "
                f"Received: {part.shape}"
            )
        if part.shape.rank is None:
            raise ValueError(
                f"The transform {name} must return `{key}` of a known rank: "
                f"tf.ensure_shape({key}, {shape}). Received: unknown"
            )
        parts[key] = tf.ensure_shape(part, shape)
    return parts


def _checks_of_values(given, example, name, num_classes):
    """Operations that fail with the name for values that no example may have."""

    def check(is_right, rule, *received):
        text = f"The transform {name} must {rule}. Received:"
        return tf.debugging.Assert(is_right, [text, *received], summarize=12)

    size, size_before = tf.shape(given["image"])[:2], tf.shape(example["image"])[:2]
    yield check(
        tf.reduce_all((size >= 1) & (size <= size_before)),
        "not make the image larger than it was, in height or in width: crop it, or "
        "resize it with its boxes",
        size,
        "(height, width), before",
        size_before,
    )
    boxes, labels = given["boxes"], given["labels"]
    rows = tf.shape(boxes)[0], tf.shape(labels)[0]
    yield check(
        rows[0] == rows[1],
        "return a label for each box, and drop both together",
        *(rows[0], "boxes,", rows[1], "labels"),
    )
    # A comparison with nan is false.
    is_ordered = tf.reduce_all(boxes[:, :2] < boxes[:, 2:])
    height, width = tf.unstack(tf.cast(size, "float32"))
    is_inside = (boxes >= -_SLACK) & (
        boxes <= tf.stack([width, height, width, height]) + _SLACK
    )
    yield check(
        is_ordered & tf.reduce_all(is_inside),
        "return boxes (x1, y1, x2, y2) in pixels with x1 < x2 and y1 < y2 within the "
        "image: cut them to it, and drop those without area",
        *(boxes, "in an image of (height, width)", size),
    )
    # Such small boxes only, where there were others, are shares of the image.
    before = tf.reduce_max(example["boxes"]) > 1
    is_share = (rows[0] > 0) & before & (tf.reduce_max(boxes) <= 1)
    yield check(
        ~is_share,
        "return boxes in pixels, not as shares of the image: multiply them by "
        "(width, height, width, height)",
        boxes,
    )
    yield check(
        tf.reduce_all((labels >= 0) & (labels < num_classes)),
        f"return labels from 0 to {num_classes - 1}, the places of the classes",
        labels,
    )
