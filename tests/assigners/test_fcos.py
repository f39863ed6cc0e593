import numpy as np
import pytest

from tests.assigners.test_atss import assign
from tests.contracts import check_config
from vfnet_tf.assigners import FCOSAssigner
from vfnet_tf.ops.boxes import box_area

pytestmark = pytest.mark.backend

#: Points at 4, 12, 20, 28 each way on the only level, of stride 8.
GRID, SIZE = [(4, 4)], [[32, 32]]


def fcos(boxes, labels=None, size=SIZE, grid=GRID, **settings):
    """`is_positive` `[rows, columns]` and all of the assignment, for one image."""
    strides = (8, 16, 32, 64, 128)[: len(grid)]
    settings = {
        "strides": strides,
        "limits": (64.0, 128.0, 256.0, 512.0, float("inf"))[: len(grid)],
        "center_radius": None,
        **settings,
    }
    labels = [list(range(len(boxes)))] if labels is None else [labels]
    found = assign([boxes], labels, size, grid, FCOSAssigner(**settings), offset=0.5)
    return found.is_positive[0, : grid[0][0] * grid[0][1]].reshape(grid[0]), found


def test_all_points_inside_a_box_learn_it_by_hand():
    # Of the points 4, 12, 20, 28 the box has 12 and 20 across, 12 down; 4 lies on its
    # top side, where the distance is 0: not inside.
    positive, found = fcos([[5, 4, 21, 20]], [7])
    expected = np.zeros((4, 4), bool)
    expected[1, 1:3] = True
    np.testing.assert_array_equal(positive, expected)
    np.testing.assert_array_equal(found.labels[0].reshape(4, 4)[expected], [7, 7])
    np.testing.assert_array_equal(
        found.boxes[0][expected.ravel()], [[5, 4, 21, 20]] * 2
    )
    np.testing.assert_array_equal(
        found.gt_indices[0], np.where(expected.ravel(), 0, -1)
    )


def test_both_bounds_of_a_levels_range_belong_to_it():
    # Stride 8 learns distances of 0 to 10, stride 16 of 10 to 20. From the point (12, 12)
    # the largest distance is the given one, and so from (8, 8) of the second level.
    for largest, levels in ((9, [0]), (10, [0, 1]), (11, [1]), (20, [1]), (21, [])):
        first = [12 - 1, 12 - 1, 12 + largest, 12 + 1]
        second = [8 - 1, 8 - 1, 8 + largest, 8 + 1]
        for level, box in enumerate((first, second)):
            _, found = fcos([box], grid=[(4, 4), (2, 2)], limits=(10.0, 20.0))
            at = (1 * 4 + 1, 16 + 0)[level]
            assert found.is_positive[0, at] == (level in levels), (largest, level)


def test_the_smallest_of_several_boxes_wins_and_the_first_of_equals():
    large, small = [0, 0, 32, 32], [8, 8, 24, 24]
    for boxes in ([large, small], [small, large]):
        positive, found = fcos(boxes)
        assert positive.all()
        grid = found.gt_indices[0].reshape(4, 4)
        assert (grid[1:3, 1:3] == boxes.index(small)).all()
        assert (grid[0] == boxes.index(large)).all()
    _, found = fcos([small, small])
    assert set(found.gt_indices[0]) == {-1, 0}
    assert box_area(np.array(small)) < box_area(np.array(large))


def test_centre_sampling_takes_the_points_near_the_centre():
    # The centre is (14, 14). 1.5 strides reach from 2 to 26: 4, 12, 20, not 28; half a
    # stride from 10 to 18: 12 alone.
    box = [-18, -18, 46, 46]
    for radius, inside in ((None, 4), (1.5, 3), (0.5, 1)):
        positive, _ = fcos([box], center_radius=radius)
        assert positive.sum() == inside**2
    # The sampled square never leaves the box: 1.5 strides about (12, 12), the box's
    # sides at 10 and 14.
    positive, _ = fcos([[10, 10, 14, 14]], center_radius=1.5)
    assert positive.sum() == 1 and positive[1, 1]


def test_the_range_is_that_of_the_distances_not_of_the_sampled_square():
    # From (12, 12) the right side is 58 away, though the square ends at 1.5 strides.
    positive, _ = fcos([[-34, -34, 58, 58]], center_radius=1.5, limits=(45.0,))
    assert not positive[1, 1]
    positive, _ = fcos([[-34, -34, 58, 58]], center_radius=1.5, limits=(46.0,))
    assert positive[1, 1]


def test_points_beyond_the_own_padded_area_are_not_valid():
    box = [0, 0, 64, 64]
    positive, found = fcos([box], size=[[32, 20]], grid=[(8, 8)])
    own = np.zeros((8, 8), bool)
    own[:4, :4] = True  # 20 pixels are padded to 32
    np.testing.assert_array_equal(found.is_valid[0].reshape(8, 8), own)
    np.testing.assert_array_equal(positive, own)


@pytest.mark.parametrize("rows", [0, 2])
def test_without_boxes_all_is_background(rows):
    _, found = fcos(np.zeros((rows, 4)), [-1] * rows)
    assert not found.is_positive.any()
    assert found.is_valid.all()
    assert (found.labels == -1).all() and (found.boxes == 0).all()


def test_padding_rows_take_no_point():
    _, found = fcos([[0, 0, 32, 32], [8, 8, 24, 24]], [5, -1])
    assert set(found.labels[0]) == {5}


def test_its_config_is_complete():
    check_config(
        FCOSAssigner,
        {
            "strides": (4, 8),
            "limits": (32.0, 1e8),
            "center_radius": None,
            "padding_multiple": 64,
        },
    )


def test_strides_and_limits_go_together():
    with pytest.raises(ValueError, match="of one length"):
        FCOSAssigner(strides=(8, 16))
