import numpy as np
import pytest

from tests.contracts import evaluate, to_numpy
from vfnet_tf.priors import make_anchors, make_points


@pytest.mark.backend
def test_points_are_the_top_left_corners_row_by_row():
    points, strides = to_numpy(make_points([(2, 3), (1, 2)], strides=(8, 16)))
    expected = [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(strides, [8] * 6 + [16] * 2)
    assert points.dtype == strides.dtype == "float32"


@pytest.mark.backend
def test_each_level_has_a_stride_by_default_those_of_p3_to_p7():
    points, strides = to_numpy(make_points([(1, 1)] * 5))
    np.testing.assert_array_equal(points, 0)
    np.testing.assert_array_equal(strides, [8, 16, 32, 64, 128])
    with pytest.raises(ValueError):
        make_points([(1, 1)], strides=(8, 16))


@pytest.mark.backend
def test_points_may_be_the_centres_of_their_cells():
    points, strides = to_numpy(make_points([(1, 2), (1, 1)], (8, 16), offset=0.5))
    np.testing.assert_array_equal(points, [[4, 4], [12, 4], [8, 8]])
    np.testing.assert_array_equal(strides, [8, 8, 16])


@pytest.mark.backend
def test_anchors_by_hand():
    # Squares of 2 and 2 * sqrt(2) strides, then twice as high as wide with their areas.
    points = np.array([[0, 0], [32, 16]], "float32")
    strides = np.array([8, 16], "float32")
    settings = {"anchor_scale": 2.0, "octaves": 2, "ratios": (1.0, 4.0)}
    found = evaluate(lambda *x: make_anchors(*x, **settings), points, strides)
    root = 2**0.5
    expected = [[-8, -8, 8, 8], [-8 * root] * 2 + [8 * root] * 2]
    expected += [[-4, -16, 4, 16], [-4 * root, -16 * root, 4 * root, 16 * root]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    # Twice as large about the other point.
    shift = np.array([32, 16, 32, 16])
    np.testing.assert_allclose(found[1], 2 * np.array(expected) + shift, rtol=1e-6)


@pytest.mark.backend
def test_the_default_anchors_are_retinanets():
    points, strides = make_points([(1, 1)] * 5)
    found = to_numpy(make_anchors(points, strides))
    assert found.shape == (5, 9, 4) and found.dtype == "float32"
    sides = found[..., 2:] - found[..., :2]
    # Areas of 32, 40.3 and 50.8 pixels on P3, twice as much on each next level.
    sizes = np.array([32, 64, 128, 256, 512])[:, None] * 2 ** (np.arange(3) / 3)
    np.testing.assert_allclose(sides.prod(-1) ** 0.5, np.tile(sizes, 3), rtol=1e-5)
    ratios = np.repeat([0.5, 1.0, 2.0], 3)
    np.testing.assert_allclose(sides[..., 1] / sides[..., 0], [ratios] * 5, rtol=1e-5)
