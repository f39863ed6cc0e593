"""The oracle study of the paper (Sec. 3 and Table 1).

It replaces one prediction of the foreground points by the truth before NMS and measures
the AP again. The prediction with the largest gain limits the detector most.
"""

import copy
import dataclasses

import keras
import numpy as np
from keras import ops

from vfnet_tf.ops.boxes import centerness_of, elementwise_iou


@dataclasses.dataclass(frozen=True)
class OracleColumn:
    """One column of Table 1.

    Attributes:
        oracle: one of `ORACLES`, or None to replace nothing.
        with_centerness: bool, whether centerness ranks detections beside the scores.
        paper_ap: AP in percent of FCOS+ATSS on COCO val2017 in the paper.
    """

    oracle: str | None
    with_centerness: bool
    paper_ap: float


#: Rows of Table 1 and the replacement at foreground points. gt_IoU is the IoU of the
#: predicted box with its ground truth.
ORACLES = {
    "gt_ctr": "centerness by its true value",
    "gt_ctr_iou": "centerness by the gt_IoU",
    "gt_bbox": "the box by its ground truth",
    "gt_cls": "the score of the true class by 1",
    "gt_cls_iou": "the score of the true class by the gt_IoU",
}

#: Table 1 in its order.
COLUMNS = (
    OracleColumn(None, False, 38.5),
    OracleColumn(None, True, 39.2),
    OracleColumn("gt_ctr", True, 41.1),
    OracleColumn("gt_ctr_iou", True, 43.5),
    OracleColumn("gt_bbox", False, 56.1),
    OracleColumn("gt_bbox", True, 56.3),
    OracleColumn("gt_cls", False, 43.1),
    OracleColumn("gt_cls", True, 58.1),
    OracleColumn("gt_cls_iou", False, 74.7),
    OracleColumn("gt_cls_iou", True, 67.4),
)


def columns_of(detector):
    """The columns for a detector; those with centerness need a detector that has it."""
    image = keras.KerasTensor((1, 64, 64, 3), "float32")
    has_centerness = "centerness_logits" in detector.compute_output_spec(image)
    return tuple(
        column for column in COLUMNS if has_centerness or not column.with_centerness
    )


def replace_foreground(oracle, boxes, scores, factors, points, assignment):
    """Replaces one prediction of the foreground points by the truth.

    IoUs are those of the predicted boxes before clipping, like the targets of VFNet's
    scores.

    Args:
        oracle: one of `ORACLES`, or None to replace nothing.
        boxes, scores, factors: see `DenseDetector.ranking`.
        points: float32 `[P, 2]`, `(x, y)` pixels.
        assignment: `Assignment` of these points.

    Returns:
        `boxes`, `scores` and `factors`. Other points, and scores of other classes, keep
        the given values.

    Raises:
        ValueError: `oracle` is unknown, or needs `factors` and there are none.
    """
    if oracle is not None and oracle not in ORACLES:
        raise ValueError(
            f"`oracle` must be one of {tuple(ORACLES)} or None. "
            f"Received: oracle={oracle!r}"
        )
    if factors is None and oracle in ("gt_ctr", "gt_ctr_iou"):
        raise ValueError(
            f"The oracle {oracle!r} needs `factors`, predicted centerness. "
            "Received: factors=None"
        )
    is_positive, truth = assignment.is_positive, assignment.boxes
    if oracle == "gt_bbox":
        boxes = ops.where(is_positive[..., None], truth, boxes)
    elif oracle == "gt_ctr":
        factors = ops.where(is_positive, centerness_of(points, truth), factors)
    elif oracle == "gt_ctr_iou":
        factors = ops.where(is_positive, elementwise_iou(boxes, truth), factors)
    elif oracle is not None:
        values = ops.ones_like(boxes[..., 0])
        if oracle == "gt_cls_iou":
            values = elementwise_iou(boxes, truth)
        # The label -1, background, gives a row of zeros.
        one_hot = ops.one_hot(assignment.labels, scores.shape[-1], dtype="float32")
        scores = ops.where(one_hot > 0, values[..., None], scores)
    return boxes, scores, factors


