import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.backbones.res2net import _SymmetricAveragePool


@pytest.mark.backend
def test_the_pooling_counts_the_zeros_around():
    ones = np.ones((1, 3, 4, 1), "float32")
    found = contracts.to_numpy(_SymmetricAveragePool()(ones))[0, ..., 0]
    np.testing.assert_allclose(found, np.array([[4, 6], [4, 6]]) / 9, rtol=1e-6)


@pytest.mark.backend
def test_a_last_odd_row_of_the_shortcut_is_a_mean_without_zeros():
    # What `_block` relies on: Keras's "same" pooling on each backend.
    ones = np.ones((1, 3, 5, 1), "float32")
    layer = keras.layers.AveragePooling2D(2, 2, "same")
    found = contracts.to_numpy(layer(ones))
    np.testing.assert_allclose(found, np.ones((1, 2, 3, 1)), rtol=1e-6)
