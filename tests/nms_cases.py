"""Boxes and scores at the edges of NMS, and what is left of them, worked out by hand.

Every way to detections must give the same: TensorFlow's kernel, the loop of the other
backends, numpy, and ONNX's operator.
"""

import numpy as np

NAN, INF = float("nan"), float("inf")
APART = [[20 * i, 0, 20 * i + 10, 10] for i in range(40)]
SAME = [[0, 0, 10, 10]] * 3

#: name -> boxes `[N, 4]`, scores `[N, K]`, IoU threshold, detections at most, and what is
#: left: rows of (place of the box, class).
CASES = {
    "equals at the limit": (
        APART,
        np.full((40, 2), 0.5),
        0.5,
        5,
        [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)],
    ),
    "equals of one class": (
        APART,
        np.full((40, 1), 0.5),
        0.5,
        3,
        [(0, 0), (1, 0), (2, 0)],
    ),
    "equals below a better one": (
        APART,
        [[0.5]] * 39 + [[0.75]],
        0.5,
        3,
        [(39, 0), (0, 0), (1, 0)],
    ),
    "equals that overlap": (SAME, [[0.5]] * 3, 0.5, 3, [(0, 0)]),
    # The second overlaps both others, which do not overlap each other by half.
    "of equals the first drops the second": (
        [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]],
        [[0.5], [0.5], [0.5]],
        0.5,
        3,
        [(0, 0), (2, 0)],
    ),
    "an inverted box overlaps nothing": (
        [[0, 0, 10, 10], [10, 0, 0, 10], [10, 10, 0, 0]],
        [[0.75], [0.5], [0.25]],
        0.5,
        3,
        [(0, 0), (1, 0), (2, 0)],
    ),
    "a box without area overlaps nothing": (
        [[5, 5, 5, 5]] * 2 + [[0, 3, 9, 3]] * 2,
        [[0.75], [0.5], [0.25], [0.1875]],
        0.0,
        4,
        [(0, 0), (1, 0), (2, 0), (3, 0)],
    ),
    "a tiny box overlaps another": (
        [[0, 0, 1e-4, 1e-4], [0, 0, 1e-4, 0.9e-4], [0, 0, 1e-4, 0.4e-4]],
        [[0.75], [0.5], [0.25]],
        0.5,
        3,
        [(0, 0), (2, 0)],
    ),
    "boxes as fractions": (
        [[0.5, 0.5, 0.501, 0.501], [0.5, 0.5, 0.501, 0.5009]],
        [[0.75], [0.5]],
        0.5,
        3,
        [(0, 0)],
    ),
    "a score of NaN takes no part": (
        SAME,
        [[NAN, 0.5], [0.25, NAN], [NAN, NAN]],
        0.5,
        4,
        [(0, 1), (1, 0)],
    ),
    "a box of NaN overlaps nothing": (
        [[0, 0, 10, 10], [NAN, 0, 10, 10], [0, 0, 10, NAN], [0, 0, 10, 10]],
        [[0.75], [0.5], [0.25], [0.1875]],
        0.5,
        4,
        [(0, 0), (1, 0), (2, 0)],
    ),
    "a box without end overlaps nothing": (
        [[0, 0, INF, 10], [0, 0, INF, 10], [0, 0, 10, 10]],
        [[0.75], [0.5], [0.25]],
        0.5,
        4,
        [(0, 0), (1, 0), (2, 0)],
    ),
    "an IoU of 1 is not above 1": (
        SAME,
        [[0.75], [0.5], [0.25]],
        1.0,
        2,
        [(0, 0), (1, 0)],
    ),
    "any overlap is above 0": (
        [[0, 0, 10, 10], [9, 9, 19, 19], [10, 10, 20, 20]],
        [[0.75], [0.5], [0.25]],
        0.0,
        3,
        [(0, 0), (2, 0)],
    ),
    "more detections than pairs": (APART[:2], [[0.5], [0.5]], 0.5, 9, [(0, 0), (1, 0)]),
    "nothing above the threshold": (SAME, [[0.125]] * 3, 0.5, 2, []),
}
#: Of all cases; no score is in between.
SCORE_THRESHOLD = 0.125


def case(name):
    """Boxes `[1, N, 4]`, scores `[1, N, K]`, IoU threshold, limit and the expected dict."""
    boxes, scores, iou_threshold, limit, rows = CASES[name]
    boxes, scores = np.asarray(boxes, "float32"), np.asarray(scores, "float32")
    expected = {
        "boxes": np.zeros((1, limit, 4), "float32"),
        "scores": np.zeros((1, limit), "float32"),
        "labels": np.full((1, limit), -1, "int32"),
        "num_detections": np.array([len(rows)], "int32"),
    }
    for slot, (place, label) in enumerate(rows):
        x1, y1, x2, y2 = boxes[place]
        # No `max`, which has an own mind about NaN.
        x2, y2 = x1 if x2 < x1 else x2, y1 if y2 < y1 else y2
        expected["boxes"][0, slot] = x1, y1, x2, y2
        expected["scores"][0, slot] = scores[place, label]
        expected["labels"][0, slot] = label
    return boxes[None], scores[None], iou_threshold, limit, expected


def check(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value, err_msg=name)


#: Settings that make no sense, by the names of `class_wise_nms`.
WRONG = [
    ("iou_threshold", 1.5),
    ("iou_threshold", -0.1),
    ("iou_threshold", NAN),
    ("iou_threshold", "0.5"),
    ("iou_threshold", None),
    ("score_threshold", -0.01),
    ("score_threshold", 1.01),
    ("score_threshold", NAN),
    ("max_detections", 0),
    ("max_detections", -1),
    ("max_detections", 2.5),
    ("max_detections", NAN),
    ("sigma", 0.0),
    ("sigma", INF),
    ("min_score", -0.1),
    ("min_score", NAN),
]
