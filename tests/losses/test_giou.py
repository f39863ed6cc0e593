import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import giou_loss


@pytest.mark.backend
def test_equal_disjoint_and_half_overlapping_boxes_by_hand():
    target = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 2, 2]], "float32")
    boxes = np.array([[0, 0, 2, 2], [2, 0, 3, 1], [1, 0, 3, 2]], "float32")
    # 1 - 1; 1 - (0 - (3 - 2) / 3); 1 - (2 / 6 - 0)
    found = contracts.evaluate(giou_loss, target, boxes)
    np.testing.assert_allclose(found, [0, 4 / 3, 2 / 3], rtol=1e-6, atol=1e-7)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_boxes_are_computed_in_float32(dtype):
    # The areas, a million square pixels, are beyond float16.
    target = keras.ops.cast(np.array([[0, 0, 1000, 1000]], "float32"), dtype)
    boxes = keras.ops.cast(np.array([[0, 0, 1000, 500]], "float32"), dtype)
    loss = giou_loss(target, boxes)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(contracts.to_numpy(loss), [0.5], atol=0.01)


@pytest.mark.backend
def test_epsilon_is_the_floor_of_union_and_hull():
    point = np.array([[3, 3, 3, 3]], "float32")
    other = np.array([[4, 3, 5, 3]], "float32")
    # No area at all: the IoU is 0 / epsilon and the hull is its floor.
    found = contracts.to_numpy(giou_loss(point, other, epsilon=0.5))
    np.testing.assert_allclose(found, [1.0])
