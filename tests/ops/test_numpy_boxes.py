import numpy as np
import pytest

from vfnet_tf.ops.numpy_boxes import pairwise_intersection, pairwise_iou

BOX = np.array([[0, 0, 10, 10]], "float32")
OTHERS = np.array(
    [[5, 0, 15, 10], [0, 0, 10, 10], [10, 0, 15, 5], [2, 2, 6, 7]], "float32"
)


def test_overlap_by_hand():
    # Half of both, all, they touch, inside.
    assert pairwise_intersection(BOX, OTHERS).tolist() == [[50, 100, 0, 20]]
    ious = pairwise_iou(BOX, OTHERS)
    np.testing.assert_allclose(ious, [[1 / 3, 1, 0, 0.2]], rtol=1e-6)
    assert pairwise_iou(OTHERS, BOX).shape == (4, 1)
    assert pairwise_iou(BOX, OTHERS[:0]).shape == (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_of_the_boxes_stays(dtype):
    boxes = OTHERS.astype(dtype)
    assert pairwise_iou(boxes, boxes).dtype == pairwise_intersection(boxes, boxes).dtype
    assert pairwise_iou(boxes, boxes).dtype == dtype


@pytest.mark.parametrize(
    "box", [[3, 3, 3, 8], [8, 8, 3, 3], [np.nan] * 4, [-np.inf, 0, np.inf, 5]]
)
def test_boxes_without_area_of_nan_and_infinite_ones_overlap_nothing(box):
    boxes = np.array([[0, 0, 10, 10], box], "float32")
    assert pairwise_iou(boxes, boxes)[0].tolist() == [1, 0]
