"""The rules of a batch, for tests of whatever makes batches."""

import numpy as np

from vfnet_tf.data.example import PADDING_LABEL

BATCH_SPEC = {
    "images": ("float32", ("B", "H", "W", 3)),
    "boxes": ("float32", ("B", "M", 4)),
    "labels": ("int32", ("B", "M")),
    "image_size": ("float32", ("B", 2)),
    "scale": ("float32", ("B", 2)),
    "image_id": ("int64", ("B",)),
}


def check_batch(batch, num_classes=None):
    """Checks a batch against the table in `vfnet_tf.data.example`.

    Args:
        batch: dict of arrays or eager tensors; further keys are allowed.
        num_classes: int K, labels must be below it; None skips that check.

    Raises:
        ValueError: naming the key, the rule and what was found.
    """
    arrays = _check_spec(batch)
    if not np.all(np.isfinite(arrays["images"])):
        raise ValueError("batch['images'] must be finite. Received: NaN or infinity")
    canvas = np.asarray(arrays["images"].shape[1:3])
    sizes = arrays["image_size"]
    if np.any(sizes < 1) or np.any(sizes > canvas):
        raise ValueError(
            f"batch['image_size'] must lie between 1 and the canvas {canvas.tolist()}. "
            f"Received: image_size={sizes.tolist()}"
        )
    if not np.all(arrays["scale"] > 0):
        raise ValueError(
            f"batch['scale'] must be > 0. Received: scale={arrays['scale'].tolist()}"
        )
    labels = arrays["labels"]
    upper = np.inf if num_classes is None else num_classes
    if np.any(labels < PADDING_LABEL) or np.any(labels >= upper):
        raise ValueError(
            f"batch['labels'] must be {PADDING_LABEL} (padding) or a class below "
            f"{upper}. Received: labels={np.unique(labels).tolist()}"
        )
    is_padding = labels == PADDING_LABEL
    if np.any(arrays["boxes"][is_padding] != 0):
        raise ValueError("Padding rows of batch['boxes'] must be 0. Received: others")
    for row, (height, width) in enumerate(sizes.tolist()):
        boxes = arrays["boxes"][row][~is_padding[row]]
        _check_boxes(boxes, height, width, f"batch['boxes'][{row}]")


def _check_spec(batch):
    """Checks keys, dtypes and shapes; one letter must have one size throughout."""
    missing = sorted(set(BATCH_SPEC) - set(batch))
    if missing:
        raise ValueError(
            f"batch must have the keys {list(BATCH_SPEC)}. Received: keys={list(batch)}"
        )
    arrays = {name: np.asarray(batch[name]) for name in BATCH_SPEC}
    sizes = {}
    for name, (dtype, shape) in BATCH_SPEC.items():
        array = arrays[name]
        if array.dtype != dtype:
            raise ValueError(
                f"batch['{name}'] must be {dtype}. Received: dtype={array.dtype}"
            )
        is_right = array.ndim == len(shape)
        for expected, actual in zip(shape, array.shape, strict=False):
            if isinstance(expected, str):
                expected = sizes.setdefault(expected, actual)
            is_right = is_right and expected == actual
        if not is_right:
            wanted = ", ".join(
                f"{axis}={sizes[axis]}" if axis in sizes else str(axis)
                for axis in shape
            )
            raise ValueError(
                f"batch['{name}'] must have the shape [{wanted}]. "
                f"Received: shape={list(array.shape)}"
            )
    return arrays


def _check_boxes(boxes, height, width, what):
    """Checks that all boxes `[N, 4]` are finite, non-empty and inside the image."""
    x1, y1, x2, y2 = boxes.T
    is_inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
    # NaN compares false, so it is caught here as well.
    is_bad = ~(is_inside & (x1 < x2) & (y1 < y2))
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ValueError(
            f"{what} must satisfy 0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= "
            f"{height}. Received: boxes[{row}]={boxes[row].tolist()}"
        )
