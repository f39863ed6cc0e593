import numpy as np
import pytest
from keras import ops

from tests.contracts import evaluate, to_numpy
from vfnet_tf.detectors.postprocess import best_of_each_level, postprocess
from vfnet_tf.ops.boxes import distances_to_boxes
from vfnet_tf.priors import make_points

GRID = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
LEVELS = ("P3", "P4", "P5", "P6", "P7")
SETTINGS = {
    "nms0.6": {},
    "nms0.6_rescale1.25": {"scale": 1.25},
    "nms0.6_pre200_max20_thr0.1": {
        "candidates_per_level": 200,
        "max_detections": 20,
        "score_threshold": 0.1,
    },
    "nms0.6_nolimit": {
        "candidates_per_level": 10**6,
        "max_detections": 600,
        "score_threshold": 0.12,
    },
    "empty_thr0.99": {"score_threshold": 0.99},
}


def cases():
    for image in (0, 1):
        for case in SETTINGS:
            # The portable loop would take minutes for 600 detections.
            portable = case != "nms0.6_nolimit" and image == 1
            yield pytest.param(
                image, case, marks=pytest.mark.backend if portable else ()
            )


@pytest.mark.parametrize(("image", "case"), list(cases()))
def test_detections_are_the_official_ones(golden, image, case):
    stored = golden(f"postprocess_image{image}")
    settings = dict(SETTINGS[case])
    scale = settings.pop("scale", None)
    joined = {
        name: np.concatenate(
            [stored[f"input/{name}/{level}"].reshape(-1, channels) for level in LEVELS]
        )[None]
        for name, channels in (("cls_score", 80), ("bbox_pred_refine", 4))
    }
    points, _ = to_numpy(make_points(GRID))

    def detections(logits, distances, image_size):
        return postprocess(
            distances_to_boxes(ops.convert_to_tensor(points), distances),
            ops.sigmoid(logits),
            [height * width for height, width in GRID],
            image_size,
            None if scale is None else ops.full((1, 2), scale),
            **settings,
        )

    found = evaluate(
        detections,
        joined["cls_score"],
        joined["bbox_pred_refine"],
        stored["img_shape"][None].astype("float32"),
    )
    count = len(stored[f"{case}/scores"])
    assert found["num_detections"] == [count]
    # Scores are 1.7e-6 apart at least and good to 2e-8: the order is one.
    np.testing.assert_array_equal(found["labels"][0, :count], stored[f"{case}/labels"])
    np.testing.assert_allclose(
        found["scores"][0, :count], stored[f"{case}/scores"], atol=3e-7
    )
    np.testing.assert_allclose(
        found["boxes"][0, :count], stored[f"{case}/boxes"], atol=1e-4
    )
    np.testing.assert_array_equal(found["labels"][0, count:], -1)


@pytest.mark.backend
def test_each_level_keeps_its_best_points_by_the_best_class():
    # Level 1 has three points of which two stay, level 2 has one.
    scores = np.array([[[0.1, 0.2], [0.9, 0.0], [0.3, 0.8], [0.05, 0.0]]], "float32")
    boxes = np.arange(16, dtype="float32").reshape(1, 4, 4)
    kept_boxes, kept_scores = to_numpy(best_of_each_level(boxes, scores, [3, 1], 2))
    np.testing.assert_array_equal(kept_scores, scores[:, [1, 2, 3]])
    np.testing.assert_array_equal(kept_boxes, boxes[:, [1, 2, 3]])


@pytest.mark.backend
def test_boxes_are_clipped_before_they_are_scaled():
    boxes = np.array([[[-10.0, 5, 50, 70]]], "float32")
    found = postprocess(
        ops.convert_to_tensor(boxes),
        ops.convert_to_tensor(np.full((1, 1, 2), [[0.3, 0.01]], "float32")),
        [1],
        np.array([[60.0, 40.0]], "float32"),
        scale=np.array([[2.0, 4.0]], "float32"),  # vertical, horizontal
        max_detections=2,
    )
    found = to_numpy(found)
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 2.5, 10, 30])
    np.testing.assert_array_equal(found["labels"], [[0, -1]])
