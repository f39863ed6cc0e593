import keras
import numpy as np
import pytest
from PIL import Image

from vfnet_tf.config import Config, override
from vfnet_tf.data.formats.coco import read_coco
from vfnet_tf.data.formats.readers import find_splits
from vfnet_tf.data.synthetic import make_synthetic_dataset
from vfnet_tf.training.preview import (
    describe_batches,
    describe_data,
    describe_memory,
    estimate_step_memory,
    write_preview,
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


def test_the_pages_of_a_preview_show_augmented_batches(tmp_path):
    folder = make_synthetic_dataset(tmp_path / "data", num_train=6, num_val=1)
    dataset = read_coco(*find_splits(folder)["train"])
    config = override(
        Config(),
        data__image_size=(64, 80),
        data__augment="strong",
        data__flip=0.0,
        training__batch_size=2,
    )
    paths = write_preview(config, dataset, tmp_path / "new" / "pages", pages=2)
    assert [path.name for path in paths] == ["page_1.png", "page_2.png"]
    plain = override(config, data__augment="none")
    others = write_preview(plain, dataset, tmp_path / "plain")
    assert len(others) == 3  # all of the epoch
    for path, other in zip(paths, others, strict=False):
        drawn, undrawn = (np.asarray(Image.open(each)) for each in (path, other))
        assert drawn.shape == undrawn.shape and (drawn != undrawn).any()
    own = write_preview(
        config, dataset, tmp_path / "own", pages=1, transforms=[], max_boxes=20
    )
    assert own[0].read_bytes() == others[0].read_bytes()
