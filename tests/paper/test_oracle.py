"""The oracle study on predictions that are written down, so that each AP is known."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tests.conftest import tiny_model
from tests.contracts import on_tensorflow, tensors, to_numpy
from vfnet_tf.assigners.assignment import Assignment, ground_truth, make_assignment
from vfnet_tf.backbones import KerasBackbone
from vfnet_tf.detectors import FCOS, VFNet
from vfnet_tf.evaluation.coco import CocoEvaluator
from vfnet_tf.heads import DenseHead, VFNetHead
from vfnet_tf.necks import FPN
from vfnet_tf.paper.oracle import (
    COLUMNS,
    ORACLES,
    OracleStudy,
    columns_of,
    format_oracle_table,
    replace_foreground,
)

#: Images of 64 x 64 network pixels: 64 points on P3, row by row at 4, 12, ..., 60, then
#: 16 on P4, 4 on P5, 1 on P6 and 1 on P7.
NUM_POINTS = 64 + 16 + 4 + 1 + 1
FIRST_P4, FIRST_P5, FIRST_P6, FIRST_P7 = 64, 80, 84, 85

#: The object of the first image, in network pixels.
TRUTH = (8, 8, 48, 48)


def box_of(iou):
    """A box of that IoU with `TRUTH`: its upper part."""
    x1, y1, x2, _ = TRUTH
    return (x1, y1, x2, y1 + 40 * iou)


# The foreground points of P3. Their true centerness, by the 40 pixels of the box:
#   E (20, 12)  sqrt(12/28 * 4/36)  = .218    left, right 12, 28; top, bottom 4, 36
#   A (12, 28)  sqrt(4/36 * 20/20)  = .333
#   C (20, 28)  sqrt(12/28)         = .655
#   B (28, 28)                        1
#   D (36, 28)  sqrt(12/28)         = .655
#   H (44, 28)  sqrt(4/36)          = .333
# index of the point -> score, centerness, IoU of the box
FOREGROUND = {
    "E": (10, 0.10, 0.10, 0.825),
    "A": (25, 0.90, 0.30, 0.675),
    "C": (26, 0.40, 0.50, 0.975),
    "B": (27, 0.60, 0.90, 0.775),
    "D": (28, 0.10, 0.95, 0.875),
    "H": (29, 0.10, 0.92, 0.925),
}
# What the detector takes for objects elsewhere: score, centerness, box.
BACKGROUND = {
    FIRST_P4: (0.95, 0.50, (50, 50, 62, 62)),
    FIRST_P5: (0.70, 0.80, (50, 0, 62, 12)),
    FIRST_P6: (0.92, 0.40, (0, 50, 12, 62)),
    # Below the score threshold of .05: never a detection.
    FIRST_P7: (0.04, 1.00, (0, 0, 7, 7)),
}

# One point of each level enters NMS. Of P3 it is the foreground point with the highest
# rank, the first of equals. With an IoU of .675 it is right at the 4 thresholds .50, ...,
# .65 of the 10, with .775 at 6, .825 at 7, .875 at 8, .925 at 9, .975 or the true box at
# all. With n false detections ranked above it the precision there is 1 / (n + 1) at all
# recalls, as there is one object.
AP_OF_FIRST_CLASS = {
    # Rank is the score. A .90, below .95 and .92.
    (None, False): 0.4 / 3,
    # Score x centerness: B .54 before C .20, A .27; false ones .475, .56, .368.
    (None, True): 0.6 / 2,
    # B .60 x 1, A .90 x .333 = .30, C .40 x .655; no false one above.
    ("gt_ctr", True): 0.6,
    # A .90 x .675 = .6075, B .60 x .775 = .465, C .40 x .975 = .39.
    ("gt_ctr_iou", True): 0.4,
    # A .90 again, but its box is right.
    ("gt_bbox", False): 1.0 / 3,
    # B .54 again, likewise.
    ("gt_bbox", True): 1.0 / 2,
    # All six have 1: the first is E.
    ("gt_cls", False): 0.7,
    # The centerness alone: D .95 before H .92 and B .90.
    ("gt_cls", True): 0.8,
    # The IoU alone: C .975.
    ("gt_cls_iou", False): 1.0,
    # IoU x centerness: H .851 before D .831, B .698, C .488; A .203, E .083.
    ("gt_cls_iou", True): 0.9,
}
# The object of the second image has the same place and another class. All six points have
# boxes of IoU .875 and scores below the threshold: found by the two last oracles only,
# and then alone.
AP_OF_SECOND_CLASS = {
    key: 0.8 if key[0] in ("gt_cls", "gt_cls_iou") else 0.0 for key in AP_OF_FIRST_CLASS
}
#: Labels of the two; not in order, so that the true class matters.
FIRST, SECOND = 1, 0


class PrescribedAssigner:
    """The points of `FOREGROUND` learn the first box of an image, where there is one."""

    def __call__(self, points, point_strides, gt_boxes, gt_labels, image_size):
        gt_boxes, gt_labels = ground_truth(gt_boxes, gt_labels)
        is_foreground = np.zeros((1, NUM_POINTS), bool)
        is_foreground[0, [index for index, *_ in FOREGROUND.values()]] = True
        has_object = gt_labels[:, :1] >= 0
        is_positive = keras.ops.logical_and(is_foreground, has_object)
        rows = keras.ops.where(is_positive, 0, -1)
        is_valid = keras.ops.ones_like(is_positive)
        return make_assignment(
            keras.ops.cast(rows, "int32"), gt_boxes, gt_labels, is_valid
        )


class PrescribedDetector(FCOS):
    """An FCOS whose predictions are looked up by the value of the images' first pixel."""

    def __init__(self):
        super().__init__(
            KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5")),
            FPN(8),
            DenseHead(2, 8, 1, norm=None, centerness="box"),
            assigner=PrescribedAssigner(),
            candidates_per_level=1,
            max_detections=10,
        )
        self.num_forward_passes = 0
        self._tables = {name: np.stack(v) for name, v in predictions().items()}

    def call(self, inputs, training=None):
        self.num_forward_passes += 1
        number = keras.ops.cast(inputs[:, 0, 0, 0], "int32")
        outputs = {
            name: keras.ops.take(keras.ops.convert_to_tensor(table), number, axis=0)
            for name, table in self._tables.items()
        }
        height, width = keras.ops.shape(inputs)[1:3]
        return {**outputs, **self.make_priors(self.level_shapes(height, width))}


