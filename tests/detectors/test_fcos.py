import numpy as np
import pytest

from tests import contracts
from tests.detectors import hand_cases
from tests.detectors.hand_cases import LOG2, NUM_POINTS, losses, targets
from vfnet_tf.detectors import FCOS
from vfnet_tf.detectors.fcos import centerness_of
from vfnet_tf.heads import DenseHead
from vfnet_tf.losses import FocalLoss, QualityFocalLoss, VarifocalLoss
from vfnet_tf.necks import FPN

pytestmark = pytest.mark.backend


def tiny_outputs(num_points=4, batch=1):
    """Boxes of 64 pixels about points in a row, (4, 4), (12, 4), ..."""
    points = hand_cases.row_of_points(num_points, 4.0)
    boxes = np.concatenate([points - 32, points + 32], axis=-1)
    logits = np.zeros((batch, num_points, 1), "float32")
    outputs = hand_cases.outputs_of(points, boxes, batch)
    return {**outputs, "centerness_logits": logits}


def test_centerness_by_hand():
    # Distances 2 and 8, 3 and 3; the centre; on a side; outside.
    points = np.array([[2, 3], [5, 3], [0, 3], [-1, 3]], "float32")
    boxes = np.array([[[0, 0, 10, 6]] * 4], "float32")
    found = contracts.evaluate(centerness_of, points, boxes)
    np.testing.assert_allclose(found, [[0.5, 1, 0, 0]], rtol=1e-6)


def test_the_loss_parts_by_hand(small_detector):
    detector = small_detector("fcos", box_loss_weight=2.0, centerness_loss_weight=3.0)
    # (12, 4) lies 4 and 6 from the sides of the first box, (28, 4) in the centre of
    # the second, which is predicted as it is; of the first the upper half.
    outputs = tiny_outputs()
    outputs["boxes"][0, 1] = [8, 0, 18, 4]
    outputs["boxes"][0, 3] = [24, 0, 32, 8]
    outputs["centerness_logits"][0, 1] = 1.0
    outputs["centerness_logits"][0, 0] = 50.0  # a negative's
    rows = targets([[8, 0, 18, 8], [24, 0, 32, 8]], [1, 2])
    found = losses(detector, outputs, rows)
    centerness = np.sqrt(4 / 6)
    # Two positives of 12 logits of 0; all else is a negative.
    focal = (2 * 0.25 + 10 * 0.75) * 0.25 * LOG2
    assert found["class_loss"] == pytest.approx(focal / 2, rel=1e-5)
    box_loss = centerness * 0.5 / (centerness + 1)
    assert found["box_loss"] == pytest.approx(2 * box_loss, rel=1e-5)
    entropy = np.log1p(np.exp(1.0)) - centerness + np.log1p(np.exp(0.0))
    assert found["centerness_loss"] == pytest.approx(3 * entropy / 2, rel=1e-5)

    # The targets of soft losses are the IoUs, 0.5 and 1; a logit of 0 is as wrong
    # about 1 as about 0, and right about 0.5.
    soft = {
        VarifocalLoss: (0.5 + 1 + 10 * 0.75 * 0.25) * LOG2,
        QualityFocalLoss: (1 + 10) * 0.25 * LOG2,
    }
    for loss, total in soft.items():
        found = losses(small_detector("fcos", class_loss=loss()), outputs, rows)
        assert found["class_loss"] == pytest.approx(total / 2, rel=1e-4)


def test_points_beyond_the_image_are_negatives_of_the_varifocal_loss_alone(
    small_detector,
):
    # Of eight points four lie beyond the padded area, 32 pixels wide.
    one = 3 * 0.75 * 0.25 * LOG2
    for loss, num_points in ((FocalLoss(), 4), (VarifocalLoss(), 8)):
        detector = small_detector("fcos", class_loss=loss)
        found = losses(detector, tiny_outputs(8), targets())
        assert found["class_loss"] == pytest.approx(num_points * one, rel=1e-5)


def test_images_without_positives_may_count_as_one(small_detector):
    outputs = tiny_outputs(batch=3)
    outputs["boxes"][0, 1] = [8, 0, 18, 8]
    rows = targets([[8, 0, 18, 8]], [1], batch=3)
    total = (0.25 + 35 * 0.75) * 0.25 * LOG2
    for min_positives, count in ((0, 1), (1, 3)):
        detector = small_detector("fcos", min_positives=min_positives)
        found = losses(detector, outputs, rows)
        assert found["class_loss"] == pytest.approx(total / count, rel=1e-5)
        assert found["centerness_loss"] == pytest.approx(LOG2 / count, rel=1e-5)


def test_the_threshold_is_for_class_scores_and_centerness_multiplies_them(
    small_detector,
):
    detector = small_detector("fcos", score_threshold=0.05, max_detections=5)
    boxes = np.zeros((1, NUM_POINTS, 4), "float32")
    boxes[0, :, 2:] = 8
    boxes[0, :, [0, 2]] += 10 * np.arange(NUM_POINTS)
    logits = np.full((1, NUM_POINTS, 3), -9.0, "float32")
    centerness = np.zeros((1, NUM_POINTS, 1), "float32")
    scores = {0: (0.9, 0.1), 3: (0.5, 0.6), 5: (0.06, 0.1), 7: (0.04, 1 - 1e-6)}
    for point, (score, factor) in scores.items():
        logits[0, point, 1] = np.log(score / (1 - score))
        centerness[0, point] = np.log(factor / (1 - factor))

    def detections(boxes, logits, centerness):
        outputs = {
            "boxes": boxes,
            "class_logits": logits,
            "centerness_logits": centerness,
        }
        ranking = detector.ranking(outputs)
        size = np.array([[64.0, 1e4]], "float32")
        candidates = detector.candidates(*ranking, (64, 96), size)
        return detector.suppress_candidates(*candidates)

    found = contracts.evaluate(detections, boxes, logits, centerness)
    # 0.9 * 0.1 ranks below 0.5 * 0.6; 0.06 * 0.1 stays, 0.04 does not.
    assert found["num_detections"] == [3]
    np.testing.assert_allclose(found["scores"][0], [0.3, 0.09, 0.006, 0, 0], rtol=1e-4)
    np.testing.assert_array_equal(found["boxes"][0, :3, 0], [30, 0, 50])
    np.testing.assert_array_equal(found["labels"][0], [1, 1, 1, -1, -1])


def test_points_are_centres_of_cells_or_their_corners(small_detector):
    for kind, first in (("fcos", 4.0), ("atss", 0.0)):
        priors = small_detector(kind).make_priors([(1, 2)] * 5)
        points = contracts.to_numpy(priors["points"])
        np.testing.assert_array_equal(points[:2], [[first, first], [first + 8, first]])


def test_views_share_one_nms_with_centerness_too(small_detector, small_batch):
    detector = small_detector("fcos", score_threshold=0.001)
    images = small_batch["images"]
    usual = contracts.to_numpy(detector.detect(images))
    alone = contracts.to_numpy(detector.detect_augmented([{"images": images}]))
    assert np.all(usual["num_detections"] > 0)
    for name, value in usual.items():
        np.testing.assert_allclose(alone[name], value, rtol=1e-4, atol=1e-4)


def test_a_head_without_centerness_is_refused(small_detector):
    backbone = small_detector("fcos").backbone
    with pytest.raises(ValueError, match="centerness=None"):
        FCOS(backbone, FPN(32), DenseHead(3, 32, 1))
