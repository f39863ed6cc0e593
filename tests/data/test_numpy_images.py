import numpy as np
import pytest
import tensorflow as tf

from tests import tiny_run
from vfnet_tf.config import Config, DataConfig
from vfnet_tf.data import numpy_images, transforms
from vfnet_tf.data.normalization import CAFFE_BGR, TORCHVISION
from vfnet_tf.inference.predictor import Predictor


@pytest.mark.parametrize(
    "size, new_size",
    [
        ((3, 2), (6, 8)),
        ((97, 131), (64, 160)),
        ((240, 320), (75, 31)),
        ((5, 4), (5, 4)),
    ],
)
def test_resized_pixels_are_those_of_tensorflow(size, new_size):
    pixels = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype="uint8")
    transform = transforms.resize_exact(*new_size)
    example = {"image": tf.constant(pixels), "boxes": tf.zeros((0, 4))}
    expected = transform(example)["image"].numpy()
    found = numpy_images.resize(pixels, *new_size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_mean_of_neighbours_is_rounded_to_even():
    row = np.array([[[0], [1], [4]]], "uint8")
    # Places -0.25, 0.25, 0.75, 1.25, 1.75, 2.25 of the row.
    found = numpy_images.resize(row, 1, 6)[0, :, 0]
    # 0, 0.25, 0.75, 1.75, 3.25, 4
    assert found.tolist() == [0, 0, 1, 2, 3, 4]
    halves = numpy_images.resize(np.array([[[0], [1]], [[2], [3]]], "uint8"), 1, 1)
    assert halves.tolist() == [[[2]]]  # of 1.5
    halves = numpy_images.resize(np.array([[[1]], [[0]]], "uint8"), 1, 1)
    assert halves.tolist() == [[[0]]]  # of 0.5


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("normalization", [TORCHVISION, CAFFE_BGR])
def test_network_inputs_are_those_of_the_predictor(keep_ratio, normalization):
    data = DataConfig(
        image_size=(70, 150), keep_ratio=keep_ratio, normalization=normalization
    )
    predictor = Predictor(tiny_run.PlainDetector(), Config(data=data))
    for height, width in ((120, 150), (200, 90), (33, 64)):
        pixels = tiny_run.picture(height, height, width)
        expected = predictor.prepare(pixels)
        found = numpy_images.prepare(pixels, (70, 150), keep_ratio, normalization)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
