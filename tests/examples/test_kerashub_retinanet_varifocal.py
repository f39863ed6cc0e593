import importlib.util
import pathlib

import keras
import numpy as np
import pytest

from tests.contracts import to_numpy

PATH = pathlib.Path(__file__).parents[2] / "examples/kerashub_retinanet_varifocal.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    spec = importlib.util.spec_from_file_location("kerashub_retinanet_varifocal", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(example):
    keras.utils.set_random_seed(0)
    return example.build_model()


def classification_part(module, model, images, objects, deltas, one_hot=False):
    """The loss of boxes that are right or wrong by `deltas`, with logits of 0."""
    targets, labels = model.label_encoder(
        images=images, gt_boxes=objects["boxes"], gt_classes=objects["labels"]
    )
    logits = np.zeros((*labels.shape, module.NUM_CLASSES), "float32")
    boxes = to_numpy(targets) + np.float32(deltas)
    arguments = {
        "x": keras.ops.convert_to_tensor(images),
        "y": {k: keras.ops.convert_to_tensor(v) for k, v in objects.items()},
        "y_pred": {
            "bbox_regression": keras.ops.convert_to_tensor(boxes),
            "cls_logits": keras.ops.convert_to_tensor(logits),
        },
        "sample_weight": None,
    }
    parent = module.keras_hub.models.RetinaNetObjectDetector
    compute = parent.compute_loss if one_hot else type(model).compute_loss
    box_loss = np.mean(
        np.where(np.abs(deltas) < 1, np.square(deltas) / 2, np.abs(deltas) - 0.5)
    )
    return float(compute(model, **arguments)) - box_loss


def test_the_targets_are_the_ious_of_the_predicted_boxes(example, model):
    images, objects = example.make_images(np.random.default_rng(3), count=2)
    found = [
        classification_part(example, model, images, objects, deltas)
        for deltas in ([0, 0, 0, 0], [0, 0, np.log(2), 0])
    ]
    plain = [
        classification_part(example, model, images, objects, deltas, one_hot=True)
        for deltas in ([0, 0, 0, 0], [0, 0, np.log(2), 0])
    ]
    # Right boxes have the IoU 1: the one-hot targets. KerasHub's do not see a box.
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-4)
    np.testing.assert_allclose(plain[1], plain[0], rtol=1e-4)
    # A box twice as wide has the IoU 1/2, at logit 0: q ln 2 for each positive, and
    # the negatives as before.
    np.testing.assert_allclose(found[0] - found[1], np.log(2) / 2, rtol=1e-3)


@pytest.mark.slow
def test_the_loss_falls_and_all_gradients_are_finite(example, model):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("gradients are taken by TensorFlow's tape")
    import tensorflow as tf

    images, objects = example.make_images(np.random.default_rng(0), count=2)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(
            x=tf.constant(images),
            y={k: tf.constant(v) for k, v in objects.items()},
            y_pred=model(images, training=True),
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(to_numpy(g)).all() for g in gradients if g is not None)
    losses = example.train(model, epochs=3)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
