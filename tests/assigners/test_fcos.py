"""FCOS's own assignment, of which there is no golden batch: cases worked by hand."""

import numpy as np
import pytest

from tests.contracts import evaluate, to_numpy
from vfnet_tf.assigners import FCOSAssigner
from vfnet_tf.assigners.fcos import smallest_box
from vfnet_tf.priors import make_points

INF = float("inf")
pytestmark = pytest.mark.backend


def assign(boxes, labels=None, size=(64, 64), grid=((8, 8),), **settings):
    """One image; points at (8 i + 4, 8 j + 4), (16 i + 8, 16 j + 8) and so on."""
    strides = (8, 16, 32)[: len(grid)]
    settings = {"limits": (*[64.0, 128.0, 256.0][: len(grid) - 1], INF), **settings}
    labels = list(range(len(boxes))) if labels is None else labels
    return evaluate(
        FCOSAssigner(strides, **settings),
        *to_numpy(make_points(grid, strides, 0.5)),
        np.asarray(boxes, "float32")[None],
        np.asarray(labels, "int32")[None],
        np.asarray(size, "float32")[None],
    )


def cells(found, stride=8, start=0, width=8):
    """`(x, y)` of the positives of a level, as a set."""
    count = width * width
    positive = found.is_positive[0, start : start + count].reshape(width, width)
    rows, columns = np.nonzero(positive)
    return {
        (int(x * stride + stride / 2), int(y * stride + stride / 2))
        for x, y in zip(columns, rows, strict=True)
    }


def square(*places):
    return {(x, y) for x in places for y in places}


def test_without_centre_sampling_every_point_inside_learns_the_box():
    found = assign([[0, 0, 32, 32]], center_radius=None)
    assert cells(found) == square(4, 12, 20, 28)
    # A point on a side is not inside.
    found = assign([[4, 0, 20, 32]], center_radius=None)
    assert {x for x, _ in cells(found)} == {12}


def test_both_bounds_of_a_level_belong_to_it():
    # The largest distances of the box 0..28: from (4, 4) 24, from (12, 12) 16, and 20
    # wherever a coordinate is 20, the others being 12 or 20. On the coarse level 20
    # from (8, 8), 24 from the others.
    two = {"grid": ((8, 8), (4, 4)), "center_radius": None}
    coarse = {"stride": 16, "start": 64, "width": 4}
    found = assign([[0, 0, 28, 28]], limits=(20.0, INF), **two)
    assert cells(found) == square(12, 20)
    assert cells(found, **coarse) == square(8, 24)
    # A little less, and 20 is too far for the fine level.
    found = assign([[0, 0, 28, 28]], limits=(19.99, INF), **two)
    assert cells(found) == {(12, 12)}
    assert cells(found, **coarse) == square(8, 24)
    # A little more, and 20 is too near for the coarse one.
    found = assign([[0, 0, 28, 28]], limits=(20.01, INF), **two)
    assert cells(found) == square(12, 20)
    assert cells(found, **coarse) == square(8, 24) - {(8, 8)}


def test_a_middle_level_has_an_upper_bound_and_the_limit_below_as_its_lower():
    # Strides 8, 16, 32 with 10 and 20. The largest distance from (8, 8) to 0..28 is 20,
    # from (8, 24) 24; from (16, 16), the only point of the coarse level inside, 16.
    found = assign(
        [[0, 0, 28, 28]],
        grid=((8, 8), (4, 4), (2, 2)),
        limits=(10.0, 20.0, INF),
        center_radius=None,
    )
    assert cells(found) == set()
    assert cells(found, stride=16, start=64, width=4) == {(8, 8)}
    assert cells(found, stride=32, start=80, width=2) == set()
    found = assign(
        [[0, 0, 28, 28]],
        grid=((8, 8), (4, 4), (2, 2)),
        limits=(10.0, 15.0, INF),
        center_radius=None,
    )
    assert cells(found, stride=32, start=80, width=2) == {(16, 16)}


def test_the_range_is_of_the_whole_box_with_centre_sampling_too():
    # 12 pixels about the centre (32, 32) are 20..44: the points 28 and 36, from which
    # the farthest side is 36 away.
    box = [[0, 0, 64, 64]]
    for limit, expected in ((36.0, square(28, 36)), (35.9, set())):
        found = assign(box, grid=((8, 8), (1, 1)), limits=(limit, INF))
        assert cells(found) == expected


def test_of_several_boxes_the_smallest_is_learnt():
    large, small = [0, 0, 60, 60], [16, 16, 40, 40]
    for boxes in ([large, small], [small, large]):
        found = assign(boxes, center_radius=None)
        rows = found.gt_indices[0].reshape(8, 8)
        expected = np.full((8, 8), boxes.index(large))
        expected[2:5, 2:5] = boxes.index(small)  # 20, 28, 36
        expected[7], expected[:, 7] = -1, -1  # 60 lies on the side
        np.testing.assert_array_equal(rows, expected)