def predictions():
    """dict name -> predictions of the three images; the third has no object."""
    scores = np.full((3, NUM_POINTS, 2), 0.01, "float32")
    centerness = np.full((3, NUM_POINTS, 1), 0.5, "float32")
    boxes = np.tile(np.array((1, 1, 3, 3), "float32"), (3, NUM_POINTS, 1))
    for index, score, center, iou in FOREGROUND.values():
        scores[0, index, FIRST] = score
        centerness[0, index], boxes[0, index] = center, box_of(iou)
        # The wrong class is as unlikely here, and stays so.
        scores[1, index], boxes[1, index] = (0.02, 0.03), box_of(0.875)
    for index, (score, center, box) in BACKGROUND.items():
        scores[0, index, FIRST] = score
        centerness[0, index], boxes[0, index] = center, box
    # Below all that is found in the first image.
    scores[2, 40, FIRST], boxes[2, 40] = 0.3, (30, 30, 60, 60)
    return {
        "class_logits": logit(scores),
        "boxes": boxes,
        "centerness_logits": logit(np.minimum(centerness, 0.9999)),
    }


def logit(values):
    return np.log(values / (1 - values)).astype("float32")


def make_batch(*numbers):
    """A batch of the images of these numbers, half the size of the originals."""
    images = np.zeros((len(numbers), 64, 64, 3), "float32")
    boxes = np.zeros((len(numbers), 2, 4), "float32")
    labels = np.full((len(numbers), 2), -1, "int32")
    for row, number in enumerate(numbers):
        images[row] = number
        if number < 2:
            boxes[row, 0], labels[row, 0] = TRUTH, (FIRST, SECOND)[number]
    return {
        "images": images,
        "boxes": boxes,
        "labels": labels,
        "image_size": np.full((len(numbers), 2), 64.0, "float32"),
        "scale": np.full((len(numbers), 2), 0.5, "float32"),
        "image_id": np.array([10 + number for number in numbers]),
    }


