import keras
import numpy as np
import pytest

from tests.training.test_callbacks import (
    STEPS,
    RecordingEvaluator,
    batch_of,
    fit,
    make_model,
)
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.ema import ema_weights
from vfnet_tf.training.optimizers import SGD

pytestmark = pytest.mark.backend


def averaging():
    return SGD(0.1, use_ema=True, ema_momentum=0.5)


class Steps(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


class SeenWeights(RecordingEvaluator):
    """Notes the weights of the model while it is evaluated."""

    def __init__(self, model):
        super().__init__()
        self.model, self.weights = model, []

    def evaluate(self):
        self.weights.append(self.model.get_weights())
        return super().evaluate()


def average_of(steps):
    """w_1, then half of the average and half of the new weights."""
    average = steps[0]
    for weights in steps[1:]:
        pairs = zip(average, weights, strict=True)
        average = [0.5 * before + 0.5 * new for before, new in pairs]
    return average


def assert_all(check, found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        check(ours, theirs, **tolerance)


def test_evaluation_and_the_best_weights_are_averaged_and_training_is_not(tmp_path):
    steps = Steps()
    fit(make_model(SGD(0.1)), steps, epochs=2)

    model, own_steps = make_model(averaging()), Steps()
    evaluator = SeenWeights(model)
    evaluation = CocoEvaluation([batch_of([1])], evaluator, weights=ema_weights)
    checkpoint = ResumableCheckpoint(tmp_path, weights=ema_weights)
    fit(model, own_steps, evaluation, checkpoint, epochs=2)
    for found, expected in zip(own_steps.weights, steps.weights, strict=True):
        assert_all(np.testing.assert_array_equal, found, expected)
    for epoch, seen in enumerate(evaluator.weights):
        expected = average_of(steps.weights[: (epoch + 1) * STEPS])
        assert_all(np.testing.assert_allclose, seen, expected, rtol=1e-6)
    assert np.abs(seen[0] - steps.weights[-1][0]).max() > 1e-3

    best = make_model(averaging())
    checkpoint.restore_best(best)
    assert_all(np.testing.assert_array_equal, best.get_weights(), seen)
    last = make_model(averaging())
    checkpoint.restore(last)
    assert_all(np.testing.assert_array_equal, last.get_weights(), steps.weights[-1])


def test_a_run_that_was_stopped_goes_on_with_both_weights_bit_by_bit(tmp_path):
    def chain(folder):
        return ResumableCheckpoint(
            tmp_path / folder, "loss", "min", weights=ema_weights
        )

    fit(make_model(averaging()), chain("whole"), epochs=3)
    fit(make_model(averaging()), chain("stopped"), epochs=2)
    model = make_model(averaging())
    start, _ = chain("stopped").restore(model)
    fit(model, chain("stopped"), epochs=3, start=start)

    states = []
    for folder in ("whole", "stopped"):
        model = make_model(averaging())
        assert chain(folder).restore(model) == (3, 0)
        values = [*model.weights, *model.optimizer.variables]
        states.append([keras.ops.convert_to_numpy(value) for value in values])
    assert_all(np.testing.assert_array_equal, *states)


def test_before_the_first_step_there_is_no_average():
    model = make_model(averaging())
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    with ema_weights(model):
        assert_all(np.testing.assert_array_equal, model.get_weights(), before)


def test_an_optimizer_without_an_average_is_refused():
    model = make_model(SGD(0.1))
    with pytest.raises(ValueError, match="use_ema=False"), ema_weights(model):
        pass


def test_two_replicas_keep_the_average_of_one_device(two_devices):
    import tensorflow as tf

    from tests.training.test_callbacks import X, Y
    from vfnet_tf.training.strategies import make_strategy

    found = []
    for strategy in (
        make_strategy("one_device"),
        make_strategy("mirrored", two_devices),
    ):
        with strategy.scope():
            dense = keras.layers.Dense(1, kernel_initializer="ones")
            model = keras.Sequential([keras.Input((2,)), dense])
            model.compile(averaging(), "mse", jit_compile=False)
        seen = Seen()
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
        model.fit(batches, epochs=2, verbose=0, callbacks=[seen])
        found.append(seen.weights)
    for own, other in zip(*found, strict=True):
        assert_all(np.testing.assert_allclose, own, other, rtol=1e-5)


class Seen(keras.callbacks.Callback):
    """At each end of an epoch the raw, the averaged, and again the raw weights."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        with ema_weights(self.model):
            self.weights.append(self.model.get_weights())
        self.weights.append(self.model.get_weights())
        np.testing.assert_array_equal(self.weights[-1][0], self.weights[-3][0])
        assert np.abs(self.weights[-1][0] - self.weights[-2][0]).max() > 1e-4
