import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import GIoULoss, giou_loss


@pytest.mark.backend
def test_equal_disjoint_and_half_overlapping_boxes_by_hand():
    target = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 2, 2]], "float32")
    boxes = np.array([[0, 0, 2, 2], [2, 0, 3, 1], [1, 0, 3, 2]], "float32")
    # 1 - 1; 1 - (0 - (3 - 2) / 3); 1 - (2 / 6 - 0)
    found = contracts.evaluate(giou_loss, target, boxes)
    np.testing.assert_allclose(found, [0, 4 / 3, 2 / 3], rtol=1e-6, atol=1e-7)


@pytest.mark.backend
@pytest.mark.parametrize(
    ("case", "loss_weight"),
    [("weighted", 1.5), ("mean", 2.0), ("clean_weighted", 2.0), ("avg_small", 2.0)],
)
def test_values_and_gradients_are_the_official_ones(golden, case, loss_weight):
    key, stored = f"giou/{case}", golden("losses")
    weight = stored.get(f"{key}/weight", np.float32(1.0)) * np.float32(loss_weight)
    divisor = stored.get(f"{key}/avg_factor", len(stored[f"{key}/pred"]))

    def loss(pred):
        return giou_loss(stored[f"{key}/target0"], pred) * keras.ops.convert_to_tensor(
            weight
        )

    elementwise = contracts.evaluate(loss, stored[f"{key}/pred"])
    expected = stored[f"{key}/elementwise"]
    np.testing.assert_allclose(elementwise, expected, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(
        elementwise.sum() / divisor, stored[f"{key}/loss"], rtol=1e-5
    )
    (gradient,) = contracts.gradients(loss, [stored[f"{key}/pred"]])
    assert np.all(np.isfinite(gradient))
    # Rows 0-9 of two cases are degenerate: their gradients sit on a kink of min, max or
    # a floor, where every framework has its own.
    smooth = slice(None) if case in ("clean_weighted", "avg_small") else slice(10, None)
    contracts.assert_close_to_max(
        (gradient / divisor)[smooth], stored[f"{key}/grad"][smooth], 1e-4
    )


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
def test_the_class_reduces_as_told():
    target = np.array([[[0, 0, 2, 2], [0, 0, 1, 1]]], "float32")
    boxes = np.array([[[1, 0, 3, 2], [2, 0, 3, 1]]], "float32")
    found = contracts.to_numpy(GIoULoss()(target, boxes))
    np.testing.assert_allclose(found, 2.0, rtol=1e-6)
    found = contracts.to_numpy(GIoULoss(reduction="none")(target, boxes))
    np.testing.assert_allclose(found, [[2 / 3, 4 / 3]], rtol=1e-6)


@pytest.mark.backend
def test_epsilon_is_the_floor_of_union_and_hull():
    point = np.array([[3, 3, 3, 3]], "float32")
    other = np.array([[4, 3, 5, 3]], "float32")
    # No area at all: the IoU is 0 / epsilon and the hull is its floor.
    found = contracts.to_numpy(giou_loss(point, other, epsilon=0.5))
    np.testing.assert_allclose(found, [1.0])


def test_its_config_is_complete():
    contracts.check_config(
        GIoULoss, {"epsilon": 1e-3, "reduction": "mean", "name": "other"}
    )
