import keras
from keras import ops

from vfnet_tf.assigners import ATSSAssigner
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    flatten_levels,
    sum_over_replicas,
)
from vfnet_tf.losses import GIoULoss, VarifocalLoss
from vfnet_tf.ops.boxes import distances_to_boxes, elementwise_iou

#: Floor of an IoU that is a target: a positive must not turn into a negative.
MIN_TARGET_IOU = 1e-6


@keras.saving.register_keras_serializable("vfnet_tf")
class VFNet(DenseDetector):
    """VarifocalNet (Zhang et al., CVPR 2021).

    Args:
        backbone: a model that gives `"C3"`, `"C4"`, `"C5"`, e.g. `ResNet(depth=50)`.
        neck: e.g. `FPN()`.
        head: `VFNetHead(num_classes=...)`.
        assigner: which points learn which box; `ATSSAssigner()` by default.
        class_loss: `VarifocalLoss()` by default; `FocalLoss`, `QualityFocalLoss` or
            any Keras loss that maps `[B, P, K]` pairs to `[B, P]`. A loss that declares
            `hard_targets = True` gets 1 instead of the IoU at the true class.
        box_loss: loss of decoded boxes, `GIoULoss()` by default.
        box_loss_weight: lambda_0 of Eq. 3, for the initial boxes.
        refined_box_loss_weight: lambda_1 of Eq. 3, for the refined boxes.
        score_threshold, nms_iou_threshold, candidates_per_level, max_detections, nms,
            soft_nms_sigma, soft_nms_min_score: see `DenseDetector`.

    ```python
    detector = vfnet_tf.VFNet(
        backbone=vfnet_tf.ResNet(depth=50),
        neck=vfnet_tf.FPN(),
        head=vfnet_tf.VFNetHead(num_classes=3),
    )
    detector.compile(optimizer="sgd")
    detector.fit(batches)
    ```
    """

    loss_names = ("class_loss", "box_loss", "refined_box_loss")
    _box_names = ("boxes", "refined_boxes")

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
        super().__init__(backbone, neck, head, **kwargs)
        self.assigner = ATSSAssigner() if assigner is None else assigner
        self.class_loss = VarifocalLoss() if class_loss is None else class_loss
        self.box_loss = GIoULoss() if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight
        self.refined_box_loss_weight = refined_box_loss_weight

    def decode(self, points, predictions):
        distances = flatten_levels(predictions["distances"])
        refined = flatten_levels(predictions["refined_distances"])
        return {
            "class_logits": flatten_levels(predictions["class_logits"]),
            "boxes": distances_to_boxes(points, distances),
            "refined_boxes": distances_to_boxes(points, refined),
        }

    def _losses_and_positives(self, outputs, targets):
        """Eq. 3, with the normalisation of the official code (two IoU sums)."""
        assignment = self.assigner(
            outputs["points"],
            outputs["strides"],
            targets["boxes"],
            targets["labels"],
            targets["image_size"],
        )
        is_positive = ops.cast(assignment.is_positive, "float32")
        num_positives = sum_over_replicas(ops.sum(is_positive))

        box_loss, _ = self._box_loss(outputs["boxes"], assignment)
        refined_box_loss, ious = self._box_loss(outputs["refined_boxes"], assignment)

        hard_targets = getattr(self.class_loss, "hard_targets", False)
        quality = is_positive if hard_targets else ious
        one_hot = ops.one_hot(assignment.labels, self.num_classes, dtype="float32")
        class_loss = self.class_loss.call(
            one_hot * quality[..., None], outputs["class_logits"]
        )
        if hard_targets:
            # Points beyond the image are ordinary negatives of the soft losses only.
            class_loss = class_loss * ops.cast(assignment.is_valid, "float32")
        losses = {
            "class_loss": ops.sum(class_loss) / ops.maximum(num_positives, 1.0),
            "box_loss": self.box_loss_weight * box_loss,
            "refined_box_loss": self.refined_box_loss_weight * refined_box_loss,
        }
        return losses, num_positives

    def _box_loss(self, boxes, assignment):
        """IoU-weighted mean loss of the positives' boxes, and their IoUs `[B, P]`."""
        is_positive = assignment.is_positive
        # Negatives may be anything, inf included: a zero weight would not stop NaN.
        boxes = ops.where(is_positive[..., None], boxes, 0.0)
        ious = ops.stop_gradient(elementwise_iou(boxes, assignment.boxes))
        ious = ops.where(is_positive, ops.maximum(ious, MIN_TARGET_IOU), 0.0)
        losses = self.box_loss.call(assignment.boxes, boxes)
        total = sum_over_replicas(ops.sum(ious))
        return ops.sum(ious * losses) / ops.maximum(total, 1.0), ious

    def get_config(self):
        return {
            **super().get_config(),
            "assigner": keras.saving.serialize_keras_object(self.assigner),
            "class_loss": keras.saving.serialize_keras_object(self.class_loss),
            "box_loss": keras.saving.serialize_keras_object(self.box_loss),
            "box_loss_weight": self.box_loss_weight,
            "refined_box_loss_weight": self.refined_box_loss_weight,
        }
