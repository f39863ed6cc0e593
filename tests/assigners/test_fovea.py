import numpy as np
import pytest

from tests.contracts import evaluate, to_numpy
from vfnet_tf.assigners import FoveaAssigner
from vfnet_tf.priors import make_points

pytestmark = pytest.mark.backend
#: One level that takes any box.
ANY = {"strides": (8,), "scale_ranges": ((1.0, 1e4),)}


def assign(boxes, grid=((8, 8),), size=(64, 64), labels=None, **settings):
    """One image; returns the assignment and the rows by level, `[height, width]`."""
    settings = {**ANY, **settings}
    labels = list(range(len(boxes))) if labels is None else labels
    found = evaluate(
        FoveaAssigner(**settings),
        *to_numpy(make_points(grid, settings["strides"], 0.5)),
        np.asarray(boxes, "float32")[None],
        np.asarray(labels, "int32")[None],
        np.asarray(size, "float32")[None],
    )
    levels, start = [], 0
    for height, width in grid:
        rows = found.gt_indices[0, start : start + height * width]
        levels.append(rows.reshape(height, width))
        start += height * width
    return found, levels


def positives(rows):
    """Columns and rows of the cells that learn something."""
    y, x = np.nonzero(rows >= 0)
    return sorted(set(x.tolist())), sorted(set(y.tolist()))


def test_the_shrunken_box_by_hand():
    # 0..5 cells, shrunken to 1.5..3.5: the centres 1.5, 2.5 and 3.5 lie in it.
    _, (rows,) = assign([[0, 0, 40, 40]])
    assert positives(rows) == ([1, 2, 3], [1, 2, 3])
    assert (rows >= 0).sum() == 9
    # 0.3 leaves 1.75..3.25, and 1 the whole box.
    _, (rows,) = assign([[0, 0, 40, 40]], sigma=0.3)
    assert positives(rows) == ([2], [2])
    _, (rows,) = assign([[0, 0, 40, 40]], sigma=1.0)
    assert positives(rows) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    # Each way by its own side: 5.5..7.5 cells across, 0.9..2.1 down.
    _, (rows,) = assign([[32, 0, 72, 24]])
    assert positives(rows) == ([5, 6, 7], [1])


def test_a_box_between_cell_centres_has_no_positives():
    # 0.5..1.5 cells, shrunken to 0.8..1.2.
    _, (rows,) = assign([[4, 4, 12, 12]])
    assert positives(rows) == ([], [])


def test_cells_are_clipped_to_the_map():
    # Columns 2.5..7.5 of a map of two, shrunken to 4..6; the last column learns it.
    _, (rows,) = assign([[20, 0, 60, 8]], grid=((2, 2),))
    np.testing.assert_array_equal(rows, [[-1, 0], [-1, -1]])
    # And left of the map the first one does.
    _, (rows,) = assign([[-60, 0, -20, 8]], grid=((2, 2),))
    np.testing.assert_array_equal(rows, [[0, -1], [-1, -1]])
    # Each level to its own map: column 3 of stride 8 and 1 of stride 16.
    two = {"strides": (8, 16), "scale_ranges": ((1.0, 1e4),) * 2}
    _, (fine, coarse) = assign([[40, 0, 90, 48]], grid=((4, 4), (2, 2)), **two)
    assert positives(fine) == ([3], [2, 3])
    assert positives(coarse) == ([1], [1])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 64, 64], [True, True]),  # both bounds belong to a level
        ([0, 0, 65, 64], [False, True]),
        ([0, 0, 32, 32], [True, True]),
        ([0, 0, 32, 31], [True, False]),
        ([0, 16, 256, 32], [True, True]),  # the root of the area, 64
        ([0, 0, 128, 129], [False, False]),
    ],
)
def test_a_box_belongs_to_the_levels_of_its_scale(box, expected):
    # With sigma 1 none of them falls between the cells.
    _, levels = assign(
        [box],
        grid=((16, 16), (8, 8)),
        strides=(8, 16),
        scale_ranges=((1.0, 64.0), (32.0, 128.0)),
        sigma=1.0,
    )
    assert [bool((rows >= 0).any()) for rows in levels] == expected


def test_of_several_boxes_the_smallest_and_the_first_of_equals():
    large, small = [0, 0, 64, 64], [16, 16, 48, 48]
    for boxes in ([large, small], [small, large]):
        _, (rows,) = assign(boxes, sigma=1.0)
        assert set(rows[2:6, 2:6].ravel()) == {boxes.index(small)}
        assert rows[0, 0] == boxes.index(large)
    _, (rows,) = assign([small, small], sigma=1.0)
    assert set(rows.ravel()) == {-1, 0}


def test_every_point_is_valid_and_may_learn():
    # An image of 8 x 8 pixels: what lies beyond takes part as any other point.
    found, (rows,) = assign([[0, 0, 40, 40]], size=(8, 8))
    assert found.is_valid.all()
    assert positives(rows) == ([1, 2, 3], [1, 2, 3])


def test_empty_and_inverted_boxes_have_no_positives():
    boxes = [[10, 10, 10, 10], [10, 4, 30, 4], [40, 10, 20, 30]]
    found, _ = assign(boxes, sigma=1.0)
    assert not found.is_positive.any()
