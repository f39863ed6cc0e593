import numpy as np
import pytest

from tests.contracts import evaluate
from vfnet_tf.assigners import MaxIoUAssigner

pytestmark = pytest.mark.backend


def part(height, left=0):
    """The upper part of a square of 10: its IoU with the whole is height / 10."""
    return [left, 0, left + 10, height]


def assign(anchors, boxes, labels=None, is_valid=None, **settings):
    """One image, or several where the anchors are `[B, P, 4]`."""
    anchors, boxes = np.asarray(anchors, "float32"), np.asarray(boxes, "float32")
    boxes = boxes.reshape(-1, boxes.shape[-2] if boxes.ndim > 1 else 0, 4)
    if labels is None:
        labels = [np.arange(boxes.shape[1])] * len(boxes)
    if is_valid is None:
        is_valid = np.ones((len(boxes), anchors.shape[-2]), bool)
    return evaluate(
        MaxIoUAssigner(**settings),
        anchors,
        np.asarray(is_valid, bool),
        boxes,
        np.asarray(labels, "int32").reshape(boxes.shape[:2]),
    )


def test_both_thresholds_by_hand():
    # 1, 0.5 and above are positive, 0.4 and what lies between are ignored, below 0.4
    # are negative.
    anchors = [part(10), part(5), part(4.9), part(4), part(3.9), part(10, left=40)]
    found = assign(anchors, [part(10)])
    np.testing.assert_array_equal(found.gt_indices, [[0, 0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(
        found.is_valid, [[True, True, False, False, True, True]]
    )
    np.testing.assert_array_equal(found.labels, [[0, 0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(found.boxes[0, 1], part(10))
    found = assign(anchors, [part(10)], positive_iou=0.6, negative_iou=0.6)
    np.testing.assert_array_equal(found.gt_indices, [[0, -1, -1, -1, -1, -1]])
    assert found.is_valid.all()


def test_a_box_gets_the_anchors_that_overlap_it_most_however_little():
    # IoUs 0.3, 0.3 and 0.2, the first two by other anchors than each other.
    anchors = [part(3), [0, 7, 10, 10], part(2), part(10, left=40)]
    found = assign(anchors, [part(10)])
    np.testing.assert_array_equal(found.gt_indices, [[0, 0, -1, -1]])
    assert found.is_valid.all()
    # An ignored one becomes a positive so, too.
    found = assign([part(4.5), part(2)], [part(10)])
    np.testing.assert_array_equal(found.gt_indices, [[0, -1]])
    assert found.is_valid.all()


def test_min_iou_is_what_a_box_must_be_overlapped_by():
    anchors = [part(3), part(2)]
    for min_iou, expected in ((0.25, 0), (0.35, -1)):
        found = assign(anchors, [part(10)], min_iou=min_iou)
        np.testing.assert_array_equal(found.gt_indices, [[expected, -1]])
    # No overlap at all never counts.
    found = assign([part(10, left=40)] * 2, [part(10)])
    assert not found.is_positive.any() and found.is_valid.all()


def test_an_anchor_of_several_boxes_learns_the_one_it_overlaps_most():
    # The boxes have better anchors of their own, 2 and 3; 0 and 1 go by their IoUs.
    left, right = [0, 0, 10, 10], [4, 0, 14, 10]
    anchors = [[1, 0, 11, 10], [3, 0, 13, 10], left, right]
    for boxes in ([left, right], [right, left]):
        found = assign(anchors, boxes)
        expected = [boxes.index(box) for box in (left, right, left, right)]
        np.testing.assert_array_equal(found.gt_indices, [expected])


@pytest.mark.parametrize("chunk", [1, 16])
def test_the_first_of_equals_by_iou_and_the_last_by_claim(chunk):
    anchors = [part(10), part(8)]
    found = assign(anchors, [part(10)] * 3, chunk=chunk)
    # Both claim anchor 0, their best; anchor 1 has the same IoU with each.
    np.testing.assert_array_equal(found.gt_indices, [[2, 0]])
    # A claim needs no larger IoU: 0.9 and 0.3 with anchor 0.
    found = assign([part(10)], [part(9), part(3)], chunk=chunk)
    np.testing.assert_array_equal(found.gt_indices, [[1]])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
def test_the_size_of_the_chunks_changes_nothing(chunk):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 24, (2, 5, 2))
    boxes = np.concatenate([corners, corners + rng.integers(4, 20, (2, 5, 2))], -1)
    corners = rng.integers(0, 24, (60, 2))
    anchors = np.concatenate([corners, corners + rng.integers(4, 20, (60, 2))], -1)
    labels = [[3, 1, -1, 2, 0], [-1, -1, 4, 4, -1]]
    # Low thresholds, so that most positives are no box's best.
    thresholds = {"positive_iou": 0.3, "negative_iou": 0.2}
    expected = assign(anchors, boxes, labels, **thresholds)
    found = assign(anchors, boxes, labels, chunk=chunk, **thresholds)
    assert set(np.unique(expected.gt_indices)) == {-1, 0, 1, 2, 3, 4}
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_anchors_that_are_not_valid_take_no_part():
    # The best anchor is beyond the image: the next best is claimed in its place.
    anchors = [part(10), part(3), part(2)]
    found = assign(anchors, [part(10)], is_valid=[[False, True, True]])
    np.testing.assert_array_equal(found.gt_indices, [[-1, 0, -1]])
    np.testing.assert_array_equal(found.is_valid, [[False, True, True]])


def test_each_image_may_have_anchors_of_its_own():
    found = assign(
        [[part(10), part(2)], [part(2), part(10)]],
        [[part(10)], [part(10)]],
        labels=[[4], [5]],
    )
    np.testing.assert_array_equal(found.labels, [[4, -1], [-1, 5]])


def test_infinite_and_undefined_anchors_are_negatives():
    # Predicted boxes may be anything; the others are assigned as without them.
    inf, nan = float("inf"), float("nan")
    wild = [[-inf, -inf, inf, inf], [inf] * 4, [nan] * 4, [0, 0, inf, 10]]
    found = assign([part(10), *wild, part(3)], [part(10)])
    np.testing.assert_array_equal(found.gt_indices, [[0, -1, -1, -1, -1, -1]])
    assert found.is_valid.all()
