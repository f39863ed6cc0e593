import numpy as np
import pytest

from tests import contracts
from tests.contracts import tensors
from tests.detectors.hand_cases import LOG2, losses, outputs_of, targets
from vfnet_tf.losses import VarifocalLoss
from vfnet_tf.priors import make_anchors

pytestmark = pytest.mark.backend


def tiny_outputs(batch=1):
    """Four anchors at one point: with the box 0, 0, 32, 32 the IoUs 1, 0.45, 0.25, 0."""
    anchors = [[0, 0, 32, 32], [0, 0, 32, 14.4], [0, 0, 16, 16], [64, 0, 80, 16]]
    return {
        **outputs_of(np.zeros((4, 2), "float32"), anchors, batch),
        "box_predictions": np.zeros((batch, 4, 4), "float32"),
        "anchors": np.float32(anchors),
    }


def test_the_loss_parts_by_hand(small_detector):
    outputs = tiny_outputs()
    outputs["boxes"][0, 0] = [0, 0, 32, 16]  # IoU 0.5
    outputs["box_predictions"][0] = [0.1, 0, 0.05, -0.2]  # of the negatives, too
    rows = targets([[0, 0, 32, 32]], [1])
    found = losses(small_detector("retinanet", box_loss_weight=2.0), outputs, rows)
    assert found["box_loss"] == pytest.approx(2 * 0.35, rel=1e-5)
    # One positive logit, eight of negatives; the second anchor is ignored.
    focal = (0.25 + 8 * 0.75) * 0.25 * LOG2
    assert found["class_loss"] == pytest.approx(focal, rel=1e-5)
    detector = small_detector("retinanet", class_loss=VarifocalLoss())
    found = losses(detector, outputs, rows)
    varifocal = (0.5 + 8 * 0.75 * 0.25) * LOG2
    assert found["class_loss"] == pytest.approx(varifocal, rel=1e-5)


def test_what_is_learnt_are_deltas_of_the_anchor(small_detector):
    outputs = tiny_outputs()
    outputs["boxes"][:] = 0
    rows = targets([[4, 0, 20, 32]], [0])
    detector = small_detector("retinanet")
    # Only the first anchor reaches it with 1/2: moved by -4/32, half as wide.
    found = losses(detector, outputs, rows)
    assert found["box_loss"] == pytest.approx(4 / 32 + LOG2, rel=1e-5)


def test_each_image_counts_as_one_positive_at_least(small_detector):
    rows = targets([[0, 0, 32, 32]], [1], batch=3)
    outputs = tiny_outputs(batch=3)
    outputs["box_predictions"][:] = 0.5
    found = losses(small_detector("retinanet"), outputs, rows)
    # Without a box no anchor is ignored.
    focal = (0.25 + (8 + 2 * 12) * 0.75) * 0.25 * LOG2
    assert found["class_loss"] == pytest.approx(focal / 3, rel=1e-5)
    assert found["box_loss"] == pytest.approx(2.0 / 3, rel=1e-5)


def test_every_cell_has_nine_rows_in_the_order_of_the_head(small_detector):
    detector = small_detector("retinanet")
    shapes = [(2, 3), (1, 2), (1, 1), (1, 1), (1, 1)]
    priors = contracts.to_numpy(detector.make_priors(shapes))
    cells = 2 * 3 + 2 + 3
    assert {name: value.shape for name, value in priors.items()} == {
        "points": (9 * cells, 2),
        "strides": (9 * cells,),
        "anchors": (9 * cells, 4),
    }
    np.testing.assert_array_equal(priors["points"][9:18], [[8, 0]] * 9)
    expected = contracts.evaluate(
        make_anchors, np.array([[8, 0]], "float32"), np.array([8], "float32")
    )
    np.testing.assert_allclose(priors["anchors"][9:18], expected[0], rtol=1e-6)
    # One prediction by its channels: cell 1, anchor 4, class 2 and side 3.
    maps = {
        name: {
            level: np.zeros((1, *shape, channels), "float32")
            for level, shape in zip("abcde", shapes, strict=True)
        }
        for name, channels in (("class_logits", 27), ("box_predictions", 36))
    }
    maps["class_logits"]["a"][0, 0, 1, 4 * 3 + 2] = 1.0
    maps["box_predictions"]["a"][0, 0, 1, 4 * 4 + 3] = 0.5
    found = detector.decode(detector.make_priors(shapes), tensors(maps))
    found = contracts.to_numpy(found)
    assert np.argwhere(found["class_logits"]).tolist() == [[0, 9 + 4, 2]]
    assert np.argwhere(found["box_predictions"]).tolist() == [[0, 9 + 4, 3]]
    anchor, box = priors["anchors"][13], found["boxes"][0, 13]
    np.testing.assert_allclose(box[[0, 2]], anchor[[0, 2]], rtol=1e-5)
    height = (anchor[3] - anchor[1]) * np.exp(0.5)
    np.testing.assert_allclose(box[3] - box[1], height, rtol=1e-5)


def test_octaves_and_ratios_make_the_anchors(small_detector):
    # Nine shapes of one size, 32 pixels on P3.
    ratios = tuple(2.0**power for power in range(-4, 5))
    detector = small_detector("retinanet", octaves=1, ratios=ratios)
    anchors = contracts.to_numpy(detector.make_priors([(1, 1)] * 5)["anchors"])
    sides = anchors[:9, 2:] - anchors[:9, :2]
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], ratios, rtol=1e-5)
    np.testing.assert_allclose(sides.prod(axis=1), 32.0**2, rtol=1e-5)


def test_anchors_are_the_candidates_of_a_level(small_detector):
    detector = small_detector("retinanet", candidates_per_level=100)
    rows = 9 * (96 + 24 + 6 + 2 + 1)
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 64, (1, rows, 4)).astype("float32")
    scores = rng.uniform(0, 0.5, (1, rows, 3)).astype("float32")
    scores[0, 9:27] = 0.9  # all of two cells

    def candidates(boxes, scores):
        size = np.array([[64.0, 96.0]], "float32")
        return detector.candidates(boxes, scores, None, (64, 96), size)

    kept, found = contracts.evaluate(candidates, boxes, scores)
    # 864 and 216 anchors, then all of 54, 18 and 9.
    assert kept.shape == (1, 100 + 100 + 54 + 18 + 9, 4)
    assert np.sum(found[0, :, 0] == np.float32(0.9)) == 18
    np.testing.assert_array_equal(kept[0, 200:], boxes[0, 9 * 120 :])
    first = [box for box in kept[0, :100] if box[0] in boxes[0, 9:27, 0]]
    assert len(first) == 18


def test_a_head_of_other_anchors_is_refused(small_detector):
    with pytest.raises(ValueError, match=r"octaves times ratios, 6. Received: 9"):
        small_detector("retinanet", octaves=2)
