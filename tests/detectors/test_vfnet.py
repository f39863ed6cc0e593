"""Losses, gradients and steps of VFNet-ResNet-50 beside the official implementation."""

import numpy as np
import pytest

from tests import contracts
from tests.contracts import on_tensorflow, tensors
from tests.detectors import recorded
from tests.detectors.hand_cases import (
    LOG2,
    losses,
    outputs_of,
    row_of_points,
    targets,
)
from tests.detectors.recorded import images_of, targets_of
from tests.golden import make_weights
from vfnet_tf.checkpoints.names import official_variables
from vfnet_tf.checkpoints.pytorch import load_pytorch_checkpoint
from vfnet_tf.detectors import VFNet
from vfnet_tf.losses import FocalLoss, QualityFocalLoss

#: our names of the loss parts and the recorded ones
PARTS = {
    "class_loss": "loss_cls",
    "box_loss": "loss_bbox",
    "refined_box_loss": "loss_bbox_rf",
}


@pytest.fixture(scope="module")
def detectors(golden_detector):
    """The detector by its class loss; both share all layers."""
    shared = (golden_detector.backbone, golden_detector.neck, golden_detector.head)
    return {"vfl": golden_detector, "focal": VFNet(*shared, class_loss=FocalLoss())}


@pytest.fixture(scope="module")
def outputs(golden, detectors):
    """Dense predictions of the golden batches."""
    return recorded.outputs_of(detectors["vfl"], golden("vfnet_r50_training"))


@pytest.mark.backend
@pytest.mark.parametrize("class_loss", ["vfl", "focal"])
@pytest.mark.parametrize("key", "ABCD")
def test_losses_are_the_official_ones(golden, detectors, outputs, key, class_loss):
    stored = golden("vfnet_r50_training")
    losses = detectors[class_loss].compute_losses(
        tensors(outputs[key]), tensors(targets_of(stored, key))
    )
    assert list(losses) == list(PARTS)
    for name, value in contracts.to_numpy(losses).items():
        expected = stored[f"{key}/{class_loss}/loss/{PARTS[name]}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def gradients(golden, detectors):
    """Gradients by batch and loss part, `{official name: array in torch's layout}`."""
    import tensorflow as tf

    stored = golden("vfnet_r50_training")
    variables = recorded.trained_variables(detectors["vfl"])
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
            found[key, part] = recorded.gradients_of(tape, losses[part], variables)
        del tape
    return found


def summed(gradients, key, parts):
    return {
        name: sum(gradients[key, part][name] for part in parts)
        for name in gradients[key, parts[0]]
    }


@on_tensorflow
@pytest.mark.parametrize("key", "ABCD")
def test_gradients_are_the_official_ones(golden, gradients, key):
    parts = list(PARTS) if key in "AB" else ["total"]
    found = summed(gradients, key, parts)
    stored = golden("vfnet_r50_training")
    assert recorded.assert_gradients(found, stored, f"{key}/vfl") > 30


@on_tensorflow
def test_gradients_with_the_focal_loss_are_the_official_ones(golden, gradients):
    parts = ["focal_class_loss", "box_loss", "refined_box_loss"]
    found = summed(gradients, "A", parts)
    recorded.assert_gradients(found, golden("vfnet_r50_training"), "A/focal")


@on_tensorflow
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


@on_tensorflow
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


#: The first of the four anchors is the box itself, and the only positive.
BOX = targets([[-32, -32, 32, 32]], [1])


def tiny_outputs():
    """Four points at (0, 0) to (24, 0), each with a box of 64 pixels about it."""
    points = row_of_points()
    outputs = outputs_of(points, np.concatenate([points - 32, points + 32], axis=-1))
    return {**outputs, "refined_boxes": outputs["boxes"].copy()}


@pytest.mark.backend
def test_the_loss_parts_by_hand(small_detector):
    outputs = tiny_outputs()
    outputs["boxes"][0, 0] = [-32, -32, 32, 0]  # half of the box: IoU = GIoU = 1/2
    found = losses(small_detector(), outputs, BOX)
    # q = 1 at one of 12 logits of 0; the others are negatives.
    assert found["class_loss"] == pytest.approx(LOG2 + 11 * 0.75 * 0.25 * LOG2)
    # 1.5 * (0.5 * (1 - 0.5)) / max(0.5, 1), the IoUs' sum being less than 1.
    assert found["box_loss"] == pytest.approx(0.375, rel=1e-5)
    assert found["refined_box_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.backend
def test_the_iou_is_no_target_below_its_floor(small_detector):
    # A refined box far away: q is 1e-6, still a positive of nearly no weight.
    outputs = tiny_outputs()
    outputs["refined_boxes"][0, 0] = [500, 500, 510, 510]
    found = losses(small_detector(), outputs, BOX)
    expected = 11 * 0.75 * 0.25 * LOG2 + 1e-6 * LOG2
    assert found["class_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.backend
def test_other_class_losses_get_the_targets_they_are_made_for(small_detector):
    outputs = tiny_outputs()
    outputs["refined_boxes"][0, 0] = [-32, -32, 32, 0]  # IoU 1/2
    outputs["class_logits"] += 0.5
    for loss, target in ((FocalLoss(), 1.0), (QualityFocalLoss(), 0.5)):
        one_hot = np.zeros((1, 4, 3), "float32")
        one_hot[0, 0, 1] = target
        expected = contracts.to_numpy(loss(one_hot, outputs["class_logits"]))
        found = losses(small_detector(class_loss=loss), outputs, BOX)
        assert found["class_loss"] == pytest.approx(expected, rel=1e-5)
