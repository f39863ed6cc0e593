import keras
import numpy as np
import pytest

from tests.contracts import evaluate
from vfnet_tf.ops import nms as module
from vfnet_tf.ops.nms import class_wise_nms

PORTABLE = [module._looped_nms]
if keras.backend.backend() == "tensorflow":
    PORTABLE.append(module._combined_nms)
both = pytest.mark.parametrize("nms", PORTABLE)


def run(nms, boxes, scores, iou_threshold, score_threshold, max_detections):
    def with_thresholds(boxes, scores):
        return nms(boxes, scores, iou_threshold, score_threshold, max_detections)

    return evaluate(
        with_thresholds, np.asarray(boxes, "float32"), np.asarray(scores, "float32")
    )


@pytest.mark.backend
@both
@pytest.mark.parametrize("threshold", ["0.5", "0.6", "0.65"])
@pytest.mark.parametrize("name", ["a", "b", "one"])
def test_it_keeps_what_the_official_operator_keeps(golden, name, threshold, nms):
    stored = golden("nms")
    boxes, scores = stored[f"{name}/boxes"], stored[f"{name}/scores"]
    keep = stored[f"{name}/nms_{threshold}/keep"]
    slots = len(keep) + 2
    found = run(nms, boxes[None], scores[None, :, None], float(threshold), 0.0, slots)
    assert found["num_detections"] == [len(keep)]
    np.testing.assert_array_equal(found["boxes"][0, : len(keep)], boxes[keep])
    np.testing.assert_array_equal(found["scores"][0, : len(keep)], scores[keep])
    np.testing.assert_array_equal(found["labels"][0], [0] * len(keep) + [-1] * 2)
    np.testing.assert_array_equal(found["boxes"][0, len(keep) :], 0)
    np.testing.assert_array_equal(found["scores"][0, len(keep) :], 0)


@pytest.mark.backend
@both
def test_classes_do_not_suppress_each_other_by_hand(nms):
    boxes = [[[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]]
    scores = [[[0.9, 0.3], [0.8, 0.7], [0.04, 0.6]]]
    found = run(nms, boxes, scores, 0.5, 0.05, 5)
    # Class 0: the first drops the second. Class 1: the second drops the first.
    assert found["num_detections"] == [3]
    np.testing.assert_allclose(found["scores"], [[0.9, 0.7, 0.6, 0, 0]])
    np.testing.assert_array_equal(found["labels"], [[0, 1, 1, -1, -1]])
    np.testing.assert_array_equal(
        found["boxes"][0, :3], [boxes[0][0], boxes[0][1], boxes[0][2]]
    )
    assert found["labels"].dtype == found["num_detections"].dtype == "int32"


@pytest.mark.backend
@both
def test_both_thresholds_must_be_exceeded_not_met(nms):
    boxes = [[[0, 0, 2, 2], [0, 0, 2, 1], [8, 8, 9, 9]]]  # IoU of the first two: 0.5
    scores = [[[0.75], [0.5], [0.25]]]
    found = run(nms, boxes, scores, 0.5, 0.25, 3)
    assert found["num_detections"] == [2]
    found = run(nms, boxes, scores, 0.499, 0.249, 3)
    np.testing.assert_allclose(found["scores"], [[0.75, 0.25, 0]])


@pytest.mark.backend
@both
def test_the_best_of_all_classes_are_kept(nms):
    boxes = [[[i * 20, 0, i * 20 + 10, 10] for i in range(4)]]
    scores = [[[0.1, 0.6], [0.2, 0.5], [0.9, 0.3], [0.8, 0.4]]]
    found = run(nms, boxes, scores, 0.5, 0.05, 3)
    np.testing.assert_allclose(found["scores"], [[0.9, 0.8, 0.6]])
    np.testing.assert_array_equal(found["labels"], [[0, 0, 1]])


@pytest.mark.backend
@both
def test_no_candidates_give_an_empty_result(nms):
    boxes = np.zeros((2, 3, 4))
    found = run(nms, boxes, np.full((2, 3, 4), 0.01), 0.5, 0.05, 6)
    np.testing.assert_array_equal(found["num_detections"], [0, 0])
    np.testing.assert_array_equal(found["labels"], np.full((2, 6), -1))
    assert found["boxes"].shape == (2, 6, 4)


@pytest.mark.backend
@both
def test_images_of_a_batch_stay_apart(nms):
    rng = np.random.default_rng(0)
    boxes, scores = random_case(rng, batch=2)
    together = run(nms, boxes, scores, 0.5, 0.1, 20)
    for image in (0, 1):
        alone = run(
            nms, boxes[image : image + 1], scores[image : image + 1], 0.5, 0.1, 20
        )
        for key, value in alone.items():
            np.testing.assert_array_equal(value[0], together[key][image])


def random_case(rng, batch=1, num_boxes=60, num_classes=3):
    corners = rng.uniform(0, 60, (batch, num_boxes, 2))
    sizes = rng.uniform(1, 40, (batch, num_boxes, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=-1)
    return boxes, rng.uniform(0, 1, (batch, num_boxes, num_classes))


@pytest.mark.skipif(len(PORTABLE) < 2, reason="the switch is TensorFlow's")
@pytest.mark.parametrize("seed", range(5))
def test_the_switch_and_the_loop_agree_on_random_boxes(seed):
    boxes, scores = random_case(np.random.default_rng(seed), batch=2)
    arguments = (boxes, scores, 0.3 + 0.1 * seed, 0.2, 40)
    looped = run(module._looped_nms, *arguments)
    combined = run(module._combined_nms, *arguments)
    for key, value in looped.items():
        np.testing.assert_array_equal(value, combined[key])


@pytest.mark.backend
def test_the_public_function_is_one_of_them():
    boxes, scores = random_case(np.random.default_rng(9))
    public = run(class_wise_nms, boxes, scores, 0.5, 0.2, 30)
    looped = run(module._looped_nms, boxes, scores, 0.5, 0.2, 30)
    for key, value in looped.items():
        np.testing.assert_array_equal(public[key], value)
