import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import ConvNormAct
from vfnet_tf.ops.convolution import pad_symmetric

INPUT = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")
NORMS = [None, "frozen_batch_norm", "batch_norm", "group_norm"]


def filled(norm, **settings):
    layer = ConvNormAct(32, 3, norm=norm, **settings)
    layer.build(INPUT.shape)
    return contracts.randomise(layer)


@pytest.mark.backend
def test_stride_two_pads_all_sides_alike():
    layer = ConvNormAct(1, 3, 2, kernel_initializer="ones")
    found = contracts.to_numpy(layer(np.ones((1, 4, 4, 1), "float32")))
    # Keras's "same" would begin with a full window: [[9, 6], [6, 4]].
    np.testing.assert_array_equal(found[0, ..., 0], [[4, 6], [6, 9]])


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


def test_gamma_and_beta_of_a_folded_norm_are_trained():
    layer = filled("frozen_batch_norm")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.GradientTape")
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUT) ** 2)
    found = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert len(found) == 3
    assert all(np.any(contracts.to_numpy(g) != 0) for g in found)


@pytest.mark.backend
def test_maps_smaller_than_the_kernel_are_padded_too():
    layer = ConvNormAct(1, 3, kernel_initializer="ones")
    found = contracts.to_numpy(layer(np.ones((1, 1, 2, 1), "float32")))
    np.testing.assert_array_equal(found[0, ..., 0], [[2, 2]])


@pytest.mark.backend
def test_padding_by_hand():
    padded = contracts.to_numpy(pad_symmetric(np.ones((1, 1, 2, 3), "float32"), 2))
    assert padded.shape == (1, 5, 6, 3)
    assert padded.sum() == padded[0, 2, 2:4].sum() == 6


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="kernel_size=2"):
        ConvNormAct(4, 2)
    with pytest.raises(ValueError, match="norm=layer_norm"):
        ConvNormAct(4, 3, norm="layer_norm")


def test_its_config_is_complete():
    arguments = {
        "filters": 32,
        "kernel_size": (3, 5),
        "strides": (2, 1),
        "norm": "group_norm",
        "activation": keras.activations.relu,
        "use_bias": True,
        "groups": 4,
        "deformable": True,
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.3),
        "bias_initializer": keras.initializers.Constant(0.2),
        "offset_initializer": keras.initializers.RandomNormal(stddev=0.4),
        "dilation_rate": 1,
        "padding": "valid",
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "bias_regularizer": keras.regularizers.L1(0.2),
        "kernel_constraint": keras.constraints.MaxNorm(3),
        "bias_constraint": keras.constraints.NonNeg(),
        "data_format": "channels_last",
    }
    # Keras's convolution cannot have both at once.
    dilated = {**arguments, "strides": 1, "dilation_rate": (1, 2)}
    contracts.check_config(
        ConvNormAct,
        arguments,
        dilated,
        base={"name": "other", "dtype": "mixed_bfloat16"},
    )


@pytest.mark.parametrize("norm", NORMS)
def test_it_computes_in_half_precision(norm):
    contracts.check_half_precision(
        lambda policy: ConvNormAct(32, 3, norm=norm, dtype=policy), INPUT
    )


@pytest.mark.parametrize("norm", NORMS)
def test_it_runs_in_a_graph_of_unknown_sizes(norm):
    contracts.check_graph(filled(norm, strides=2), INPUT)
    contracts.check_shape(filled(norm, strides=2), INPUT)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_saved_and_loaded(tmp_path, norm):
    layer = ConvNormAct(32, 3, 2, norm=norm, activation="relu")
    contracts.check_save_load(layer, INPUT, directory=tmp_path)
