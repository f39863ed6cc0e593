import keras
import numpy as np
import pytest
from keras import ops

from tests.contracts import evaluate, on_tensorflow, to_numpy
from tests.detectors.hand_cases import postprocess
from vfnet_tf.detectors.postprocess import (
    best_of_each_level,
    merge_candidates,
    select_candidates,
)
from vfnet_tf.ops.boxes import distances_to_boxes
from vfnet_tf.ops.nms import suppress
from vfnet_tf.ops.shapes import sizes_of
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
    "softnms0.65": {"nms": "soft_linear", "iou_threshold": 0.65},
    "softnms0.65_rescale1.25": {
        "nms": "soft_linear",
        "iou_threshold": 0.65,
        "scale": 1.25,
    },
    "softnms0.3_thr0.08_max1000": {
        "nms": "soft_linear",
        "iou_threshold": 0.3,
        "score_threshold": 0.08,
        "max_detections": 1000,
    },
}


def cases():
    for image in (0, 1):
        for case in SETTINGS:
            # The portable loop would take minutes for 600 detections.
            portable = case != "nms0.6_nolimit" and image == 1
            if "max1000" in case and image == 0:
                continue
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

    if "soft" in case and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Step by step a thousand steps would take ten times as long.
        detections = tf.function(detections)
    found = evaluate(
        detections,
        joined["cls_score"],
        joined["bbox_pred_refine"],
        stored["img_shape"][None].astype("float32"),
    )
    count = len(stored[f"{case}/scores"])
    assert found["num_detections"] == [count]
    if "max1000" in case:
        # Thousands of pairs have decayed by many IoUs: scores are good to 1.2e-5 there.
        assert_same_set(found, stored, case)
        return
    # Scores are 1.4e-6 apart at least and good to 2e-8: the order is one.
    np.testing.assert_array_equal(found["labels"][0, :count], stored[f"{case}/labels"])
    np.testing.assert_allclose(
        found["scores"][0, :count], stored[f"{case}/scores"], atol=3e-7
    )
    np.testing.assert_allclose(
        found["boxes"][0, :count], stored[f"{case}/boxes"], atol=1e-4
    )
    np.testing.assert_array_equal(found["labels"][0, count:], -1)


def assert_same_set(found, stored, case):
    """The same detections, in an order that may differ where scores do not."""
    count = len(stored[f"{case}/scores"])
    expected = np.column_stack(
        [stored[f"{case}/{name}"] for name in ("labels", "boxes", "scores")]
    )
    actual = np.column_stack(
        [found["labels"][0], found["boxes"][0], found["scores"][0]]
    )[:count]
    np.testing.assert_allclose(actual[:, 5], expected[:, 5], atol=2e-5)
    # Each finds its own: same label, box within 1e-4, score within 2e-5.
    tolerance = [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 2e-5]
    is_same = np.all(np.abs(actual[:, None] - expected[None]) < tolerance, axis=-1)
    np.testing.assert_array_equal(is_same.sum(axis=0), 1)
    np.testing.assert_array_equal(is_same.sum(axis=1), 1)


@pytest.mark.backend
def test_each_level_keeps_its_best_points_by_the_best_class():
    # Level 1 has three points of which two stay, level 2 has one.
    scores = np.array([[[0.1, 0.2], [0.9, 0.0], [0.3, 0.8], [0.05, 0.0]]], "float32")
    boxes = np.arange(16, dtype="float32").reshape(1, 4, 4)
    ranks = scores.max(-1)
    kept_boxes, kept_scores = evaluate(
        lambda *x: best_of_each_level(x[0], x[1:], [3, 1], 2), ranks, boxes, scores
    )
    np.testing.assert_array_equal(kept_scores, scores[:, [1, 2, 3]])
    np.testing.assert_array_equal(kept_boxes, boxes[:, [1, 2, 3]])


@pytest.mark.backend
def test_factors_rank_with_the_scores_and_the_threshold_is_for_the_scores_alone():
    scores = [[0.9, 0.04], [0.8, 0.3], [0.06, 0.0], [0.05, 0.0]]
    factors = [0.1, 0.9, 0.5, 1.0]
    boxes = np.arange(16, dtype="float32").reshape(1, 4, 4)

    def select(boxes, scores, factors, limit):
        return select_candidates(
            boxes,
            scores,
            [4],
            np.array([[50.0, 50.0]], "float32"),
            candidates_per_level=limit,
            factors=factors,
            score_threshold=0.05,
        )

    inputs = [np.array([x], "float32") for x in (boxes[0], scores, factors)]
    _, found = evaluate(lambda *x: select(*x, 4), *inputs)
    # 0.9 * 0.1 and 0.06 * 0.5 stay, the latter below the threshold; 0.04 and 0.05,
    # which is not above it, are gone.
    expected = [[0.09, 0], [0.72, 0.27], [0.03, 0], [0, 0]]
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    # The best products are those of points 1 and 0: 0.72, 0.09, then 0.05.
    kept, found = evaluate(lambda *x: select(*x, 1), *inputs)
    np.testing.assert_array_equal(kept, boxes[:, [1]])
    np.testing.assert_allclose(found, [[expected[1]]], rtol=1e-5)
    # Both stay in the order of places.
    kept, _ = evaluate(lambda *x: select(*x, 2), *inputs)
    np.testing.assert_array_equal(kept, boxes[:, [0, 1]])


