import numpy as np
import pytest

from tests.evaluation import scene
from vfnet_tf.evaluation.calibration import calibrate, correlation, ranks


def heights(*found):
    """Detections (height, score) of one object of 10 x 10: IoU = height / 10."""
    found = [(1, 0, [0, 0, 10, height], score) for height, score in found]
    return scene.match([(1, 0, [0, 0, 10, 10])], found)


def test_ranks_of_equal_values_are_shared():
    values = np.array([0.5, 0.1, 0.5, 0.9])
    assert ranks(values).tolist() == [2.5, 1, 2.5, 4]
    assert ranks(np.array([])).tolist() == []


def test_correlations_by_hand():
    # Deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6).
    first, second = np.array([1.0, 2, 3]), np.array([0.0, 3, 3])
    assert correlation(first, second) == pytest.approx(3 / np.sqrt(12))
    assert correlation(first, -first) == pytest.approx(-1)
    assert np.isnan(correlation(first, np.ones(3)))
    assert np.isnan(correlation(first[:1], second[:1]))


def test_scores_that_are_ious_have_no_gap():
    calibration = calibrate(heights((9, 0.9), (6, 0.6), (3, 0.3)))
    assert calibration.pearson == pytest.approx(1)
    assert calibration.spearman == pytest.approx(1)
    assert calibration.gap == pytest.approx(0)


def test_a_right_order_with_wrong_values_shows_in_spearman_alone():
    calibration = calibrate(heights((9, 0.30), (6, 0.02), (3, 0.01)))
    assert calibration.spearman == pytest.approx(1)
    # Deviations: scores (.19, -.09, -.1), IoUs (.3, 0, -.3): .087 / sqrt(.0542 * .18).
    assert calibration.pearson == pytest.approx(0.087 / np.sqrt(0.0542 * 0.18))


def test_bins_have_counts_and_means():
    matches = heights((9, 0.95), (8, 1.0), (4, 0.25), (2, 0.21))
    calibration = calibrate(matches, num_bins=5)
    assert calibration.counts.tolist() == [0, 2, 0, 0, 2]
    np.testing.assert_allclose(
        calibration.mean_scores, [np.nan, 0.23, np.nan, np.nan, 0.975]
    )
    np.testing.assert_allclose(
        calibration.mean_ious, [np.nan, 0.3, np.nan, np.nan, 0.85]
    )
    assert calibration.gap == pytest.approx((2 * 0.07 + 2 * 0.125) / 4)


def test_detections_on_the_background_count_only_where_asked_for():
    matches = heights((9, 0.9), (0.9, 0.2))
    assert calibrate(matches).ious.tolist() == [0.9]
    assert calibrate(matches, min_iou=0.0).ious.tolist() == pytest.approx([0.9, 0.09])


def test_an_object_that_is_taken_counts_but_a_crowd_does_not():
    matches = scene.match(
        [(1, 0, [0, 0, 10, 10]), (1, 0, [20, 0, 50, 50], True)],
        [
            (1, 0, [0, 0, 10, 10], 0.9),
            (1, 0, [0, 0, 10, 8], 0.7),
            (1, 0, [30, 10, 5, 5], 0.8),
        ],
    )
    assert calibrate(matches, min_iou=0.0).scores.tolist() == [0.9, 0.7]


@pytest.mark.filterwarnings("error")
def test_without_detections_nothing_is_claimed():
    calibration = calibrate(scene.match([(1, 0, [0, 0, 10, 10])], []))
    assert np.isnan([calibration.pearson, calibration.spearman, calibration.gap]).all()
    assert calibration.counts.sum() == 0
