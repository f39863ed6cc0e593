import keras
import numpy as np
import pytest

from tests import nms_cases
from vfnet_tf.detectors.postprocess import select_candidates
from vfnet_tf.inference import numpy_detection
from vfnet_tf.ops.nms import suppress

SETTINGS = {
    "score_threshold": 0.1,
    "nms_iou_threshold": 0.5,
    "candidates_per_level": 1000,
    "max_detections": 5,
    "nms": "hard",
    "soft_nms_sigma": 0.5,
    "soft_nms_min_score": 0.15,
    "clip_margin": 0.0,
}
ONES = np.ones((1, 2), "float32")


def test_three_boxes_of_two_classes_by_hand():
    # The second overlaps the first by 8 / 12, the third by nothing; class 1 has the
    # second box alone, and a pair at the threshold, which takes no part.
    boxes = np.array([[[0, 0, 10, 1], [2, 0, 12, 1], [20, 0, 30, 99]]], "float32")
    scores = np.array([[[0.9, 0.1], [0.8, 0.3], [0.2, 0.0]]], "float32")
    settings = {**SETTINGS, "level_sizes": [3]}
    sizes = ([[40, 25]], [[0.5, 2.0]])
    found = numpy_detection.detect(boxes, scores, None, *sizes, settings)
    assert found["num_detections"].tolist() == [3]
    assert found["labels"].tolist() == [[0, 1, 0, -1, -1]]
    np.testing.assert_allclose(found["scores"], [[0.9, 0.3, 0.2, 0, 0]])
    # Clipped to 25 x 40 (width, height), then divided by 2 and by a half.
    expected = [[0, 0, 5, 2], [1, 0, 6, 2], [10, 0, 12.5, 80]]
    np.testing.assert_allclose(found["boxes"][0, :3], expected)
    assert not found["boxes"][0, 3:].any()


@pytest.mark.parametrize("name", nms_cases.CASES)
def test_edges_of_nms_by_hand(name):
    boxes, scores, iou_threshold, limit, expected = nms_cases.case(name)
    settings = {
        **SETTINGS,
        "score_threshold": nms_cases.SCORE_THRESHOLD,
        "nms_iou_threshold": iou_threshold,
        "max_detections": limit,
        "level_sizes": [boxes.shape[1]],
    }
    found = numpy_detection.detect(boxes, scores, None, np.inf * ONES, ONES, settings)
    nms_cases.check(found, expected)
    if iou_threshold == 0.5:
        soft = {**settings, "nms": "soft_linear", "soft_nms_min_score": 0.2}
        found = numpy_detection.detect(boxes, scores, None, np.inf * ONES, ONES, soft)
        assert found["num_detections"] == (expected["scores"] >= 0.2).sum()


@pytest.mark.parametrize(
    "setting",
    [
        {"score_threshold": 1.5},
        {"nms_iou_threshold": -0.1},
        {"candidates_per_level": 0},
        {"max_detections": 0},
        {"nms": "softer"},
        {"soft_nms_sigma": 0.0},
        {"soft_nms_min_score": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting):
    (name,) = setting
    settings = {**SETTINGS, "level_sizes": [1], **setting}
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        numpy_detection.detect(
            np.ones((1, 1, 4)), np.ones((1, 1, 1)), None, ONES, ONES, settings
        )


def test_the_best_of_each_level_are_taken_and_of_equals_the_first():
    ranks = np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.3, 0.3])
    index = numpy_detection.best_of_each_level(ranks, [4, 3], 2)
    assert index.tolist() == [1, 3, 5, 6]
    assert numpy_detection.best_of_each_level(ranks, [7], 9).tolist() == list(range(7))


def test_the_threshold_is_for_scores_without_centerness():
    boxes = np.array([[[0, 0, 1, 1], [5, 0, 6, 1]]], "float32")
    centerness = np.array([[0.25, 0.5]], "float32")
    # 0.4 and 0.1 before they were multiplied.
    scores = np.array([[[0.1], [0.05]]], "float32")
    settings = {**SETTINGS, "score_threshold": 0.3, "level_sizes": [2]}
    found = numpy_detection.detect(boxes, scores, centerness, 9 * ONES, ONES, settings)
    assert found["num_detections"].tolist() == [1]
    np.testing.assert_allclose(found["scores"][0, 0], 0.1)


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
@pytest.mark.parametrize("has_centerness", [False, True])
def test_random_predictions_give_the_detections_of_the_tensors(nms, has_centerness):
    rng = np.random.default_rng(8)
    corners = rng.uniform(-5, 60, (2, 90, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (2, 90, 2))], -1)
    boxes = boxes.astype("float32")
    scores = (rng.uniform(size=(2, 90, 3)) ** 2).astype("float32")
    factors = rng.uniform(size=(2, 90)).astype("float32") if has_centerness else None
    image_size = np.array([[60, 70], [50, 64]], "float32")
    scale = np.array([[1, 2], [0.5, 1]], "float32")
    settings = {
        **SETTINGS,
        "level_sizes": [60, 20, 10],
        "candidates_per_level": 25,
        "max_detections": 30,
        "nms": nms,
        "clip_margin": 1.0,
    }
    candidates = select_candidates(
        boxes,
        scores,
        settings["level_sizes"],
        image_size,
        scale,
        candidates_per_level=25,
        factors=factors,
        score_threshold=0.1,
        clip_margin=1.0,
    )
    threshold = 0.0 if has_centerness else 0.1
    expected = suppress(*candidates, 0.5, threshold, 30, nms, 0.5, 0.15)
    product = scores if factors is None else scores * factors[..., None]
    found = numpy_detection.detect(boxes, product, factors, image_size, scale, settings)
    assert found["num_detections"].min() > 10
    for name, value in expected.items():
        value = keras.ops.convert_to_numpy(value)
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
