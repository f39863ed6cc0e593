import numpy as np
import pytest

from tests.contracts import evaluate, gradients
from vfnet_tf.ops import boxes as box_ops

pytestmark = pytest.mark.backend


def test_xywh_and_xyxy_are_inverses_by_hand():
    xywh = np.array([[10.0, 20.0, 5.0, 7.0]], "float32")
    xyxy = np.array([[10.0, 20.0, 15.0, 27.0]], "float32")
    np.testing.assert_array_equal(evaluate(box_ops.xywh_to_xyxy, xywh), xyxy)
    np.testing.assert_array_equal(evaluate(box_ops.xyxy_to_xywh, xyxy), xywh)


def test_distances_and_boxes_are_inverses_by_hand():
    points = np.array([[10.0, 20.0], [0.0, 0.0]], "float32")
    distances = np.array([[1, 2, 3, 4], [-1, -1, 5, 5]], "float32")
    boxes = np.array([[9, 18, 13, 24], [1, 1, 5, 5]], "float32")
    found = evaluate(box_ops.distances_to_boxes, points, distances)
    np.testing.assert_array_equal(found, boxes)
    found = evaluate(box_ops.boxes_to_distances, points, boxes)
    np.testing.assert_array_equal(found, distances)


def test_one_point_is_measured_against_several_boxes():
    points = np.array([[[4.0, 5.0]]], "float32")
    boxes = np.array([[[0, 0, 10, 10]], [[4, 5, 6, 9]]], "float32")
    found = evaluate(box_ops.boxes_to_distances, points, boxes)
    np.testing.assert_array_equal(found, [[[4, 5, 6, 5]], [[0, 0, 2, 4]]])


def test_clipping_keeps_each_box_inside_its_own_image():
    boxes = np.array([[[-3, -4, 50, 60]], [[-3, 5, 50, 60]]], "float32")
    clipped = evaluate(box_ops.clip_boxes, boxes, np.array([[40, 30], [100, 20]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 30, 40]], [[0, 5, 20, 60]]])


def test_iou_and_giou_by_hand():
    first = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]], "float32")
    second = np.array([[1, 0, 3, 2], [2, 0, 3, 1], [3, 3, 3, 3]], "float32")
    # Overlap 2 of union 6 fills its hull; 1 + 1 in a hull of 3; two points give 0.
    iou = evaluate(box_ops.elementwise_iou, first, second)
    np.testing.assert_allclose(iou, [1 / 3, 0, 0], rtol=1e-6)
    giou = evaluate(box_ops.elementwise_giou, first, second)
    np.testing.assert_allclose(giou, [1 / 3, -1 / 3, 0], rtol=1e-6, atol=1e-7)


def test_pairwise_iou_has_a_row_for_each_first_box():
    first = np.array([[0, 0, 2, 2], [0, 0, 4, 2]], "float32")
    second = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [9, 9, 9, 9]], "float32")
    iou = evaluate(box_ops.pairwise_iou, first, second)
    np.testing.assert_allclose(iou, [[1, 0, 0], [0.5, 0.5, 0]], rtol=1e-6)


def test_overlaps_are_those_of_the_official_code(golden):
    stored = golden("losses")
    first, second = stored["overlaps/boxes1"], stored["overlaps/boxes2"]
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(
        evaluate(box_ops.elementwise_iou, first, second),
        stored["overlaps/iou_aligned"],
        **tolerance,
    )
    np.testing.assert_allclose(
        evaluate(box_ops.elementwise_giou, first, second),
        stored["overlaps/giou_aligned"],
        **tolerance,
    )
    rows = first[: len(stored["overlaps/iou_pairwise"])]
    np.testing.assert_allclose(
        evaluate(box_ops.pairwise_iou, rows, second),
        stored["overlaps/iou_pairwise"],
        **tolerance,
    )
    np.testing.assert_allclose(
        evaluate(box_ops.elementwise_giou, rows[:, None], second),
        stored["overlaps/giou_pairwise"],
        **tolerance,
    )


def test_empty_and_inverted_boxes_have_finite_ious_and_gradients():
    first = np.array([[5, 5, 5, 5], [8, 8, 2, 2], [0, 0, 1e5, 1e5]], "float32")
    second = np.array([[5, 5, 5, 5], [1, 1, 9, 9], [0, 0, 1e5, 1e5]], "float32")
    for function in (box_ops.elementwise_iou, box_ops.elementwise_giou):
        assert np.all(np.isfinite(evaluate(function, first, second)))
        for gradient in gradients(function, [first, second]):
            assert np.all(np.isfinite(gradient))


def test_areas_by_hand():
    boxes = np.array([[0, 0, 3, 4], [1, 1, 1, 5], [2, 0, 0, 3]], "float32")
    np.testing.assert_array_equal(evaluate(box_ops.box_area, boxes), [12, 0, -6])


def test_square_anchors_lie_about_their_points():
    points = np.array([[[10, 20], [0, 8]]], "float32")
    found = evaluate(
        lambda p, s: box_ops.square_anchors(p, s, 3.0),
        points,
        np.array([[4, 8]], "float32"),
    )
    np.testing.assert_array_equal(found, [[[4, 14, 16, 26], [-12, -4, 12, 20]]])


def test_moment_boxes_by_hand():
    # y: 1, 2, 3 and x: 0, 3, 6. Means 2 and 3, unbiased deviations 1 and 3.
    points = np.array([[1, 0, 2, 3, 3, 6]], "float32")
    factors = np.array([2.0, 0.5], "float32")  # horizontal, vertical
    found = evaluate(box_ops.points_to_moment_boxes, points, factors)
    np.testing.assert_allclose(found, [[-3, 1.5, 9, 2.5]], rtol=1e-6)


def test_points_in_one_place_have_a_finite_gradient():
    points = np.full((1, 18), 4.0, "float32")
    factors = np.ones(2, "float32")
    found = evaluate(box_ops.points_to_moment_boxes, points, factors)
    np.testing.assert_allclose(found, [[4, 4, 4, 4]], atol=1e-5)
    # Of the right and lower sides alone, else the deviations cancel.
    upstream = np.array([[0, 0, 1, 1]], "float32")
    found = gradients(box_ops.points_to_moment_boxes, [points, factors], upstream)
    assert all(np.all(np.isfinite(gradient)) for gradient in found)
