import keras
import numpy as np
import pytest

from vfnet_tf.training.preview import (
    describe_batches,
    describe_data,
    describe_memory,
    estimate_step_memory,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's graph is counted"
)


class Record:
    def __init__(self, labels, side=10.0):
        self.labels = np.array(labels, "int32")
        corners = np.zeros((len(labels), 2), "float32")
        self.boxes = np.concatenate([corners, corners + side], axis=1)


class Dataset(list):
    class_names = ("cat", "dog", "hen")
    num_classes = 3


def test_the_data_are_counted_by_hand():
    text = describe_data(Dataset([Record([0, 0, 1]), Record([]), Record([0], 50.0)]))
    objects, sizes, classes = text.splitlines()
    assert objects.endswith(
        "4 in 3 images: 0 to 3 in one, 1.3 on average, 1 images without"
    )
    assert "3 small, 1 medium, 0 large" in sizes
    assert classes.endswith("cat 3, dog 1; 1 classes without an object")


def test_batches_are_counted_by_shape():
    text = describe_batches([(64, 96), (96, 64), (64, 96)], 4)
    assert text.splitlines() == [
        "batches        2 of 4 x 64 x 96 x 3",
        "batches        1 of 4 x 96 x 64 x 3",
    ]


class Two(keras.Model):
    """A convolution of two filters and its ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(2, 1, use_bias=False)
        self.conv.build((None, None, None, 3))
        self.built = True

    def call(self, images, training=None):
        return keras.ops.relu(self.conv(images))


def test_memory_is_weights_gradients_slots_and_what_is_computed():
    memory = estimate_step_memory(Two(), (1, 4, 5), slots=2)
    assert memory["weights"] == 4 * 6 * 4
    # The convolution, and the ReLU.
    assert memory["activations"] == 2 * 4 * 5 * 2 * 4
    assert memory["total"] == sum(
        memory[name] for name in ("runtime", "weights", "activations")
    )
    twice = estimate_step_memory(Two(), (2, 4, 5), slots=2)
    assert twice["activations"] == 2 * memory["activations"]
    assert describe_memory(memory).startswith("memory     about 0.6 GB")
