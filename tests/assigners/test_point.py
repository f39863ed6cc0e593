import numpy as np
import pytest

from tests.contracts import evaluate, to_numpy
from vfnet_tf.assigners import PointAssigner
from vfnet_tf.priors import make_points

pytestmark = pytest.mark.backend


def assign(boxes, size=(64, 64), **settings):
    """One image of strides 8 and 16; returns all and the rows of each level."""
    found = evaluate(
        PointAssigner((8, 16), **settings),
        *to_numpy(make_points([(8, 8), (4, 4)], (8, 16))),
        np.asarray(boxes, "float32")[None],
        np.arange(len(boxes), dtype="int32")[None],
        np.asarray(size, "float32")[None],
    )
    rows = found.gt_indices[0]
    return found, rows[:64].reshape(8, 8), rows[64:].reshape(4, 4)


def positives(rows, stride=8):
    """`{(x, y): row}` of the points that learn something."""
    return {
        (int(x * stride), int(y * stride)): int(rows[y, x])
        for y, x in zip(*np.nonzero(rows >= 0), strict=True)
    }


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (32, 32, 0),  # 8 scales: stride 8
        (63, 63, 0),  # rounded down
        (64, 64, 1),
        (16, 256, 1),  # the geometric mean, 64
        (16, 100, 0),  # 40
        (8, 8, 0),  # not below the finest
        (900, 900, 1),  # not above the coarsest
    ],
)
def test_a_box_belongs_to_the_level_of_its_size(width, height, level):
    box = [32 - width / 2, 32 - height / 2, 32 + width / 2, 32 + height / 2]
    _, *levels = assign([box])
    assert positives(levels[level], (8, 16)[level]) == {(32, 32): 0}
    assert positives(levels[1 - level]) == {}


def test_the_scale_is_what_a_box_measures_in_strides():
    _, fine, coarse = assign([[16, 16, 48, 48]], scale=2)
    assert positives(fine) == {} and positives(coarse, 16) == {(32, 32): 0}


def test_nearest_points_are_so_in_units_of_the_sides():
    # About (12.5, 3) the nearest is (16, 0); the next in pixels is (8, 0), 4.5 away
    # each of (-4.5, 3) and (3.5, 5): in sides of 10 and 40 it is (16, 8).
    tall, wide = [7.5, -17, 17.5, 23], [-7.5, -2, 32.5, 8]
    _, fine, _ = assign([tall], num_points=2)
    assert positives(fine) == {(16, 0): 0, (16, 8): 0}
    _, fine, _ = assign([wide], num_points=2)
    assert positives(fine) == {(16, 0): 0, (8, 0): 0}


def test_as_many_points_as_asked_for_and_no_more_than_the_level_has():
    for count in (1, 4, 9):
        _, fine, coarse = assign([[8, 8, 40, 40]], num_points=count)
        assert len(positives(fine)) == count and positives(coarse) == {}
    _, fine, coarse = assign([[0, 0, 64, 64]], num_points=20)
    assert len(positives(coarse)) == 16 and positives(fine) == {}


def test_a_point_of_several_boxes_learns_the_nearest_in_its_units():
    # Centres 1 and 2 pixels away from (16, 16) both ways.
    near, far = [7, 7, 27, 27], [2, 2, 34, 34]
    for boxes in ([near, far], [far, near]):
        _, fine, _ = assign(boxes)
        assert positives(fine) == {(16, 16): boxes.index(near)}
    # A larger box with the same centre is nearer in its own units.
    near, same = [7, 7, 27, 27], [2, 2, 32, 32]
    for boxes in ([near, same], [same, near]):
        _, fine, _ = assign(boxes)
        assert positives(fine) == {(16, 16): boxes.index(same)}


def test_the_first_of_equals_learns():
    _, fine, _ = assign([[7, 7, 27, 27]] * 3)
    assert positives(fine) == {(16, 16): 0}


def test_points_beyond_the_own_padded_area_are_no_candidates():
    # 64 x 20 pixels are padded to 64 x 32: the last own column is that of 24.
    found, fine, _ = assign([[20, 20, 60, 40]], size=(64, 20))
    assert positives(fine) == {(24, 32): 0}
    own = np.zeros((8, 8), bool)
    own[:, :4] = True
    np.testing.assert_array_equal(found.is_valid[0, :64].reshape(8, 8), own)
    _, fine, _ = assign([[20, 20, 60, 40]], size=(64, 20), padding_multiple=8)
    assert positives(fine) == {(16, 32): 0}


def test_a_box_without_an_area_still_has_its_point():
    # Of the official code; the pipeline lets none through.
    _, fine, coarse = assign([[17, 17, 17, 17]])
    assert positives(fine) == {(16, 16): 0} and positives(coarse) == {}
