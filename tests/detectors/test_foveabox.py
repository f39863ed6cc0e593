import numpy as np
import pytest

from tests import contracts
from tests.contracts import tensors
from tests.detectors.hand_cases import (
    LOG2,
    NUM_POINTS,
    losses,
    outputs_of,
    row_of_points,
    targets,
)
from vfnet_tf.losses import VarifocalLoss

pytestmark = pytest.mark.backend
#: Its shrunken part holds the centres of the two middle cells, (12, 4) and (20, 4).
BOX = [0, 0, 32, 8]


def tiny_outputs(batch=1):
    """Four points, (4, 4) to (28, 4), and what would be right at the two in the middle."""
    outputs = outputs_of(row_of_points(offset=4.0), [BOX] * 4, batch)
    outputs["box_predictions"] = np.full((batch, 4, 4), 7.0, "float32")
    # In units of 16 pixels, left, top, right and bottom.
    outputs["box_predictions"][:, 1] = np.log([12 / 16, 4 / 16, 20 / 16, 4 / 16])
    outputs["box_predictions"][:, 2] = np.log([20 / 16, 4 / 16, 12 / 16, 4 / 16])
    return outputs


def test_the_loss_parts_by_hand(small_detector):
    outputs = tiny_outputs()
    outputs["box_predictions"][0, 1] += [0.05, 0, -0.2, 0]
    found = losses(
        small_detector("foveabox", box_loss_weight=2.0), outputs, targets([BOX], [1])
    )
    # Below beta a square, above it a line.
    box_loss = 0.5 * 0.05**2 / 0.11 + 0.2 - 0.055
    assert found["box_loss"] == pytest.approx(2 * box_loss / 2, rel=1e-4)
    # Two positives of 12, and one more in the divisor for the image.
    focal = (2 * 0.4 + 10 * 0.6) * 0.5**1.5 * LOG2
    assert found["class_loss"] == pytest.approx(focal / 3, rel=1e-5)


def test_each_image_adds_one_to_the_divisor_of_the_class_loss(small_detector):
    rows = targets([BOX], [1], batch=3)
    outputs = tiny_outputs(batch=3)
    outputs["box_predictions"][0, 1] += [0.2, 0, 0, 0]
    found = losses(small_detector("foveabox"), outputs, rows)
    focal = (2 * 0.4 + 34 * 0.6) * 0.5**1.5 * LOG2
    assert found["class_loss"] == pytest.approx(focal / 5, rel=1e-5)
    assert found["box_loss"] == pytest.approx((0.2 - 0.055) / 2, rel=1e-4)


def test_the_targets_of_soft_losses_are_ious_of_boxes_clipped_to_the_batch(
    small_detector,
):
    # The batch is 32 x 8 pixels: the boxes are cut to 31 x 7 of the 256.
    detector = small_detector("foveabox", class_loss=VarifocalLoss())
    # An image's own size has no part in it.
    for size in ((8, 32), (4, 20)):
        found = losses(detector, tiny_outputs(), targets([BOX], [1], size))
        q = 31 * 7 / 256
        # At a logit of 0 the cross entropy is ln 2 for any q.
        total = (2 * q + 10 * 0.75 * 0.25) * LOG2
        assert found["class_loss"] == pytest.approx(total / 3, rel=1e-5)


def test_padded_points_are_ordinary_negatives(small_detector):
    # Of an image of 8 x 8 pixels in a batch of 8 x 64 half lies beyond its padded area.
    outputs = outputs_of(row_of_points(8, 4.0), np.zeros((8, 4)))
    outputs["box_predictions"] = np.zeros((1, 8, 4), "float32")
    found = losses(small_detector("foveabox"), outputs, targets(size=(8, 8)))
    expected = 24 * 0.6 * 0.5**1.5 * LOG2
    assert found["class_loss"] == pytest.approx(expected, rel=1e-5)


def test_detections_are_clipped_to_the_last_pixel(small_detector):
    detector = small_detector("foveabox")
    boxes = np.tile(np.array([-9.0, -9.0, 999.0, 999.0], "float32"), (2, NUM_POINTS, 1))
    scores = np.full((2, NUM_POINTS, 3), 0.5, "float32")
    size = np.array([[64, 96], [60, 90]], "float32")

    def detections(boxes, scores):
        candidates = detector.candidates(boxes, scores, None, (64, 96), size)
        return detector.suppress_candidates(*candidates)

    found = contracts.evaluate(detections, boxes, scores)
    np.testing.assert_array_equal(found["boxes"][0, 0], [0, 0, 95, 63])
    np.testing.assert_array_equal(found["boxes"][1, 0], [0, 0, 89, 59])


def test_boxes_are_exponents_about_the_centres_of_cells(small_detector):
    detector = small_detector("foveabox")
    shapes = [(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)]
    maps = {
        level: np.zeros((1, *shape, 4))
        for level, shape in zip("abcde", shapes, strict=True)
    }
    maps["a"][0, 0, 1] = np.log([0.5, 1.0, 2.0, 0.25])
    maps = {level: np.float32(value) for level, value in maps.items()}
    predictions = {"class_logits": maps, "box_predictions": maps}
    found = detector.decode(detector.make_priors(shapes), tensors(predictions))
    boxes = contracts.to_numpy(found["boxes"])[0]
    # About (4, 4) and (12, 4) in units of 16, about (8, 8) in units of 32.
    expected = [[-12, -12, 20, 20], [4, -12, 44, 8], [-24, -24, 40, 40]]
    np.testing.assert_allclose(boxes[:3], expected, rtol=1e-5, atol=1e-5)


def test_the_size_of_the_batch_follows_from_its_points(small_detector):
    detector = small_detector("foveabox")
    for height, width in ((64, 96), (32, 160)):
        priors = detector.make_priors(detector.level_shapes(height, width))
        size = contracts.to_numpy(detector._canvas_size(priors))
        np.testing.assert_array_equal(size, [[height, width]])
