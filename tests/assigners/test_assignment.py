"""Functions that assigners share, and properties that every assigner must have."""

import numpy as np
import pytest

from tests.contracts import check_config, evaluate, on_tensorflow, to_numpy
from vfnet_tf.assigners import (
    ATSSAssigner,
    FCOSAssigner,
    FoveaAssigner,
    MaxIoUAssigner,
    PointAssigner,
)
from vfnet_tf.assigners.assignment import (
    by_stride,
    make_assignment,
    own_points,
    resolve_claims,
)
from vfnet_tf.ops.boxes import square_anchors
from vfnet_tf.priors import make_points

STRIDES = (8, 16)
GRID = [(8, 8), (4, 4)]


def by_anchors(points, strides, boxes, labels, size):
    anchors = square_anchors(points, strides, 4)
    return MaxIoUAssigner(chunk=2)(anchors, own_points(points, size), boxes, labels)


#: Assigners with the signature of `ATSSAssigner` and where their points lie.
ASSIGNERS = {
    "atss": (ATSSAssigner(strides=STRIDES), 0.0),
    "fcos": (FCOSAssigner(STRIDES, (32.0, float("inf"))), 0.5),
    "fovea": (FoveaAssigner(STRIDES, ((1.0, 40.0), (20.0, 256.0))), 0.5),
    "max_iou": (by_anchors, 0.0),
    "point": (PointAssigner(STRIDES, num_points=2), 0.0),
}
#: No two points are equally near to a centre: rounding would choose between them.
BOXES = [[[4, 6, 50, 40], [0, 0, 23, 19]], [[-17, -21, 47, 41], [0, 0, 0, 0]]]
LABELS = [[1, 2], [3, -1]]
SIZE = [[64, 64], [64, 32]]

each_assigner = pytest.mark.parametrize("name", ASSIGNERS)


def inputs(name, boxes, labels, size):
    return (
        *to_numpy(make_points(GRID, STRIDES, ASSIGNERS[name][1])),
        np.asarray(boxes, "float32"),
        np.asarray(labels, "int32"),
        np.asarray(size, "float32"),
    )


def assign(name, boxes, labels, size):
    return evaluate(ASSIGNERS[name][0], *inputs(name, boxes, labels, size))


@pytest.mark.backend
@each_assigner
@pytest.mark.parametrize("num_boxes", [0, 1, 3])
def test_padding_rows_assign_nothing(name, num_boxes):
    boxes = np.zeros((2, num_boxes, 4))
    labels = np.full((2, num_boxes), -1)
    found = assign(name, boxes, labels, [[64, 64], [64, 64]])
    assert not found.is_positive.any()
    np.testing.assert_array_equal(found.labels, -1)
    np.testing.assert_array_equal(found.gt_indices, -1)
    np.testing.assert_array_equal(found.boxes, 0)
    assert found.is_valid.all()


@pytest.mark.backend
@each_assigner
def test_padding_rows_change_nothing_for_the_others(name):
    alone = assign(name, BOXES, LABELS, SIZE)
    assert alone.is_positive.any(axis=1).all()
    # Rows of any box count as padding by their label.
    boxes = [[[0, 0, 60, 60], *rows, [0, 0, 0, 0]] for rows in BOXES]
    labels = [[-1, *rows, -1] for rows in LABELS]
    padded = assign(name, boxes, labels, SIZE)
    for part in ("is_positive", "labels", "boxes", "is_valid"):
        np.testing.assert_array_equal(getattr(alone, part), getattr(padded, part))
    np.testing.assert_array_equal(
        np.where(alone.is_positive, alone.gt_indices + 1, -1), padded.gt_indices
    )


@pytest.mark.backend
@each_assigner
def test_images_of_a_batch_stay_apart(name):
    together = assign(name, BOXES, LABELS, SIZE)
    for image in (0, 1):
        rows = slice(image, image + 1)
        alone = assign(name, BOXES[rows], LABELS[rows], SIZE[rows])
        for part, value in zip(together, alone, strict=True):
            np.testing.assert_array_equal(part[image], value[0])


