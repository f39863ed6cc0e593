import numpy as np
import pytest

from tests.evaluation import scene
from vfnet_tf.evaluation.operating_point import (
    confusion_matrix,
    image_quality,
    most_confused,
    operating_point,
    rank_images,
)

BOX, OTHER = [0, 0, 10, 10], [50, 50, 10, 10]
EMPTY = [90, 90, 5, 5]


def test_the_threshold_with_the_largest_f1_is_found():
    # Of three objects, two found: after each score TP 1 1 2 2, so that F1 = 2 TP / (n + 3)
    # is 2/4, 2/5, 4/6, 4/7.
    matches = scene.match(
        [(1, 0, BOX), (1, 1, OTHER), (2, 0, BOX)],
        [
            (1, 0, BOX, 0.9),
            (1, 0, EMPTY, 0.8),
            (1, 1, OTHER, 0.6),
            (2, 1, EMPTY, 0.2),
        ],
    )
    point = operating_point(matches)
    assert point.score_threshold == 0.6
    assert point.precision == pytest.approx(2 / 3)
    assert point.recall == pytest.approx(2 / 3)
    assert point.f1 == pytest.approx(2 / 3)
    point = operating_point(matches, 0.85)
    assert (point.precision, point.recall, point.f1) == (1, 1 / 3, 0.5)


def test_equal_scores_stay_together():
    # The right one alone would have F1 = 1; the wrong one has the same score.
    matches = scene.match([(1, 0, BOX)], [(1, 0, BOX, 0.5), (1, 0, EMPTY, 0.5)])
    assert operating_point(matches).f1 == pytest.approx(2 / 3)
    # F1 is 2/3 after the first, but 2/6 with all of its score; 4/7 from 0.4 on.
    wrong = [(1, 0, EMPTY, 0.5), (1, 1, EMPTY, 0.5), (1, 2, EMPTY, 0.5)]
    found = [(1, 0, BOX, 0.5), *wrong, (2, 0, BOX, 0.4)]
    point = operating_point(scene.match([(1, 0, BOX), (2, 0, BOX)], found))
    assert point.score_threshold == 0.4 and point.f1 == pytest.approx(4 / 7)


@pytest.mark.filterwarnings("error")
def test_without_a_right_detection_the_threshold_is_the_usual_one():
    for found in ([], [(1, 0, EMPTY, 0.5)]):
        point = operating_point(scene.match([(1, 0, BOX)], found))
        assert (point.score_threshold, point.f1) == (0.3, 0)
    assert np.isnan(operating_point(scene.match([], [])).recall)


def test_a_confusion_matrix_by_hand():
    matches = scene.match(
        [(1, 0, BOX), (1, 1, OTHER), (2, 0, BOX), (2, 2, OTHER)],
        [
            (1, 0, BOX, 0.9),  # a cat
            (1, 0, BOX, 0.8),  # again: nothing is left there
            (1, 2, OTHER, 0.7),  # a dog taken for an owl
            (2, 1, EMPTY, 0.6),
            (2, 2, OTHER, 0.1),  # below the threshold
        ],
    )
    assert confusion_matrix(matches, 0.3).tolist() == [
        [1, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [1, 1, 0, 0],
    ]


def test_the_own_class_is_matched_before_any_other():
    # The dog's score is higher, but the cat is found by a cat.
    matches = scene.match([(1, 0, BOX)], [(1, 1, BOX, 0.9), (1, 0, [0, 0, 10, 6], 0.5)])
    matrix = confusion_matrix(matches, 0.0)
    assert matrix[0, 0] == 1 and matrix[3, 1] == 1 and matrix.sum() == 2


def test_an_object_is_confused_once_by_the_higher_score():
    matches = scene.match(
        [(1, 0, BOX), (2, 0, BOX)],
        [(1, 1, [0, 0, 10, 6], 0.9), (1, 2, BOX, 0.8), (2, 1, BOX, 0.7)],
    )
    matrix = confusion_matrix(matches, 0.0)
    assert matrix[0].tolist() == [0, 2, 0, 0] and matrix[3].tolist() == [0, 0, 1, 0]


def test_crowds_confuse_nothing():
    crowd = (1, 0, [0, 0, 99, 99], True)
    matches = scene.match([crowd], [(1, 0, BOX, 0.9), (1, 1, BOX, 0.8)])
    matrix = confusion_matrix(matches, 0.0)
    assert matrix[3].tolist() == [0, 1, 0, 0] and matrix.sum() == 1


def test_the_most_frequent_confusions_come_first():
    matrix = np.array([[9, 2, 1, 9], [1, 0, 0, 0], [3, 0, 5, 0], [7, 7, 7, 0]])
    # Of the single ones, the dog's is all of its objects.
    assert most_confused(matrix, 9) == [(2, 0, 3), (0, 1, 2), (1, 0, 1), (0, 2, 1)]
    assert most_confused(matrix, 1) == [(2, 0, 3)]


def test_the_quality_of_images_by_hand():
    matches = scene.match(
        [(1, 0, BOX), (1, 0, OTHER), (2, 1, [0, 0, 9, 9])],
        [
            (1, 0, [0, 0, 10, 8], 0.9),  # IoU 0.8
            (1, 1, EMPTY, 0.8),
            (1, 0, OTHER, 0.1),
            (2, 1, [0, 0, 9, 9], 0.5),
        ],
    )
    quality = image_quality(matches, 0.3)
    # 0.8 / (1 + 1/2 + 1/2).
    assert quality["quality"].tolist() == pytest.approx([0.4, 1])
    assert quality["true"].tolist() == [1, 1]
    assert quality["false"].tolist() == [1, 0]
    assert quality["missed"].tolist() == [1, 0]
    nothing = image_quality(scene.match([(1, 0, BOX)], []), 0.3)
    np.testing.assert_array_equal(nothing["quality"], [0, np.nan])


def test_best_and_worst_images_do_not_overlap():
    quality = {
        "quality": np.array([0.5, 1, np.nan, 1, 0]),
        "true": np.array([2, 1, 0, 5, 0]),
        "false": np.array([1, 0, 0, 0, 3]),
        "missed": np.array([1, 0, 0, 0, 0]),
    }
    best, worst = rank_images(quality, 9)
    # Of two perfect images that with more objects.
    assert best.tolist() == [3, 1] and worst.tolist() == [4, 0]
    best, worst = rank_images(quality, 1)
    assert best.tolist() == [3] and worst.tolist() == [4]
    # Nor where all are equally good.
    quality["quality"] = np.zeros(5)
    best, worst = rank_images(quality, 2)
    assert best.tolist() == [3, 0] and worst.tolist() == [4, 1]
