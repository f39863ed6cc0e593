import keras
import numpy as np
import pytest

from tests.conftest import tiny_model
from tests.contracts import assert_close_to_max, evaluate, randomise, to_numpy
from vfnet_tf.backbones import KerasBackbone

LAYERS = ("c3", "c4_bn", "c5")
IMAGE = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")


def maps_of(model, layers):
    outputs = [model.get_layer(name).output for name in layers]
    return to_numpy(keras.Model(model.inputs, outputs)([IMAGE], training=False))


@pytest.mark.backend
def test_it_gives_the_maps_of_the_named_layers():
    model = randomise(tiny_model())
    backbone = KerasBackbone(model, LAYERS)
    found = evaluate(backbone, IMAGE)
    for level, expected in zip(("C3", "C4", "C5"), maps_of(model, LAYERS), strict=True):
        assert_close_to_max(found[level], expected, 1e-5)
    assert {name: value.shape[1:3] for name, value in found.items()} == {
        "C3": (8, 12),
        "C4": (4, 6),
        "C5": (2, 3),
    }


@pytest.mark.parametrize("has_pyramid", [True, False])
def test_a_model_whose_stages_can_be_found_needs_no_names(has_pyramid):
    model = randomise(tiny_model())
    if has_pyramid:
        model.pyramid_outputs = {
            level: model.get_layer(name).output
            for level, name in zip(("P3", "P4", "P5"), LAYERS, strict=True)
        }
    backbone = KerasBackbone(model)
    found = to_numpy(backbone(IMAGE))
    for level, expected in zip(("C3", "C4", "C5"), maps_of(model, LAYERS), strict=True):
        assert_close_to_max(found[level], expected, 1e-5)
    assert list(backbone.pyramid_outputs) == ["P3", "P4", "P5"]


def conv_norm_model(use_bias=True, activation=None, scale=True, branches=False):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(
        8, 8, 8, "same", use_bias=use_bias, activation=activation, name="c3"
    )(inputs)
    y = keras.layers.BatchNormalization(scale=scale, epsilon=0.01, name="n3")(x)
    if branches:
        y = keras.layers.Add(name="sum")([x, y])
    y4 = keras.layers.Conv2D(8, 3, 2, "same", name="c4")(y)
    y5 = keras.layers.Conv2D(8, 3, 2, "same", name="c5")(y4)
    return keras.Model(inputs, [y, y4, y5])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_bias": False},
        {"activation": "relu"},
        {"scale": False},
        {"branches": True},
    ],
    ids=str,
)
def test_frozen_norms_are_folded_without_changing_a_map(settings):
    model = randomise(conv_norm_model(**settings))
    last = "sum" if settings.get("branches") else "n3"
    backbone = KerasBackbone(model, (last, "c4", "c5"))
    expected = maps_of(model, (last, "c4", "c5"))
    for found, value in zip(
        to_numpy(backbone(IMAGE, training=True)).values(), expected, strict=True
    ):
        assert_close_to_max(found, value, 1e-5)


def test_the_original_model_stays_as_it_was():
    model = randomise(tiny_model())
    before = model.get_weights()
    backbone = KerasBackbone(model, LAYERS, frozen_until="c3")
    for variable in backbone.variables:
        variable.assign(np.zeros(variable.shape))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(layer.trainable for layer in model.layers)


def test_layers_up_to_the_named_one_are_frozen():
    backbone = KerasBackbone(tiny_model(), LAYERS, frozen_until="c3")
    assert not backbone.get_layer("c3").trainable
    assert {v.path.split("/")[0] for v in backbone.trainable_variables} == {
        "c4",
        "c4_bn",
        "c5",
    }


def test_norms_with_the_prefix_learn_from_the_batch():
    for prefix, moves in ((None, False), ("c4", True), ("", True), ("c5", False)):
        backbone = KerasBackbone(tiny_model(), LAYERS, trainable_norms=prefix)
        norm = backbone.get_layer("c4_bn")
        backbone(IMAGE, training=True)
        assert np.any(to_numpy(norm.moving_mean)) == moves
        assert isinstance(norm, keras.layers.BatchNormalization) == moves


def test_models_that_give_no_pyramid_are_refused():
    model = tiny_model()
    model.pyramid_outputs = {"P3": model.get_layer("c3").output}
    with pytest.raises(ValueError, match=r"model=tiny with maps of the strides \[8\]"):
        KerasBackbone(model)
    with pytest.raises(ValueError, match="three, for C3, C4 and C5"):
        KerasBackbone(tiny_model(), ("c3", "c5"))
    with pytest.raises(ValueError, match="frozen_until=nowhere"):
        KerasBackbone(tiny_model(), LAYERS, frozen_until="nowhere")


def test_its_config_is_complete():
    backbone = KerasBackbone(
        tiny_model(), LAYERS, frozen_until="c3", trainable_norms="c4", name="other"
    )
    copy = KerasBackbone.from_config(backbone.get_config())
    assert copy.layer_names == LAYERS
    assert (copy.frozen_until, copy.trainable_norms) == ("c3", "c4")
    assert copy.name == "other"
    assert len(copy.trainable_variables) == len(backbone.trainable_variables)


def test_norms_within_a_layer_keep_all_that_they_have():
    inputs = keras.Input((None, None, 3))
    layers = [keras.layers.Conv2D(8, 8, 8), keras.layers.BatchNormalization()]
    x = keras.Sequential(layers, name="c3")(inputs)
    x = keras.layers.Conv2D(8, 2, 2, name="c4")(x)
    x = keras.layers.Conv2D(8, 2, 2, name="c5")(x)
    model = keras.Model(inputs, x)
    for norms, count in ((None, 2), ("", 4)):
        backbone = KerasBackbone(model, trainable_norms=norms)
        backbone(IMAGE + 1.0, training=True)
        nested = backbone.get_layer("c3")
        assert len(nested.trainable_variables) == count
        moved = np.any(to_numpy(nested.layers[-1].moving_mean))
        assert moved == (norms == "")


@pytest.mark.backend
def test_layers_that_scale_pixels_take_the_stored_scale_along():
    inputs = keras.Input((None, None, 3))
    scaling = keras.layers.Normalization(name="scaling")
    x = scaling(inputs)
    x = keras.layers.Conv2D(4, 8, 8, name="c3")(x)
    x = keras.layers.Conv2D(4, 2, 2, name="c4")(x)
    x = keras.layers.Conv2D(4, 2, 2, name="c5")(x)
    model = keras.Model(inputs, x)
    scaling.set_weights([np.float32([1, 2, 3]), np.float32([4, 9, 16]), np.int32(0)])
    scaling.finalize_state()
    backbone = KerasBackbone(model)
    expected = maps_of(model, ("c3", "c4", "c5"))
    for found, value in zip(evaluate(backbone, IMAGE).values(), expected, strict=True):
        assert_close_to_max(found, value, 1e-5)


def test_a_norm_that_became_part_of_its_convolution_still_ends_what_is_frozen():
    backbone = KerasBackbone(conv_norm_model(), ("n3", "c4", "c5"), frozen_until="n3")
    assert not backbone.get_layer("c3").trainable_variables
    assert backbone.get_layer("c4").trainable_variables
