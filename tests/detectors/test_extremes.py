"""Batches that real data brings now and then: crowds, specks, one class, a thousand."""

import keras
import numpy as np
import pytest

from tests.conftest import SMALL
from tests.contracts import to_numpy
from tests.golden import make_weights

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="gradients by TensorFlow's tape"
)
each_detector = pytest.mark.parametrize("kind", SMALL)


def crowd(rng):
    """300 boxes of 1 to 60 pixels, every third of 1x1, in one image; none in the other."""
    corners = rng.uniform(0, [60, 34], (300, 2))
    sides = rng.uniform(1, [36, 30], (300, 2))
    sides[::3] = 1.0
    boxes = np.zeros((2, 300, 4), "float32")
    boxes[0] = np.concatenate([corners, corners + sides], axis=-1)
    labels = np.full((2, 300), -1, "int32")
    labels[0] = rng.integers(3, size=300)
    return boxes, labels


def losses_and_gradients(detector, boxes, labels):
    import tensorflow as tf

    targets = {
        "boxes": tf.constant(boxes, "float32"),
        "labels": tf.constant(labels, "int32"),
        "image_size": tf.constant([[64.0, 96.0], [60.0, 90.0]]),
    }
    images = make_weights.make_image(3, 2, 64, 96)
    sources = [variable.value for variable in detector.trainable_variables]
    with tf.GradientTape() as tape:
        losses = detector.compute_losses(detector(images, training=True), targets)
        total = sum(losses.values())
    gradients = tape.gradient(total, sources)
    return {k: float(v) for k, v in losses.items()}, [to_numpy(g) for g in gradients]


def assert_sound(losses, gradients):
    assert np.isfinite(list(losses.values())).all(), losses
    assert losses["class_loss"] > 0
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    assert sum(np.abs(gradient).sum() for gradient in gradients) > 0


@each_detector
def test_three_hundred_boxes_and_specks_of_one_pixel_are_learned(small_detector, kind):
    boxes, labels = crowd(np.random.default_rng(1))
    losses, gradients = losses_and_gradients(small_detector(kind), boxes, labels)
    assert_sound(losses, gradients)
    assert losses["box_loss"] > 0


@each_detector
def test_one_class_and_a_thousand(small_detector, kind):
    boxes = np.zeros((2, 2, 4), "float32")
    boxes[0] = [[4, 6, 40, 50], [50, 10, 90, 60]]
    for num_classes in (1, 1000):
        labels = np.array([[0, num_classes - 1], [-1, -1]], "int32")
        detector = small_detector(kind, num_classes=num_classes)
        losses, gradients = losses_and_gradients(detector, boxes, labels)
        assert_sound(losses, gradients)
        found = detector.detect(
            make_weights.make_image(3, 2, 64, 96), score_threshold=0.0, max_detections=7
        )
        assert set(np.ravel(to_numpy(found["labels"]))) <= {-1, *range(num_classes)}
        assert to_numpy(found["boxes"]).shape == (2, 7, 4)


@each_detector
def test_a_box_of_one_pixel_alone_has_a_finite_loss(small_detector, kind):
    boxes = np.array([[[40, 30, 41, 31]], [[95, 63, 96, 64]]], "float32")
    labels = np.array([[1], [2]], "int32")
    assert_sound(*losses_and_gradients(small_detector(kind), boxes, labels))
