import keras
from keras import ops

from vfnet_tf.assigners import FCOSAssigner
from vfnet_tf.box_coders import DistanceCoder
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    count_positives,
    flatten_levels,
    positive_ious,
    sum_over_replicas,
    weighted_sum,
)
from vfnet_tf.losses import FocalLoss, GIoULoss, VarifocalLoss
from vfnet_tf.ops.boxes import centerness_of


@keras.saving.register_keras_serializable("vfnet_tf")
class FCOS(DenseDetector):
    """FCOS (Tian et al., ICCV 2019) and, with other parts, ATSS and FCOS+ATSS.

    Positives also learn their centerness, which multiplies the class scores when
    detections are ranked. The defaults are those of the official improved version; ATSS
    (Zhang et al., CVPR 2020) has `assigner=ATSSAssigner()`, `point_offset=0.0`,
    `box_coder=DeltaCoder((0.1, 0.1, 0.2, 0.2), anchor_scale=8)`, `box_loss_weight=2.0`
    and `min_positives=1`, FCOS+ATSS the first two.

    Args:
        backbone, neck: see `DenseDetector`.
        head: `DenseHead(num_classes, centerness="box", level_scales=True)`.
        assigner: which points learn which box; `FCOSAssigner` of the head's
            strides by default.
        box_coder: `DistanceCoder("relu")` by default: distances in strides.
        class_loss: see `DenseDetector`; `FocalLoss()` by default.
        box_loss: loss of decoded boxes, `GIoULoss()` by default.
        box_loss_weight, centerness_loss_weight: float.
        point_offset: see `make_points`.
        min_positives: positives that count for each image at least.
        score_threshold, ...: see `DenseDetector`.
    """

    loss_names = ("class_loss", "box_loss", "centerness_loss")
    unmasked_losses = (VarifocalLoss,)
    _further_outputs = {"centerness_logits": 1}
    config_names = (
        "assigner",
        "box_coder",
        "box_loss",
        "box_loss_weight",
        "centerness_loss_weight",
        "point_offset",
        "min_positives",
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
        centerness_loss_weight=1.0,
        point_offset=0.5,
        min_positives=0,
        **kwargs,
    ):
        if head.centerness is None:
            raise ValueError(
                "`head` must predict centerness. Received: centerness=None"
            )
        super().__init__(backbone, neck, head, class_loss or FocalLoss(), **kwargs)
        self.assigner = assigner or FCOSAssigner(strides=head.strides)
        self._check_assigners()
        self.box_coder = DistanceCoder() if box_coder is None else box_coder
        self.box_loss = GIoULoss() if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight
        self.centerness_loss_weight = centerness_loss_weight
        self.point_offset = point_offset
        self.min_positives = min_positives

    def decode(self, priors, predictions):
        flat = {name: flatten_levels(maps) for name, maps in predictions.items()}
        return {
            "class_logits": flat["class_logits"],
            "boxes": self.box_coder.decode(flat["box_predictions"], priors),
            "centerness_logits": flat["centerness_logits"],
        }

    def _loss_parts(self, outputs, targets, weights=None):
        """Divided as in the official code of ATSS: docs/parity.md, S23."""
        assignment = self.assign(outputs, targets)
        num_positives = count_positives(assignment, self.min_positives)
        is_positive = assignment.is_positive
        boxes = ops.where(is_positive[..., None], outputs["boxes"], 0.0)
        ious = positive_ious(boxes, assignment)
        centerness = centerness_of(outputs["points"], assignment.boxes)
        centerness = ops.where(is_positive, centerness, 0.0)

        count = ops.maximum(num_positives, 1.0)
        class_loss = self._sum_class_loss(outputs, assignment, ious, weights)
        box_losses = centerness * self.box_loss.call(assignment.boxes, boxes)
        total = sum_over_replicas(ops.sum(centerness))
        # Masked before and after, since NaN times zero is NaN.
        logits = ops.where(is_positive, outputs["centerness_logits"][..., 0], 0.0)
        centerness_losses = ops.softplus(logits) - centerness * logits
        centerness_losses = ops.where(is_positive, centerness_losses, 0.0)
        losses = {
            "class_loss": class_loss / count,
            "box_loss": weighted_sum(box_losses, weights, "boxes")
            / ops.maximum(total, 1e-6),
            "centerness_loss": weighted_sum(centerness_losses, weights, "boxes")
            / count,
        }
        losses["box_loss"] *= self.box_loss_weight
        losses["centerness_loss"] *= self.centerness_loss_weight
        return losses, num_positives
