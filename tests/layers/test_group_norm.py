import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import GroupNorm

INPUT = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 4, 8)).astype("float32")


def pair(groups, epsilon=1e-5):
    """Our layer and Keras's own with the same gamma and beta."""
    layers = [
        GroupNorm(groups, epsilon),
        keras.layers.GroupNormalization(groups, epsilon=epsilon),
    ]
    for layer in layers:
        layer.build(INPUT.shape)
        contracts.randomise(layer)
    return layers


@pytest.mark.backend
def test_values_by_hand():
    # Group 1 holds 0, 2, 4, 6 (mean 3, variance 5), group 2 is constant.
    inputs = np.array([[0, 2, 7, 7], [4, 6, 7, 7]], "float32").reshape(1, 2, 1, 4)
    found = contracts.to_numpy(GroupNorm(groups=2, epsilon=1e-12)(inputs))
    scaled = (np.array([[0, 2], [4, 6]]) - 3) / np.sqrt(5)
    np.testing.assert_allclose(found[0, :, 0, :2], scaled, rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 0, 2:], 0, atol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_it_equals_keras_group_normalization(groups):
    ours, other = pair(groups)
    contracts.assert_close_to_max(
        contracts.to_numpy(ours(INPUT)), contracts.to_numpy(other(INPUT)), 1e-5
    )


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_its_gradients_are_those_of_keras_group_normalization(groups, mean):
    upstream = np.random.default_rng(1).normal(size=INPUT.shape)

    def of(layer):
        def function(inputs, gamma, beta):
            scope = keras.StatelessScope([(layer.gamma, gamma), (layer.beta, beta)])
            with scope:
                return layer(inputs)

        arrays = [INPUT + mean, layer.gamma.numpy(), layer.beta.numpy()]
        return contracts.gradients(function, arrays, upstream)

    # 100 + x has lost 4e-6 of x before the layer sees it.
    limit = 1e-4 if mean else 1e-5
    for found, expected in zip(*map(of, pair(groups)), strict=True):
        contracts.assert_close_to_max(found, expected, limit)


def test_its_gradients_in_half_precision_are_near_those_in_float32():
    upstream = np.random.default_rng(1).normal(size=INPUT.shape)
    found, expected = (
        contracts.gradients(GroupNorm(2, dtype=policy), [INPUT], upstream)[0]
        for policy in ("mixed_bfloat16", "float32")
    )
    contracts.assert_close_to_max(found, expected, 0.02)


@contracts.on_tensorflow
def test_a_step_takes_no_longer_than_with_keras_group_normalization():
    import tensorflow as tf

    def step_of(layer):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 256))])
        def step(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                total = tf.reduce_sum(layer(inputs) ** 2)
            return tape.gradient(total, [inputs, *layer.trainable_weights])

        layer.build((None, None, None, 256))
        return step

    steps = [step_of(GroupNorm(32)), step_of(keras.layers.GroupNormalization(32))]
    ours, other = contracts.shortest_times(steps, tf.random.normal((2, 64, 64, 256)))
    assert ours < other  # about half of it


@pytest.mark.backend
def test_a_large_mean_does_not_swallow_the_variance():
    noise = np.random.default_rng(2).normal(size=(1, 16, 16, 4)).astype("float32")
    expected = contracts.to_numpy(GroupNorm(groups=2)(noise))
    found = contracts.to_numpy(GroupNorm(groups=2)(noise + 1000.0))
    # 1000 + x has lost 6e-5 of x; a plain E[x^2] - E[x]^2 would be off by 0.1.
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.backend
def test_one_cell_gives_the_bias_where_a_group_is_one_channel():
    layer = GroupNorm(groups=4)
    layer.build((None, None, None, 4))
    layer.beta.assign([1.0, 2.0, 3.0, 4.0])
    found = contracts.to_numpy(layer(np.full((1, 1, 1, 4), 9.0, "float32")))
    np.testing.assert_allclose(found[0, 0, 0], [1, 2, 3, 4], atol=1e-5)


def test_statistics_of_large_half_precision_maps_do_not_overflow():
    # The sum of 4096 squares of 100 is far beyond float16's 65504.
    inputs = np.random.default_rng(3).normal(0, 100, (1, 64, 64, 4)).astype("float32")
    expected = contracts.to_numpy(GroupNorm(2)(inputs))
    found = contracts.to_numpy(GroupNorm(2, dtype="float16")(inputs))
    np.testing.assert_allclose(found.astype("float32"), expected, atol=0.02)
