import numpy as np
import pytest

from tests.assigners.test_atss import assign
from tests.contracts import check_config
from vfnet_tf.assigners import PointAssigner

pytestmark = pytest.mark.backend

#: Levels of the strides 8, 16 and 32 for images of 64 x 64.
GRID = [(8, 8), (4, 4), (2, 2)]


def point(boxes, labels=None, size=((64, 64),), **settings):
    labels = [list(range(len(boxes)))] if labels is None else [labels]
    assigner = PointAssigner(strides=(8, 16, 32), **settings)
    return assign([boxes], labels, size, GRID, assigner)


def test_a_box_has_the_nearest_point_of_its_level_by_hand():
    # 40 x 40 is ten of four pixels: between 8 and 16, so stride 8; its centre (26, 30)
    # is nearest to (24, 32), row 4, column 3.
    found = point([[6, 10, 46, 50]], [5])
    assert list(np.flatnonzero(found.is_positive[0])) == [4 * 8 + 3]
    assert found.labels[0, 4 * 8 + 3] == 5


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (32, 0), (63, 0), (64.01, 1), (127, 1), (128.01, 2), (999, 2)],
)
def test_the_level_is_the_power_of_two_below(side, level):
    found = point([[0, 0, side, side]])
    starts = np.cumsum([0, 64, 16, 4])
    at = np.flatnonzero(found.is_positive[0])
    assert len(at) == 1 and starts[level] <= at[0] < starts[level + 1]


def test_the_level_is_that_of_the_geometric_mean():
    # 128 and 40 pixels are 71.6, above 64: stride 16.
    assert 64 <= np.flatnonzero(point([[0, 0, 128, 40]]).is_positive[0])[0] < 80


def test_nearness_is_counted_in_sides():
    # The centre (28, 27) is 4 and 4 from (24, ..) and (32, ..), 3 from (.., 24).
    found = point([[28 - 16, 27 - 30, 28 + 16, 27 + 30]], num_points=2)
    assert list(np.flatnonzero(found.is_positive[0])) == [3 * 8 + 3, 3 * 8 + 4]
    # Wide and low: a step aside costs less than one down.
    found = point([[28 - 30, 28 - 12, 28 + 30, 28 + 12]], num_points=4)
    assert set(np.flatnonzero(found.is_positive[0])) == {27, 28, 35, 36}


def test_a_point_of_two_boxes_learns_the_nearer_and_the_first_of_equals():
    near, far = [4, 4, 44, 44], [6, 6, 46, 46]  # centres (24, 24) and (26, 26)
    for boxes in ([near, far], [far, near]):
        found = point(boxes)
        at = 3 * 8 + 3
        assert list(np.flatnonzero(found.is_positive[0])) == [at]
        assert found.gt_indices[0, at] == boxes.index(near)
    assert set(point([near, near]).gt_indices[0]) == {-1, 0}


def test_points_beyond_the_own_padded_area_are_not_valid():
    found = point([[40, 40, 63, 63]], size=[[32, 32]])
    assert found.is_valid[0].sum() == 16 + 4 + 1
    # The nearest of its own points, (24, 24).
    assert list(np.flatnonzero(found.is_positive[0])) == [3 * 8 + 3]


@pytest.mark.parametrize("rows", [0, 2])
def test_without_boxes_all_is_background(rows):
    found = point(np.zeros((rows, 4)), [-1] * rows)
    assert not found.is_positive.any()
    assert (found.labels == -1).all()


def test_its_config_is_complete():
    check_config(
        PointAssigner,
        {"strides": (4, 8), "scale": 8, "num_points": 3, "padding_multiple": 64},
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_points": 0}, "num_points=0"), ({"strides": (8, 12)}, "powers of two")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PointAssigner(**settings)
