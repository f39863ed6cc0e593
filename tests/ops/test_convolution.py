import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import contracts
from tests.contracts import to_numpy
from vfnet_tf.ops import convolution
from vfnet_tf.ops.convolution import conv2d, merge_groups

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


def by_groups(inputs, kernel, groups, **settings):
    """A grouped convolution as one convolution for each group."""
    parts = zip(
        np.split(inputs, groups, axis=-1),
        np.split(kernel, groups, axis=-1),
        strict=True,
    )
    outputs = [to_numpy(conv2d(part, own, **settings)) for part, own in parts]
    return np.concatenate(outputs, axis=-1)


@pytest.mark.backend
@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    ("groups", "channels", "filters"), [(2, 3, 5), (32, 4, 4), (16, 2, 6), (4, 48, 8)]
)
def test_groups_are_convolved_apart(
    groups, channels, filters, strides, by_onednn, monkeypatch
):
    monkeypatch.setattr(convolution, "onednn_is_on", lambda: by_onednn)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 5, 6, groups * channels)).astype("float32")
    kernel = rng.normal(size=(3, 3, channels, groups * filters)).astype("float32")
    bias = rng.normal(size=groups * filters).astype("float32")
    found = to_numpy(conv2d(inputs, kernel, bias, strides, groups=groups))
    expected = by_groups(inputs, kernel, groups, strides=strides) + bias
    contracts.assert_close_to_max(found, expected, 1e-5)


@pytest.mark.backend
def test_gradients_of_groups_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 5, 6, 32)).astype("float32")
    kernel = rng.normal(size=(3, 3, 4, 32)).astype("float32")
    upstream = rng.normal(size=(2, 5, 6, 32)).astype("float32")
    found = contracts.gradients(
        lambda x, k: conv2d(x, k, groups=8), [inputs, kernel], upstream
    )
    alone = [
        contracts.gradients(conv2d, [x, k], u)
        for x, k, u in zip(
            *(np.split(array, 8, axis=-1) for array in (inputs, kernel, upstream)),
            strict=True,
        )
    ]
    for number in (0, 1):
        expected = np.concatenate([part[number] for part in alone], axis=-1)
        contracts.assert_close_to_max(found[number], expected, 1e-5)


@contracts.on_tensorflow
@pytest.mark.skipif(convolution.onednn_is_on(), reason="the test above is by oneDNN")
def test_gradients_of_groups_in_a_process_with_onednn():
    # Eigen has none.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
    ]
    command += [__file__, "-k", "gradients_of_groups_are or groups_are_convolved"]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert "17 passed" in answer.stdout


@contracts.on_tensorflow
@pytest.mark.parametrize("strides", [1, 2])
def test_a_wide_kernel_is_cut_and_nothing_else_changes(strides, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(convolution, "onednn_is_on", lambda: False)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 7, 8, 12)).astype("float32")
    kernel = rng.normal(size=(3, 3, 12, 256)).astype("float32")
    upstream = rng.normal(size=(2, -(-7 // strides), 8 // strides, 256))
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def whole(x, k):
        return tf.nn.conv2d(x, k, strides, "VALID")

    def cut(x, k):
        return conv2d(x, k, strides=strides)

    expected = to_numpy(whole(padded, kernel))
    contracts.assert_close_to_max(to_numpy(cut(inputs, kernel)), expected, 1e-6)
    upstream = upstream.astype("float32")
    found = contracts.gradients(cut, [inputs, kernel], upstream)
    expected = contracts.gradients(whole, [padded, kernel], upstream)
    contracts.assert_close_to_max(found[0], expected[0][:, 1:-1, 1:-1], 1e-5)
    contracts.assert_close_to_max(found[1], expected[1], 1e-5)


@contracts.on_tensorflow
@pytest.mark.parametrize(("is_on", "count"), [(True, 1), (False, 4)])
def test_only_eigen_gets_slices(monkeypatch, is_on, count):
    import tensorflow as tf

    monkeypatch.setattr(convolution, "onednn_is_on", lambda: is_on)
    specs = [tf.TensorSpec((1, 8, 8, 4)), tf.TensorSpec((3, 3, 4, 256))]
    graph = tf.function(conv2d).get_concrete_function(*specs).graph
    types = [operation.type for operation in graph.get_operations()]
    assert types.count("Conv2D") == count


@contracts.on_tensorflow
@pytest.mark.parametrize(
    ("is_on", "jit", "dtype", "count"),
    [
        (True, None, "float32", 1),
        (False, None, "float32", 2),
        (True, True, "float32", 2),  # XLA has a kernel of its own
        (True, None, "bfloat16", 2),
    ],
)
def test_only_onednn_gets_groups(monkeypatch, is_on, jit, dtype, count):
    import tensorflow as tf

    monkeypatch.setattr(convolution, "onednn_is_on", lambda: is_on)
    specs = [tf.TensorSpec((1, 8, 8, 64), dtype), tf.TensorSpec((3, 3, 8, 64), dtype)]
    function = tf.function(lambda x, k: conv2d(x, k, groups=8), jit_compile=jit)
    types = [
        op.type for op in function.get_concrete_function(*specs).graph.get_operations()
    ]
    assert types.count("Conv2D") == count


@contracts.on_tensorflow
def test_a_wide_kernel_takes_no_multiple_of_tensorflows_convolution():
    import tensorflow as tf

    inputs = tf.random.normal((1, 40, 40, 256))
    kernel = tf.random.normal((3, 3, 256, 512))

    @tf.function
    def whole(inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, 1, "SAME")

    ours, own = contracts.shortest_times([tf.function(conv2d), whole], inputs, kernel)
    # 0.8 of it by Eigen with AVX2, the same by oneDNN. Slices that are made wrongly (of
    # the kernel in the graph, or one by one) take several times as long, and all slices
    # do by oneDNN with AVX2.
    assert ours < 1.5 * own


@pytest.mark.parametrize(
    ("groups", "channels", "blocks"),
    [(32, 4, 4), (32, 32, 32), (64, 8, 16), (2, 3, 1), (6, 10, 1)],
)
def test_joined_groups_have_channels_enough_and_zeros_between(groups, channels, blocks):
    kernel = np.ones((1, 1, channels, groups * 2), "float32")
    merged, found = merge_groups(kernel, groups)
    assert found == blocks
    merged = to_numpy(merged)
    joined = groups // blocks
    assert merged.shape == (1, 1, joined * channels, groups * 2)
    for column in range(groups * 2):
        rows = np.flatnonzero(merged[0, 0, :, column])
        first = column // 2 % joined * channels
        np.testing.assert_array_equal(rows, np.arange(first, first + channels))
