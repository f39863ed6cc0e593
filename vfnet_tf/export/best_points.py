"""How far the boxes and scores of an exported file are from those of its detector."""

import numpy as np

#: `quantize` -> largest differences to Keras: of boxes, relative to the image's longer side
#: or to the coordinate if that is larger, and of scores.
TOLERANCES = {
    "none": (1e-4, 1e-4),
    "float16": (0.002, 0.005),
    "dynamic_int8": (0.05, 0.1),
    "int8": (0.05, 0.1),
}

#: Number of points, those with the best scores, at which a quantised file is compared.
NUM_BEST = 100


def differences(
    expected_boxes, expected_scores, boxes, scores, longer_side, count=NUM_BEST
):
    """The largest differences of one image.

    Args:
        expected_boxes, expected_scores: float32 `[P, 4]` and `[P, K]`, of the detector.
        boxes, scores: the same of the file.
        longer_side: int, pixels of the image.
        count: int, number of points; None compares all. Boxes far from any object are
            arbitrary and without effect.

    Returns:
        (of boxes, of scores), see `TOLERANCES`.
    """
    best = slice(None)
    if count is not None:
        best = np.argsort(-expected_scores.max(axis=-1), kind="stable")[:count]
    # Boxes are not clipped, and float32 is coarser for large coordinates.
    scale = np.maximum(np.abs(expected_boxes), longer_side)
    return (
        np.max((np.abs(boxes - expected_boxes) / scale)[best]),
        np.max(np.abs(scores - expected_scores)[best]),
    )


def check(name, quantize, differences):
    """The largest differences of several images, unless they are too large.

    Args:
        name: str for the message, such as "A LiteRT file".
        quantize: key of `TOLERANCES`.
        differences: list of the results of `differences`.

    Returns:
        dict of `num_images`, `box_difference` and `score_difference`.

    Raises:
        ValueError: if they are above `TOLERANCES`, or not finite.
    """
    # Not `max`, which loses NaN.
    boxes, scores = np.max(differences, axis=0).tolist()
    box_tolerance, score_tolerance = TOLERANCES[quantize]
    if not (boxes <= box_tolerance and scores <= score_tolerance):
        raise ValueError(
            f"{name} with quantize={quantize!r} must give the detector's boxes to "
            f"{box_tolerance:g} of the longer side and its scores to "
            f"{score_tolerance:g}. Received: differences of {boxes:.3g} and {scores:.3g}"
        )
    return {
        "num_images": len(differences),
        "box_difference": boxes,
        "score_difference": scores,
    }
