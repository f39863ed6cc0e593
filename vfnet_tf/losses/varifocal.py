import keras
from keras import ops

from vfnet_tf.losses.pairs import SCORES, ScoreLoss, checked_pair, not_negative


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
        ValueError: as `focal_loss`.

    >>> loss = varifocal_loss([[0.8, 0.0]], [[0.0, 0.0]])  # logit 0: p = 0.5
    >>> ops.convert_to_numpy(loss).round(3)
    array([[0.555, 0.13 ]], dtype=float32)
    """
    q, logits = checked_pair(target_scores, logits, SCORES)
    return _varifocal(q, logits, alpha, gamma, iou_weighted)


def _varifocal(q, logits, alpha, gamma, iou_weighted):
    # By softplus in place of sigmoid log p and log(1 - p) stay finite at +-1e4.
    log_not_p = -ops.softplus(logits)
    cross_entropy = -(q * logits + log_not_p)
    # p ** gamma as exp(gamma log p): its gradient has no 0 ** (gamma - 1).
    log_p = -ops.softplus(-logits)
    negative_weight = alpha * ops.exp(gamma * log_p)
    positive_weight = q if iou_weighted else ops.ones_like(q)
    weight = ops.where(q > 0, positive_weight, negative_weight)
    return weight * cross_entropy


@keras.saving.register_keras_serializable("vfnet_tf")
class VarifocalLoss(ScoreLoss):
    """`varifocal_loss` for `compile`: `[B, P, K]` pairs to `[B, P]`, then reduced.

    For scores that rank detections: the target is the IoU of the predicted box, not 1.
    The loss is meant to be **summed** and divided by the number of positives of the
    whole batch; a mean over all cells would make it thousands of times too small.
    Detectors divide themselves. Elsewhere divide through `sample_weight`, a scalar or of
    shape `[B]` or `[B, P]`.

    Args:
        alpha: weight of the negatives.
        gamma: focusing exponent of the negatives.
        iou_weighted: weight the positives by their target.
        from_logits: True if predictions are logits, False if they are probabilities.
        reduction, name, dtype, errors: as in `PairLoss` and `focal_loss`.

    Source: Zhang et al., CVPR 2021, Eq. 2.

    >>> ious = ops.convert_to_tensor([[[0.8, 0.0], [0.0, 0.0]]])  # one positive
    >>> loss = VarifocalLoss()(ious, ops.zeros((1, 2, 2)), sample_weight=1 / 1)
    >>> round(float(loss), 3)
    0.944
    """

    config_names = ("alpha", "gamma", "iou_weighted", "from_logits")

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
        self.alpha = not_negative(alpha, "alpha")
        self.gamma = not_negative(gamma, "gamma")
        self.iou_weighted = iou_weighted
        self.from_logits = from_logits

    def elementwise(self, targets, logits):
        return _varifocal(targets, logits, self.alpha, self.gamma, self.iou_weighted)
