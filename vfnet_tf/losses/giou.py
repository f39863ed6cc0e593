import keras

from vfnet_tf.losses.pairs import BOXES, PairLoss, checked_pair, same_shape
from vfnet_tf.ops.boxes import elementwise_giou


@keras.saving.register_keras_serializable("vfnet_tf")
def giou_loss(target_boxes, boxes, epsilon=1e-6):
    """`1 - GIoU` of pairs of boxes (Rezatofighi et al., CVPR 2019, Sec. 3).

    Args:
        target_boxes: float `[..., 4]` pixels, x2 >= x1 and y2 >= y1.
        boxes: float `[..., 4]` pixels, predictions.
        epsilon: floor of the union and of the hull in square pixels.

    Returns:
        float32 `[...]` in [0, 2] for valid boxes, unreduced.

    Raises:
        ValueError: for targets of another shape, for a last axis other than 4, and, where
            values are known, for inverted target boxes and NaN. In a graph such a target
            makes the loss NaN.
    """
    return _giou(*checked_pair(target_boxes, boxes, BOXES), epsilon)


def _giou(target_boxes, boxes, epsilon):
    return 1.0 - elementwise_giou(boxes, target_boxes, epsilon)


@keras.saving.register_keras_serializable("vfnet_tf")
class GIoULoss(PairLoss):
    """`giou_loss` for `compile`: `[B, P, 4]` pairs to `[B, P]`, then reduced.

    For boxes in pixels. Boxes of any size weigh alike, and boxes that do not overlap
    have a gradient, too.

    Args:
        epsilon: floor of the union and of the hull in square pixels.
        reduction, name, dtype, errors: as in `PairLoss` and `giou_loss`.

    Source: Rezatofighi et al., CVPR 2019, Sec. 3.
    """

    rule = BOXES
    config_names = ("epsilon",)

    def __init__(self, epsilon=1e-6, reduction="sum", name="giou_loss", **kwargs):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        return _giou(*same_shape(y_true, y_pred, BOXES), self.epsilon)
