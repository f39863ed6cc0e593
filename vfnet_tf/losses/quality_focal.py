import keras
from keras import ops

from vfnet_tf.losses.pairs import SCORES, PairLoss, checked_pair, same_shape
from vfnet_tf.losses.varifocal import logits_from_probabilities


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
        ValueError: for targets of another shape, and, where values are known, for some
            that are not in [0, 1] (0.01 beyond is rounding, and counts as it is) or NaN.
            While a graph is traced the loss of such a target is NaN.
    """
    return _quality_focal(*checked_pair(target_scores, logits, SCORES), beta)


def _quality_focal(q, logits, beta):
    """`quality_focal_loss` of float32 tensors."""
    distance = ops.abs(q - ops.sigmoid(logits))
    # A power of exactly 0 has no finite gradient for beta < 1.
    focus = ops.power(ops.maximum(distance, 1e-12), beta)
    return focus * (ops.softplus(logits) - q * logits)


@keras.saving.register_keras_serializable("vfnet_tf")
class QualityFocalLoss(PairLoss):
    """`quality_focal_loss` for `compile`: `[B, P, K]` pairs to `[B, P]`, then reduced.

    Args:
        beta: focusing exponent.
        from_logits: True if predictions are logits, False if they are probabilities.
        reduction, name, dtype, errors: as in `PairLoss` and `quality_focal_loss`.

    Source: Li et al., NeurIPS 2020, Eq. 2.
    """

    def __init__(
        self,
        beta=2.0,
        from_logits=True,
        reduction="sum",
        name="quality_focal_loss",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        if beta < 0:
            raise ValueError(f"`beta` must be >= 0. Received: beta={beta}")
        self.beta = beta
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        if not self.from_logits:
            y_pred = logits_from_probabilities(y_pred)
        loss = _quality_focal(*same_shape(y_true, y_pred), self.beta)
        return ops.sum(loss, axis=-1)

    def get_config(self):
        own = {"beta": self.beta, "from_logits": self.from_logits}
        return {**super().get_config(), **own}
