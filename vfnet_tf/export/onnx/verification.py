"""Compares an ONNX file's detections with those of the detector in Keras."""

import numpy as np

from vfnet_tf.export.best_points import TOLERANCES
from vfnet_tf.inference.onnx import OnnxPredictor
from vfnet_tf.inference.prediction import DRAW_THRESHOLD
from vfnet_tf.inference.predictor import Predictor
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS
from vfnet_tf.ops.numpy_boxes import pairwise_iou

#: Largest differences of boxes, in pixels of the original image, and of scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-4

#: IoU above which a detection of a quantised file is that of the detector. The NMS may
#: choose another of two boxes that overlap by its threshold.
PARTNER_IOU = 0.5


def verify_onnx(path, detector, images):
    """Compares predictions from file to detections: reading, resizing, network, NMS.

    `Predictor` runs on TensorFlow, `OnnxPredictor` on PIL, numpy and ONNX Runtime. Scores
    that differ in their last digits may change the order, so each detection is compared
    with the most similar one of its class. Of a quantised file those with scores above
    0.3 are compared, which pictures show: see `match_strong`.

    Args:
        path: of a file by `export_onnx`.
        detector: the exported detector.
        images: list of paths.

    Returns:
        dict of `num_detections`, and the largest differences `box_difference` in pixels
        of the original images and `score_difference`; for a quantised file `lowest_iou`
        in place of `box_difference`.

    Raises:
        ValueError: if counts or classes differ, boxes by more than 0.01 pixel, or
            scores by more than 1e-4; for a quantised file, if one of the detections has
            no partner. The message names the image.
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
    quantize = metadata.get("quantize", "none")  # older files have no such entry
    boxes, scores, count, lowest = 0.0, 0.0, 0, 1.0
    for image in map(str, images):
        found = exported(image)
        prepared = python.prepare(python.read_file(image))
        inputs = [prepared[name][None] for name in ("images", "image_size", "scale")]
        expected = detector.detect(*inputs, **settings)
        expected = {name: np.asarray(value)[0] for name, value in expected.items()}
        total = int(expected["num_detections"])
        expected = [expected[n][:total] for n in ("boxes", "scores", "labels")]
        own = (found.boxes, found.scores, found.labels)
        if quantize != "none":
            tolerance = TOLERANCES[quantize][1]
            # Weaker ones may be left out by the threshold of one side only.
            strong = max(DRAW_THRESHOLD, metadata["score_threshold"] + tolerance)
            compared = match_strong(own, expected, strong, tolerance)
            if isinstance(compared, str):
                raise ValueError(
                    f"Detections of an ONNX file with quantize={quantize!r} must have "
                    f"partners among the detector's, and these among them: an IoU above "
                    f"{PARTNER_IOU:g}, and scores to {tolerance:g}. Received: "
                    f"{compared} in {image}"
                )
            count += compared[0]
            lowest, scores = min(lowest, compared[1]), max(scores, compared[2])
            continue
        off = match(own, expected)
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
    of_boxes = {"box_difference": boxes}
    if quantize != "none":
        of_boxes = {"lowest_iou": lowest}
    return {"num_detections": count, **of_boxes, "score_difference": scores}


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


def match_strong(found, expected, threshold, score_tolerance):
    """Looks for the partner of each detection with a score above `threshold`.

    Args:
        found, expected: see `match`. Detections of both sides need partners on the
            other, of their class and of any score.
        threshold: float.
        score_tolerance: float, largest difference of the scores of partners.

    Returns:
        (number of detections of `found` above the threshold, lowest IoU of partners, 1 if
        there are none, largest difference of their scores); or a str that describes a
        detection without a partner.
    """
    count, lowest, largest = 0, 1.0, 0.0
    for name, own, other in (("file", found, expected), ("detector", expected, found)):
        strong = np.flatnonzero(own[1] > threshold)
        count += len(strong) if own is found else 0
        ious = pairwise_iou(np.asarray(own[0])[strong], np.asarray(other[0]))
        for row, index in enumerate(strong):
            off = np.abs(other[1] - own[1][index])
            fits = (other[2] == own[2][index]) & (off <= score_tolerance)
            candidates = np.where(fits, ious[row], -1.0)
            if not candidates.max(initial=-1.0) > PARTNER_IOU:
                box = np.round(own[0][index], 1).tolist()
                return (
                    f"no partner of the {name}'s box {box} of class {own[2][index]} with "
                    f"the score {own[1][index]:.3f}"
                )
            best = int(candidates.argmax())
            lowest, largest = min(lowest, candidates[best]), max(largest, off[best])
    return count, float(lowest), float(largest)
