import keras
from keras import ops

from vfnet_tf.losses.pairs import SCORES, ScoreLoss, checked_pair, not_negative


@keras.saving.register_keras_serializable("vfnet_tf")
def focal_loss(targets, logits, alpha=0.25, gamma=2.0):
    """Element-wise sigmoid focal loss (Lin et al., ICCV 2017, Eq. 5).

        FL(p, y) = -alpha * (1 - p)**gamma * log p          if y = 1
                 = -(1 - alpha) * p**gamma * log(1 - p)     if y = 0

    Args:
        targets: float `[..., K]`, 1 at the true class, 0 elsewhere.
        logits: float `[..., K]`, p = sigmoid(logits).
        alpha: weight of the positives; the negatives get `1 - alpha`.
        gamma: focusing exponent.

    Returns:
        float32 `[..., K]`, unreduced, finite for any finite logit.

    Raises:
        ValueError: for targets of another shape, and, where values are known, for NaN and
            for targets outside [-0.01, 1.01]. In a graph such a target makes the loss NaN.
    """
    y, logits = checked_pair(targets, logits, SCORES)
    return _focal(y, logits, alpha, gamma)


def _focal(y, logits, alpha, gamma):
    # The logarithm of the wrong answer: of 1 - p for positives, of p for negatives.
    log_wrong = -ops.softplus(ops.where(y > 0, logits, -logits))
    cross_entropy = ops.softplus(logits) - y * logits
    alpha = ops.convert_to_tensor(alpha, dtype="float32")
    weight = ops.where(y > 0, alpha, 1.0 - alpha)
    return weight * ops.exp(gamma * log_wrong) * cross_entropy


@keras.saving.register_keras_serializable("vfnet_tf")
class FocalLoss(ScoreLoss):
    """`focal_loss` for `compile`: `[B, P, K]` pairs to `[B, P]`, then reduced.

    For dense detectors and other classifiers with far more negatives than positives,
    whose targets are one-hot. With the IoU as target see `VarifocalLoss`.

    Args:
        alpha: weight of the positives in [0, 1].
        gamma: focusing exponent.
        from_logits: True if predictions are logits, False if they are probabilities.
        reduction, name, dtype, errors: as in `PairLoss` and `focal_loss`.

    Source: Lin et al., ICCV 2017, Eq. 5.
    """

    #: a detector gives it 1, not the IoU, at the true class
    hard_targets = True
    config_names = ("alpha", "gamma", "from_logits")

    def __init__(
        self,
        alpha=0.25,
        gamma=2.0,
        from_logits=True,
        reduction="sum",
        name="focal_loss",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be in [0, 1]. Received: alpha={alpha}")
        self.alpha = alpha
        self.gamma = not_negative(gamma, "gamma")
        self.from_logits = from_logits

    def elementwise(self, targets, logits):
        return _focal(targets, logits, self.alpha, self.gamma)
