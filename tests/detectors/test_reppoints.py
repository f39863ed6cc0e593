import numpy as np
import pytest

from tests import contracts
from tests.contracts import tensors
from tests.detectors.hand_cases import (
    LOG2,
    losses,
    outputs_of,
    row_of_points,
    targets,
)
from vfnet_tf.losses import VarifocalLoss

pytestmark = pytest.mark.backend
BOX = [0, 0, 32, 32]


def tiny_outputs(batch=1):
    """Points at (0, 0) to (24, 0); the third is the nearest to the box's centre.

    The IoUs of the first boxes with it are 1, 0.45, 1/3 and 0.
    """
    boxes = [BOX, [0, 0, 32, 14.4], [0, 0, 32, 96], [64, 0, 80, 16]]
    outputs = outputs_of(row_of_points(), boxes, batch)
    return {**outputs, "refined_boxes": outputs["boxes"].copy()}


def test_the_loss_parts_by_hand(small_detector):
    outputs = tiny_outputs()
    outputs["refined_boxes"][0, 0] = [0, 0, 32, 33.6]
    outputs["refined_boxes"][0, 3] = BOX  # too late: the first boxes decide
    detector = small_detector(
        "reppoints", box_loss_weight=2.0, refined_box_loss_weight=3.0
    )
    rows = targets([BOX], [1], (32, 32))
    found = losses(detector, outputs, rows)
    # By its place the third learns it: 64 pixels are two units of 32, above beta.
    assert found["box_loss"] == pytest.approx(2 * (2 - 0.055), rel=1e-5)
    # By its IoU the first: 1.6 pixels are 0.05 units, below beta.
    refined = 0.5 * 0.05**2 / 0.11
    assert found["refined_box_loss"] == pytest.approx(3 * refined, rel=1e-4)
    # The second point is ignored; the third is a negative of the class loss.
    focal = (0.25 + 8 * 0.75) * 0.25 * LOG2
    assert found["class_loss"] == pytest.approx(focal, rel=1e-5)
    detector = small_detector("reppoints", class_loss=VarifocalLoss())
    found = losses(detector, outputs, rows)
    # The IoU is that of the refined box.
    varifocal = (32 / 33.6 + 8 * 0.75 * 0.25) * LOG2
    assert found["class_loss"] == pytest.approx(varifocal, rel=1e-5)


def test_the_scale_is_the_unit_of_the_box_losses(small_detector):
    detector = small_detector("reppoints", point_scale=8.0)
    found = losses(detector, tiny_outputs(), targets([BOX], [1], (32, 32)))
    assert found["box_loss"] == pytest.approx(0.5 * (1 - 0.055), rel=1e-5)


def test_each_image_counts_as_one_positive_at_least(small_detector):
    rows = targets([BOX], [1], (32, 32), batch=3)
    outputs = tiny_outputs(batch=3)
    outputs["refined_boxes"][0, 0, 3] += 32
    found = losses(small_detector("reppoints"), outputs, rows)
    focal = (0.25 + (8 + 2 * 12) * 0.75) * 0.25 * LOG2
    assert found["class_loss"] == pytest.approx(focal / 3, rel=1e-5)
    assert found["box_loss"] == pytest.approx(0.5 * (2 - 0.055) / 3, rel=1e-5)
    assert found["refined_box_loss"] == pytest.approx((1 - 0.055) / 3, rel=1e-5)


def test_boxes_are_shifts_in_strides_from_the_corners_of_cells(small_detector):
    detector = small_detector("reppoints")
    shapes = [(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)]

    def maps(value):
        return {
            level: np.float32(np.broadcast_to(value, (1, *shape, 4)))
            for level, shape in zip("abcde", shapes, strict=True)
        }

    predictions = {
        "class_logits": maps([0, 0, 0, 0]),
        "box_shifts": maps([-1, -0.5, 1, 2]),
        "refined_box_shifts": maps([0, 0, 1, 1]),
    }
    found = detector.decode(detector.make_priors(shapes), tensors(predictions))
    found = contracts.to_numpy(found)
    expected = [[-8, -4, 8, 16], [0, -4, 16, 16], [-16, -8, 16, 32]]
    np.testing.assert_array_equal(found["boxes"][0, :3], expected)
    expected = [[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 16, 16]]
    np.testing.assert_array_equal(found["refined_boxes"][0, :3], expected)


def test_detections_are_the_refined_boxes(small_detector):
    outputs = tiny_outputs()
    outputs["refined_boxes"] += 1
    boxes, scores, factors = small_detector("reppoints").ranking(tensors(outputs))
    np.testing.assert_array_equal(contracts.to_numpy(boxes), outputs["refined_boxes"])
    np.testing.assert_array_equal(contracts.to_numpy(scores), 0.5)
    assert factors is None
