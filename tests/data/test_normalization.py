import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from vfnet_tf.data.normalization import (
    CAFFE_BGR,
    MINUS_ONE_TO_ONE,
    RGB_255_TORCH,
    TORCHVISION,
    Normalization,
)


def test_mean_and_std_by_hand():
    normalization = Normalization((10, 20, 30), (1, 2, 5))
    out = normalization(np.array([[[12, 24, 20]]], "uint8"))
    np.testing.assert_array_equal(out, [[[2.0, 2.0, -2.0]]])
    assert out.dtype == np.float32


def test_bgr_reverses_before_it_subtracts():
    normalization = Normalization((1, 2, 3), (1, 1, 1), "bgr")
    np.testing.assert_array_equal(normalization([10, 20, 30]), [29.0, 18.0, 7.0])


@pytest.mark.parametrize("normalization", [TORCHVISION, CAFFE_BGR])
def test_tensors_and_arrays_give_the_same(normalization):
    image = np.arange(24, dtype="uint8").reshape(2, 4, 3) * 10
    out = normalization(tf.constant(image))
    assert isinstance(out, tf.Tensor) and out.dtype == tf.float32
    np.testing.assert_allclose(out, normalization(image), rtol=1e-6)
    graph_out = tf.function(normalization)(tf.constant(image))
    np.testing.assert_allclose(graph_out, normalization(image), rtol=1e-6)


@pytest.mark.parametrize("shape", [[3], [4, 3], [2, 4, 3], [2, 2, 4, 3], None])
def test_the_size_of_an_image_need_not_be_known(shape):
    image = np.random.default_rng(0).integers(0, 256, shape or (2, 5, 3), "uint8")
    unknown = shape and [None] * (len(shape) - 1) + [3]
    spec = tf.TensorSpec(unknown, tf.uint8)
    graph = tf.function(TORCHVISION.__call__, input_signature=[spec])
    np.testing.assert_allclose(graph(image), TORCHVISION(image), rtol=1e-6)
    (out,) = graph.get_concrete_function().outputs
    assert out.shape.as_list() == unknown if unknown else out.shape.rank is None


def test_the_torch_statistics_are_the_same_in_both_scales():
    np.testing.assert_allclose(RGB_255_TORCH.mean, TORCHVISION.mean, rtol=1e-12)
    np.testing.assert_allclose(RGB_255_TORCH.std, TORCHVISION.std, rtol=1e-12)


def test_a_dict_round_trip_keeps_everything():
    normalization = Normalization([1, 2, 3], [4, 5, 6], "bgr")
    restored = Normalization.from_dict(normalization.to_dict())
    assert restored == normalization
    assert restored.mean == (1.0, 2.0, 3.0) and restored.channel_order == "bgr"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mean": (1, 2)}, "`mean` must be three"),
        ({"mean": (1, 2, float("nan"))}, "`mean` must be three finite"),
        ({"std": (1, 0, 1)}, "`std` must be > 0"),
        ({"channel_order": "RGB"}, "'rgb' or 'bgr'. Received: channel_order='RGB'"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Normalization(**arguments)


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="keys must be"):
        Normalization.from_dict({**TORCHVISION.to_dict(), "scale": 1})


def test_the_readers_do_not_import_tensorflow():
    code = (
        "import sys; from vfnet_tf.data import coco, example, normalization, synthetic;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("normalization", [TORCHVISION, CAFFE_BGR, MINUS_ONE_TO_ONE])
def test_the_inverse_gives_the_pixels_back(normalization):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype("uint8")
    found = normalization.inverse(normalization(pixels))
    np.testing.assert_array_equal(np.round(found), pixels)
