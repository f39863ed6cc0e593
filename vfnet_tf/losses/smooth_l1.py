import keras
from keras import ops

from vfnet_tf.losses.pairs import PairLoss, checked_pair, not_negative, same_shape


@keras.saving.register_keras_serializable("vfnet_tf")
def smooth_l1_loss(targets, predictions, beta=1.0):
    """Element-wise smooth L1 loss (Girshick, ICCV 2015, Eq. 3).

        L(d) = 0.5 d**2 / beta     if |d| < beta, d = prediction - target
             = |d| - 0.5 beta      otherwise

    Args:
        targets, predictions: float `[...]`, of one shape.
        beta: where the square turns into a line; 0 is the L1 loss.

    Returns:
        float32 `[...]`, unreduced; NaN at a target of NaN.

    Raises:
        ValueError: for targets of another shape.
    """
    return _smooth_l1(*checked_pair(targets, predictions), beta)


def _smooth_l1(targets, predictions, beta):
    distance = ops.abs(predictions - targets)
    if beta == 0:
        return distance
    square = 0.5 * ops.square(distance) / beta
    return ops.where(distance < beta, square, distance - 0.5 * beta)


@keras.saving.register_keras_serializable("vfnet_tf")
class SmoothL1Loss(PairLoss):
    """`smooth_l1_loss` for `compile`: `[B, P, 4]` pairs to sums `[B, P]`, then reduced.

    For encoded boxes, whose numbers are of one scale; a far prediction has a gradient of
    1 at most. Keras's `Huber` is `beta` times this one, and a mean over the four.

    Args:
        beta: where the square turns into a line; 0 is the L1 loss.
        reduction, name, dtype, errors: as in `PairLoss`.

    Source: Girshick, ICCV 2015, Eq. 3.
    """

    rule = None  # any number
    config_names = ("beta",)

    def __init__(self, beta=1.0, reduction="sum", name="smooth_l1_loss", **kwargs):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.beta = not_negative(beta, "beta")

    def call(self, y_true, y_pred):
        loss = _smooth_l1(*same_shape(y_true, y_pred), self.beta)
        return ops.sum(loss, axis=-1)
