import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation import scene
from tests.evaluation.test_coco import RESULTS, TRUTH
from vfnet_tf.evaluation.coco import CocoEvaluator, read_results
from vfnet_tf.evaluation.matching import match_detections, pairwise_iou


def test_iou_by_hand_and_within_a_crowd():
    box = np.array([[0.0, 0, 10, 10]])
    others = np.array([[5.0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 5, 5], [2, 2, 4, 5]])
    # 50 of 150, all, none (they touch), 20 of 100.
    np.testing.assert_allclose(pairwise_iou(box, others), [[1 / 3, 1, 0, 0.2]])
    np.testing.assert_allclose(pairwise_iou(box, others, True), [[0.5, 1, 0, 0.2]])
    # A box without area overlaps nothing, itself neither.
    flat = np.array([[3.0, 3, 0, 5]])
    assert pairwise_iou(flat, np.concatenate([box, flat])).tolist() == [[0, 0]]


def test_the_higher_score_takes_the_object_and_the_other_is_false():
    matches = scene.match(
        [(1, 0, [0, 0, 10, 10])],
        [(1, 0, [0, 0, 10, 10], 0.3), (1, 0, [0, 0, 10, 8], 0.9)],
    )
    assert matches.scores.tolist() == [0.9, 0.3]
    assert matches.matched.tolist() == [0, -1]
    assert matches.matched_iou.tolist() == [0.8, 0.0]
    assert matches.own_iou.tolist() == [0.8, 1.0]
    assert matches.is_false.tolist() == [False, True]
    assert matches.is_found.tolist() == [True]


def test_a_detection_whose_best_object_is_taken_gets_the_next_one():
    # The second overlaps the first object by 0.9 and the second by 80 of 120.
    matches = scene.match(
        [(1, 0, [0, 0, 10, 10]), (1, 0, [0, 2, 10, 10])],
        [(1, 0, [0, 0, 10, 10], 0.9), (1, 0, [0, 0, 10, 9], 0.8)],
    )
    assert matches.matched.tolist() == [0, 1]
    np.testing.assert_allclose(matches.matched_iou, [1, 70 / 120])
    assert matches.own_object.tolist() == [0, 0]


def test_a_detection_at_the_threshold_is_right():
    objects, box = [(1, 0, [0, 0, 10, 10])], [0, 0, 10, 5]
    assert scene.match(objects, [(1, 0, box, 0.5)]).is_true.tolist() == [True]
    assert scene.match(objects, [(1, 0, box, 0.5)], 0.6).is_true.tolist() == [False]


def test_other_classes_and_other_images_do_not_match():
    matches = scene.match(
        [(1, 0, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10])],
        [(1, 1, [0, 0, 10, 5], 0.9), (2, 0, [50, 50, 5, 5], 0.8)],
    )
    assert not matches.is_true.any()
    assert matches.own_iou.tolist() == [0, 0]
    assert matches.own_object.tolist() == [-1, -1]
    assert matches.other_iou.tolist() == [0.5, 0.0]
    assert matches.other_object.tolist() == [0, -1]
    assert matches.images.tolist() == [0, 1] and matches.gt_images.tolist() == [0, 1]


def test_detections_in_a_crowd_of_their_class_are_ignored():
    crowd = (1, 0, [0, 0, 100, 100], True)
    matches = scene.match(
        [crowd, (1, 0, [0, 0, 10, 10])],
        [
            (1, 0, [0, 0, 10, 10], 0.9),  # right, though inside the crowd too
            (1, 0, [50, 50, 10, 10], 0.8),
            (1, 0, [95, 50, 10, 10], 0.7),  # half inside
            (1, 0, [96, 50, 10, 10], 0.6),  # less
            (1, 1, [50, 50, 10, 10], 0.5),  # another class
        ],
    )
    assert matches.is_ignored.tolist() == [False, True, True, False, False]
    assert matches.is_true.tolist() == [True, False, False, False, False]
    assert matches.is_false.tolist() == [False, False, False, True, True]
    assert len(matches.gt_labels) == 1


def test_of_a_class_in_an_image_a_hundred_detections_count():
    found = [(1, 0, [0, 0, 9, 9], k / 200) for k in range(150)]
    found += [(1, 1, [0, 0, 9, 9], 0.001), (2, 0, [0, 0, 9, 9], 0.002)]
    matches = scene.match([], found)
    assert np.bincount(matches.images).tolist() == [101, 1]
    assert matches.scores[matches.labels == 0].min() == 0.002
    assert matches.scores[99] == 50 / 200


def test_images_without_anything_and_unknown_ones():
    matches = scene.match([], [])
    assert matches.boxes.shape == matches.gt_boxes.shape == (0, 4)
    assert len(scene.match([], [(3, 0, [0, 0, 1, 1], 0.5)]).scores) == 0
    with pytest.raises(ValueError, match="iou_threshold=1"):
        scene.match([], [], 1)


@pytest.mark.filterwarnings("ignore:.*classes have no object")
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_real_detections_match_as_in_pycocotools(threshold, capsys):
    evaluator = CocoEvaluator(TRUTH)
    matches = match_detections(evaluator, read_results(RESULTS, evaluator), threshold)
    truth = COCO(TRUTH)
    theirs = COCOeval(truth, truth.loadRes(str(RESULTS)), "bbox")
    theirs.params.iouThrs = np.array([threshold])
    theirs.params.areaRng, theirs.params.areaRngLbl = [[0, 1e10]], ["all"]
    theirs.evaluate()
    entries = [entry for entry in theirs.evalImgs if entry is not None]
    num_true = num_ignored = 0
    for entry in entries:
        is_ignored = entry["dtIgnore"][0].astype(bool)
        is_true = (entry["dtMatches"][0] > 0) & ~is_ignored
        image = list(evaluator.image_ids).index(entry["image_id"])
        label = list(evaluator.category_ids).index(entry["category_id"])
        rows = (matches.images == image) & (matches.labels == label)
        assert matches.scores[rows].tolist() == entry["dtScores"]
        assert matches.is_true[rows].tolist() == is_true.tolist()
        assert matches.is_ignored[rows].tolist() == is_ignored.tolist()
        num_true += is_true.sum()
        num_ignored += is_ignored.sum()
    assert num_true == matches.is_true.sum() > 500
    assert num_ignored == matches.is_ignored.sum()
