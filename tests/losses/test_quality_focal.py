import numpy as np
import pytest

from tests import contracts
from vfnet_tf.losses import quality_focal_loss


@pytest.mark.backend
def test_one_positive_and_one_negative_by_hand():
    # logit 0 gives p = 0.5: distances 0.3 and 0.5, each log is -ln 2.
    loss = quality_focal_loss(np.array([[0.8, 0.0]]), np.array([[0.0, 0.0]]))
    expected = np.log(2.0) * np.array([[0.09, 0.25]])
    np.testing.assert_allclose(contracts.to_numpy(loss), expected, rtol=1e-5)
