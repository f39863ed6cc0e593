import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import DeformableConv2D
from vfnet_tf.ops.deform_conv import deform_conv

INPUT = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype("float32")


def filled(**settings):
    layer = DeformableConv2D(6, **settings)
    layer.build(INPUT.shape)
    return contracts.randomise(layer)


@pytest.mark.backend
@pytest.mark.parametrize("modulated", [False, True])
def test_a_new_layer_is_a_plain_convolution(modulated):
    layer = DeformableConv2D(6, strides=2, modulated=modulated)
    found = contracts.to_numpy(layer(INPUT))
    padded = np.pad(INPUT, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = keras.ops.convert_to_tensor(layer.kernel)
    expected = contracts.to_numpy(keras.ops.conv(padded, kernel, strides=2))
    # Masks start at sigmoid(0) = 1/2.
    contracts.assert_close_to_max(found, expected * (0.5 if modulated else 1), 1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("case", ["s1_small", "s2", "groups2", "deform_groups4"])
@pytest.mark.parametrize("modulated", [False, True])
def test_its_output_is_the_official_operators(golden, case, modulated):
    stored = golden("deform_conv")
    _, stride, _, groups, deform_groups = map(int, stored[f"{case}/meta"])
    kernel = np.transpose(stored[f"{case}/weight"], (2, 3, 1, 0))
    features = np.transpose(stored[f"{case}/input"], (0, 2, 3, 1))
    offset = np.transpose(stored[f"{case}/offset"], (0, 2, 3, 1))
    mask = np.transpose(stored[f"{case}/mask"], (0, 2, 3, 1))
    layer = DeformableConv2D(
        kernel.shape[-1],
        strides=stride,
        groups=groups,
        deform_groups=deform_groups,
        modulated=modulated,
    )
    layer.build(features.shape)
    layer.kernel.assign(kernel)
    # Offsets first, then the masks' logits: sigmoid gives the stored masks back.
    logits = np.log(mask) - np.log1p(-mask)
    predicted = np.concatenate([offset, logits], -1) if modulated else offset
    layer.conv_offset.call = lambda inputs: keras.ops.convert_to_tensor(predicted)
    variant = "v2" if modulated else "v1"
    expected = np.transpose(stored[f"{case}/{variant}/output"], (0, 2, 3, 1))
    contracts.assert_close_to_max(contracts.to_numpy(layer(features)), expected, 2e-5)


@pytest.mark.backend
def test_offsets_and_masks_come_from_one_convolution():
    layer = filled()
    kernel = keras.ops.convert_to_tensor(layer.conv_offset.kernel)
    bias = keras.ops.convert_to_tensor(layer.conv_offset.bias)
    predicted = keras.ops.conv(INPUT, kernel, padding="same") + bias
    assert predicted.shape[-1] == 27
    expected = deform_conv(
        INPUT,
        predicted[..., :18],
        keras.ops.convert_to_tensor(layer.kernel),
        keras.ops.sigmoid(predicted[..., 18:]),
    )
    contracts.assert_close_to_max(
        contracts.to_numpy(layer(INPUT)), contracts.to_numpy(expected), 1e-4
    )


@contracts.on_tensorflow
def test_a_new_layer_learns_to_move_its_taps():
    import tensorflow as tf

    layer = DeformableConv2D(6)
    layer.build(INPUT.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUT) ** 2)
    found = tape.gradient(loss, [v.value for v in layer.conv_offset.variables])
    assert np.any(contracts.to_numpy(found[0])[..., :18] != 0)
    assert np.any(contracts.to_numpy(found[0])[..., 18:] != 0)