@each_assigner
def test_negatives_have_no_box_and_positives_their_own(name):
    found = assign(name, BOXES, LABELS, SIZE)
    assert found.gt_indices.dtype == found.labels.dtype == "int32"
    assert found.boxes.dtype == "float32"
    for image in (0, 1):
        for index, label, box in zip(
            found.gt_indices[image],
            found.labels[image],
            found.boxes[image],
            strict=True,
        ):
            if index < 0:
                assert label == -1 and not box.any()
            else:
                assert label == LABELS[image][index]
                np.testing.assert_array_equal(box, BOXES[image][index])
    np.testing.assert_array_equal(found.is_positive, found.gt_indices >= 0)
    assert not np.any(found.is_positive & ~found.is_valid)


@on_tensorflow
@each_assigner
def test_no_gradient_leaves_it(name):
    import tensorflow as tf

    points, strides, boxes, *others = inputs(name, BOXES, LABELS, SIZE)
    points, boxes = tf.constant(points), tf.constant(boxes)
    with tf.GradientTape() as tape:
        tape.watch([points, boxes])
        found = ASSIGNERS[name][0](points, strides, boxes, *others)
        total = tf.reduce_sum(found.boxes)
    assert tape.gradient(total, [points, boxes]) == [None, None]


@on_tensorflow
@each_assigner
def test_graphs_of_unknown_sizes_and_xla_give_the_same(name):
    import tensorflow as tf

    assigner = ASSIGNERS[name][0]
    given = inputs(name, BOXES, LABELS, SIZE)
    expected = assign(name, BOXES, LABELS, SIZE)
    signature = [
        tf.TensorSpec((None, 2)),
        tf.TensorSpec((None,)),
        tf.TensorSpec((None, None, 4)),
        tf.TensorSpec((None, None), tf.int32),
        tf.TensorSpec((None, 2)),
    ]
    traced = tf.function(lambda *x: assigner(*x), input_signature=signature)
    compiled = tf.function(lambda *x: assigner(*x), jit_compile=True)
    for function in (traced, compiled):
        for part, value in zip(function(*given), expected, strict=True):
            np.testing.assert_array_equal(to_numpy(part), value)
    # The same graph takes a batch without any row of boxes.
    points, strides, boxes, labels, size = given
    none = traced(points, strides, boxes[:, :0], labels[:, :0], size)
    assert not to_numpy(none.is_positive).any()


CONFIGS = {
    ATSSAssigner: {
        "top_k": 5,
        "anchor_scale": 4,
        "strides": (4, 8),
        "padding_multiple": 64,
    },
    FCOSAssigner: {
        "strides": (4, 8),
        "limits": (32.0, 1e5),
        "center_radius": None,
        "padding_multiple": 64,
    },
    FoveaAssigner: {
        "strides": (4, 8),
        "scale_ranges": ((1.0, 32.0), (16.0, 64.0)),
        "sigma": 0.5,
    },
    MaxIoUAssigner: {
        "positive_iou": 0.7,
        "negative_iou": 0.3,
        "min_iou": 0.1,
        "chunk": 4,
    },
    PointAssigner: {
        "strides": (4, 8),
        "scale": 2,
        "num_points": 3,
        "padding_multiple": 64,
    },
}