def make_dataset():
    """Ground truth in pixels of the original images."""
    box = 2 * np.array([TRUTH], "float32")
    nothing = np.zeros((0, 4), "float32")
    contents = [(box, [FIRST]), (box, [SECOND]), (nothing, [])]
    records = [
        SimpleNamespace(image_id=10 + i, boxes=boxes, labels=labels)
        for i, (boxes, labels) in enumerate(contents)
    ]
    return SimpleNamespace(
        records=records,
        category_ids=(4, 7),
        class_names=("second", "first"),
        annotation_file=None,
    )


@pytest.fixture(scope="module")
def study():
    """One for all tests, as its graphs take seconds to trace."""
    return OracleStudy(PrescribedDetector(), CocoEvaluator(make_dataset()))


def measure(study, *batches):
    study.reset()
    for batch in batches:
        study.update(batch)
    return study.evaluate()


def aps_of(metrics, class_name):
    return [values["per_class"][class_name]["AP"] for values in metrics]


@pytest.mark.backend
def test_every_column_has_the_ap_that_was_worked_out_by_hand(study):
    metrics = measure(study, make_batch(0, 1, 2))
    keys = [(column.oracle, column.with_centerness) for column in study.columns]
    first = [AP_OF_FIRST_CLASS[key] for key in keys]
    second = [AP_OF_SECOND_CLASS[key] for key in keys]
    assert len({round(ap, 6) for ap in first}) == 10
    np.testing.assert_allclose(aps_of(metrics, "first"), first, rtol=1e-6)
    np.testing.assert_allclose(aps_of(metrics, "second"), second, rtol=1e-6)
    mean = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
    np.testing.assert_allclose([m["AP"] for m in metrics], mean, rtol=1e-6)


def test_a_batch_of_one_and_a_batch_of_three_give_the_same(study):
    together = measure(study, make_batch(0, 1, 2))
    one_by_one = measure(study, make_batch(0), make_batch(1), make_batch(2))
    np.testing.assert_equal(one_by_one, together)


@on_tensorflow
def test_batches_of_all_sizes_share_one_forward_pass_in_one_graph(study):
    for numbers in ((0, 1), (2,), (1, 2, 0)):
        study.detect(make_batch(*numbers))
    assert study._detector.num_forward_passes == 1  # when it was traced


def test_rows_that_fill_a_batch_are_not_counted(study):
    expected = measure(study, make_batch(0, 1, 2))
    batch = make_batch(0, 1, 2, 0)
    batch["image_id"][3] = -1
    np.testing.assert_equal(measure(study, batch), expected)


def test_the_score_threshold_is_for_class_scores_with_and_without_centerness(study):
    found = [to_numpy(column) for column in study.detect(make_batch(0))]
    for column, detections in zip(COLUMNS, found, strict=True):
        # One foreground point and three of the four others; never that of score .04.
        assert detections["num_detections"] == [4], column
        assert not np.any(np.all(detections["boxes"] == (0, 0, 14, 14), axis=-1))


def test_without_objects_all_columns_are_the_plain_ones(study):
    found = [to_numpy(column) for column in study.detect(make_batch(2))]
    plain = {False: found[0], True: found[1]}
    assert plain[False]["num_detections"] == [1]
    assert plain[False]["scores"][0, 0] != plain[True]["scores"][0, 0]
    for column, detections in zip(COLUMNS, found, strict=True):
        for name, values in plain[column.with_centerness].items():
            np.testing.assert_array_equal(detections[name], values)


def test_the_plain_column_with_centerness_is_what_detect_finds(study):
    batch = make_batch(0, 1, 2)
    arguments = [batch[name] for name in ("images", "image_size", "scale")]
    # Another detector, as forward passes of the first are counted.
    expected = to_numpy(PrescribedDetector().detect(*arguments))
    for name, values in to_numpy(study.detect(batch)[1]).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.fixture
