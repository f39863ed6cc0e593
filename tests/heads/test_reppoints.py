import keras
import numpy as np
import pytest

from tests import contracts
from tests.heads.small_heads import LEVELS, features, small_head
from vfnet_tf.heads import RepPointsHead


def set_points(head, y, x, refined_y=0.0, refined_x=0.0):
    """Lets every cell predict the same nine points, in strides."""
    for layer, ys, xs in (
        (head.point_predictor, y, x),
        (head.refine_predictor, refined_y, refined_x),
    ):
        layer.conv.kernel.assign(np.zeros(layer.conv.kernel.shape))
        points = np.stack(np.broadcast_arrays(ys, xs, np.zeros(9))[:2], axis=-1)
        layer.conv.bias.assign(points.ravel())


@pytest.mark.backend
def test_boxes_are_the_moments_of_the_points_by_hand():
    head = small_head(RepPointsHead)
    # x: six at 0 and three at 3, mean 1 and unbiased variance 18 / 8; y half of that.
    x = np.repeat([0.0, 3.0], [6, 3])
    set_points(head, x / 2, x, refined_x=2.0, refined_y=-1.0)
    head.moment_transfer.assign(np.log([2.0, 0.5]))  # x, y
    found = contracts.to_numpy(head(features()))
    half_x, half_y = 2 * 1.5, 0.5 * 0.75
    expected = np.array([1 - half_x, 0.5 - half_y, 1 + half_x, 0.5 + half_y])
    for level in LEVELS:
        boxes = found["box_shifts"][level]
        np.testing.assert_allclose(boxes, np.broadcast_to(expected, boxes.shape), 1e-5)
        # The refinement is added to the first points, (dy, dx).
        boxes = found["refined_box_shifts"][level]
        moved = expected + [2, -1, 2, -1]
        np.testing.assert_allclose(boxes, np.broadcast_to(moved, boxes.shape), 1e-5)
        shifts = found["refined_point_shifts"][level][0, 0, 0].reshape(9, 2)
        np.testing.assert_allclose(shifts[:, 0], x / 2 - 1, atol=1e-5)
        np.testing.assert_allclose(shifts[:, 1], x + 2, atol=1e-5)


@pytest.mark.backend
def test_points_of_a_regular_grid_make_a_plain_convolution():
    head = small_head(RepPointsHead)
    y, x = np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij")
    set_points(head, y.ravel(), x.ravel())
    found = contracts.to_numpy(head(features())["class_logits"]["P3"])
    tower = head.class_tower(features()["P3"])
    plain = keras.ops.conv(tower, head.class_kernel.value, padding="same")
    expected = contracts.to_numpy(head.class_predictor(keras.ops.relu(plain)))
    contracts.assert_close_to_max(found, expected, 1e-4)
    # Elsewhere they make another one.
    set_points(head, 2 * y.ravel(), 2 * x.ravel())
    found = contracts.to_numpy(head(features())["class_logits"]["P3"])
    assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.backend
def test_each_tower_feeds_its_own_predictions():
    head = small_head(RepPointsHead)
    before = head(features())
    for variable in head.class_tower.variables:
        variable.assign(0.5 * variable + 0.1)
    after = head(features())
    for name in before:
        same = [
            np.array_equal(
                contracts.to_numpy(before[name][level]),
                contracts.to_numpy(after[name][level]),
            )
            for level in LEVELS
        ]
        assert same == [name != "class_logits"] * len(LEVELS)


def gradient(head, output, variable):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        total = sum(
            tf.reduce_sum(tf.square(value))
            for value in head(features())[output].values()
        )
    found = tape.gradient(total, variable.value, unconnected_gradients="zero")
    return contracts.to_numpy(found)


@contracts.on_tensorflow
@pytest.mark.parametrize("output", ["class_logits", "refined_point_shifts"])
def test_a_tenth_of_the_gradient_reaches_the_first_points(output):
    whole, tenth, none = (
        gradient(head, output, head.point_predictor.conv.kernel)
        for head in (
            small_head(RepPointsHead, point_gradient=1.0),
            small_head(RepPointsHead),
            small_head(RepPointsHead, point_gradient=0.0),
        )
    )
    assert np.abs(whole).max() > 0
    contracts.assert_close_to_max(tenth, 0.1 * whole, 1e-3)
    np.testing.assert_array_equal(none, 0)


@contracts.on_tensorflow
@pytest.mark.parametrize("output", ["box_shifts", "refined_box_shifts"])
def test_a_hundredth_of_the_gradient_reaches_the_factors(output):
    whole, hundredth = (
        gradient(head, output, head.moment_transfer)
        for head in (
            small_head(RepPointsHead, moment_gradient=1.0),
            small_head(RepPointsHead),
        )
    )
    assert np.all(np.abs(whole) > 0)
    np.testing.assert_allclose(hundredth, 0.01 * whole, rtol=1e-3)
