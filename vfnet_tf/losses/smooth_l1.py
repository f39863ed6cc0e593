import keras
from keras import ops


def smooth_l1_loss(targets, predictions, beta=1.0):
    """Element-wise smooth L1 loss (Girshick, ICCV 2015, Eq. 3).

        L(d) = 0.5 d**2 / beta     if |d| < beta, d = prediction - target
             = |d| - 0.5 beta      otherwise

    Args:
        targets, predictions: float `[...]`.
        beta: where the square turns into a line; 0 is the L1 loss.

    Returns:
        float32 `[...]`, unreduced.
    """
    targets = ops.cast(targets, "float32")
    distance = ops.abs(ops.cast(predictions, "float32") - targets)
    if beta == 0:
        return distance
    square = 0.5 * ops.square(distance) / beta
    return ops.where(distance < beta, square, distance - 0.5 * beta)


@keras.saving.register_keras_serializable("vfnet_tf")
class SmoothL1Loss(keras.losses.Loss):
    """`smooth_l1_loss` for `compile`: `[B, P, 4]` pairs to sums `[B, P]`, then reduced.

    Keras's `Huber` is `beta` times this one, and a mean over the four.

    Args:
        beta: where the square turns into a line; 0 is the L1 loss.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Source: Girshick, ICCV 2015, Eq. 3.
    """

    def __init__(self, beta=1.0, reduction="sum", name="smooth_l1_loss", **kwargs):
        super().__init__(reduction=reduction, name=name, **kwargs)
        if beta < 0:
            raise ValueError(f"`beta` must be >= 0. Received: beta={beta}")
        self.beta = beta

    def call(self, y_true, y_pred):
        return ops.sum(smooth_l1_loss(y_true, y_pred, self.beta), axis=-1)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
