import keras
import pytest

from tests.conftest import tiny_model
from vfnet_tf.backbones.stages import stage_ends


def name_of(tensor):
    return tensor._keras_history.operation.name


def names_of(model):
    return {stride: name_of(tensor) for stride, tensor in stage_ends(model).items()}


def conv(filters, stride=1, name=None):
    return keras.layers.Conv2D(filters, 3, stride, "same", name=name)


def stem():
    inputs = keras.Input((None, None, 3))
    return inputs, conv(4, 4, "stem")(inputs)


@pytest.mark.backend
def test_the_end_is_the_last_map_that_everything_later_needs():
    inputs, x = stem()
    x = conv(4, 2, "down8")(x)
    side = conv(4, name="branch")(x)
    x = keras.layers.Add(name="sum8")([x, side])
    # The shortcut bypasses what is computed at stride 8 in this block.
    inner = conv(2, name="inside")(x)
    inner = conv(4, 2, "down16")(inner)
    shortcut = conv(4, 2, "shortcut")(x)
    x = keras.layers.Add(name="sum16")([inner, shortcut])
    x = conv(4, name="expansion16")(x)
    x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="padded")(x)
    x = keras.layers.Conv2D(4, 3, 2, name="down32")(x)
    model = keras.Model(inputs, x)
    assert names_of(model) == {
        4: "stem",
        8: "sum8",
        16: "expansion16",
        32: "down32",
    }


def test_a_sum_by_an_operator_is_an_end_too():
    inputs, x = stem()
    x = conv(4, 2)(x)
    x = x + conv(4)(x)
    x = conv(4, 2, "down16")(x)
    x = conv(4, 2, "down32")(x)
    ends = stage_ends(keras.Model(inputs, x))
    operation = ends[8]._keras_history.operation
    assert not isinstance(operation, keras.Layer)
    assert type(operation).__name__ == "Add"


def test_weights_for_channels_from_a_mean_bypass_nothing():
    inputs, x = stem()
    x = conv(4, 2, "down8")(x)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Multiply(name="gated8")([x, conv(4)(gate)])
    x = conv(4, 2, "down16")(x)
    model = keras.Model(inputs, conv(4, 2, "down32")(x))
    assert names_of(model)[8] == "gated8"


def test_strides_of_a_pyramid_are_measured_whatever_its_names_are():
    model = tiny_model()
    model.pyramid_outputs = {
        f"P{number}": model.get_layer(name).output
        for number, name in ((1, "c3"), (2, "c4"), (3, "c5"))
    }
    assert names_of(model) == {8: "c3", 16: "c4", 32: "c5"}


def test_of_two_levels_with_one_stride_the_later_counts():
    model = tiny_model()
    model.pyramid_outputs = {
        f"P{number}": model.get_layer(name).output
        for number, name in ((3, "c3"), (4, "c4"), (5, "c4_bn"), (6, "c5"))
    }
    assert names_of(model) == {8: "c3", 16: "c4_bn", 32: "c5"}


def test_a_model_of_one_size_is_measured_at_that_size():
    inputs = keras.Input((96, 64, 3))
    model = keras.Model(inputs, tiny_model()(inputs))
    assert set(stage_ends(model)) == {32}


def test_maps_whose_sizes_do_not_halve_are_no_ends():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, 2, name="unpadded")(inputs)
    for _ in range(4):
        x = keras.layers.Conv2D(4, 3, 2)(x)
    assert stage_ends(keras.Model(inputs, x)) == {}


@pytest.mark.parametrize(
    "inputs",
    [keras.Input((None,)), [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]],
    ids=["text", "two"],
)
def test_other_inputs_than_one_batch_of_images_are_refused(inputs):
    outputs = inputs if not isinstance(inputs, list) else inputs[0]
    model = keras.Model(inputs, keras.layers.Activation("relu")(outputs), name="odd")
    with pytest.raises(ValueError, match=r"one batch of images.*of odd"):
        stage_ends(model)
