"""Compares an ONNX file's detections with those of the detector in Keras."""

import numpy as np

from vfnet_tf.inference.onnx import OnnxPredictor
from vfnet_tf.inference.predictor import Predictor
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

#: Largest differences of boxes, in pixels of the original image, and of scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-4


def verify_onnx(path, detector, images):
    """Compares predictions from file to detections: reading, resizing, network, NMS.

    `Predictor` runs on TensorFlow, `OnnxPredictor` on PIL, numpy and ONNX Runtime. Scores
    that differ in their last digits may change the order, so each detection is compared
    with the most similar one of its class.

    Args:
        path: of a file by `export_onnx`.
        detector: the exported detector.
        images: list of paths.

    Returns:
        dict of `num_detections`, and the largest differences `box_difference` in pixels
        of the original images and `score_difference`.

    Raises:
        ValueError: if counts or classes differ, boxes by more than 0.01 pixel, or
            scores by more than 1e-4; the message names the image.
    """
    exported = OnnxPredictor(path)
    metadata = exported.detector.metadata
    # Only those that differ: with settings of its own a detector runs a graph, with
    # others operation by operation.
    settings = {
        name: metadata[name]
        for name in DETECTION_SETTINGS
        if metadata[name] != getattr(detector, name)
    }
    python = Predictor(detector, exported.config)
    boxes, scores, count = 0.0, 0.0, 0
    for image in map(str, images):
        found = exported(image)
        prepared = python.prepare(python.read_file(image))
        inputs = [prepared[name][None] for name in ("images", "image_size", "scale")]
        expected = detector.detect(*inputs, **settings)
        expected = {name: np.asarray(value)[0] for name, value in expected.items()}
        total = int(expected["num_detections"])
        expected = [expected[n][:total] for n in ("boxes", "scores", "labels")]
        off = match((found.boxes, found.scores, found.labels), expected)
        if off is None or not (off[0] <= BOX_TOLERANCE and off[1] <= SCORE_TOLERANCE):
            text = "other classes or counts"
            if off is not None:
                text = f"boxes {off[0]:.3g} pixels and scores {off[1]:.3g} off"
            raise ValueError(
                "Detections of the ONNX file must be the detector's. Received: "
                f"{text} for {image}"
            )
        boxes, scores = max(boxes, off[0]), max(scores, off[1])
        count += len(found)
    return {
        "num_detections": count,
        "box_difference": boxes,
        "score_difference": scores,
    }


def match(found, expected):
    """Pairs detections with the most similar ones of their class.

    Args:
        found, expected: (boxes `[N, 4]`, scores `[N]`, labels `[N]`), by descending
            score.

    Returns:
        The largest differences of boxes in pixels and of scores; None if the numbers of
        detections of a class differ.
    """
    if not np.array_equal(np.sort(found[2]), np.sort(expected[2])):
        return None
    boxes, scores = [0.0], [0.0]
    left = np.ones(len(expected[1]), bool)
    for box, score, label in zip(*found, strict=True):
        box_off = np.abs(expected[0] - box).max(axis=-1)
        score_off = np.abs(expected[1] - score)
        is_like = left & (expected[2] == label)
        best = int(np.argmin(np.where(is_like, box_off + 1e3 * score_off, np.inf)))
        left[best] = False
        boxes.append(float(box_off[best]))
        scores.append(float(score_off[best]))
    return max(boxes), max(scores)