def test_area_counts_and_not_the_longer_side():
    wide, tall = [0, 24, 64, 40], [16, 0, 48, 40]  # 1024 and 1280
    found = assign([tall, wide], center_radius=None)
    # (28, 28) lies in both.
    assert found.gt_indices[0, 3 * 8 + 3] == 1


def test_the_first_of_equal_areas_is_learnt():
    wide, tall = [0, 16, 64, 48], [16, 0, 48, 64]
    for boxes in ([wide, tall], [tall, wide]):
        found = assign(boxes, center_radius=None)
        assert set(found.gt_indices[0].reshape(8, 8)[2:6, 2:6].ravel()) == {0}


def test_a_smaller_box_out_of_range_leaves_the_point_to_a_larger_one():
    # From (28, 28) the smaller one reaches 28, the larger one 36.
    boxes, levels = [[0, 0, 32, 32], [0, 0, 64, 64]], ((8, 8), (4, 4))
    found = assign(boxes, grid=levels, center_radius=None)
    assert found.gt_indices[0, 3 * 8 + 3] == 0
    points = np.array([[28, 28]], "float32"), np.array([16], "float32")
    found = evaluate(
        FCOSAssigner((8, 16), (30.0, INF), center_radius=None),
        *points,
        np.array([boxes], "float32"),
        np.array([[0, 1]], "int32"),
        np.array([[64, 64]], "float32"),
    )
    assert found.gt_indices[0, 0] == 1


def test_centre_sampling_takes_what_is_near_the_centre():
    box = [[0, 0, 64, 64]]
    # 1.5 strides are 12 pixels: 20 < x < 44, and 20 and 44 themselves are out.
    assert cells(assign(box)) == square(28, 36)
    assert cells(assign(box, center_radius=1.6)) == square(20, 28, 36, 44)
    assert len(cells(assign(box, center_radius=None))) == 64
    # The radius grows with the stride: 24 and 32 pixels on the next level.
    for radius, expected in ((1.5, square(24, 40)), (2.0, square(8, 24, 40, 56))):
        settings = {"limits": (1.0, INF), "center_radius": radius}
        found = assign(box, grid=((8, 8), (4, 4)), **settings)
        assert cells(found, stride=16, start=64, width=4) == expected


def test_centre_sampling_stays_inside_the_box():
    # About (28.5, 42): 16.5 < x < 40.5, which the box cuts to 24..33, and 30 < y < 54.
    tall, wide = [24, 16, 33, 68], [16, 24, 68, 33]
    three = {(28, 36), (28, 44), (28, 52)}
    assert cells(assign([tall])) == three
    assert cells(assign([wide])) == {(y, x) for x, y in three}
    # The whole box has the points 20 to 60.
    assert len(cells(assign([tall], center_radius=None))) == 6


def test_points_beyond_the_own_padded_area_learn_nothing():
    # 33 x 20 pixels are padded to 64 x 32: the columns of 4, 12, 20 and 28.
    found = assign([[0, 0, 60, 60]], size=(33, 20), center_radius=None)
    own = np.zeros((8, 8), bool)
    own[:, :4] = True
    np.testing.assert_array_equal(found.is_valid[0].reshape(8, 8), own)
    assert {x for x, _ in cells(found)} == {4, 12, 20, 28}
    found = assign([[0, 0, 60, 60]], size=(33, 20), padding_multiple=8)
    # Padded to 40 x 24: own columns are 4, 12 and 20, none within 12 of the centre 30
    # but 20.
    assert {x for x, _ in cells(found)} == {20}
    assert found.is_valid.sum() == 3 * 5


def test_empty_boxes_and_boxes_between_points_have_no_positives():
    boxes = [[10, 10, 10, 10], [13, 13, 19, 19], [40, 30, 20, 10]]
    assert not assign(boxes, center_radius=None).is_positive.any()
    assert not assign(boxes).is_positive.any()


def test_labels_and_boxes_are_those_of_the_row():
    found = assign([[0, 0, 16, 16], [0, 0, 32, 32]], labels=[-1, 6], center_radius=None)
    assert set(found.gt_indices[0]) == {-1, 1}
    assert set(found.labels[0]) == {-1, 6}
    np.testing.assert_array_equal(found.boxes[0, 0], [0, 0, 32, 32])
    np.testing.assert_array_equal(found.boxes[0, -1], 0)


def test_the_smallest_of_the_candidates_by_hand():
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 3, 3]]], "float32")
    is_candidate = np.array([[[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]]], bool)
    found = evaluate(smallest_box, is_candidate, boxes)
    np.testing.assert_array_equal(found, [[0, 1, -1, 1]])
