"""Overlap of boxes in numpy, for what runs without Keras. For tensors: `ops.boxes`."""

import numpy as np


def pairwise_intersection(boxes1, boxes2):
    """Areas that each of one set of boxes shares with each of another.

    Args:
        boxes1: float `[N, 4]`, `(x1, y1, x2, y2)`.
        boxes2: float `[M, 4]`.

    Returns:
        `[N, M]` of their dtype, square pixels.
    """
    first, second = boxes1[:, None], boxes2[None]
    top_left = np.maximum(first[..., :2], second[..., :2])
    bottom_right = np.minimum(first[..., 2:], second[..., 2:])
    return np.maximum(bottom_right - top_left, 0).prod(axis=-1)


def pairwise_iou(boxes1, boxes2):
    """IoU of each of one set of boxes with each of another.

    Args:
        boxes1: float `[N, 4]`, `(x1, y1, x2, y2)`.
        boxes2: float `[M, 4]`.

    Returns:
        `[N, M]` of their dtype, in [0, 1]; 0 for boxes without area and for NaN.
    """
    with np.errstate(invalid="ignore"):  # of infinite boxes
        common = pairwise_intersection(boxes1, boxes2)
        area1, area2 = ((b[:, 2:] - b[:, :2]).prod(axis=-1) for b in (boxes1, boxes2))
        union = area1[:, None] + area2[None] - common
        iou = common / np.maximum(union, np.finfo("float32").tiny)
    return np.where(np.isnan(iou), iou.dtype.type(0), iou)