class OracleStudy:
    """Measures all columns of Table 1 that exist for a detector.

    A batch costs one forward pass, and one NMS for each column. Thresholds and NMS are
    the detector's own. The score threshold is for the class score alone, not for its
    product with centerness: docs/parity.md, S25.

    Args:
        detector: a `DenseDetector`.
        evaluator: `CocoEvaluator`, which is copied for each column.

    Attributes:
        columns: tuple of `OracleColumn`, in the order of the paper.
    """

    def __init__(self, detector, evaluator):
        self.columns = columns_of(detector)
        self._detector = detector
        self._evaluators = [copy.copy(evaluator) for _ in self.columns]
        self.reset()

    def reset(self):
        """Removes all detections; ground truth and graphs stay."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def detect(self, batch):
        """Detections of each column.

        Args:
            batch: dict of `build_pipeline`: `"images"`, `"boxes"` and `"labels"`, the
                ground truth in pixels of the network input, `"image_size"`, `"scale"`.

        Returns:
            list of the dicts that `DenseDetector.detect` returns, one for each column.
        """
        tensors = {
            name: ops.convert_to_tensor(
                batch[name], dtype="int32" if name == "labels" else "float32"
            )
            for name in ("images", "boxes", "labels", "image_size", "scale")
        }
        sizes = tensors["image_size"], tensors.pop("scale")
        canvas_size = ops.convert_to_tensor(batch["images"].shape[1:3], dtype="int32")
        # Two graphs: the second, which is slow to trace, serves all columns.
        in_graph = self._detector.in_graph
        return [
            in_graph(self._finish, canvas_size, *sizes, *predictions)
            for predictions in in_graph(self._predict, *tensors.values())
        ]

    def _predict(self, images, boxes, labels, image_size):
        """Boxes, scores and, with centerness, factors of each column."""
        detector = self._detector
        outputs = detector(images, training=False)
        targets = {"boxes": boxes, "labels": labels, "image_size": image_size}
        assignment = detector.assign(outputs, targets)
        predictions = detector.ranking(outputs)
        columns = []
        for column in self.columns:
            boxes, scores, factors = replace_foreground(
                column.oracle, *predictions, outputs["points"], assignment
            )
            if factors is None:
                columns.append((boxes, scores))
                continue
            if not column.with_centerness:
                # With factors the threshold is for the class score alone.
                factors = ops.ones_like(factors)
            columns.append((boxes, scores, factors))
        return columns

    def _finish(self, canvas_size, image_size, scale, boxes, scores, factors=None):
        detector = self._detector
        candidates = detector.candidates(
            boxes,
            scores,
            factors,
            (canvas_size[0], canvas_size[1]),
            image_size,
            scale,
        )
        return detector.suppress_candidates(*candidates)

    def update(self, batch):
        """Adds a batch with its `"image_id"` `[B]`; rows of -1 are skipped."""
        for evaluator, found in zip(self._evaluators, self.detect(batch), strict=True):
            found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
            evaluator.update(batch["image_id"], found)

    def evaluate(self):
        """Returns the dict of `CocoEvaluator.evaluate` for each column, as a list."""
        return [evaluator.evaluate() for evaluator in self._evaluators]


def format_oracle_table(columns, metrics, title, with_paper=False):
    """Table 1 in Markdown, in percent.

    Args:
        columns: sequence of `OracleColumn`.
        metrics: for each column a dict with `"AP"`, `"AP50"` and `"AP75"` in [0, 1].
        title: str, what was measured.
        with_paper: bool, add the AP that the paper reports for FCOS+ATSS.

    Returns:
        str of several lines, with `-` for NaN and without the rows of oracles that no
        column has.
    """

    def checks(name, are_checked):
        return [name, *("✓" if is_checked else "" for is_checked in are_checked)]

    rows = [checks("w/ctr", [column.with_centerness for column in columns])]
    for oracle in ORACLES:
        rows.append(checks(oracle, [column.oracle == oracle for column in columns]))
    rows = [row for row in rows if any(row[1:])]
    for name in ("AP", "AP50", "AP75"):
        rows.append([name, *(_percent(values[name]) for values in metrics)])
    if with_paper:
        paper = [f"{column.paper_ap:.1f}" for column in columns]
        rows.append(["AP of the paper (COCO val2017)", *paper])
    head = [f"{title}, percent", *("" for _ in columns)]
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
    rule = "|".join(["---"] + [":---:"] * len(columns))
    lines = [f"| {line} |" for line in lines]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _percent(value):
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
