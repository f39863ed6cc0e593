import numpy as np
import pytest

from tests.contracts import check_config, evaluate
from vfnet_tf.assigners import MaxIoUAssigner

pytestmark = pytest.mark.backend


def match(anchors, boxes, labels=None, is_valid=None, **settings):
    anchors = np.asarray(anchors, "float32")
    boxes = np.asarray(boxes, "float32").reshape(1, -1, 4)
    labels = [list(range(boxes.shape[1]))] if labels is None else [labels]
    if is_valid is None:
        is_valid = np.ones(anchors.shape[-2], bool)
    return evaluate(
        MaxIoUAssigner(**settings),
        anchors,
        np.asarray([is_valid]),
        boxes,
        np.asarray(labels, "int32").reshape(1, -1),
    )


def strip(*widths):
    """Boxes of height 10 from x = 0: their IoU with a width of 100 is width / 100."""
    return [[0, 0, width, 10] for width in widths]


def test_the_three_kinds_of_anchors_by_hand():
    # IoUs 1, 0.5, 0.45, 0.4, 0.39 with the box: two positives, both bounds belong to
    # what is above them, and two in between that are ignored.
    found = match(strip(100, 50, 45, 40, 39), strip(100), [6])
    np.testing.assert_array_equal(found.is_positive[0], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.is_valid[0], [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(found.labels[0], [6, 6, -1, -1, -1])


def test_a_box_gets_its_best_anchors_however_little_they_overlap():
    found = match(strip(20, 10, 20), strip(100))
    np.testing.assert_array_equal(found.is_positive[0], [1, 0, 1])
    np.testing.assert_array_equal(found.is_valid[0], [1, 1, 1])
    found = match(strip(20, 10), strip(100), min_iou=0.21)
    assert not found.is_positive.any()
    # Without any overlap there is no best one.
    assert not match([[50, 50, 60, 60]], strip(20)).is_positive.any()


def test_the_best_box_wins_and_the_first_of_equals():
    found = match(strip(80), [*strip(100), *strip(90)])
    assert found.gt_indices[0, 0] == 1
    boxes = [*strip(160), [0, 0, 80, 20]]  # IoU 0.5 both
    both = match([*strip(80), *strip(160), [0, 0, 80, 20]], boxes)
    np.testing.assert_array_equal(both.gt_indices[0], [0, 0, 1])


def test_the_last_box_that_claims_an_anchor_has_it():
    # The anchor overlaps the first box with 0.9 and is the best there is for both.
    found = match(strip(90), [*strip(100), *strip(30)])
    assert found.gt_indices[0, 0] == 1


def test_anchors_that_are_not_valid_take_no_part():
    found = match(strip(100, 20), strip(100), is_valid=[False, True])
    np.testing.assert_array_equal(found.is_positive[0], [0, 1])
    np.testing.assert_array_equal(found.is_valid[0], [0, 1])


@pytest.mark.parametrize("rows", [0, 3])
def test_without_boxes_all_is_background(rows):
    found = match(strip(100, 50), np.zeros((rows, 4)), [-1] * rows)
    assert not found.is_positive.any()
    assert found.is_valid.all()


def test_the_size_of_the_chunks_changes_nothing():
    rng = np.random.default_rng(5)

    def boxes(count):
        corner = rng.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)

    anchors, truth = boxes(200), boxes(11)
    labels = [*range(9), -1, -1]
    first = match(anchors, truth, labels, chunk=11)
    assert first.is_positive.sum() > 11
    for chunk in (1, 4, 16):
        other = match(anchors, truth, labels, chunk=chunk)
        for one, two in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_each_image_may_have_anchors_of_its_own():
    anchors = np.array([strip(100, 20), strip(20, 100)], "float32")
    found = evaluate(
        MaxIoUAssigner(),
        anchors,
        np.ones((2, 2), bool),
        np.array([strip(100)] * 2, "float32"),
        np.zeros((2, 1), "int32"),
    )
    np.testing.assert_array_equal(found.is_positive, [[1, 0], [0, 1]])


def test_its_config_is_complete():
    check_config(
        MaxIoUAssigner,
        {"positive_iou": 0.6, "negative_iou": 0.3, "min_iou": 0.1, "chunk": 8},
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"negative_iou": 0.6}, "negative_iou=0.6"), ({"chunk": 0}, "chunk=0")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaxIoUAssigner(**settings)
