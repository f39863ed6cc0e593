"""Checks of images, targets and weights, whose messages name the mistake and its remedy.

Types and shapes are checked wherever they are known, also while a graph is traced.
Values are checked in numpy arrays only: those of all batches of `fit`, before the step,
and those of a method's first eager call.
"""

import types
import warnings

import numpy as np
from keras import ops

TARGET_KEYS = ("boxes", "labels", "image_size")
_TARGET_SHAPES = {
    "boxes": ("B", "M", 4),
    "labels": ("B", "M"),
    "image_size": ("B", 2),
}


def check_images(images):
    """Refuses images whose shape is known not to be `[B, H, W, 3]`.

    Raises:
        ValueError: with the probable remedy.
    """
    shape = _known_shape(images)
    if shape is None or (len(shape) == 4 and shape[-1] in (3, None)):
        return
    remedy = ""
    if len(shape) == 3:
        remedy = "; one image is `image[None]`, a dataset of images is `.batch(...)`"
    elif len(shape) == 4 and shape[1] == 3:
        remedy = "; channels go last: `np.transpose(images, (0, 2, 3, 1))`"
    raise ValueError(
        f"`images` must be a batch [B, H, W, 3]{remedy}. "
        f"Received: images of shape {shape}"
    )


def find_images(inputs):
    """The checked images of a batch dict, or the images themselves.

    Raises:
        ValueError: if the dict has none, or for images of another shape.
    """
    if isinstance(inputs, dict):
        if "images" not in inputs:
            raise ValueError(
                f"A batch dict must have the key 'images'. Received: {sorted(inputs)}"
            )
        inputs = inputs["images"]
    check_images(inputs)
    return inputs


def find_targets(x, y):
    """The targets of a step, with checked types and known shapes.

    Args:
        x: batch dict or images, see `DenseDetector.fit`.
        y: the dict of targets, or None if they are in the batch dict.

    Returns:
        dict with `TARGET_KEYS` at least.

    Raises:
        ValueError: with the rule and the probable remedy.
    """
    targets = x if y is None else y
    if not isinstance(targets, dict) or any(key not in targets for key in TARGET_KEYS):
        found = sorted(targets) if isinstance(targets, dict) else _kind(targets)
        raise ValueError(
            f"Training needs targets, a dict with the keys {TARGET_KEYS}, as `y` or in "
            "the batch dict; `image_size` is the (height, width) of each image without "
            f"padding. Received: {found}"
        )
    sizes = {}
    for name, wanted in _TARGET_SHAPES.items():
        value = targets[name]
        if _is_ragged(value):
            raise ValueError(
                f"`{name}` must be dense, its rows padded to one number: boxes with 0, "
                "labels with -1, e.g. `boxes.to_tensor(0.0)`, `labels.to_tensor(-1)`, "
                f"or `padded_batch`. Received: {name} that are ragged"
            )
        shape = _known_shape(value)
        if shape is None:
            continue
        is_right = len(shape) == len(wanted)
        for size, axis in zip(shape, wanted, strict=False):
            if isinstance(axis, str):
                axis = sizes.setdefault(axis, size) if size is not None else None
            is_right = is_right and (None in (axis, size) or axis == size)
        if not is_right:
            remedy = ""
            if len(shape) == len(wanted) - 1:
                remedy = " (a dataset must be batched)"
            elif name == "labels" and len(shape) == 3:
                remedy = " (numbers of classes, not one-hot)"
            raise ValueError(
                f"`{name}` must have the shape [{', '.join(map(str, wanted))}]{remedy}: "
                "B images, M rows of boxes, padded. "
                f"Received: {name} of shape {shape}"
                + "".join(f", {axis}={size}" for axis, size in sizes.items())
            )
    return targets


