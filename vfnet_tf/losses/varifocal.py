import keras
from keras import ops

from vfnet_tf.losses.pairs import SCORES, PairLoss, checked_pair, same_shape


@keras.saving.register_keras_serializable("vfnet_tf")
def varifocal_loss(target_scores, logits, alpha=0.75, gamma=2.0, iou_weighted=True):
    """Element-wise varifocal loss (Zhang et al., CVPR 2021, Eq. 2).

        VFL(p, q) = -q * (q log p + (1 - q) log(1 - p))   if q > 0
                  = -alpha * p**gamma * log(1 - p)        if q = 0

    Args:
        target_scores: float `[..., K]` in [0, 1], q: the IoU of the predicted box with
            its ground truth at the true class, 0 elsewhere.
        logits: float `[..., K]`, p = sigmoid(logits).
        alpha: weight of the negatives (no `1 - alpha` on the positives).
        gamma: focusing exponent of the negatives.
        iou_weighted: False leaves out the factor q before the positives (Table 2).

    Returns:
        float32 `[..., K]`, unreduced, finite for any finite logit.

    Raises:
        ValueError: for targets of another shape, and, where values are known, for some
            that are not in [0, 1] (0.01 beyond is rounding, and counts as it is) or NaN.
            While a graph is traced the loss of such a target is NaN.

    >>> loss = varifocal_loss([[0.8, 0.0]], [[0.0, 0.0]])  # logit 0: p = 0.5
    >>> ops.convert_to_numpy(loss).round(3)
    array([[0.555, 0.13 ]], dtype=float32)
    """
    q, logits = checked_pair(target_scores, logits, SCORES)
    return _varifocal(q, logits, alpha, gamma, iou_weighted)


def _varifocal(q, logits, alpha, gamma, iou_weighted):
    """`varifocal_loss` of float32 tensors; in float16 sigmoid saturates."""
    # sigmoid is written from softplus: log p and log(1 - p) stay finite at +-1e4.
    log_not_p = -ops.softplus(logits)
    cross_entropy = -(q * logits + log_not_p)
    # p ** gamma as exp(gamma log p): its gradient has no 0 ** (gamma - 1).
    log_p = -ops.softplus(-logits)
    negative_weight = alpha * ops.exp(gamma * log_p)
    positive_weight = q if iou_weighted else ops.ones_like(q)
    weight = ops.where(q > 0, positive_weight, negative_weight)
    return weight * cross_entropy


@keras.saving.register_keras_serializable("vfnet_tf")
class VarifocalLoss(PairLoss):
    """`varifocal_loss` for `compile`: `[B, P, K]` pairs to `[B, P]`, then reduced.

    The loss is meant to be **summed** and divided by the number of positives of the
    whole batch, with soft targets: a one-hot target throws away what it is for, and a
    mean over all cells makes it thousands of times too small. `reduction="sum"` is the
    default for that reason; divide by the positives through `sample_weight` (a scalar,
    or of shape `[B]` or `[B, P]`) where the detector does not do it itself.

    Args:
        alpha: weight of the negatives.
        gamma: focusing exponent of the negatives.
        iou_weighted: weight the positives by their target.
        from_logits: True if predictions are logits, False if they are probabilities.
        reduction, name, dtype, errors: as in `PairLoss` and `varifocal_loss`.

    Source: Zhang et al., CVPR 2021, Eq. 2.

    >>> ious = ops.convert_to_tensor([[[0.8, 0.0], [0.0, 0.0]]])  # one positive
    >>> loss = VarifocalLoss()(ious, ops.zeros((1, 2, 2)), sample_weight=1 / 1)
    >>> round(float(loss), 3)
    0.944
    """

    def __init__(
        self,
        alpha=0.75,
        gamma=2.0,
        iou_weighted=True,
        from_logits=True,
        reduction="sum",
        name="varifocal_loss",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        if alpha < 0:
            raise ValueError(f"`alpha` must be >= 0. Received: alpha={alpha}")
        if gamma < 0:
            raise ValueError(f"`gamma` must be >= 0. Received: gamma={gamma}")
        self.alpha = alpha
        self.gamma = gamma
        self.iou_weighted = iou_weighted
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        if not self.from_logits:
            y_pred = logits_from_probabilities(y_pred)
        pair = same_shape(y_true, y_pred)
        loss = _varifocal(*pair, self.alpha, self.gamma, self.iou_weighted)
        return ops.sum(loss, axis=-1)

    def get_config(self):
        own = {
            "alpha": self.alpha,
            "gamma": self.gamma,
            "iou_weighted": self.iou_weighted,
            "from_logits": self.from_logits,
        }
        return {**super().get_config(), **own}


def logits_from_probabilities(probabilities):
    """Logits of probabilities `[...]`, which are kept 1e-7 away from 0 and 1."""
    epsilon = keras.config.epsilon()
    p = ops.cast(probabilities, "float32")
    # Not `clip`, which on PyTorch rounds its limits to floatx, and 1 - 1e-7 to 1.
    p = ops.minimum(ops.maximum(p, epsilon), 1.0 - epsilon)
    return ops.log(p) - ops.log1p(-p)
