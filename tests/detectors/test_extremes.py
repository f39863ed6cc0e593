"""Losses and gradients of usual batches and of rare ones: none, crowds, specks, classes."""

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.contracts import on_tensorflow, to_numpy
from tests.golden import make_weights

pytestmark = on_tensorflow
each_detector = pytest.mark.parametrize("kind", SMALL)
IMAGES = make_weights.make_image(3, 2, 64, 96)


def crowd():
    """300 boxes of 1 to 60 pixels, every third of 1x1, in one image; none in the other."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, [60, 34], (300, 2))
    sides = rng.uniform(1, [36, 30], (300, 2))
    sides[::3] = 1.0
    boxes = np.zeros((2, 300, 4), "float32")
    boxes[0] = np.concatenate([corners, corners + sides], axis=-1)
    labels = np.full((2, 300), -1, "int32")
    labels[0] = rng.integers(3, size=300)
    return boxes, labels


TWO = [[[4, 6, 40, 50], [50, 10, 90, 60]], [[0] * 4] * 2]
#: what -> boxes and labels
BATCHES = {
    "no rows": (np.zeros((2, 0, 4)), np.zeros((2, 0))),
    "padding rows": (np.zeros((2, 2, 4)), np.full((2, 2), -1)),
    "one image without objects": (TWO, [[0, 2], [-1, -1]]),
    "three hundred boxes": crowd(),
    "boxes of one pixel": ([[[40, 30, 41, 31]], [[95, 63, 96, 64]]], [[1], [2]]),
}


def losses_and_gradients(detector, boxes, labels):
    import tensorflow as tf

    targets = {
        "boxes": tf.constant(boxes, "float32"),
        "labels": tf.constant(labels, "int32"),
        "image_size": tf.constant([[64.0, 96.0], [60.0, 90.0]]),
    }
    sources = [variable.value for variable in detector.trainable_variables]
    with tf.GradientTape() as tape:
        losses = detector.compute_losses(detector(IMAGES, training=True), targets)
        total = sum(losses.values())
    return {k: float(v) for k, v in losses.items()}, tape.gradient(total, sources)


def assert_sound(detector, losses, gradients):
    assert np.isfinite(list(losses.values())).all(), losses
    assert losses["class_loss"] > 0
    for variable, gradient in zip(detector.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(to_numpy(gradient)).all(), variable.path
    assert sum(np.abs(gradient).sum() for gradient in gradients) > 0


@each_detector
def test_every_gradient_is_finite_and_none_is_missing(small_detector, kind):
    detector = small_detector(kind)
    for what, batch in BATCHES.items():
        losses, gradients = losses_and_gradients(detector, *batch)
        assert_sound(detector, losses, gradients)
        if what == "three hundred boxes":
            assert losses["box_loss"] > 0


@each_detector
def test_one_class_and_a_thousand(small_detector, kind):
    for num_classes in (1, 1000):
        labels = np.array([[0, num_classes - 1], [-1, -1]], "int32")
        detector = small_detector(kind, num_classes=num_classes)
        assert_sound(detector, *losses_and_gradients(detector, TWO, labels))
        found = detector.detect(IMAGES, score_threshold=0.0, max_detections=7)
        assert set(np.ravel(to_numpy(found["labels"]))) <= {-1, *range(num_classes)}
        assert to_numpy(found["boxes"]).shape == (2, 7, 4)
