"""Losses, gradients and steps of VFNet-ResNet-50 beside the official implementation."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.golden import make_weights
from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.checkpoints.names import official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint
from vfnet_tf.detectors import VFNet
from vfnet_tf.losses import FocalLoss, GIoULoss, QualityFocalLoss, VarifocalLoss
from vfnet_tf.priors import make_points

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.GradientTape"
)
#: our names of the loss parts and the recorded ones
PARTS = {
    "class_loss": "loss_cls",
    "box_loss": "loss_bbox",
    "refined_box_loss": "loss_bbox_rf",
}

BOXES = ("boxes", "refined_boxes")
GRID = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]


def targets_of(stored, key):
    """Targets of a golden batch in six rows an image."""
    boxes, labels = np.zeros((2, 6, 4), "float32"), np.full((2, 6), -1, "int32")
    for image in (0, 1):
        rows = stored[f"{key}/gt_boxes/{image}"]
        boxes[image, : len(rows)] = rows
        labels[image, : len(rows)] = stored[f"{key}/gt_labels/{image}"]
    size = stored[f"{key}/pad_shape"].astype("float32")
    return {"boxes": boxes, "labels": labels, "image_size": size}


def images_of(stored, key):
    """Images of a golden batch; what lies beyond the own padded area is zero."""
    images = make_weights.make_image(int(stored[f"{key}/image_seed"]), 2, 256, 320)
    for image, (height, width) in enumerate(stored[f"{key}/pad_shape"]):
        images[image, height:] = 0
        images[image, :, width:] = 0
    return images


@pytest.fixture(scope="module")
def detectors(golden_detector):
    """The detector by its class loss; both share all layers."""
    shared = (golden_detector.backbone, golden_detector.neck, golden_detector.head)
    return {"vfl": golden_detector, "focal": VFNet(*shared, class_loss=FocalLoss())}


@pytest.fixture(scope="module")
def outputs(golden, detectors):
    """Dense predictions of the golden batches."""
    stored = golden("vfnet_r50_training")
    images = np.concatenate([images_of(stored, key) for key in "ABCD"])

    def forward(images):
        found = detectors["vfl"](images, training=True)
        return {name: found[name] for name in ("class_logits", *BOXES)}

    found = contracts.evaluate(forward, images)
    return {
        key: {name: value[2 * i : 2 * i + 2] for name, value in found.items()}
        for i, key in enumerate("ABCD")
    }


@pytest.mark.backend
@pytest.mark.parametrize("class_loss", ["vfl", "focal"])
@pytest.mark.parametrize("key", "ABCD")
def test_losses_are_the_official_ones(golden, detectors, outputs, key, class_loss):
    stored = golden("vfnet_r50_training")
    points, strides = make_points(GRID)
    predictions = {**outputs[key], "points": points, "strides": strides}
    predictions = keras.tree.map_structure(keras.ops.convert_to_tensor, predictions)
    targets = keras.tree.map_structure(
        keras.ops.convert_to_tensor, targets_of(stored, key)
    )
    losses = detectors[class_loss].compute_losses(predictions, targets)
    assert list(losses) == list(PARTS)
    for name, value in contracts.to_numpy(losses).items():
        expected = stored[f"{key}/{class_loss}/loss/{PARTS[name]}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def gradients(golden, detectors):
    """Gradients by batch and loss part, `{official name: array in torch's layout}`."""
    import tensorflow as tf

    stored = golden("vfnet_r50_training")
    names = official_variables(detectors["vfl"])
    trained = {id(v) for v in detectors["vfl"].trainable_variables}
    names = {name: v for name, v in names.items() if id(v) in trained}
    sources = [variable.value for variable in names.values()]
    found = {}
    for key in "ABCD":
        targets = targets_of(stored, key)
        with tf.GradientTape(persistent=True) as tape:
            outputs = detectors["vfl"](images_of(stored, key), training=True)
            losses = detectors["vfl"].compute_losses(outputs, targets)
            focal = detectors["focal"].compute_losses(outputs, targets)
            losses["total"] = sum(losses.values())
            losses["focal_class_loss"] = focal["class_loss"]
        wanted = ["total"]
        if key in "AB":
            wanted = list(PARTS)
        if key == "A":
            wanted.append("focal_class_loss")
        for part in wanted:
            flat = tape.gradient(losses[part], sources, unconnected_gradients="zero")
            arrays = [contracts.to_numpy(g).astype("float64") for g in flat]
            found[key, part] = {
                name: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a
                for name, a in zip(names, arrays, strict=True)
            }
        del tape
    return found


def summed(gradients, key, parts):
    return {
        name: sum(gradients[key, part][name] for part in parts)
        for name in gradients[key, parts[0]]
    }


def check_gradients(stored, key, class_loss, found):
    names = stored[f"{key}/{class_loss}/grad_names"].tolist()
    assert set(found) == set(names)
    norms = [np.linalg.norm(found[name]) for name in names]
    expected = stored[f"{key}/{class_loss}/grad_norm"]
    np.testing.assert_allclose(norms, expected, rtol=3e-3, atol=1e-6)
    compared = 0
    for name in names:
        recorded = stored.get(f"{key}/{class_loss}/grad/{name}")
        if recorded is not None:
            flat = found[name].ravel()
            part = flat[:: max(1, flat.size // 64)][:64]
            contracts.assert_close_to_max(part, recorded, 1e-2)
            compared += 1
    assert compared > 30 or class_loss == "focal"


@needs_tensorflow
@pytest.mark.parametrize("key", "ABCD")
def test_gradients_are_the_official_ones(golden, gradients, key):
    parts = list(PARTS) if key in "AB" else ["total"]
    found = summed(gradients, key, parts)
    check_gradients(golden("vfnet_r50_training"), key, "vfl", found)


@needs_tensorflow
def test_gradients_with_the_focal_loss_are_the_official_ones(golden, gradients):
    parts = ["focal_class_loss", "box_loss", "refined_box_loss"]
    found = summed(gradients, "A", parts)
    check_gradients(golden("vfnet_r50_training"), "A", "focal", found)


@needs_tensorflow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("key", "AB")
def test_each_loss_alone_has_the_official_gradients(golden, gradients, key, part):
    stored = golden("vfnet_r50_training")
    names = stored[f"{key}/vfl/grad_names"].tolist()
    norms = [np.linalg.norm(gradients[key, part][name]) for name in names]
    expected = stored[f"{key}/vfl/grad_norm_of/{PARTS[part]}"]
    np.testing.assert_allclose(norms, expected, rtol=3e-3, atol=1e-6)
    if part != "box_loss":  # a tenth through the star, never nothing
        assert norms[names.index("bbox_head.vfnet_reg.weight")] > 0


@needs_tensorflow
def test_three_steps_of_sgd_are_the_official_ones(
    golden, golden_detector, golden_weights
):
    from vfnet_tf.training.optimizers import SGD

    stored = golden("vfnet_r50_3steps")
    height, width = stored["image_hw"]
    boxes, labels = np.zeros((2, 2, 4), "float32"), np.full((2, 2), -1, "int32")
    for image in (0, 1):
        rows = stored[f"gt_boxes/{image}"]
        boxes[image, : len(rows)] = rows
        labels[image, : len(rows)] = stored[f"gt_labels/{image}"]
    seed = int(stored["image_seed"])
    batch = {
        "images": make_weights.make_image(seed, 2, int(height), int(width)),
        "boxes": boxes,
        "labels": labels,
        "image_size": np.array([[height, width]] * 2, "float32"),
    }
    parts = (golden_detector.backbone, golden_detector.neck, golden_detector.head)
    detector = VFNet(*parts)
    optimizer = SGD(float(stored["lr"]), momentum=0.9, weight_decay=1e-4)
    detector.compile(optimizer, run_eagerly=True)
    try:
        # Two updates amplify rounding: 8e-7 before the second, 1e-4 after it.
        for expected, rtol in zip(stored["losses"], (1e-5, 1e-5, 3e-4), strict=True):
            detector.reset_metrics()
            logs = detector.train_on_batch(batch, return_dict=True)
            found = [float(logs[name]) for name in PARTS]
            np.testing.assert_allclose(found, expected, rtol=rtol)
        variables = official_variables(detector)
        final = {
            name: contracts.to_numpy(v).astype("float64")
            for name, v in variables.items()
        }
    finally:
        load_pytorch_checkpoint(golden_detector, golden_weights)

    updates = {}
    for name, value in final.items():
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        updates[name] = value - golden_weights[name]
    names = stored["names"].tolist()
    norms = np.array([np.linalg.norm(updates[name]) for name in names])
    # An update of a few units in the last place of float32 has no exact norm.
    resolution = [6e-8 * np.linalg.norm(golden_weights[name]) for name in names]
    expected = stored["update_norm"]
    assert np.all(np.abs(norms - expected) <= 5e-3 * expected + resolution)
    assert all(np.all(updates[name] == 0) for name in set(updates) - set(names))
    for name in updates:
        if f"param/{name}" in stored:
            change = stored[f"param/{name}"] - stored[f"init/{name}"]
            flat = updates[name].ravel()
            part = flat[:: max(1, flat.size // 16)][:16]
            largest = np.abs(stored[f"init/{name}"]).max()
            limit = 1e-2 * np.abs(change).max() + 1.2e-7 * largest
            np.testing.assert_allclose(part, change, rtol=0, atol=limit)


def tiny_outputs(num_points=4, num_classes=2):
    """Predictions of one image whose points lie in a row of stride 8."""
    points = np.zeros((num_points, 2), "float32")
    points[:, 0] = 8 * np.arange(num_points)
    boxes = np.concatenate([points - 32, points + 32], axis=-1)[None]
    return {
        "class_logits": np.zeros((1, num_points, num_classes), "float32"),
        "boxes": boxes.astype("float32"),
        "refined_boxes": boxes.astype("float32"),
        "points": points,
        "strides": np.full(num_points, 8.0, "float32"),
    }


def tensors(tree):
    return keras.tree.map_structure(keras.ops.convert_to_tensor, tree)


@pytest.mark.backend
def test_the_loss_parts_by_hand(small_detector):
    detector = small_detector()
    outputs, log2 = tiny_outputs(num_classes=3), np.log(2.0)
    # Of the four anchors the first is the box itself and the only positive.
    outputs["boxes"][0, 0] = [-32, -32, 32, 0]  # half of the box: IoU = GIoU = 1/2
    targets = {
        "boxes": np.array([[[-32, -32, 32, 32]]], "float32"),
        "labels": np.array([[1]], "int32"),
        "image_size": np.array([[8, 32]], "float32"),
    }
    losses = detector.compute_losses(tensors(outputs), tensors(targets))
    losses = contracts.to_numpy(losses)
    # q = 1 at one of 12 logits of 0; the others are negatives.
    assert losses["class_loss"] == pytest.approx(log2 + 11 * 0.75 * 0.25 * log2)
    # 1.5 * (0.5 * (1 - 0.5)) / max(0.5, 1), the IoUs' sum being less than 1.
    assert losses["box_loss"] == pytest.approx(0.375, rel=1e-5)
    assert losses["refined_box_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("rows", [0, 3])
def test_without_objects_only_the_class_loss_is_left(small_detector, rows):
    detector = small_detector()
    targets = {
        "boxes": np.zeros((1, rows, 4), "float32"),
        "labels": np.full((1, rows), -1, "int32"),
        "image_size": np.array([[8, 32]], "float32"),
    }
    losses = detector.compute_losses(
        tensors(tiny_outputs(num_classes=3)), tensors(targets)
    )
    losses = contracts.to_numpy(losses)
    assert losses["box_loss"] == losses["refined_box_loss"] == 0
    assert losses["class_loss"] == pytest.approx(12 * 0.75 * 0.25 * np.log(2.0))


@needs_tensorflow
def test_without_objects_every_gradient_is_finite_and_none_is_missing(
    small_detector, small_batch
):
    import tensorflow as tf

    detector = small_detector()
    small_batch["labels"][:] = -1
    sources = [v.value for v in detector.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = detector(small_batch["images"], training=True)
        losses = detector.compute_losses(outputs, small_batch)
        total = sum(losses.values())
    found = tape.gradient(total, sources)
    assert all(g is not None and np.all(np.isfinite(g)) for g in found)


@needs_tensorflow
def test_boxes_of_negatives_may_be_anything(small_detector):
    import tensorflow as tf

    outputs = tensors(tiny_outputs(num_classes=3))
    wild = np.full((1, 3, 4), np.inf, "float32")
    wild[0, 1] = np.nan
    targets = {
        "boxes": np.array([[[-32, -32, 32, 32]]], "float32"),
        "labels": np.array([[1]], "int32"),
        "image_size": np.array([[8, 32]], "float32"),
    }
    for name in BOXES:
        outputs[name] = tf.concat([outputs[name][:, :1], wild], axis=1)
    sources = [outputs[name] for name in ("class_logits", *BOXES)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        losses = small_detector().compute_losses(outputs, tensors(targets))
        total = sum(losses.values())
    assert np.isfinite(total)
    assert all(np.all(np.isfinite(g)) for g in tape.gradient(total, sources))


@pytest.mark.backend
def test_the_iou_is_no_target_below_its_floor(small_detector):
    # A refined box far away: q is 1e-6, still a positive of nearly no weight.
    outputs = tiny_outputs(num_classes=3)
    outputs["refined_boxes"][0, 0] = [500, 500, 510, 510]
    targets = {
        "boxes": np.array([[[-32, -32, 32, 32]]], "float32"),
        "labels": np.array([[1]], "int32"),
        "image_size": np.array([[8, 32]], "float32"),
    }
    losses = small_detector().compute_losses(tensors(outputs), tensors(targets))
    expected = 11 * 0.75 * 0.25 * np.log(2.0) + 1e-6 * np.log(2.0)
    losses = contracts.to_numpy(losses)
    assert losses["class_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.backend
def test_other_class_losses_get_the_targets_they_are_made_for(small_detector):
    outputs = tiny_outputs(num_classes=3)
    outputs["refined_boxes"][0, 0] = [-32, -32, 32, 0]  # IoU 1/2
    outputs["class_logits"] += 0.5
    targets = {
        "boxes": np.array([[[-32, -32, 32, 32]]], "float32"),
        "labels": np.array([[1]], "int32"),
        "image_size": np.array([[8, 32]], "float32"),
    }
    for loss, target in ((FocalLoss(), 1.0), (QualityFocalLoss(), 0.5)):
        detector = small_detector(class_loss=loss)
        losses = detector.compute_losses(tensors(outputs), tensors(targets))
        one_hot = np.zeros((1, 4, 3), "float32")
        one_hot[0, 0, 1] = target
        expected = contracts.to_numpy(
            loss(*tensors((one_hot, outputs["class_logits"])))
        )
        found = contracts.to_numpy(losses)["class_loss"]
        assert found == pytest.approx(expected, rel=1e-5)


def test_its_config_keeps_every_setting(small_detector):
    settings = {
        "assigner": ATSSAssigner(top_k=4),
        "class_loss": VarifocalLoss(alpha=0.5, gamma=1.5),
        "box_loss": GIoULoss(epsilon=1e-3),
        "box_loss_weight": 0.7,
        "refined_box_loss_weight": 0.9,
        "score_threshold": 0.2,
        "nms_iou_threshold": 0.4,
        "candidates_per_level": 50,
        "max_detections": 7,
        "nms": "soft_gaussian",
        "soft_nms_sigma": 0.3,
        "soft_nms_min_score": 0.02,
        "name": "other",
    }
    copy = VFNet.from_config(small_detector(**settings).get_config())
    for name, value in settings.items():
        found = getattr(copy, name)
        if hasattr(value, "get_config"):
            assert type(found) is type(value)
            assert found.get_config() == value.get_config()
        else:
            assert found == value
    assert copy.head.num_classes == 3
    assert copy.neck.filters == 32
