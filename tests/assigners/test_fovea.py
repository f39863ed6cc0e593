import numpy as np
import pytest

from tests.assigners.test_atss import assign
from tests.contracts import check_config
from vfnet_tf.assigners import FoveaAssigner

pytestmark = pytest.mark.backend


def fovea(boxes, labels=None, grid=((8, 8),), **settings):
    strides = (8, 16, 32, 64, 128)[: len(grid)]
    ranges = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0))[: len(grid)]
    settings = {"strides": strides, "scale_ranges": ranges, **settings}
    labels = [list(range(len(boxes)))] if labels is None else [labels]
    assigner = FoveaAssigner(**settings)
    return assign([boxes], labels, [[64, 64]], list(grid), assigner, offset=0.5)


def cells(found, shape=(8, 8)):
    """Rows and columns of the positives of the first level."""
    count = shape[0] * shape[1]
    return list(
        zip(*np.nonzero(found.is_positive[0, :count].reshape(shape)), strict=True)
    )


def test_the_shrunken_box_by_hand():
    # In cells the box is 1 to 6, its centre 3.5, the half of the shrunken one 0.4 * 2.5
    # = 1: 2.5 to 4.5. Cell centres minus a half: ceil(2.0) = 2 to floor(4.0) = 4.
    assert cells(fovea([[8, 8, 48, 48]])) == [
        (y, x) for y in (2, 3, 4) for x in (2, 3, 4)
    ]
    # A little smaller on the left: from 2.54 on, ceil(2.04) = 3; centre 3.54, half .984.
    found = cells(fovea([[8.64, 8, 48, 48]]))
    assert found == [(y, x) for y in (2, 3, 4) for x in (3, 4)]


def test_a_small_box_between_two_centres_has_no_cell():
    # 0.6 to 1.4 in cells, shrunken 0.84 to 1.16: ceil(0.34) = 1, floor(0.66) = 0.
    assert cells(fovea([[4.8, 4.8, 11.2, 11.2]])) == []


def test_cells_beyond_the_map_become_its_last_ones():
    # A box that leaves the map on the right: 6.5 to 9.5, shrunken 7.4 to 8.6 in x:
    # ceil(6.9) = 7, floor(8.1) = 8, which is clipped to 7.
    found = cells(fovea([[52, 20, 76, 44]]))
    assert {x for _, x in found} == {7}
    # Wholly beyond: 8.2 to 9.8, shrunken 8.68 to 9.32: 9 and 8, both clipped to 7.
    found = cells(fovea([[65.6, 20, 78.4, 44]]))
    assert {x for _, x in found} == {7}


def test_levels_overlap_and_both_bounds_belong_to_them():
    grid = ((8, 8), (4, 4))
    for side, on_levels in ((31, [0]), (32, [0, 1]), (64, [0, 1]), (65, [1])):
        found = fovea([[8, 8, 8 + side, 8 + side]], grid=grid).is_positive[0]
        assert [found[:64].any(), found[64:].any()] == [
            level in on_levels for level in (0, 1)
        ]
    # The scale is the root of the area: 16 x 64 counts as 32.
    found = fovea([[16, 8, 32, 72]], grid=grid).is_positive[0]
    assert found[64:].any()


def test_the_smaller_box_wins_and_the_first_of_equals():
    large, small = [0, 0, 64, 64], [16, 16, 48, 48]
    for boxes in ([large, small], [small, large]):
        found = fovea(boxes)
        assert found.gt_indices[0].reshape(8, 8)[3, 3] == boxes.index(small)
        assert found.gt_indices[0].reshape(8, 8)[2, 2] == boxes.index(large)
    assert set(fovea([small, small]).gt_indices[0]) == {-1, 0}


@pytest.mark.parametrize("rows", [0, 2])
def test_without_boxes_all_is_background_and_valid(rows):
    found = fovea(np.zeros((rows, 4)), [-1] * rows)
    assert not found.is_positive.any()
    assert found.is_valid.all()


def test_its_config_is_complete():
    check_config(
        FoveaAssigner,
        {"strides": (4, 8), "scale_ranges": ((1.0, 32.0), (16.0, 64.0)), "sigma": 0.5},
    )


def test_strides_and_ranges_go_together():
    with pytest.raises(ValueError, match="of one length"):
        FoveaAssigner(strides=(8, 16))
