import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import SmoothL1Loss, smooth_l1_loss

TARGETS = np.array([1.0, 1.0, 1.0, 1.0], "float32")
PREDICTIONS = np.array([1.5, -1.0, 2.0, 1.0], "float32")


@pytest.mark.backend
@pytest.mark.parametrize(
    ("beta", "expected", "derivative"),
    [
        (1.0, [0.125, 1.5, 0.5, 0.0], [0.5, -1, 1, 0]),
        (0.5, [0.25, 1.75, 0.75, 0.0], [1, -1, 1, 0]),
        (4.0, [0.03125, 0.5, 0.125, 0.0], [0.125, -0.5, 0.25, 0]),
        (0.0, [0.5, 2.0, 1.0, 0.0], [1, -1, 1, None]),
    ],
)
def test_values_and_gradients_by_hand(beta, expected, derivative):
    def loss(predictions):
        return smooth_l1_loss(TARGETS, predictions, beta)

    np.testing.assert_allclose(contracts.evaluate(loss, PREDICTIONS), expected)
    (gradient,) = contracts.gradients(loss, [PREDICTIONS])
    # |d| has none at 0: the backends choose 0 or 1.
    count = 4 if beta > 0 else 3
    np.testing.assert_allclose(gradient[:count], derivative[:count])


@pytest.mark.backend
@pytest.mark.parametrize("beta", [0.0, 0.11])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_distances_of_ten_thousand_have_finite_values_and_gradients(dtype, beta):
    def loss(predictions):
        return smooth_l1_loss(TARGETS[:2], keras.ops.cast(predictions, dtype), beta)

    far = np.array([1e4, -1e4], "float32")
    # float16 would overflow where the distance is squared.
    value = contracts.evaluate(loss, far)
    np.testing.assert_allclose(value, [1e4, 1e4], rtol=1e-2)
    (gradient,) = contracts.gradients(loss, [far])
    np.testing.assert_allclose(gradient, [1, -1], rtol=1e-6)


@pytest.mark.backend
def test_the_class_sums_the_four_sides():
    targets, predictions = TARGETS[None, None], PREDICTIONS[None, None]
    found = SmoothL1Loss(reduction="none")(targets, predictions)
    np.testing.assert_allclose(contracts.to_numpy(found), [[2.125]])
    both = np.concatenate([predictions] * 2)
    found = SmoothL1Loss(0.0)(np.concatenate([targets] * 2), both)
    np.testing.assert_allclose(contracts.to_numpy(found), 7.0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="beta=-0.1"):
        SmoothL1Loss(-0.1)


def test_its_config_is_complete():
    contracts.check_config(
        SmoothL1Loss, {"beta": 0.11, "reduction": "mean", "name": "other"}
    )
