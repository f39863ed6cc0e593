"""Pairs of targets and predictions: what all losses ask of them."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


class Rule(NamedTuple):
    """What targets must be.

    Attributes:
        is_met: function of float32 `[..., C]` to bool `[..., C]` or `[..., 1]`; NaN meets
            nothing.
        text: the rule as a sentence.
        size: of the last axis, None for any.
    """

    is_met: Callable
    text: str
    size: int | None = None


def _are_scores(values):
    # bfloat16 has two digits.
    return ops.logical_and(values >= -0.01, values <= 1.01)


def _are_boxes(values):
    # The last digit of 10,000 pixels is 0.001.
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

    A subclass gives `call`, which the detectors use: it looks at shapes as far as a
    graph knows them. `compile` and `fit` come by way of `__call__`, which looks at all.

    Args:
        reduction, name: as in `keras.losses.Loss`.
        dtype: of the result; None is float32, whatever `keras.config.floatx()` is, as
            sums of float16 end at 65504.

    Raises:
        ValueError: for targets of another shape than the predictions, with both, and for
            a `sample_weight` that is neither a scalar nor of the shape of the losses or
            of their first axes: `[B]` or `[B, P]` for predictions `[B, P, C]`.
    """

    #: the `Rule` of the targets, if there is one
    rule = SCORES
    #: whether predictions are logits; False means that they are scores, too
    from_logits = True

    def __init__(self, reduction="sum", name=None, dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype or "float32")

    def __call__(self, y_true, y_pred, sample_weight=None):
        targets, predictions = checked_pair(y_true, y_pred, self.rule)
        if not self.from_logits:
            # By way of the targets: the predictions may carry a mask of Keras.
            targets = _nan_unless(SCORES, predictions, targets, "predictions")
        if sample_weight is not None:
            sample_weight = _fit_weights(sample_weight, predictions.shape[:-1])
        return super().__call__(targets, y_pred, sample_weight)

    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


def same_shape(targets, predictions, rule=None):
    """Targets and predictions as float32 tensors.

    Raises:
        ValueError: if their shapes differ, as far as a graph knows them: nothing is
            broadcast; or if their last axis is not of the size of the rule.
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
    """`same_shape`, where a graph leaves sizes open, too, and a look at the targets.

    Args:
        targets, predictions: float or int of one shape.
        rule: `Rule` of the targets or None.

    Returns:
        float32 targets and predictions. Where a graph or a compiler traces, targets
        against the rule have become NaN, and so will the loss.

    Raises:
        ValueError: for another shape, or known values against the rule.
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
            # XLA leaves assertions out; of this it knows the sizes.
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
    """`targets`, and NaN where `values` break the rule while a graph is traced.

    Raises:
        ValueError: if values are known and some break it.
    """
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
    """A scalar tensor as a bool, or None while it is traced."""
    if keras.utils.is_keras_tensor(flag):
        return None
    if _is_tensorflow():
        import tensorflow as tf

        if not tf.executing_eagerly():
            return None
    try:
        return bool(flag)
    except TypeError:  # so says a tracer of JAX
        return None


def _fit_weights(weights, shape):
    """Weights that multiply losses of `shape` along their first axes."""
    weights = ops.convert_to_tensor(weights)
    if None in (getattr(x, "rank", 0) for x in (weights.shape, shape)):
        return weights  # of Keras's own arrays in `fit`; it multiplies them or fails
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
