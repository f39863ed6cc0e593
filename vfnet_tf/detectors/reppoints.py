import keras
from keras import ops

from vfnet_tf.assigners import MaxIoUAssigner, PointAssigner
from vfnet_tf.assigners.assignment import own_points
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    count_positives,
    flatten_levels,
    positive_ious,
    weighted_sum,
)
from vfnet_tf.losses import FocalLoss, SmoothL1Loss


@keras.saving.register_keras_serializable("vfnet_tf")
class RepPoints(DenseDetector):
    """RepPoints with moment boxes (Yang et al., ICCV 2019).

    The first points learn one box each by their place, the refined ones by the IoU of
    the first points' boxes; the latter are the positives of the class loss.

    Args:
        backbone, neck: see `DenseDetector`; the neck is `FPN(extra_from="input",
            relu_before_extra=False, norm="group_norm")` in the official code.
        head: `RepPointsHead(num_classes)`.
        initial_assigner: for the first points; `PointAssigner` of the head's strides
            by default.
        assigner: for the refined points; `MaxIoUAssigner()` by default.
        class_loss: see `DenseDetector`; `FocalLoss()` by default.
        box_loss: loss of boxes in units of `point_scale` strides, `SmoothL1Loss(0.11)`
            by default.
        box_loss_weight: of the first points' boxes.
        refined_box_loss_weight: of the refined points' boxes.
        point_scale: float.
        score_threshold, ...: see `DenseDetector`; 0.5 is the NMS threshold of the paper.
    """

    loss_names = ("class_loss", "box_loss", "refined_box_loss")
    _box_names = ("boxes", "refined_boxes")
    config_names = (
        "initial_assigner",
        "assigner",
        "box_loss",
        "box_loss_weight",
        "refined_box_loss_weight",
        "point_scale",
    )

    def __init__(
        self,
        backbone,
        neck,
        head,
        initial_assigner=None,
        assigner=None,
        class_loss=None,
        box_loss=None,
        box_loss_weight=0.5,
        refined_box_loss_weight=1.0,
        point_scale=4.0,
        nms_iou_threshold=0.5,
        **kwargs,
    ):
        super().__init__(
            backbone,
            neck,
            head,
            class_loss or FocalLoss(),
            nms_iou_threshold=nms_iou_threshold,
            **kwargs,
        )
        self.initial_assigner = initial_assigner or PointAssigner(strides=head.strides)
        self.assigner = assigner or MaxIoUAssigner()
        self._check_assigners()
        self.box_loss = SmoothL1Loss(0.11) if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight
        self.refined_box_loss_weight = refined_box_loss_weight
        self.point_scale = point_scale

    def decode(self, priors, predictions):
        points = ops.concatenate([priors["points"], priors["points"]], axis=-1)
        strides = priors["strides"][:, None]
        return {
            "class_logits": flatten_levels(predictions["class_logits"]),
            "boxes": points + strides * flatten_levels(predictions["box_shifts"]),
            "refined_boxes": points
            + strides * flatten_levels(predictions["refined_box_shifts"]),
        }

    def assign(self, outputs, targets):
        return self.assigner(
            outputs["boxes"],
            own_points(outputs["points"], targets["image_size"]),
            targets["boxes"],
            targets["labels"],
        )

    def _loss_parts(self, outputs, targets, weights=None):
        initial = self.initial_assigner(
            outputs["points"],
            outputs["strides"],
            targets["boxes"],
            targets["labels"],
            targets["image_size"],
        )
        assignment = self.assign(outputs, targets)
        # The official code counts at least one for each image.
        num_positives = count_positives(assignment, per_image=1)
        ious = positive_ious(outputs["refined_boxes"], assignment)
        class_loss = self._sum_class_loss(outputs, assignment, ious, weights)
        box_loss = self._sum_box_loss(outputs, "boxes", initial, weights)
        refined_box_loss = self._sum_box_loss(
            outputs, "refined_boxes", assignment, weights
        )
        losses = {
            "class_loss": class_loss / num_positives,
            "box_loss": self.box_loss_weight
            * box_loss
            / count_positives(initial, per_image=1),
            "refined_box_loss": self.refined_box_loss_weight
            * refined_box_loss
            / num_positives,
        }
        return losses, num_positives

    def _sum_box_loss(self, outputs, name, assignment, weights):
        units = outputs["strides"][:, None] * self.point_scale
        is_positive = assignment.is_positive[..., None]
        boxes = ops.where(is_positive, outputs[name], 0.0)
        losses = self.box_loss.call(assignment.boxes / units, boxes / units)
        return weighted_sum(losses, weights, "boxes")
