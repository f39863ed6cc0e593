import keras
import numpy as np
import pytest

from tests.contracts import to_numpy
from vfnet_tf.ops.convolution import conv2d

ONES = np.ones((1, 4, 4, 1), "float32")
ONES_KERNEL = np.ones((3, 3, 1, 1), "float32")


@pytest.mark.backend
def test_padding_at_stride_two_is_the_same_on_all_sides():
    # The first window hangs over the top and left by one cell: 2 x 2 cells are left.
    # "same" of Keras would hang over the bottom and right instead.
    found = to_numpy(conv2d(ONES, ONES_KERNEL, strides=2))[0, ..., 0]
    np.testing.assert_array_equal(found, [[4, 6], [6, 9]])


@pytest.mark.backend
def test_bias_and_explicit_padding_by_hand():
    found = to_numpy(conv2d(ONES, ONES_KERNEL, np.array([0.5], "float32"), padding=0))
    np.testing.assert_array_equal(found[0, ..., 0], [[9.5, 9.5], [9.5, 9.5]])


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_tensorflows_kernel_and_the_portable_one_agree(monkeypatch, size, strides):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 9, 12, 5)).astype("float32")
    kernel = rng.normal(size=(size, size, 5, 4)).astype("float32")
    bias = rng.normal(size=4).astype("float32")
    fused = to_numpy(conv2d(inputs, kernel, bias, strides))
    assert fused.shape == (2, -(-9 // strides), -(-12 // strides), 4)
    monkeypatch.setattr(keras.backend, "backend", lambda: "portable")
    portable = to_numpy(conv2d(inputs, kernel, bias, strides))
    np.testing.assert_allclose(fused, portable, atol=1e-4)
