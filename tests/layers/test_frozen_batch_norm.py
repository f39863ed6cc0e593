import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import FrozenBatchNorm

INPUT = np.linspace(-2, 2, 48, dtype="float32").reshape(2, 2, 3, 4)


def filled(**settings):
    layer = FrozenBatchNorm(**settings)
    layer.build(INPUT.shape)
    return contracts.randomise(layer)


@pytest.mark.backend
def test_values_by_hand():
    layer = FrozenBatchNorm(epsilon=1.0)
    layer.build((None, 2))
    for variable, values in (
        (layer.gamma, [2.0, 1.0]),
        (layer.beta, [0.5, 0.0]),
        (layer.moving_mean, [1.0, -1.0]),
        (layer.moving_variance, [3.0, 0.0]),
    ):
        variable.assign(values)
    # (5 - 1) / sqrt(3 + 1) * 2 + 0.5 and (5 + 1) / sqrt(0 + 1)
    found = contracts.to_numpy(layer(np.array([[5.0, 5.0]], "float32")))
    np.testing.assert_allclose(found, [[4.5, 6.0]])


@pytest.mark.backend
def test_training_uses_and_leaves_the_stored_statistics():
    layer = filled()
    expected = contracts.to_numpy(layer(INPUT))
    before = [contracts.to_numpy(v) for v in layer.non_trainable_variables]
    np.testing.assert_array_equal(
        contracts.to_numpy(layer(INPUT, training=True)), expected
    )
    for variable, value in zip(layer.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(contracts.to_numpy(variable), value)
    assert {v.name for v in layer.trainable_variables} == {"gamma", "beta"}


@pytest.mark.backend
def test_it_equals_batch_normalization_in_inference():
    layer = filled(epsilon=1e-3)
    other = keras.layers.BatchNormalization(epsilon=1e-3)
    other.build(INPUT.shape)
    contracts.randomise(other)
    contracts.assert_close_to_max(
        contracts.to_numpy(layer(INPUT)),
        contracts.to_numpy(other(INPUT, training=False)),
        1e-6,
    )


@pytest.mark.backend
def test_folding_it_into_a_kernel_changes_nothing():
    layer = filled()
    kernel = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    inputs = np.random.default_rng(1).normal(size=(3, 5)).astype("float32")
    folded, bias = contracts.to_numpy(layer.fold(keras.ops.convert_to_tensor(kernel)))
    contracts.assert_close_to_max(
        inputs @ folded + bias, contracts.to_numpy(layer(inputs @ kernel)), 1e-6
    )