@pytest.mark.backend
@pytest.mark.parametrize("cls", CONFIGS)
def test_its_config_keeps_every_argument(cls):
    check_config(cls, CONFIGS[cls])


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ATSSAssigner, {"top_k": 0}, "top_k=0"),
        (FCOSAssigner, {"strides": (8, 16), "limits": (64.0,)}, r"limits=\(64.0,\)"),
        (
            FoveaAssigner,
            {"strides": (8, 16), "scale_ranges": [(1.0, 64.0)]},
            r"scale_ranges=\[\(1.0, 64.0\)\]",
        ),
        (
            MaxIoUAssigner,
            {"positive_iou": 0.5, "negative_iou": 0.6},
            "negative_iou=0.6, positive_iou=0.5",
        ),
        (MaxIoUAssigner, {"chunk": 0}, "chunk=0"),
        (PointAssigner, {"num_points": 0}, "num_points=0"),
        (PointAssigner, {"strides": (8, 12)}, r"strides=\(8, 12\)"),
    ],
)
def test_wrong_arguments_are_refused_by_name(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.backend
def test_an_image_owns_the_points_of_its_area_padded_to_the_multiple():
    points = np.array([[0, 0], [31, 0], [32, 0], [0, 63], [0, 64]], "float32")
    size = np.array([[33, 20], [64, 33]], "float32")
    own = evaluate(own_points, points, size)
    # 33 x 20 is padded to 64 x 32, 64 x 33 to 64 x 64.
    np.testing.assert_array_equal(
        own, [[True, True, False, True, False], [True, True, True, True, False]]
    )
    own = evaluate(lambda p, s: own_points(p, s, 1), points, size)
    np.testing.assert_array_equal(own[0], [True, False, False, False, False])


@pytest.mark.backend
def test_each_point_has_the_value_of_its_level():
    strides = np.array([8, 8, 16, 32, 16], "float32")
    found = evaluate(lambda s: by_stride(s, (8, 16, 32), (1.0, -2.0, np.inf)), strides)
    np.testing.assert_array_equal(found, [1, 1, -2, np.inf, -2])
    with pytest.raises(ValueError):
        by_stride(strides, (8, 16), (1.0,))


@pytest.mark.backend
def test_an_assignment_looks_up_the_rows_of_each_image():
    boxes = np.array([[[1, 1, 2, 2], [3, 3, 4, 4]], [[5, 5, 6, 6], [0, 0, 0, 0]]])
    found = evaluate(
        make_assignment,
        np.array([[1, -1, 0], [-1, 0, -1]], "int32"),
        boxes.astype("float32"),
        np.array([[7, 8], [9, -1]], "int32"),
        np.ones((2, 3), bool),
    )
    np.testing.assert_array_equal(found.labels, [[8, -1, 7], [-1, 9, -1]])
    np.testing.assert_array_equal(found.boxes[0], [[3, 3, 4, 4], [0] * 4, [1, 1, 2, 2]])
    np.testing.assert_array_equal(found.boxes[1], [[0] * 4, [5, 5, 6, 6], [0] * 4])


@pytest.mark.backend
def test_the_highest_claim_wins_and_the_first_of_equals():
    # Two images of four points, three boxes with two claims each.
    indices = np.array([[[0, 1], [1, 2], [2, 0]], [[3, 3], [3, 1], [1, 1]]], "int32")
    priorities = np.array(
        [[[0.5, 0.2], [0.7, 0.4], [0.4, 0.9]], [[0.1, 0.3], [0.2, 0.0], [0.0, 0.0]]],
        "float32",
    )
    is_claim = np.ones((2, 3, 2), bool)
    is_claim[0, 2, 1] = False  # else its 0.9 would take point 0
    is_claim[1, 2] = False
    found = evaluate(
        lambda *x: resolve_claims(*x, num_points=4), indices, is_claim, priorities
    )
    # Point 2: 0.4 by box 1 and by box 2. Priorities of 0 and below are claims, too.
    np.testing.assert_array_equal(found, [[0, 1, 1, -1], [-1, 1, -1, 0]])
    found = evaluate(
        lambda *x: resolve_claims(*x, num_points=4), indices, is_claim, priorities - 5
    )
    np.testing.assert_array_equal(found, [[0, 1, 1, -1], [-1, 1, -1, 0]])
