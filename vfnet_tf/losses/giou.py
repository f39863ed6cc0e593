import keras
from keras import ops

from vfnet_tf.ops.boxes import elementwise_giou


def giou_loss(target_boxes, boxes, epsilon=1e-6):
    """`1 - GIoU` of pairs of boxes (Rezatofighi et al., CVPR 2019, Sec. 3).

    Args:
        target_boxes: float `[..., 4]` pixels.
        boxes: float `[..., 4]` pixels, predictions.
        epsilon: floor of the union and of the hull in square pixels.

    Returns:
        float32 `[...]` in [0, 2] for valid boxes, unreduced.
    """
    target_boxes = ops.cast(target_boxes, "float32")
    boxes = ops.cast(boxes, "float32")
    return 1.0 - elementwise_giou(boxes, target_boxes, epsilon)


@keras.saving.register_keras_serializable("vfnet_tf")
class GIoULoss(keras.losses.Loss):
    """`giou_loss` for `compile`: `[B, P, 4]` pairs to `[B, P]`, then reduced.

    Args:
        epsilon: floor of the union and of the hull in square pixels.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Source: Rezatofighi et al., CVPR 2019.
    """

    def __init__(self, epsilon=1e-6, reduction="sum", name="giou_loss", **kwargs):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        return giou_loss(y_true, y_pred, self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
