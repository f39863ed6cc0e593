import numpy as np
import pytest

from vfnet_tf.export import best_points


def points(boxes, scores):
    return np.asarray(boxes, "float32"), np.asarray(scores, "float32")


def test_differences_of_the_best_points_by_hand():
    boxes, scores = points(
        [[0, 0, 10, 10], [0, 0, 400, 10], [5, 5, 6, 6]],
        [[0.9, 0.1], [0.2, 0.8], [0.05, 0.0]],
    )
    found = points(
        [[0, 2, 10, 10], [0, 0, 390, 10], [95, 5, 6, 6]],
        [[0.9, 0.15], [0.2, 0.78], [0.35, 0.0]],
    )
    # 10 of a coordinate of 400 beat 2 of 100 pixels; 0.15 - 0.1.
    best = best_points.differences(boxes, scores, *found, 100, 2)
    np.testing.assert_allclose(best, (10 / 400, 0.05), rtol=1e-5)
    best = best_points.differences(boxes, scores, *found, 100, 1)
    np.testing.assert_allclose(best, (2 / 100, 0.05), rtol=1e-5)
    # The third point is off by 90 pixels and a score of 0.3.
    every = best_points.differences(boxes, scores, *found, 100, None)
    np.testing.assert_allclose(every, (90 / 100, 0.3), rtol=1e-5)


@pytest.mark.parametrize("quantize", best_points.TOLERANCES)
def test_differences_above_the_tolerances_and_nan_are_refused(quantize):
    of_boxes, of_scores = best_points.TOLERANCES[quantize]
    allowed = [(of_boxes, 0.0), (0.0, of_scores)]
    assert best_points.check("A file", quantize, allowed) == {
        "num_images": 2,
        "box_difference": of_boxes,
        "score_difference": of_scores,
    }
    for wrong in ((2 * of_boxes, 0.0), (0.0, 2 * of_scores), (np.nan, 0.0)):
        with pytest.raises(ValueError, match=f"A file with quantize='{quantize}' must"):
            best_points.check("A file", quantize, [*allowed, wrong])
