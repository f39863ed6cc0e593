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
    """Asserts that a batch is as the table in `vfnet_tf.data.example` says.

    Args:
        batch: dict of arrays or eager tensors; further keys are allowed.
        num_classes: int K, labels must be below it; None skips that check.
    """
    arrays, sizes = {name: np.asarray(batch[name]) for name in BATCH_SPEC}, {}
    for name, (dtype, shape) in BATCH_SPEC.items():
        array = arrays[name]
        assert array.dtype == dtype and array.ndim == len(shape), name
        for axis, actual in zip(shape, array.shape, strict=True):
            # One letter has one size throughout.
            wanted = sizes.setdefault(axis, actual) if isinstance(axis, str) else axis
            assert actual == wanted, f"{name}: {array.shape}, not {shape} with {sizes}"
    images, boxes, labels = arrays["images"], arrays["boxes"], arrays["labels"]
    image_sizes = arrays["image_size"]
    assert np.isfinite(images).all() and (arrays["scale"] > 0).all()
    assert (image_sizes >= 1).all() and (image_sizes <= images.shape[1:3]).all()
    assert (labels >= PADDING_LABEL).all()
    assert num_classes is None or (labels < num_classes).all()
    is_padding = labels == PADDING_LABEL
    assert (boxes[is_padding] == 0).all(), "padding rows must be 0"
    corners, limits = boxes.reshape(*labels.shape, 2, 2), image_sizes[:, None, ::-1]
    is_inside = (corners[:, :, 0] >= 0) & (corners[:, :, 1] <= limits)
    is_inside &= corners[:, :, 0] < corners[:, :, 1]  # NaN compares false
    assert (is_inside.all(axis=-1) | is_padding).all(), boxes