def find_sample_weight(sample_weight, targets):
    """Factors of the images' losses.

    Args:
        sample_weight: see `DenseDetector.compute_loss`, or None.
        targets: dict of targets.

    Returns:
        None, or dict of float32 `[B]` with the keys `"labels"` and `"boxes"`.

    Raises:
        ValueError: for another structure or shape.
    """
    if sample_weight is None:
        return None
    if not isinstance(sample_weight, dict):
        sample_weight = dict.fromkeys(("labels", "boxes"), sample_weight)
    elif not {"labels", "boxes"} <= set(sample_weight):
        raise ValueError(
            "A dict of `sample_weight` must have the keys 'labels' (for the class loss) "
            f"and 'boxes' (for the others). Received: {sorted(sample_weight)}"
        )
    weights = {}
    labels_shape = _known_shape(targets["labels"])
    for name in ("labels", "boxes"):
        shape = _known_shape(sample_weight[name])
        wanted = labels_shape and labels_shape[0]
        if shape is not None and (
            len(shape) not in (1, 2)
            or shape[1:] not in ((), (1,))
            or (None not in (wanted, shape[0]) and shape[0] != wanted)
        ):
            raise ValueError(
                "`sample_weight` must be one number for each image, [B]. "
                f"Received: sample_weight of shape {shape} for labels [B, M] of shape "
                f"{labels_shape}"
            )
        weights[name] = ops.reshape(ops.cast(sample_weight[name], "float32"), (-1,))
    return weights


def check_target_values(boxes, labels, image_size, num_classes, canvas_size=None):
    """Refuses wrong values that a detector would train on without an error.

    Args:
        boxes: float `[B, M, 4]`.
        labels: int `[B, M]`.
        image_size: `[B, 2]`.
        num_classes: int, K.
        canvas_size: `(height, width)` of the batch of images, or None.

    Raises:
        ValueError: with the rule, the box or label, and the probable remedy.
    """
    boxes = np.asarray(boxes, "float32")
    labels, image_size = np.asarray(labels), np.asarray(image_size, "float32")
    if labels.size and (labels.min() < -1 or labels.max() >= num_classes):
        wrong = labels[(labels < -1) | (labels >= num_classes)][0]
        raise ValueError(
            f"`labels` must be in 0..{num_classes - 1}, or -1 in padding rows: they "
            "count from 0 and there is no background class. Subtract 1 if they start at "
            "1; else the head needs as many `num_classes` as the data has. "
            f"Received: label {wrong} for num_classes={num_classes}"
        )
    if canvas_size is not None and np.any(image_size > np.asarray(canvas_size)):
        raise ValueError(
            "`image_size` must be the (height, width) of each image in pixels of the "
            "network input, without padding. Received: "
            f"{image_size[np.any(image_size > canvas_size, axis=-1)][0].tolist()} for "
            f"images of {[int(side) for side in canvas_size]}"
        )
    is_box = labels >= 0
    boxes = boxes[is_box]
    if not len(boxes):
        return
    height, width = np.moveaxis(
        np.broadcast_to(image_size[:, None], (*labels.shape, 2))[is_box], -1, 0
    )
    x1, y1, x2, y2 = boxes.T

    def refuse(is_wrong, remedy):
        if np.any(is_wrong):
            row = int(np.flatnonzero(is_wrong)[0])
            raise ValueError(
                "`boxes` must be (x1, y1, x2, y2) in pixels of the network input. "
                f"{remedy} Received: {boxes[row].tolist()} in an image of "
                f"{height[row]:g} x {width[row]:g} (height x width)"
            )

    refuse(~np.all(np.isfinite(boxes), axis=-1), "Boxes must be finite.")
    refuse(
        np.all(boxes == 0, axis=-1),
        "A row of zeros is padding, its label must be -1.",
    )
    refuse(
        (x2 < x1) | (y2 < y1),
        "x2 < x1 or y2 < y1: probably these are (x, y, width, height), see "
        "`vfnet_tf.ops.boxes`; x2 = x + width, y2 = y + height.",
    )
    if boxes.max() <= 1 and np.any((boxes > 0) & (boxes < 1)):
        refuse(
            np.maximum(height, width) > 8,
            "Probably these are fractions of the image: multiply x by its width and y "
            "by its height.",
        )
    # Points up to the next multiple of 32 pixels may learn a box: docs/parity.md, S20.
    right, bottom = np.ceil(width / 32) * 32, np.ceil(height / 32) * 32
    is_outside = (x1 > right) | (y1 > bottom)
    if np.all((y2 <= right) & (x2 <= bottom)):
        refuse(
            is_outside | (x2 > 1.1 * right) | (y2 > 1.1 * bottom),
            "Probably these are (y1, x1, y2, x2): exchange x and y.",
        )
    refuse(is_outside, "The box is outside its image: boxes are resized with it.")


#: The largest value of an image from which ImageNet's mean was subtracted.
BRIGHTEST = 255.0 - 103.5


