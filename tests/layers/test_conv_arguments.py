"""Convolution layers take the arguments of `keras.layers.Conv2D`, or refuse them."""

import keras
import numpy as np
import pytest

from tests import contracts
from vfnet_tf.layers import (
    ConvNormAct,
    DeformableConv2D,
    FoldedConv2D,
    FrozenBatchNorm,
    GroupNorm,
    StarDeformableConv2D,
)

INPUT = np.random.default_rng(0).normal(size=(2, 9, 12, 4)).astype("float32")


def plain(**settings):
    return ConvNormAct(6, **settings)


def deformable(**settings):
    """With offsets of zero: a plain convolution."""
    return DeformableConv2D(6, modulated=False, use_bias=True, **settings)


KINDS = pytest.mark.parametrize("make", [plain, deformable])
#: Arguments that Keras takes, too; our "symmetric" is its "same" at stride 1.
LIKE_KERAS = [
    {"kernel_size": (3, 3)},
    {"kernel_size": [3, 5]},
    {"kernel_size": 3, "strides": (1, 1), "dilation_rate": (1, 1)},
    {"kernel_size": 3, "dilation_rate": 2},
    {"kernel_size": (5, 3), "dilation_rate": (1, 3)},
    {"kernel_size": 3, "strides": (2, 2), "padding": "same"},
    {"kernel_size": (3, 5), "strides": (2, 3), "padding": "SAME"},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": (4, 1), "strides": (3, 1), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": (2, 4), "strides": (1, 2), "padding": "Valid"},
    {"kernel_size": 3, "padding": "valid", "dilation_rate": (2, 1)},
    {"kernel_size": 3, "groups": 2, "activation": "relu"},
    {"kernel_size": 3, "data_format": "channels_last"},
]


@pytest.mark.backend
@KINDS
@pytest.mark.parametrize("settings", LIKE_KERAS, ids=str)
def test_it_computes_what_keras_computes(make, settings):
    layer = make(**settings)
    keras_layer = keras.layers.Conv2D(6, **{"padding": "same", **settings})
    layer.build(INPUT.shape)
    keras_layer.build(INPUT.shape)
    own = layer.conv if make is plain else layer
    bias = np.arange(6, dtype="float32")
    own.bias.assign(bias)
    keras_layer.set_weights([contracts.to_numpy(own.kernel), bias])
    expected = contracts.to_numpy(keras_layer(INPUT))
    found = contracts.to_numpy(layer(INPUT))
    contracts.assert_close_to_max(found, expected, 1e-5)
    assert layer.compute_output_shape(INPUT.shape) == expected.shape
    open_shape = (None, None, None, 4)
    assert layer.compute_output_shape(open_shape) == (None, None, None, 6)
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


@contracts.on_tensorflow
@KINDS
@pytest.mark.parametrize("settings", LIKE_KERAS[5:11], ids=str)
def test_a_graph_of_open_sizes_pads_alike(make, settings):
    layer = make(**settings)
    layer.build(INPUT.shape)
    contracts.check_graph(contracts.randomise(layer), INPUT)


@pytest.mark.backend
@KINDS
def test_symmetric_padding_at_unequal_strides_by_hand(make):
    layer = make(kernel_size=(3, 1), strides=(2, 1), kernel_initializer="ones")
    found = contracts.to_numpy(layer(np.ones((1, 4, 2, 4), "float32")))
    # Rows -1..1 and 1..3; four channels.
    np.testing.assert_allclose(found[0, ..., 0], [[8, 8], [12, 12]], rtol=1e-6)


@pytest.mark.backend
@KINDS
def test_maps_smaller_than_the_kernel_are_padded_too(make):
    layer = make(kernel_size=3, kernel_initializer="ones")
    found = contracts.to_numpy(layer(np.ones((1, 1, 2, 4), "float32")))
    np.testing.assert_allclose(found[0, ..., 0], [[8, 8]], rtol=1e-6)


@pytest.mark.backend
@KINDS
def test_regularisers_and_constraints_are_those_of_the_weights(make):
    layer = make(
        kernel_size=1,
        kernel_initializer="ones",
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer="l1",
        activity_regularizer=keras.regularizers.L1(1e-3),
        kernel_constraint=keras.constraints.MaxNorm(1.0, axis=[0, 1, 2]),
        bias_constraint="non_neg",
    )
    output = contracts.to_numpy(layer(INPUT))
    losses = sorted(float(contracts.to_numpy(loss)) for loss in layer.losses)
    expected = sorted([0.5 * 24, 0.01 * 6, 1e-3 * np.abs(output).sum() / 2])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    own = layer.conv if make is plain else layer
    constrained = contracts.to_numpy(own.kernel.constraint(own.kernel))
    np.testing.assert_allclose(constrained, 0.5, rtol=1e-5)
    assert isinstance(own.bias.constraint, keras.constraints.NonNeg)


