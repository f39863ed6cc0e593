import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import Scale

INPUT = np.linspace(-2, 2, 24, dtype="float32").reshape(1, 2, 3, 4)


@pytest.mark.backend
def test_it_multiplies_by_its_value():
    layer = Scale(initial_value=2.5)
    np.testing.assert_allclose(contracts.to_numpy(layer(INPUT)), 2.5 * INPUT)
    layer.scale.assign(-1.0)
    np.testing.assert_allclose(contracts.to_numpy(layer(INPUT)), -INPUT)
    assert [tuple(v.shape) for v in layer.trainable_variables] == [()]


@pytest.mark.backend
def test_another_layer_in_half_precision_reads_all_of_its_value():
    class Reader(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.convert_to_tensor(scale.scale) * 1.0

    scale, value = Scale(1 + 2**-12, dtype="float32"), np.float32(1 + 2**-12)
    scale.build(())
    found = contracts.to_numpy(Reader(dtype="mixed_bfloat16")(INPUT))
    assert found.dtype == "float32" and found == value