def warn_of_unnormalized(images):
    """Warns if pixels look as if they had not been normalised.

    Args:
        images: numpy `[..., 3]`, all images or a sample of their pixels.
    """
    if not images.size or not np.all(np.isfinite(images)):
        return
    low, high = float(images.min()), float(images.max())
    # Zeros are for warming up. Every normalisation but the identity makes dark pixels
    # negative. In bright images what is left of 255 is 2.7 deviations at most, or the
    # difference to the mean, which is no whole number.
    is_whole = high > 1 and bool(np.all(images == np.round(images)))
    if low < 0 or high == 0 or (1 < high <= BRIGHTEST and not is_whole):
        return
    value_range = "0..1" if high <= 1 else "0..255"
    factor = "255 * images" if high <= 1 else "images"
    warnings.warn(
        f"The images look like pixels in {value_range} that were not normalised (values "
        f"from {low:g} to {high:g}). A detector takes normalised ones, e.g. "
        "`vfnet_tf.data.normalization.TORCHVISION("
        f"{factor})` for our own backbones; `vfnet_tf.Predictor` does it all. If they "
        "are as the backbone wants them, set `detector.check_inputs = False`",
        stacklevel=4,
    )


class BatchChecker:
    """Checks the values of the batches of `fit` before the step.

    Args:
        num_classes: int, K.

    Attributes:
        error: the ValueError raised in a thread of tf.data, which raises another one; or
            None.
    """

    def __init__(self, num_classes):
        self.num_classes = num_classes
        self.error = None
        self._has_seen_images = False

    def checked(self, x, y):
        """`x` itself, or a generator or dataset that checks the same batches.

        Arrays are checked at once, tf.data batch by batch, the first batch of a generator
        and of a `PyDataset`. Other forms are not checked.
        """
        if isinstance(x, types.GeneratorType):
            return self._checked_generator(x)
        if hasattr(x, "element_spec") and hasattr(x, "map"):
            return self._checked_dataset(x)
        if isinstance(x, dict) or hasattr(x, "__array__"):
            self._check(x, y)
        elif hasattr(x, "num_batches") and hasattr(x, "__getitem__"):
            self._check_batch(x[0])
        return x

    def _checked_generator(self, batches):
        for place, batch in enumerate(batches):
            if place == 0:
                self._check_batch(batch)
            yield batch

    def _checked_dataset(self, dataset):
        import tensorflow as tf

        self._find(*_pair(dataset.element_spec))

        def check(*arrays):
            try:
                self._check_values(*arrays)
            except ValueError as error:
                self.error = error
                raise
            return np.int32(0)

        @tf.autograph.experimental.do_not_convert
        def checked(*batch):
            batch = batch[0] if len(batch) == 1 else batch
            images, targets = self._find(*_pair(batch))
            arrays = [targets[name] for name in TARGET_KEYS]
            arrays += [tf.shape(images)[1:3], sample_pixels(images)]
            with tf.control_dependencies([tf.numpy_function(check, arrays, tf.int32)]):
                return tf.nest.map_structure(tf.identity, batch)

        return dataset.map(checked)

    def _find(self, x, y):
        return find_images(x), find_targets(x, y)

    def _check_batch(self, batch):
        self._check(*_pair(batch))

    def _check(self, x, y):
        images, targets = self._find(x, y)
        self._check_values(
            *(_to_numpy(targets[name]) for name in TARGET_KEYS),
            tuple(images.shape)[1:3],
            _to_numpy(sample_pixels(images)),
        )

    def _check_values(self, boxes, labels, image_size, canvas_size, sample):
        check_target_values(boxes, labels, image_size, self.num_classes, canvas_size)
        if not self._has_seen_images:
            self._has_seen_images = True
            warn_of_unnormalized(sample)


def _pair(batch):
    """(x, y) of an element of a dataset."""
    if isinstance(batch, tuple | list):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def sample_pixels(images):
    """A hundredth of the pixels of the first images."""
    return images[:4, ::10, ::10]


def _to_numpy(value):
    if hasattr(value, "detach"):  # PyTorch's, on any device
        value = value.detach().cpu()
    return np.asarray(value)


def _is_ragged(value):
    if isinstance(value, list | tuple):
        return len({np.shape(row) for row in value}) > 1
    if isinstance(value, np.ndarray):
        return value.dtype == object
    return "Ragged" in type(value).__name__  # a tensor of TensorFlow or its spec


def _known_shape(value):
    """The shape as a tuple with None for unknown sizes; None for an unknown rank."""
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    if getattr(shape, "rank", 0) is None:
        return None
    return tuple(shape)


def _kind(value):
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
