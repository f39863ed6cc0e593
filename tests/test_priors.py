import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.priors import make_points


@pytest.mark.backend
def test_points_are_the_top_left_corners_row_by_row():
    points, strides = to_numpy(make_points([(2, 3), (1, 2)], strides=(8, 16)))
    expected = [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(strides, [8] * 6 + [16] * 2)
    assert points.dtype == strides.dtype == "float32"


@pytest.mark.backend
def test_the_default_levels_are_p3_to_p7():
    points, strides = to_numpy(make_points([(1, 1)] * 5))
    np.testing.assert_array_equal(points, 0)
    np.testing.assert_array_equal(strides, [8, 16, 32, 64, 128])


def test_each_level_needs_a_stride():
    with pytest.raises(ValueError):
        make_points([(1, 1)], strides=(8, 16))
