import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import FoldedConv2D

INPUT = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")


@pytest.mark.backend
def test_it_is_the_convolution_then_the_norm():
    layer = FoldedConv2D(6, 3, 2, "same", epsilon=0.01)
    layer.build(INPUT.shape)
    contracts.randomise(layer)
    plain = keras.layers.Conv2D(6, 3, 2, "same", use_bias=False)
    plain.build(INPUT.shape)
    plain.kernel.assign(layer.kernel)
    contracts.assert_close_to_max(
        contracts.to_numpy(layer(INPUT)),
        contracts.to_numpy(layer.norm(plain(INPUT))),
        1e-5,
    )


def test_it_has_no_bias_beside_that_of_the_norm():
    layer = FoldedConv2D(6, 3, use_bias=True)
    layer.build(INPUT.shape)
    names = [variable.name for variable in layer.trainable_variables]
    assert names == ["kernel", "gamma", "beta"]