@pytest.mark.backend
@pytest.mark.parametrize("limit", [0, -1, 2.5, float("nan")])
def test_candidates_must_be_some(limit):
    boxes, scores = np.zeros((1, 3, 4), "float32"), np.ones((1, 3, 1), "float32")
    with pytest.raises(ValueError, match="`candidates_per_level` must be at least 1"):
        select_candidates(boxes, scores, [3], [[9, 9]], candidates_per_level=limit)


@on_tensorflow
@pytest.mark.parametrize("limit", [3, 5, 1000])
def test_a_graph_of_open_sizes_takes_equal_scores_as_one_of_known_sizes(limit):
    import tensorflow as tf

    # Point 4 is the best of its level by class 1, and as good as others by class 0.
    boxes = np.float32([[[20 * i, 0, 20 * i + 9, 9] for i in range(6)]])
    scores = np.float32([[[0.5, 0.25]] * 4 + [[0.5, 0.75]] + [[0.5, 0.25]]])

    def detect(boxes, scores):
        return postprocess(
            boxes,
            scores,
            [sizes_of(boxes)[1]],
            [[999, 999]],
            candidates_per_level=limit,
            max_detections=3,
        )

    specs = [tf.TensorSpec((None, None, size)) for size in (4, 2)]
    found = to_numpy(tf.function(detect, specs, autograph=False)(boxes, scores))
    assert found["labels"].tolist() == [[1, 0, 0]]
    np.testing.assert_array_equal(found["boxes"], boxes[:, [4, 0, 1]])
    for name, value in evaluate(detect, boxes, scores).items():
        np.testing.assert_array_equal(found[name], value)


def dense_views(stored):
    """Points that were not kept come back with scores near 0 and empty boxes."""
    for view in range(len(stored["scale"])):
        grid = [(int(height), int(width)) for height, width in stored[f"{view}/grid"]]
        sizes = [height * width for height, width in grid]
        logits = np.full((1, sum(sizes), 80), -20.0, "float32")
        pairs = stored[f"{view}/pair_points"], stored[f"{view}/pair_labels"]
        logits[0][pairs] = stored[f"{view}/pair_logits"]
        distances = np.zeros((1, sum(sizes), 4), "float32")
        distances[0, stored[f"{view}/points"]] = stored[f"{view}/distances"]
        yield grid, sizes, logits, distances


@pytest.mark.backend
def test_views_of_an_image_give_the_official_detections(golden):
    stored = golden("augmented")
    views = list(dense_views(stored))

    def detections(*maps):
        candidates = []
        for view, (grid, sizes, _, _) in enumerate(views):
            points, _ = make_points(grid)
            width, height = stored["scale"][view, :2]
            candidates.append(
                select_candidates(
                    distances_to_boxes(points, maps[2 * view + 1]),
                    ops.sigmoid(maps[2 * view]),
                    sizes,
                    # The finest level has a cell for every 8 pixels of the image.
                    8.0 * np.array([grid[0]], "float32"),
                    np.array([[height, width]]),
                    flipped=view % 2 == 1,
                )
            )
        return suppress(*merge_candidates(candidates), 0.6, 0.05, 100)

    maps = [array for _, _, *arrays in views for array in arrays]
    found = evaluate(detections, *maps)
    assert found["num_detections"] == [100]
    # Consecutive scores differ by 2.7e-6 at least.
    np.testing.assert_array_equal(found["labels"][0], stored["labels"])
    np.testing.assert_allclose(found["scores"][0], stored["scores"], atol=3e-7)
    np.testing.assert_allclose(found["boxes"][0], stored["boxes"], atol=1e-4)


#: arguments for the box (-10, 5, 50, 70) in an image of 60 x 40 pixels -> the candidate
CHANGES = {
    "clipped": ({}, [0, 5, 40, 60]),
    "then scaled": ({"scale": [[2.0, 4.0]]}, [0, 2.5, 10, 30]),
    "to a pixel less": ({"scale": [[0.5, 0.5]], "clip_margin": 1.0}, [0, 10, 78, 118]),
    "not mirrored": ({"flipped": False}, [0, 5, 40, 60]),
    "mirrored": ({"flipped": True}, [0, 5, 40, 60]),
}


@pytest.mark.backend
@pytest.mark.parametrize("change", CHANGES)
def test_boxes_are_clipped_mirrored_back_and_scaled_in_this_order(change):
    settings, expected = CHANGES[change]
    settings = {k: np.array(v) if k == "scale" else v for k, v in settings.items()}

    def select(boxes, scores):
        size = np.array([[60.0, 40.0]], "float32")
        return select_candidates(boxes, scores, [1], size, **settings)

    scores = np.float32([[[0.3, 0.01]]])
    boxes, found = evaluate(select, np.float32([[[-10, 5, 50, 70]]]), scores)
    np.testing.assert_allclose(boxes, [[expected]])
    np.testing.assert_array_equal(found, scores)


@pytest.mark.backend
def test_images_of_a_view_may_be_mirrored_one_by_one():
    # Clipped to x from 0 to 30 of 40, which is 10 to 40 seen from the other side.
    found, _ = evaluate(
        lambda boxes, scores: select_candidates(
            boxes,
            scores,
            [1],
            np.array([[60.0, 40.0]] * 2, "float32"),
            np.array([[2.0, 4.0]] * 2, "float32"),  # vertical, horizontal
            np.array([True, False]),
        ),
        np.float32([[[-10, 5, 30, 70]]] * 2),
        np.zeros((2, 1, 1), "float32"),
    )
    np.testing.assert_array_equal(found, [[[2.5, 2.5, 10, 30]], [[0, 2.5, 7.5, 30]]])
