import numpy as np
import pytest

from tests.contracts import evaluate, to_numpy
from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.priors import make_points

LEVELS = ("P3", "P4", "P5", "P6", "P7")


def assign(boxes, labels, image_size, level_shapes, assigner=None):
    strides = (8, 16, 32, 64, 128)[: len(level_shapes)]
    assigner = assigner or ATSSAssigner(strides=strides)
    return evaluate(
        assigner,
        *to_numpy(make_points(level_shapes, strides)),
        np.asarray(boxes, "float32"),
        np.asarray(labels, "int32"),
        np.asarray(image_size, "float32"),
    )


def golden_batch(stored, key):
    """Padded boxes and labels, and the image sizes, of a golden batch."""
    boxes = [stored[f"{key}/gt_boxes/{i}"] for i in (0, 1)]
    padded = np.zeros((2, 6, 4), "float32")
    labels = np.full((2, 6), -1, "int32")
    for image, rows in enumerate(boxes):
        padded[image, : len(rows)] = rows
        labels[image, : len(rows)] = stored[f"{key}/gt_labels/{image}"]
    return padded, labels, stored[f"{key}/pad_shape"].astype("float32")


GRID = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]


@pytest.mark.backend
@pytest.mark.parametrize("key", "ABCD")
def test_labels_and_target_boxes_are_the_official_ones_exactly(golden, key):
    stored = golden("vfnet_r50_training")
    boxes, labels, pad_shape = golden_batch(stored, key)
    found = assign(boxes, labels, pad_shape, GRID)

    expected = np.concatenate(
        [stored[f"{key}/labels/{level}"].reshape(2, -1) for level in LEVELS], axis=1
    )
    expected = np.where(expected == 80, -1, expected)  # 80 stands for background
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.is_positive, expected >= 0)
    assert found.is_positive.sum() == stored[f"{key}/num_pos"]

    weights = np.concatenate(
        [stored[f"{key}/label_weights/{level}"].reshape(2, -1) for level in LEVELS],
        axis=1,
    )
    np.testing.assert_array_equal(found.is_valid, weights > 0)

    first = np.concatenate([[0], np.cumsum([h * w for h, w in GRID])])
    widths = np.array([w for _, w in GRID])
    rows = stored[f"{key}/pos"].astype(int)
    index = first[rows[:, 1]] + rows[:, 2] * widths[rows[:, 1]] + rows[:, 3]
    np.testing.assert_allclose(
        found.boxes[rows[:, 0], index],
        stored.get(f"{key}/pos_target_boxes", np.zeros((0, 4))),
        atol=1e-3,
    )


@pytest.mark.backend
def test_one_box_on_one_level_by_hand():
    # Points at 0, 8, 16, 24 each way; anchors are squares of 64 round them. The box
    # of 64 has its centre at (12, 12): the nine nearest candidates are those of the
    # square 0..16 and 8..24, by distance: 4 with |d| = 4, 4; then 8 with 4, 12.
    found = assign([[[-20, -20, 44, 44]]], [[2]], [[32, 32]], [(4, 4)])
    grid = found.is_positive.reshape(4, 4)
    # Nearest are the inner four, with IoU 60^2 / (2 * 64^2 - 60^2); the outer
    # candidates have 60 * 52. Only the inner ones reach mean + deviation.
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(grid, expected)
    np.testing.assert_array_equal(found.labels.reshape(4, 4), np.where(expected, 2, -1))
    np.testing.assert_array_equal(found.boxes[0][~expected.ravel()], 0)
    np.testing.assert_array_equal(
        found.boxes[0][expected.ravel()], [[-20, -20, 44, 44]] * 4
    )


@pytest.mark.backend
def test_the_threshold_uses_the_unbiased_deviation():
    # Three candidates at 0, 8 and 16 pixels on a line have the IoUs 1, 7/9 and 3/5.
    boxes, size = [[[-32, -32, 32, 32]]], [[8, 24]]
    ious = np.array([1, 56 / 72, 48 / 80])
    assert ious[1] < ious.mean() + ious.std(ddof=1)
    found = assign(boxes, [[0]], size, [(1, 3)])
    np.testing.assert_array_equal(found.is_positive, [[True, False, False]])
    # Two candidates: mean + deviation is above the better one for n - 1,
    # (1 + 7/9) / 2 + (1 - 7/9) / sqrt(2), and equal to it for n.
    found = assign(boxes, [[0]], [[8, 16]], [(1, 2)])
    np.testing.assert_array_equal(found.is_positive, [[False, False]])


@pytest.mark.backend
def test_a_point_of_two_boxes_goes_to_the_larger_iou():
    # Both boxes claim the point (16, 16); its anchor is (-16, -16, 48, 48).
    far, near = [-10, -10, 54, 54], [-15, -15, 49, 49]
    for boxes in ([far, near], [near, far]):
        found = assign([boxes], [[5, 6]], [[32, 32]], [(4, 4)])
        at = 2 * 4 + 2
        assert found.is_positive[0, at]
        np.testing.assert_array_equal(found.boxes[0, at], near)
        assert found.gt_indices[0, at] == boxes.index(near)
        assert found.labels[0, at] == [5, 6][boxes.index(near)]


@pytest.mark.backend
def test_the_first_of_equal_boxes_wins():
    box = [-20, -20, 44, 44]
    found = assign([[box, box]], [[3, 4]], [[32, 32]], [(4, 4)])
    assert set(found.labels[0]) == {-1, 3}
    assert set(found.gt_indices[0]) == {-1, 0}


@pytest.mark.backend
def test_a_point_must_lie_inside_the_box():
    # The nearest point (8, 8) touches the left side: a margin of 0 is not above 0.01.
    found = assign([[[8, 4, 16, 12]]], [[0]], [[32, 32]], [(4, 4)])
    assert not found.is_positive[0, 1 * 4 + 1]
    found = assign([[[7.9, 4, 15.9, 12]]], [[0]], [[32, 32]], [(4, 4)])
    assert found.is_positive[0, 1 * 4 + 1]
