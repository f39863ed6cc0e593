import keras
import numpy as np
import pytest

from tests.contracts import on_tensorflow, to_numpy
from vfnet_tf.ops.convolution import conv2d
from vfnet_tf.ops.deform_conv import star_conv
from vfnet_tf.ops.kernels import portable_kernels, tensorflow_kernels
from vfnet_tf.ops.nms import class_wise_nms

#: Kernels that TensorFlow has and others have not.
OWN_KERNELS = {"CropAndResize", "CombinedNonMaxSuppression"}


def sample(seed, *shape, scale=1.0):
    values = np.random.default_rng(seed).uniform(0, scale, shape)
    return values.astype("float32")


def network(images, distances, kernel):
    """A star convolution, a wide convolution and NMS: everything that has a switch."""
    maps = star_conv(images, distances, kernel)
    corners = keras.ops.reshape(maps, (2, -1, maps.shape[-1]))[..., :2]
    boxes = keras.ops.concatenate([corners, corners + 30.0], axis=-1)
    scores = conv2d(images, kernel) / 30.0
    scores = keras.ops.reshape(scores, (2, -1, scores.shape[-1]))
    return class_wise_nms(boxes, scores, 0.5, 0.1, 7)


ARGUMENTS = (
    sample(0, 2, 5, 6, 8),
    sample(1, 2, 5, 6, 4, scale=3.0),
    sample(2, 3, 3, 8, 256),
)


@pytest.mark.backend
def test_portable_operations_give_what_the_faster_ones_give():
    expected = network(*ARGUMENTS)
    with portable_kernels():
        found = network(*ARGUMENTS)
    assert int(to_numpy(expected["num_detections"]).min()) > 0
    for name in expected:
        np.testing.assert_allclose(
            to_numpy(found[name]), to_numpy(expected[name]), rtol=1e-5, err_msg=name
        )


@on_tensorflow
def test_a_portable_graph_has_none_of_tensorflows_own_kernels():
    import tensorflow as tf

    def kernels():
        graph = tf.function(network).get_concrete_function(*ARGUMENTS).graph
        return {operation.type for operation in graph.get_operations()}

    with portable_kernels():
        assert not OWN_KERNELS & kernels()
    assert kernels() >= OWN_KERNELS


def test_the_faster_kernels_come_back_even_after_an_error():
    before = tensorflow_kernels()
    with pytest.raises(KeyError), portable_kernels():
        with portable_kernels():
            pass
        assert not tensorflow_kernels()  # the inner one ended, the outer one did not
        raise KeyError
    assert tensorflow_kernels() == before
