import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import GroupNorm

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="graphs"
)
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


@needs_tensorflow
def test_its_graph_is_small():
    # 35 of them are in the graph of a step: sizes by `keras.ops.shape` and means by
    # `repeat` made it 160 and as many again in the gradient.
    import tensorflow as tf

    layer = GroupNorm(32)
    layer.build((None, None, None, 256))

    def step(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = tf.reduce_sum(layer(inputs))
        return tape.gradient(total, [inputs, *layer.trainable_weights])

    spec = tf.TensorSpec((None, None, None, 256))
    graph = tf.function(step, [spec], autograph=False).get_concrete_function().graph
    assert len(graph.get_operations()) < 170


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


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups=3, channels=8"):
        GroupNorm(groups=3).build((None, None, None, 8))


def test_its_config_is_complete():
    contracts.check_config(
        GroupNorm,
        {"groups": 4, "epsilon": 0.1},
        base={"name": "other", "dtype": "mixed_float16"},
    )


def test_it_computes_in_half_precision():
    contracts.check_half_precision(lambda policy: GroupNorm(2, dtype=policy), INPUT)


def test_statistics_of_large_half_precision_maps_do_not_overflow():
    # The sum of 4096 squares of 100 is far beyond float16's 65504.
    inputs = np.random.default_rng(3).normal(0, 100, (1, 64, 64, 4)).astype("float32")
    expected = contracts.to_numpy(GroupNorm(2)(inputs))
    found = contracts.to_numpy(GroupNorm(2, dtype="float16")(inputs))
    np.testing.assert_allclose(found.astype("float32"), expected, atol=0.02)


def test_it_runs_in_a_graph_of_unknown_sizes():
    contracts.check_graph(pair(2)[0], INPUT)
    contracts.check_shape(GroupNorm(2), INPUT)


def test_it_is_saved_and_loaded(tmp_path):
    contracts.check_save_load(GroupNorm(2), INPUT, directory=tmp_path)
