import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import focal_loss


@pytest.mark.backend
def test_one_positive_and_one_negative_by_hand():
    # logit 0 gives p = 0.5, so each log is -ln 2.
    loss = focal_loss(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]), 0.25, 2.0)
    expected = np.log(2.0) * 0.25 * np.array([[0.25, 0.75]])
    np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-6)