def arrays():
    """Random predictions of 2 images, 5 points and 3 classes, and an assignment."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (2, 5, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (2, 5, 2))], -1)
    truth = np.tile(np.array([0.0, 0.0, 20.0, 20.0]), (2, 5, 1))
    is_positive = np.array([[True, False, False, True, False], [False] * 5])
    assignment = Assignment(
        is_positive=is_positive,
        labels=np.where(is_positive, 2, -1).astype("int32"),
        boxes=np.where(is_positive[..., None], truth, 0).astype("float32"),
        gt_indices=np.where(is_positive, 0, -1).astype("int32"),
        is_valid=np.ones((2, 5), bool),
    )
    # Background predictions may be anything.
    boxes[1, 4] = np.inf
    return {
        "boxes": boxes.astype("float32"),
        "scores": rng.uniform(0, 1, (2, 5, 3)).astype("float32"),
        "factors": rng.uniform(0, 1, (2, 5)).astype("float32"),
        "points": rng.uniform(5, 15, (5, 2)).astype("float32"),
        "assignment": Assignment(*tensors(list(assignment))),
    }


@pytest.mark.backend
@pytest.mark.parametrize(
    ("oracle", "replaced"),
    [
        (None, None),
        ("gt_ctr", "factors"),
        ("gt_ctr_iou", "factors"),
        ("gt_bbox", "boxes"),
        ("gt_cls", "scores"),
        ("gt_cls_iou", "scores"),
    ],
)
def test_only_what_the_oracle_names_changes_and_only_at_the_foreground(
    arrays, oracle, replaced
):
    inputs = dict(arrays)
    assignment = inputs["assignment"]
    given = {n: value for n, value in inputs.items() if n != "assignment"}
    found = replace_foreground(oracle, **tensors(given), assignment=assignment)
    is_positive = to_numpy(assignment.is_positive)
    for name, values in zip(("boxes", "scores", "factors"), found, strict=True):
        values, before = to_numpy(values), arrays[name]
        np.testing.assert_array_equal(values[~is_positive], before[~is_positive])
        has_changed = np.any(values[is_positive] != before[is_positive])
        assert has_changed == (name == replaced)
        if name == "scores":  # classes 0 and 1 are not the true one
            np.testing.assert_array_equal(values[..., :2], before[..., :2])


def test_values_at_the_foreground_by_hand():
    # A point at (5, 10) of the box (0, 0, 20, 20): centerness sqrt(5/15 * 10/10). The
    # predicted box, a quarter of it, has an IoU of .25.
    box = np.array([[[0, 0, 20, 20]]], "float32")
    label, row = np.array([[1]], "int32"), np.array([[0]], "int32")
    assignment = Assignment(
        *tensors([np.array([[True]]), label, box, row, np.array([[True]])])
    )
    given = [[[0, 0, 10, 10]]], [[[0.3, 0.4]]], [[0.6]], [[5, 10]]
    given = [keras.ops.convert_to_tensor(x, dtype="float32") for x in given]

    def replaced(oracle):
        return [
            values.ravel().tolist()
            for values in to_numpy(replace_foreground(oracle, *given, assignment))
        ]

    plain = [[0, 0, 10, 10], pytest.approx([0.3, 0.4]), pytest.approx([0.6])]
    assert replaced(None) == plain
    assert replaced("gt_ctr") == [*plain[:2], pytest.approx([3**-0.5])]
    assert replaced("gt_ctr_iou") == [*plain[:2], pytest.approx([0.25])]
    assert replaced("gt_bbox") == [[0, 0, 20, 20], *plain[1:]]
    assert replaced("gt_cls") == [plain[0], pytest.approx([0.3, 1.0]), plain[2]]
    assert replaced("gt_cls_iou") == [plain[0], pytest.approx([0.3, 0.25]), plain[2]]


def test_an_unknown_oracle_and_one_that_cannot_be_are_refused(arrays):
    with pytest.raises(ValueError, match="Received: oracle='gt_box'"):
        replace_foreground("gt_box", **arrays)
    with pytest.raises(ValueError, match="'gt_ctr' needs `factors`"):
        replace_foreground("gt_ctr", **{**arrays, "factors": None})


def test_vfnet_has_the_four_columns_without_centerness(small_batch):
    # Raw, as the others take long to trace.
    detector = VFNet(
        KerasBackbone(tiny_model(), ("c3", "c4_bn", "c5")),
        FPN(32),
        VFNetHead(3, 32, 1, star=False, refine=False),
    )
    columns = columns_of(detector)
    oracles = [column.oracle for column in columns]
    assert oracles == [None, "gt_bbox", "gt_cls", "gt_cls_iou"]
    assert not any(column.with_centerness for column in columns)
    columns_of_batch = (small_batch[n] for n in ("image_id", "boxes", "labels"))
    records = [
        SimpleNamespace(image_id=number, boxes=boxes[rows >= 0], labels=rows[rows >= 0])
        for number, boxes, rows in zip(*columns_of_batch, strict=True)
    ]
    dataset = SimpleNamespace(
        records=records,
        category_ids=(1, 2, 3),
        class_names=("a", "b", "c"),
        annotation_file=None,
    )
    study = OracleStudy(detector, CocoEvaluator(dataset))
    # Untrained: no score passes the threshold but those that are replaced.
    found = [to_numpy(column) for column in study.detect(small_batch)]
    assert found[0]["num_detections"].tolist() == [0, 0]
    assert found[1]["num_detections"].tolist() == [0, 0]
    assert min(found[2]["num_detections"]) >= 1
    assert set(found[2]["scores"].ravel()) == {0.0, 1.0}
    study.update(small_batch)
    metrics = study.evaluate()
    assert [m["AP"] for m in metrics[:2]] == [0.0, 0.0]
    # Both classes of the first image and the one of the second are among the replaced.
    for detections, labels in zip(found[2]["labels"], ({0, 2}, {1}), strict=True):
        assert set(detections.tolist()) - {-1} == labels


def test_the_columns_are_those_of_the_paper_in_its_order():
    aps = [38.5, 39.2, 41.1, 43.5, 56.1, 56.3, 43.1, 58.1, 74.7, 67.4]
    assert [column.paper_ap for column in COLUMNS] == aps
    centerness = [column.with_centerness for column in COLUMNS]
    assert centerness == [c == "x" for c in ".xxx.x.x.x"]
    assert {column.oracle for column in COLUMNS} == {None, *ORACLES}


def test_the_table_is_laid_out_as_in_the_paper():
    metrics = [
        {"AP": 0.1 * i, "AP50": 0.05 * i, "AP75": float("nan")} for i in range(10)
    ]
    text = format_oracle_table(COLUMNS, metrics, "FCOS", with_paper=True)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    names = ["FCOS, percent", "---", "w/ctr", *ORACLES, "AP", "AP50", "AP75"]
    assert [row[0] for row in rows] == [*names, "AP of the paper (COCO val2017)"]
    assert all(len(row) == 11 for row in rows)
    cells = {row[0]: row[1:] for row in rows}
    assert cells["w/ctr"] == ["", "✓", "✓", "✓", "", "✓", "", "✓", "", "✓"]
    assert cells["gt_ctr_iou"] == ["", "", "", "✓", *[""] * 6]
    assert cells["gt_cls_iou"] == [*[""] * 8, "✓", "✓"]
    assert cells["AP"] == [f"{10 * i}.0" for i in range(10)]
    assert cells["AP75"] == ["-"] * 10
    assert rows[-1][1:4] == ["38.5", "39.2", "41.1"]

    short = [column for column in COLUMNS if not column.with_centerness]
    text = format_oracle_table(short, metrics[:4], "VFNet")
    names = [line.split("|")[1].strip() for line in text.splitlines()]
    assert names[2:] == ["gt_bbox", "gt_cls", "gt_cls_iou", "AP", "AP50", "AP75"]