#: Arguments and what the message names.
REFUSED = [
    ({"kernel_size": 2}, "kernel_size=2"),
    ({"kernel_size": (3, 4)}, r"kernel_size=\(3, 4\)"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\)"),
    ({"kernel_size": 0}, "kernel_size=0"),
    ({"kernel_size": 3.0}, "kernel_size=3.0"),
    ({"kernel_size": "3"}, "kernel_size='3'"),
    ({"kernel_size": None}, "kernel_size=None"),
    ({"strides": (2, 0)}, r"strides=\(2, 0\)"),
    ({"strides": -1}, "strides=-1"),
    ({"dilation_rate": (1, -1)}, r"dilation_rate=\(1, -1\)"),
    ({"strides": 2, "dilation_rate": 2}, "dilation_rate"),
    ({"padding": "causal"}, "padding='causal'"),
    ({"padding": 1}, "padding=1"),
    ({"data_format": "channels_first"}, "data_format='channels_first'"),
    ({"groups": 0}, "groups=0"),
    ({"groups": 4}, "groups=4"),
    ({"activation": "nonsense"}, "nonsense"),
    ({"lora_rank": 2}, "lora_rank"),
    ({"filters": 0}, "filters=0"),
]


@KINDS
@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(make, settings, message):
    cls = type(make(kernel_size=3))
    with pytest.raises(ValueError, match=message):
        cls(**{"filters": 6, "kernel_size": 3, **settings})


@pytest.mark.backend
@KINDS
def test_a_map_smaller_than_a_kernel_without_padding_is_refused(make):
    layer = make(kernel_size=(3, 5), padding="valid")
    with pytest.raises(ValueError, match=r"\(2, 9, 4, 4\), kernel_size=\(3, 5\)"):
        layer.compute_output_shape((2, 9, 4, 4))


MAKERS = {
    "ConvNormAct": lambda: ConvNormAct(8, 3, norm="frozen_batch_norm"),
    "DeformableConv2D": lambda: DeformableConv2D(8),
    "StarDeformableConv2D": lambda: StarDeformableConv2D(8),
    "GroupNorm": lambda: GroupNorm(2),
    "FoldedConv2D": lambda: FoldedConv2D(8, 3),
}


@pytest.mark.backend
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "shape", [(2, 6, 4), (4,), (1, 2, 6, 7, 4), (2, 6, 7, None)], ids=str
)
def test_a_wrong_rank_or_open_channels_are_named(kind, shape):
    if kind == "FoldedConv2D" and shape[-1] is None:
        pytest.skip("Keras's own layer")
    calls = [MAKERS[kind]().build]
    if kind != "StarDeformableConv2D":  # which takes two inputs
        calls.append(lambda shape: MAKERS[kind]()(keras.Input(shape[1:])))
    for call in calls:
        with pytest.raises(ValueError, match=r"\(|ndim"):
            call(shape)


@pytest.mark.backend
def test_a_frozen_norm_names_open_channels():
    with pytest.raises(ValueError, match=r"FrozenBatchNorm.*\(None, None\)"):
        FrozenBatchNorm().build((None, None))


@pytest.mark.backend
@pytest.mark.parametrize(
    "kind", [*sorted(set(MAKERS) - {"StarDeformableConv2D"}), "FrozenBatchNorm"]
)
def test_other_channels_than_built_for_are_named(kind):
    layer = MAKERS.get(kind, FrozenBatchNorm)()
    layer(INPUT)
    for shape in ((2, 6, 7, 3), (2, 6, 7, 8), (6, 7, 1)):
        with pytest.raises(ValueError, match="incompatible with the layer"):
            layer(np.zeros(shape, "float32"))


@pytest.mark.backend
def test_a_star_names_other_inputs_than_features_and_distances():
    features, distances = INPUT, np.ones((2, 9, 12, 4), "float32")
    built = StarDeformableConv2D(6)
    built(features, distances)
    with pytest.raises(ValueError, match=r"\(2, 9, 12, 3\), \(2, 9, 12, 4\)"):
        built(features[..., :3], distances)
    wrong = [
        (features,),
        ([features, distances],),
        (features, distances[..., :2]),
        (features, distances[:, :8]),
        (features, distances[:1]),
        (features, distances[0]),
        (features[0], distances[0]),
    ]
    for inputs in wrong:
        for layer in (built, StarDeformableConv2D(6)):
            with pytest.raises(ValueError, match="StarDeformableConv2D.*shape"):
                layer(*inputs)


def test_a_folded_convolution_has_no_activation_and_channels_last():
    with pytest.raises(ValueError, match="`activation` must be None"):
        FoldedConv2D(4, 3, activation="relu")
    for give in (
        lambda: FoldedConv2D(4, 3, data_format="channels_first"),
        lambda: FoldedConv2D(4, 3, 1, "same", "channels_first"),
    ):
        with pytest.raises(ValueError, match="data_format='channels_first'"):
            give()
