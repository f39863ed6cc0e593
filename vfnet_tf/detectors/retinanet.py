import keras
from keras import ops

from vfnet_tf.assigners import MaxIoUAssigner
from vfnet_tf.assigners.assignment import own_points
from vfnet_tf.box_coders import DeltaCoder
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    count_positives,
    flatten_levels,
    positive_ious,
    weighted_sum,
)
from vfnet_tf.losses import FocalLoss, SmoothL1Loss
from vfnet_tf.priors import make_anchors


@keras.saving.register_keras_serializable("vfnet_tf")
class RetinaNet(DenseDetector):
    """RetinaNet (Lin et al., ICCV 2017): several anchors in each cell, matched by IoU.

    Args:
        backbone, neck: see `DenseDetector`; the neck is
            `FPN(extra_from="input", relu_before_extra=False)` in the official code.
        head: `DenseHead(num_classes, norm=None, anchors_per_cell=9)`.
        assigner: which anchors learn which box; `MaxIoUAssigner()` by default.
        box_coder: `DeltaCoder()` by default.
        class_loss: see `DenseDetector`; `FocalLoss()` by default.
        box_loss: loss of deltas, the L1 loss by default.
        box_loss_weight: float.
        octaves, ratios: of the anchors, see `make_anchors`.
        score_threshold, ...: see `DenseDetector`; 0.5 is the NMS threshold of the paper.
    """

    _further_outputs = {"box_predictions": 4}
    config_names = (
        "assigner",
        "box_coder",
        "box_loss",
        "box_loss_weight",
        "octaves",
        "ratios",
    )

    def __init__(
        self,
        backbone,
        neck,
        head,
        assigner=None,
        box_coder=None,
        class_loss=None,
        box_loss=None,
        box_loss_weight=1.0,
        octaves=3,
        ratios=(0.5, 1.0, 2.0),
        nms_iou_threshold=0.5,
        **kwargs,
    ):
        self.octaves = octaves
        self.ratios = tuple(ratios)
        self.anchors_per_cell = octaves * len(self.ratios)
        if head.anchors_per_cell != self.anchors_per_cell:
            raise ValueError(
                "`head.anchors_per_cell` must be octaves times ratios, "
                f"{self.anchors_per_cell}. Received: {head.anchors_per_cell}"
            )
        super().__init__(
            backbone,
            neck,
            head,
            class_loss or FocalLoss(),
            nms_iou_threshold=nms_iou_threshold,
            **kwargs,
        )
        self.assigner = assigner or MaxIoUAssigner()
        self._check_assigners()
        self.box_coder = DeltaCoder() if box_coder is None else box_coder
        self.box_loss = SmoothL1Loss(0.0) if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight

    def make_priors(self, level_shapes):
        """See `DenseDetector`; A rows for each cell, and their `"anchors"` `[P, 4]`."""
        cells = super().make_priors(level_shapes)
        anchors = make_anchors(
            cells["points"], cells["strides"], octaves=self.octaves, ratios=self.ratios
        )
        priors = {
            name: ops.repeat(value, self.anchors_per_cell, axis=0)
            for name, value in cells.items()
        }
        return {**priors, "anchors": ops.reshape(anchors, (-1, 4))}

    def decode(self, priors, predictions):
        deltas = flatten_levels(predictions["box_predictions"], 4)
        return {
            "class_logits": flatten_levels(
                predictions["class_logits"], self.num_classes
            ),
            "boxes": self.box_coder.decode(deltas, priors),
            "box_predictions": deltas,
        }

    def assign(self, outputs, targets):
        return self.assigner(
            outputs["anchors"],
            own_points(outputs["points"], targets["image_size"]),
            targets["boxes"],
            targets["labels"],
        )

    def _loss_parts(self, outputs, targets, weights=None):
        assignment = self.assign(outputs, targets)
        # The official code counts at least one for each image.
        num_positives = count_positives(assignment, per_image=1)
        ious = positive_ious(outputs["boxes"], assignment)
        class_loss = self._sum_class_loss(outputs, assignment, ious, weights)
        is_positive = assignment.is_positive[..., None]
        # Negatives get their anchor, whose deltas are finite.
        boxes = ops.where(is_positive, assignment.boxes, outputs["anchors"])
        deltas = self.box_coder.encode(boxes, outputs)
        predictions = ops.where(is_positive, outputs["box_predictions"], deltas)
        box_losses = self.box_loss.call(deltas, predictions)
        box_loss = weighted_sum(box_losses, weights, "boxes")
        losses = {
            "class_loss": class_loss / num_positives,
            "box_loss": self.box_loss_weight * box_loss / num_positives,
        }
        return losses, num_positives
