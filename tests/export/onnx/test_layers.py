import keras
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from vfnet_tf.backbones.res2net import _SymmetricAveragePool
from vfnet_tf.export.onnx.graph import Graph
from vfnet_tf.export.onnx.layers import CONVERTERS, convert
from vfnet_tf.inference.onnx import open_session
from vfnet_tf.layers import ConvNormAct, DeformableConv2D, StarDeformableConv2D


def run_layer(layer, *inputs):
    """The output of ONNX Runtime for `[B, H, W, C]` arrays, in the same layout."""
    graph = Graph()
    maps = []
    for number, value in enumerate(inputs):
        shape = ("batch", f"height{number}", f"width{number}", value.shape[-1])
        name = graph.input(f"x{number}", "float32", shape)
        maps.append(graph.node("Transpose", name, perm=[0, 3, 1, 2]))
    (output,) = convert(graph, layer, maps)
    output = graph.node("Transpose", output, perm=[0, 2, 3, 1])
    graph.output(output, "y", "float32", ("batch", "h", "w", "filters"))
    session = open_session(graph.model("one").SerializeToString())
    (found,) = session.run(["y"], {f"x{n}": value for n, value in enumerate(inputs)})
    return found


def random_map(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def check(layer, *inputs):
    layer(*inputs)  # builds it
    rng = np.random.default_rng(5)
    for weight in layer.weights:
        values = rng.uniform(0.5, 1.5, weight.shape)
        if "conv_offset" in weight.path:
            # Some taps leave the map.
            values = rng.normal(0, 1.0, weight.shape)
        weight.assign(values.astype("float32"))
    expected = keras.ops.convert_to_numpy(layer(*inputs))
    found = run_layer(layer, *inputs)
    assert found.shape == expected.shape
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance)


LAYERS = keras.layers
CASES = {
    "same, stride 2": lambda: LAYERS.Conv2D(5, 3, 2, "same"),
    "same, stride 3": lambda: LAYERS.Conv2D(5, 4, 3, "same", activation="silu"),
    "valid, dilated": lambda: LAYERS.Conv2D(5, 3, dilation_rate=2, activation="tanh"),
    "depthwise": lambda: LAYERS.DepthwiseConv2D(3, 2, "same", depth_multiplier=2),
    "mean, same": lambda: LAYERS.AveragePooling2D(2, 2, "same"),
    "mean of 3, same": lambda: LAYERS.AveragePooling2D(3, 2, "same"),
    "mean with zeros": lambda: _SymmetricAveragePool(),
    "maximum, valid": lambda: LAYERS.MaxPooling2D(3, 2, "valid"),
    "maximum, same": lambda: LAYERS.MaxPooling2D(3, 2, "same"),
    "zeros": lambda: LAYERS.ZeroPadding2D(((1, 2), (0, 3))),
    "relu6": lambda: LAYERS.ReLU(6.0),
    "sigmoid": lambda: LAYERS.Activation("sigmoid"),
    "batch norm": lambda: LAYERS.BatchNormalization(scale=False),
    "deformable": lambda: DeformableConv2D(6, use_bias=True),
    "deformable, version 1": lambda: DeformableConv2D(6, modulated=False),
    "deformable, in groups": lambda: DeformableConv2D(
        6, 5, 2, groups=2, deform_groups=2
    ),
    "deformable, pairs": lambda: DeformableConv2D(6, (3, 5), (2, 1), activation="relu"),
    "deformable, valid": lambda: DeformableConv2D(
        6, (3, 2), dilation_rate=(1, 2), padding="valid"
    ),
    "pairs": lambda: ConvNormAct(6, (3, 1), (1, 2), "frozen_batch_norm"),
    "same, pairs": lambda: ConvNormAct(6, (4, 3), (3, 2), padding="same"),
    "valid, pairs": lambda: ConvNormAct(
        6, (2, 3), dilation_rate=(2, 1), padding="valid"
    ),
    "deformable, dilated": lambda: DeformableConv2D(
        6, dilation_rate=2, modulated=False, deform_groups=2
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 12), (9, 7), (1, 5)])
def test_a_layer_gives_keras_numbers_at_even_and_odd_sizes(case, size):
    if "valid" in case and min(size) < 5:
        pytest.skip("no cell is left of so small a map")
    check(CASES[case](), random_map(2, *size, 4))


def test_a_star_that_leaves_its_map_samples_zeros():
    features = random_map(2, 4, 5, 3)
    distances = np.abs(random_map(2, 4, 5, 4, seed=1)) * 3
    # exp of a large number; far beyond what an index can hold.
    distances[0, 1, 2] = [1e30, 0, np.inf, 0.5]
    check(StarDeformableConv2D(6), features, distances)


def test_each_layer_with_a_converter_is_of_one_class_only():
    class Halved(keras.layers.Conv2D):
        def call(self, inputs):
            return super().call(inputs) / 2

    with pytest.raises(ValueError, match="of the class Halved"):
        run_layer(Halved(3, 3), random_map(1, 8, 8, 2))
    assert keras.layers.Conv2D in CONVERTERS


@pytest.mark.parametrize(
    "layer, rule",
    [
        (LAYERS.Activation("gelu"), "Received: activation=gelu"),
        (LAYERS.ReLU(negative_slope=0.1), "negative_slope=0.1"),
        (LAYERS.Concatenate(axis=1), "axis=1 of concat"),
        (LAYERS.MaxPooling2D(data_format="channels_first"), "channels_first of max"),
        (DeformableConv2D(3, padding="same", name="dcn"), "'same' of dcn"),
    ],
)
def test_an_argument_that_would_change_the_numbers_is_refused(layer, rule):
    with pytest.raises(ValueError, match=rule):
        inputs = random_map(1, 8, 8, 2)
        if isinstance(layer, DeformableConv2D):
            layer.build(inputs.shape)
        run_layer(layer, inputs)
