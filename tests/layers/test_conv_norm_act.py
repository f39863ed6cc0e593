import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import ConvNormAct

INPUT = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")
NORMS = [None, "frozen_batch_norm", "batch_norm", "group_norm"]


def filled(norm, **settings):
    layer = ConvNormAct(32, 3, norm=norm, **settings)
    layer.build(INPUT.shape)
    return contracts.randomise(layer)


@pytest.mark.backend
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("use_bias", [None, True])
def test_it_is_the_convolution_then_the_norm_then_the_activation(norm, use_bias):
    layer = filled(norm, use_bias=use_bias, activation="relu")
    kernel = keras.ops.convert_to_tensor(layer.conv.kernel)
    expected = keras.ops.conv(INPUT, kernel, padding="same")
    assert layer.use_bias == (norm is None or bool(use_bias))
    if layer.use_bias:
        expected = expected + layer.conv.bias
    if norm is not None:
        expected = layer.norm_layer(expected)
    expected = contracts.to_numpy(keras.ops.relu(expected))
    contracts.assert_close_to_max(contracts.to_numpy(layer(INPUT)), expected, 1e-5)


@pytest.mark.backend
def test_a_batch_norm_learns_from_the_batch_only_in_training():
    layer = filled("batch_norm")
    mean = contracts.to_numpy(layer.norm_layer.moving_mean)
    layer(INPUT, training=False)
    np.testing.assert_array_equal(
        contracts.to_numpy(layer.norm_layer.moving_mean), mean
    )
    trained = contracts.to_numpy(layer(INPUT, training=True))
    assert np.any(contracts.to_numpy(layer.norm_layer.moving_mean) != mean)
    normal = trained - contracts.to_numpy(layer.norm_layer.beta)
    np.testing.assert_allclose(normal.mean(axis=(0, 1, 2)), 0, atol=1e-5)


@pytest.mark.backend
def test_a_frozen_batch_norm_ignores_training():
    layer = filled("frozen_batch_norm")
    np.testing.assert_array_equal(
        contracts.to_numpy(layer(INPUT, training=True)),
        contracts.to_numpy(layer(INPUT, training=False)),
    )


@contracts.on_tensorflow
def test_gamma_and_beta_of_a_folded_norm_are_trained():
    import tensorflow as tf

    layer = filled("frozen_batch_norm")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUT) ** 2)
    found = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert len(found) == 3
    assert all(np.any(contracts.to_numpy(g) != 0) for g in found)
