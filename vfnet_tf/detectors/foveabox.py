import keras
from keras import ops

from vfnet_tf.assigners import FoveaAssigner
from vfnet_tf.box_coders import DistanceCoder
from vfnet_tf.detectors.dense_detector import (
    DenseDetector,
    count_positives,
    flatten_levels,
    num_replicas,
    positive_ious,
    weighted_sum,
)
from vfnet_tf.losses import FocalLoss, SmoothL1Loss
from vfnet_tf.ops.boxes import clip_boxes
from vfnet_tf.ops.shapes import sizes_of


@keras.saving.register_keras_serializable("vfnet_tf")
class FoveaBox(DenseDetector):
    """FoveaBox (Kong et al., TIP 2020): the shrunken centre of a box learns it.

    Args:
        backbone, neck: see `DenseDetector`; the neck is
            `FPN(extra_from="input", relu_before_extra=False)` in the official code.
        head: `DenseHead(num_classes, norm=None)`.
        assigner: which points learn which box; `FoveaAssigner` of the head's
            strides by default.
        box_coder: logarithms of distances in units of two strides by default.
        class_loss: see `DenseDetector`; `FocalLoss(0.4, 1.5)` by default.
        box_loss: loss of encoded boxes, `SmoothL1Loss(0.11)` by default.
        box_loss_weight: float.
        score_threshold, ...: see `DenseDetector`; 0.5 is the NMS threshold of the paper.
    """

    point_offset = 0.5
    clip_margin = 1.0
    _further_outputs = {"box_predictions": 4}
    config_names = ("assigner", "box_coder", "box_loss", "box_loss_weight")

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
        nms_iou_threshold=0.5,
        **kwargs,
    ):
        super().__init__(
            backbone,
            neck,
            head,
            class_loss or FocalLoss(0.4, 1.5),
            nms_iou_threshold=nms_iou_threshold,
            **kwargs,
        )
        self.assigner = assigner or FoveaAssigner(strides=head.strides)
        self._check_assigners()
        if box_coder is None:
            box_coder = DistanceCoder("exp", unit=2.0, limits=(1 / 16, 16.0))
        self.box_coder = box_coder
        self.box_loss = SmoothL1Loss(0.11) if box_loss is None else box_loss
        self.box_loss_weight = box_loss_weight

    def decode(self, priors, predictions):
        flat = {name: flatten_levels(maps) for name, maps in predictions.items()}
        return {
            "class_logits": flat["class_logits"],
            "boxes": self.box_coder.decode(flat["box_predictions"], priors),
            "box_predictions": flat["box_predictions"],
        }

    def _loss_parts(self, outputs, targets, weights=None):
        assignment = self.assign(outputs, targets)
        num_positives = count_positives(assignment)
        boxes = clip_boxes(outputs["boxes"], self._canvas_size(outputs) - 1.0)
        class_loss = self._sum_class_loss(
            outputs, assignment, positive_ious(boxes, assignment), weights
        )
        encoded = self.box_coder.encode(assignment.boxes, outputs)
        is_positive = assignment.is_positive[..., None]
        predictions = ops.where(is_positive, outputs["box_predictions"], encoded)
        box_losses = self.box_loss.call(encoded, predictions)
        box_loss = weighted_sum(box_losses, weights, "boxes")
        # The official code adds one for each image, so that it is never 0.
        images = ops.cast(sizes_of(boxes)[0] * num_replicas(), "float32")
        losses = {
            "class_loss": class_loss / (num_positives + images),
            "box_loss": self.box_loss_weight
            * box_loss
            / ops.maximum(num_positives, 1.0),
        }
        return losses, num_positives

    def _canvas_size(self, outputs):
        """`[1, 2]`, `(height, width)` of the padded batch, computed from its points.

        In training the official code clips boxes to it, not to each image's own size.
        """
        is_finest = (outputs["strides"] == self.strides[0])[:, None]
        last = ops.max(ops.where(is_finest, outputs["points"], 0.0), axis=0)
        return ops.flip(last + self.strides[0] * (1 - self.point_offset))[None]
