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
        ValueError: for targets of another shape, other than four numbers a box, and,
            where values are known, inverted target boxes or NaN. While a graph is traced
            the loss of such a target is NaN.
    """
    return _giou(*checked_pair(target_boxes, boxes, BOXES), epsilon)


def _giou(target_boxes, boxes, epsilon):
    """`giou_loss` of float32 tensors."""
    return 1.0 - elementwise_giou(boxes, target_boxes, epsilon)


@keras.saving.register_keras_serializable("vfnet_tf")
class GIoULoss(PairLoss):
    """`giou_loss` for `compile`: `[B, P, 4]` pairs to `[B, P]`, then reduced.

    Args:
        epsilon: floor of the union and of the hull in square pixels.
        reduction, name, dtype, errors: as in `PairLoss`.

    Source: Rezatofighi et al., CVPR 2019.
    """

    rule = BOXES

    def __init__(self, epsilon=1e-6, reduction="sum", name="giou_loss", **kwargs):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        return _giou(*same_shape(y_true, y_pred, BOXES), self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
