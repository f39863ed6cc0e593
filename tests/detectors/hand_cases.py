"""Small predictions and targets for losses that are worked by hand."""

import numpy as np

from tests import contracts
from vfnet_tf.detectors.postprocess import select_candidates
from vfnet_tf.ops.nms import suppress

LOG2 = np.log(2.0)
#: points of 64 x 96 pixels: 8 x 12, 4 x 6, 2 x 3, 1 x 2 and 1 x 1 cells
LEVEL_SIZES = [96, 24, 6, 2, 1]
NUM_POINTS = sum(LEVEL_SIZES)


def row_of_points(num_points=4, offset=0.0):
    """Float32 `[P, 2]` on the x axis, of stride 8."""
    points = np.full((num_points, 2), offset, "float32")
    points[:, 0] += 8 * np.arange(num_points)
    return points


def outputs_of(points, boxes, batch=1, num_classes=3):
    """Class logits of 0 and boxes `[P, 4]` at points of stride 8, for each image."""
    return {
        "class_logits": np.zeros((batch, len(points), num_classes), "float32"),
        "boxes": np.stack([np.float32(boxes)] * batch),
        "points": points,
        "strides": np.full(len(points), 8.0, "float32"),
    }


def targets(boxes=(), labels=(), size=(8, 32), batch=1):
    """The first image has these boxes, the others none."""
    rows = np.asarray(boxes, "float32").reshape(1, -1, 4)
    labels = np.asarray(labels, "int32").reshape(1, -1)
    padding = np.full((batch - 1, labels.shape[1]), -1, "int32")
    return {
        "boxes": np.concatenate([rows] * batch),
        "labels": np.concatenate([labels, padding]),
        "image_size": np.array([size] * batch, "float32"),
    }


def losses(detector, outputs, targets):
    """The parts of the loss as floats."""
    found = detector.compute_losses(
        contracts.tensors(outputs), contracts.tensors(targets)
    )
    return contracts.to_numpy(found)


def confident(detector):
    """Gives many scores of all sizes, whatever the backend's random numbers are."""
    rng = np.random.default_rng(1)
    conv = detector.head.class_predictor.conv
    conv.kernel.assign(rng.normal(0, 0.5, conv.kernel.shape))
    conv.bias.assign(rng.normal(-1.0, 0.5, conv.bias.shape))
    return detector


def postprocess(
    boxes,
    scores,
    level_sizes,
    image_size,
    scale=None,
    score_threshold=0.05,
    iou_threshold=0.6,
    candidates_per_level=1000,
    max_detections=100,
    **soft_nms,
):
    """What `detect` does with predictions: selects candidates, then NMS."""
    boxes, scores = select_candidates(
        boxes,
        scores,
        level_sizes,
        image_size,
        scale,
        candidates_per_level=candidates_per_level,
    )
    return suppress(
        boxes, scores, iou_threshold, score_threshold, max_detections, **soft_nms
    )
