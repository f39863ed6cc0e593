"""Checks of targets, predictions and weights that all losses share."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


class Rule(NamedTuple):
    """What values targets may have.

    Attributes:
        is_met: function of float32 `[..., C]` to bool `[..., C]` or `[..., 1]`, False for
            NaN.
        text: the rule as a sentence.
        size: of the last axis, None for any.
    """

    is_met: Callable
    text: str
    size: int | None = None


def _are_scores(values):
    # 0.01 of room, since bfloat16 has two digits.
    return ops.logical_and(values >= -0.01, values <= 1.01)


def _are_boxes(values):
    # 0.001 of room, which is float32's last digit of 10,000 pixels.
    return ops.all(values[..., 2:] >= values[..., :2] - 1e-3, axis=-1, keepdims=True)


SCORES = Rule(
    _are_scores,
    "Scores must be in [0, 1]: class labels are one-hot, and logits need "
    "`from_logits=True`.",
)
BOXES = Rule(
    _are_boxes, "Boxes must be (x1, y1, x2, y2) with x2 >= x1 and y2 >= y1.", 4
)


class PairLoss(keras.losses.Loss):
    """A loss of targets and predictions of one shape, `[..., C]` to `[...]`.

    Detectors use `call`, which a subclass gives and which checks known shapes. `compile`
    and `fit` use `__call__`, which also checks values and sizes that a graph leaves open.

    Args:
        reduction, name: as in `keras.losses.Loss`.
        dtype: of the result; None is float32, whatever `keras.config.floatx()` is,
            because sums in float16 end at 65504.

    Raises:
        ValueError: for targets of another shape than the predictions, with both, and for
            a `sample_weight` that is neither a scalar nor of the shape of the losses or
            of their first axes: `[B]` or `[B, P]` for predictions `[B, P, C]`.
    """

    #: the `Rule` of the targets, if there is one
    rule = SCORES
    #: whether predictions are logits; False means that they are scores, too
    from_logits = True
    #: names of the subclass's own arguments, each an attribute
    config_names = ()

    def __init__(self, reduction="sum", name=None, dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype or "float32")

    def __call__(self, y_true, y_pred, sample_weight=None):
        targets, predictions = checked_pair(y_true, y_pred, self.rule)
        if not self.from_logits:
            # NaN is put into the targets, since predictions may carry a mask of Keras.
            targets = _nan_unless(SCORES, predictions, targets, "predictions")
        if sample_weight is not None:
            sample_weight = _fit_weights(sample_weight, predictions.shape[:-1])
        return super().__call__(targets, y_pred, sample_weight)

    def get_config(self):
        own = {name: getattr(self, name) for name in self.config_names}
        return {**super().get_config(), "dtype": self.dtype, **own}


class ScoreLoss(PairLoss):
    """A `PairLoss` of class scores, `[..., K]` to sums `[...]` over the classes.

    A subclass gives `elementwise`, from float32 targets and logits to losses, all
    `[..., K]`.
    """

    def call(self, y_true, y_pred):
        if not self.from_logits:
            y_pred = logits_from_probabilities(y_pred)
        return ops.sum(self.elementwise(*same_shape(y_true, y_pred)), axis=-1)


def logits_from_probabilities(probabilities):
    """Logits of probabilities `[...]`, which are kept 1e-7 away from 0 and 1."""
    epsilon = keras.config.epsilon()
    p = ops.cast(probabilities, "float32")
    # `clip` on PyTorch would round its limits to floatx, and 1 - 1e-7 to 1.
    p = ops.minimum(ops.maximum(p, epsilon), 1.0 - epsilon)
    return ops.log(p) - ops.log1p(-p)


def not_negative(value, name):
    """The number itself; raises `ValueError` for one below 0."""
    if value < 0:
        raise ValueError(f"`{name}` must be >= 0. Received: {name}={value}")
    return value


def same_shape(targets, predictions, rule=None):
    """Targets and predictions as float32 tensors; nothing is broadcast.

    Raises:
        ValueError: if their known sizes differ, or the last axis has not the rule's size.
    """
    targets, predictions = (
        _tensor(values, name)
        for values, name in ((targets, "targets"), (predictions, "predictions"))
    )
    shapes = targets.shape, predictions.shape
    if any(getattr(shape, "rank", 0) is None for shape in shapes):
        return targets, predictions  # in a graph of TensorFlow
    is_same = len(shapes[0]) == len(shapes[1]) and all(
        None in sides or sides[0] == sides[1] for sides in zip(*shapes, strict=True)
    )
    if not is_same:
        raise ValueError(
            "Targets must have the shape of the predictions; class labels are given "
            f"one-hot. Received: targets of shape {tuple(shapes[0])}, predictions of "
            f"shape {tuple(shapes[1])}"
        )
    size = None if rule is None else rule.size
    if size is not None and tuple(shapes[1])[-1:] not in ((size,), (None,)):
        raise ValueError(
            f"{rule.text} Received: {size} numbers are not the last axis of the shape "
            f"{tuple(shapes[1])}"
        )
    return targets, predictions


def checked_pair(targets, predictions, rule=None):
    """`same_shape` that also checks values, and sizes that a graph leaves open.

    Args:
        targets, predictions: float or int of one shape.
        rule: `Rule` of the targets or None.

    Returns:
        float32 targets and predictions. While a graph is traced, targets that break the
        rule become NaN, which makes their loss NaN.

    Raises:
        ValueError: for another shape, or known values that break the rule.
    """
    targets, predictions = same_shape(targets, predictions, rule)
    if rule is not None:
        targets = _nan_unless(rule, targets, targets, "targets")
    is_open = _is_tensorflow() and not (
        targets.shape.is_fully_defined() and predictions.shape.is_fully_defined()
    )
    if is_open and not keras.utils.is_keras_tensor(targets):
        import tensorflow as tf

        sizes = tf.shape(predictions)
        rule = "Targets must have the shape of the predictions"
        check = tf.debugging.assert_equal(tf.shape(targets), sizes, rule)
        with tf.control_dependencies([] if check is None else [check]):
            # XLA drops assertions, but it checks the sizes of a reshape.
            targets = tf.reshape(targets, sizes)
    return targets, predictions


def _is_tensorflow():
    return keras.backend.backend() == "tensorflow"


def _tensor(values, name):
    if type(values).__name__ == "RaggedTensor":
        raise ValueError(
            "Targets and predictions must not be ragged: pad them, `x.to_tensor()`. "
            f"Received: ragged {name} of shape {tuple(values.shape)}"
        )
    return ops.cast(ops.convert_to_tensor(values), "float32")


def _nan_unless(rule, values, targets, name):
    """`targets`, NaN where traced `values` break the rule; raises for known values."""
    is_met = rule.is_met(values)
    are_good = _known(ops.all(is_met))
    if are_good is None:
        return ops.where(is_met, targets, float("nan"))
    if not are_good:
        is_met = np.broadcast_to(ops.convert_to_numpy(is_met), tuple(values.shape))
        place = np.unravel_index(is_met.argmin(), is_met.shape)
        if rule is BOXES:
            place = place[:-1]
        value = ops.convert_to_numpy(values)[place]
        raise ValueError(f"{rule.text} Received: {value} among the {name}")
    return targets


def _known(flag):
    """A scalar tensor as a bool, None while it is traced."""
    if keras.utils.is_keras_tensor(flag):
        return None
    if _is_tensorflow():
        import tensorflow as tf

        if not tf.executing_eagerly():
            return None
    try:
        return bool(flag)
    except TypeError:  # raised by a tracer of JAX
        return None


def _fit_weights(weights, shape):
    """Weights that multiply losses of `shape` along their first axes."""
    weights = ops.convert_to_tensor(weights)
    if None in (getattr(x, "rank", 0) for x in (weights.shape, shape)):
        return weights  # their rank is unknown in a graph; Keras multiplies them
    given = tuple(weights.shape)
    if len(given) == len(shape) + 1 and given[-1] == 1:
        weights = weights[..., 0]
    missing = len(shape) - len(weights.shape)
    sides = zip(weights.shape, shape, strict=False)
    if missing < 0 or not all(
        own in (1, other) or None in (own, other) for own, other in sides
    ):
        raise ValueError(
            "`sample_weight` must be a scalar, or of the shape of the losses or of "
            f"their first axes. Received: sample_weight of shape {given} for losses of "
            f"shape {tuple(shape)}"
        )
    for _ in range(missing if given else 0):
        weights = weights[..., None]
    return weights
