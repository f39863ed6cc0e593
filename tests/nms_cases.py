"""Edge cases of NMS with their results, worked out by hand.

All implementations must give these results: TensorFlow's kernel, the loop of the other
backends, numpy, and ONNX's operator.
"""

import numpy as np

NAN, INF = float("nan"), float("inf")
APART = [[20 * i, 0, 20 * i + 10, 10] for i in range(40)]
SAME = [[0, 0, 10, 10]] * 3
FALLING = [[0.75], [0.5], [0.25], [0.1875]]


def _case(boxes, scores, left, limit=3, iou_threshold=0.5):
    return boxes, scores, iou_threshold, limit, left


#: name -> boxes `[N, 4]`, scores `[N, K]`, and the pairs that are left: rows of (place of
#: the box, class); with the most detections and the IoU threshold.
CASES = {
    "equals at the limit": _case(
        APART, np.full((40, 2), 0.5), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], 5
    ),
    "equals of one class": _case(
        APART, np.full((40, 1), 0.5), [(0, 0), (1, 0), (2, 0)]
    ),
    "equals below a better one": _case(
        APART, [[0.5]] * 39 + [[0.75]], [(39, 0), (0, 0), (1, 0)]
    ),
    "equals that overlap": _case(SAME, [[0.5]] * 3, [(0, 0)]),
    # The second overlaps both others, which do not overlap each other by half.
    "of equals the first drops the second": _case(
        [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]],
        [[0.5], [0.5], [0.5]],
        [(0, 0), (2, 0)],
    ),
    "an inverted box overlaps nothing": _case(
        [[0, 0, 10, 10], [10, 0, 0, 10], [10, 10, 0, 0]],
        FALLING[:3],
        [(0, 0), (1, 0), (2, 0)],
    ),
    "a box without area overlaps nothing": _case(
        [[5, 5, 5, 5]] * 2 + [[0, 3, 9, 3]] * 2,
        FALLING,
        [(0, 0), (1, 0), (2, 0), (3, 0)],
        limit=4,
        iou_threshold=0.0,
    ),
    "a tiny box overlaps another": _case(
        [[0, 0, 1e-4, 1e-4], [0, 0, 1e-4, 0.9e-4], [0, 0, 1e-4, 0.4e-4]],
        FALLING[:3],
        [(0, 0), (2, 0)],
    ),
    "boxes as fractions": _case(
        [[0.5, 0.5, 0.501, 0.501], [0.5, 0.5, 0.501, 0.5009]], FALLING[:2], [(0, 0)]
    ),
    "a score of NaN takes no part": _case(
        SAME, [[NAN, 0.5], [0.25, NAN], [NAN, NAN]], [(0, 1), (1, 0)], limit=4
    ),
    "a box of NaN overlaps nothing": _case(
        [[0, 0, 10, 10], [NAN, 0, 10, 10], [0, 0, 10, NAN], [0, 0, 10, 10]],
        FALLING,
        [(0, 0), (1, 0), (2, 0)],
        limit=4,
    ),
    "a box without end overlaps nothing": _case(
        [[0, 0, INF, 10], [0, 0, INF, 10], [0, 0, 10, 10]],
        FALLING[:3],
        [(0, 0), (1, 0), (2, 0)],
        limit=4,
    ),
    "an IoU of 1 is not above 1": _case(
        SAME, FALLING[:3], [(0, 0), (1, 0)], limit=2, iou_threshold=1.0
    ),
    "any overlap is above 0": _case(
        [[0, 0, 10, 10], [9, 9, 19, 19], [10, 10, 20, 20]],
        FALLING[:3],
        [(0, 0), (2, 0)],
        iou_threshold=0.0,
    ),
    "more detections than pairs": _case(
        APART[:2], [[0.5], [0.5]], [(0, 0), (1, 0)], limit=9
    ),
    "nothing above the threshold": _case(SAME, [[0.125]] * 3, [], limit=2),
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
        # Not `max`, which drops NaN.
        x2, y2 = x1 if x2 < x1 else x2, y1 if y2 < y1 else y2
        expected["boxes"][0, slot] = x1, y1, x2, y2
        expected["scores"][0, slot] = scores[place, label]
        expected["labels"][0, slot] = label
    return boxes[None], scores[None], iou_threshold, limit, expected


def check(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value, err_msg=name)


#: Settings out of range, by the names of `class_wise_nms`.
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
