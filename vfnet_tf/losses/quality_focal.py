import keras
from keras import ops

from vfnet_tf.losses.pairs import SCORES, ScoreLoss, checked_pair, not_negative


@keras.saving.register_keras_serializable("vfnet_tf")
def quality_focal_loss(target_scores, logits, beta=2.0):
    """Element-wise quality focal loss (Li et al., NeurIPS 2020, Eq. 2).

        QFL(p, q) = -|q - p|**beta * (q log p + (1 - q) log(1 - p))

    Args:
        target_scores: float `[..., K]` in [0, 1], q: the quality at the true class, 0
            elsewhere.
        logits: float `[..., K]`, p = sigmoid(logits).
        beta: focusing exponent.

    Returns:
        float32 `[..., K]`, unreduced, finite for any finite logit.

    Raises:
        ValueError: as `focal_loss`.
    """
    return _quality_focal(*checked_pair(target_scores, logits, SCORES), beta)


def _quality_focal(q, logits, beta):
    distance = ops.abs(q - ops.sigmoid(logits))
    # A power of exactly 0 has no finite gradient for beta < 1.
    focus = ops.power(ops.maximum(distance, 1e-12), beta)
    return focus * (ops.softplus(logits) - q * logits)


@keras.saving.register_keras_serializable("vfnet_tf")
class QualityFocalLoss(ScoreLoss):
    """`quality_focal_loss` for `compile`: `[B, P, K]` pairs to `[B, P]`, then reduced.

    For soft targets such as the IoU of the predicted box. Unlike `VarifocalLoss` it also
    weighs positives down that are predicted well.

    Args:
        beta: focusing exponent.
        from_logits: True if predictions are logits, False if they are probabilities.
        reduction, name, dtype, errors: as in `PairLoss` and `focal_loss`.

    Source: Li et al., NeurIPS 2020, Eq. 2.
    """

    config_names = ("beta", "from_logits")

    def __init__(
        self,
        beta=2.0,
        from_logits=True,
        reduction="sum",
        name="quality_focal_loss",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.beta = not_negative(beta, "beta")
        self.from_logits = from_logits

    def elementwise(self, targets, logits):
        return _quality_focal(targets, logits, self.beta)
