import keras
from keras import ops

from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    count_positives,
    flatten_levels,
    positive_ious,
    sum_over_replicas,
    weighted_sum,
)
from vfnet_tf.losses import GIoULoss, VarifocalLoss
from vfnet_tf.ops.boxes import distances_to_boxes

#: Floor of an IoU that is a target, since a target of 0 marks a negative.
MIN_TARGET_IOU = 1e-6


@keras.saving.register_keras_serializable("vfnet_tf")
class VFNet(DenseDetector):
    """VarifocalNet (Zhang et al., CVPR 2021).

    Args:
        backbone: a model that gives `"C3"`, `"C4"`, `"C5"`, e.g. `ResNet(depth=50)`.
        neck: e.g. `FPN()`.
        head: `VFNetHead(num_classes=...)`.
        assigner: which points learn which box; `ATSSAssigner` of the head's
            strides by default.
        class_loss: see `DenseDetector`; `VarifocalLoss()` by default.
        box_loss: loss of decoded boxes, `GIoULoss()` by default.
        box_loss_weight: lambda_0 of Eq. 3, for the initial boxes.
        refined_box_loss_weight: lambda_1 of Eq. 3, for the refined boxes.
        score_threshold, nms_iou_threshold, candidates_per_level, max_detections, nms,
            soft_nms_sigma, soft_nms_min_score: see `DenseDetector`.

    >>> import vfnet_tf
    >>> detector = VFNet(
    ...     backbone=vfnet_tf.ResNet(depth=18),
    ...     neck=vfnet_tf.FPN(),
    ...     head=vfnet_tf.VFNetHead(num_classes=3),
    ... )
    >>> detector.compile(optimizer="sgd")
    >>> history = detector.fit(batches)  # doctest: +SKIP
    >>> found = detector.detect(ops.zeros((1, 64, 96, 3)))
    >>> tuple(found["boxes"].shape)
    (1, 100, 4)
    """

    loss_names = ("class_loss", "box_loss", "refined_box_loss")
    unmasked_losses = (VarifocalLoss,)
    config_names = (
        "assigner",
        "box_loss",
        "box_loss_weight",
        "refined_box_loss_weight",
    )

    def __init__(
        self,
        backbone,
        neck,
        head,
        assigner=None,
        class_loss=None,
        box_loss=None,
        box_loss_weight=1.5,
        refined_box_loss_weight=2.0,
        **kwargs,
    ):
        if not head.refine:
            self.loss_names = VFNet.loss_names[:2]
        self._box_names = ("boxes", "refined_boxes") if head.refine else ("boxes",)
        super().__init__(backbone, neck, head, class_loss or VarifocalLoss(), **kwargs)
        self.assigner = assigner or ATSSAssigner(strides=head.strides)
        self._check_assigners()
        self.box_loss = GIoULoss() if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight
        self.refined_box_loss_weight = refined_box_loss_weight

    def decode(self, priors, predictions):
        boxes = {"class_logits": flatten_levels(predictions["class_logits"])}
        for name in self._box_names:
            # "refined_boxes" from "refined_distances"
            distances = predictions[name.replace("boxes", "distances")]
            boxes[name] = distances_to_boxes(
                priors["points"], flatten_levels(distances)
            )
        return boxes

    def _loss_parts(self, outputs, targets, weights=None):
        """Eq. 3, divided as in the official code: docs/parity.md, S21 and S22."""
        assignment = self.assign(outputs, targets)
        num_positives = count_positives(assignment)
        losses = {}
        factors = (self.box_loss_weight, self.refined_box_loss_weight)
        for name, factor in zip(self._box_names, factors, strict=False):
            loss, ious = self._box_loss(outputs[name], assignment, weights)
            losses[name.replace("boxes", "box_loss")] = factor * loss
        # `ious` are those of the last boxes.
        class_loss = self._sum_class_loss(outputs, assignment, ious, weights)
        class_loss = class_loss / ops.maximum(num_positives, 1.0)
        return {"class_loss": class_loss, **losses}, num_positives

    def _box_loss(self, boxes, assignment, weights):
        """IoU-weighted mean loss of the positives' boxes, and their IoUs `[B, P]`."""
        is_positive = assignment.is_positive
        # Masked first: boxes of negatives may be inf, and inf times zero is NaN.
        boxes = ops.where(is_positive[..., None], boxes, 0.0)
        ious = positive_ious(boxes, assignment)
        ious = ops.where(is_positive, ops.maximum(ious, MIN_TARGET_IOU), 0.0)
        losses = self.box_loss.call(assignment.boxes, boxes)
        total = sum_over_replicas(ops.sum(ious))
        loss = weighted_sum(ious * losses, weights, "boxes")
        return loss / ops.maximum(total, 1.0), ious
