"""What an example and a batch hold: keys, shapes, dtypes, and checks of both.

An example is one image in its own pixels, as a reader yields it; a batch is what the
network gets. Shape letters: h, w the original image, R its boxes, B images, H, W the
padded canvas, M padded boxes.

| example key | dtype   | shape     | content                                       |
|-------------|---------|-----------|-----------------------------------------------|
| `image`     | uint8   | [h, w, 3] | RGB                                           |
| `boxes`     | float32 | [R, 4]    | `(x1, y1, x2, y2)`, pixels of this image      |
| `labels`    | int32   | [R]       | in [0, K)                                     |
| `image_id`  | int64   | []        | the id in the annotation file                 |

| batch key    | dtype   | shape        | content                                     |
|--------------|---------|--------------|---------------------------------------------|
| `images`     | float32 | [B, H, W, 3] | normalised, padded right and bottom with 0  |
| `boxes`      | float32 | [B, M, 4]    | pixels of the network input, padding rows 0 |
| `labels`     | int32   | [B, M]       | padding rows -1                             |
| `image_size` | float32 | [B, 2]       | (height, width) resized, before padding     |
| `scale`      | float32 | [B, 2]       | (y, x): resized size / original size        |
| `image_id`   | int64   | [B]          | -1 marks a repeat that fills a last batch   |

`boxes / [scale_x, scale_y, scale_x, scale_y]` gives pixels of the original image.
"""

import numpy as np

PADDING_LABEL = -1
PADDING_IMAGE_ID = -1

EXAMPLE_SPEC = {
    "image": ("uint8", ("h", "w", 3)),
    "boxes": ("float32", ("R", 4)),
    "labels": ("int32", ("R",)),
    "image_id": ("int64", ()),
}
BATCH_SPEC = {
    "images": ("float32", ("B", "H", "W", 3)),
    "boxes": ("float32", ("B", "M", 4)),
    "labels": ("int32", ("B", "M")),
    "image_size": ("float32", ("B", 2)),
    "scale": ("float32", ("B", 2)),
    "image_id": ("int64", ("B",)),
}


def _check_spec(values, spec, what):
    """Checks keys, dtypes and shapes; one letter must have one size throughout."""
    missing = sorted(set(spec) - set(values))
    if missing:
        raise ValueError(
            f"{what} must have the keys {list(spec)}. Received: keys={list(values)}"
        )
    arrays = {name: np.asarray(values[name]) for name in spec}
    sizes = {}
    for name, (dtype, shape) in spec.items():
        array = arrays[name]
        if array.dtype != dtype:
            raise ValueError(
                f"{what}['{name}'] must be {dtype}. Received: dtype={array.dtype}"
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
                f"{what}['{name}'] must have the shape [{wanted}]. "
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


def validate_example(example, num_classes=None):
    """Checks one example against the table above.

    Args:
        example: dict of arrays or eager tensors.
        num_classes: int K, labels must be below it; None skips that check.

    Raises:
        ValueError: naming the key, the rule and what was found.
    """
    arrays = _check_spec(example, EXAMPLE_SPEC, "example")
    height, width = arrays["image"].shape[:2]
    _check_boxes(arrays["boxes"], height, width, "example['boxes']")
    labels = arrays["labels"]
    if np.any(labels < 0) or (
        num_classes is not None and np.any(labels >= num_classes)
    ):
        upper = "K" if num_classes is None else num_classes
        raise ValueError(
            f"example['labels'] must be in [0, {upper}). "
            f"Received: labels={labels.tolist()}"
        )


def validate_batch(batch, num_classes=None):
    """Checks one batch against the table above.

    Args:
        batch: dict of arrays or eager tensors; further keys are allowed.
        num_classes: int K, labels must be below it; None skips that check.

    Raises:
        ValueError: naming the key, the rule and what was found.
    """
    arrays = _check_spec(batch, BATCH_SPEC, "batch")
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
