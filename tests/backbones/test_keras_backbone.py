import types

import keras
import numpy as np
import pytest

from tests.conftest import tiny_model
from tests.contracts import assert_close_to_max, evaluate, randomise, to_numpy
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.backbones.keras_backbone import APPLICATION_LAYERS

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


def test_an_object_with_pyramid_outputs_needs_no_names():
    model = randomise(tiny_model())
    model.pyramid_outputs = {
        level: model.get_layer(name).output
        for level, name in zip(("P3", "P4", "P5"), LAYERS, strict=True)
    }
    backbone = KerasBackbone(model)
    found = to_numpy(backbone(IMAGE))
    for level, expected in zip(("C3", "C4", "C5"), maps_of(model, LAYERS), strict=True):
        assert_close_to_max(found[level], expected, 1e-5)
    assert list(backbone.pyramid_outputs) == ["P3", "P4", "P5"]


@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121", "MobileNetV2"])
def test_models_of_keras_applications_plug_in_by_name(name):
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    backbone = KerasBackbone(model, APPLICATION_LAYERS[name])
    spec = backbone(keras.KerasTensor((1, 64, 96, 3)))
    sizes = [tuple(spec[level].shape[1:3]) for level in ("C3", "C4", "C5")]
    assert sizes == [(8, 12), (4, 6), (2, 3)]
    assert not any("moving" in v.name for v in backbone.trainable_variables)


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
    with pytest.raises(ValueError, match="pyramid_outputs.*model=tiny"):
        KerasBackbone(tiny_model())
    model = tiny_model()
    model.pyramid_outputs = {"P3": model.output}
    with pytest.raises(ValueError, match="P3, P4 and P5"):
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


def test_a_saved_model_gives_the_same_bits(tmp_path):
    backbone = randomise(KerasBackbone(tiny_model(), LAYERS))
    backbone.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for level, value in to_numpy(backbone(IMAGE)).items():
        np.testing.assert_array_equal(to_numpy(loaded(IMAGE))[level], value)


def test_a_model_without_the_attribute_but_with_a_namesake_is_no_backbone():
    impostor = types.SimpleNamespace(name="impostor", inputs=[])
    with pytest.raises(ValueError, match="model=impostor"):
        KerasBackbone(impostor)
