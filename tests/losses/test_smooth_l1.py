import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import smooth_l1_loss

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
