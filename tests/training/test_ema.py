import keras
import numpy as np
import pytest

from tests.contracts import assert_same_bits
from tests.training.tiny_training import (
    STEPS,
    Ends,
    RecordingEvaluator,
    Steps,
    X,
    Y,
    batch_of,
    fit,
    make_model,
    state_of,
)
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.coco_evaluation import CocoEvaluation
from vfnet_tf.training.ema import ema_weights
from vfnet_tf.training.optimizers import SGD

pytestmark = pytest.mark.backend


def averaging():
    return SGD(0.1, use_ema=True, ema_momentum=0.5)


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


def assert_close(found, expected, rtol=1e-6):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


def test_evaluation_and_the_best_weights_are_averaged_and_training_is_not(tmp_path):
    steps = Steps()
    fit(make_model(SGD(0.1)), steps, epochs=2)

    model, own_steps = make_model(averaging()), Steps()
    evaluator = SeenWeights(model)
    evaluation = CocoEvaluation([batch_of([1])], evaluator, weights=ema_weights)
    checkpoint = ResumableCheckpoint(tmp_path, weights=ema_weights)
    fit(model, own_steps, evaluation, checkpoint, epochs=2)
    assert_same_bits(own_steps.weights, steps.weights)
    for epoch, seen in enumerate(evaluator.weights):
        expected = average_of(steps.weights[: (epoch + 1) * STEPS])
        assert_close(seen, expected)
    assert np.abs(seen[0] - steps.weights[-1][0]).max() > 1e-3

    best = make_model(averaging())
    checkpoint.restore_best(best)
    assert_same_bits(best.get_weights(), seen)
    last = make_model(averaging())
    checkpoint.restore(last)
    assert_same_bits(last.get_weights(), steps.weights[-1])


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
        states.append(state_of(model))
    assert_same_bits(*states)


def test_before_the_first_step_there_is_no_average():
    model = make_model(averaging())
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    with ema_weights(model):
        assert_same_bits(model.get_weights(), before)


def test_an_optimizer_without_an_average_is_refused():
    model = make_model(SGD(0.1))
    with pytest.raises(ValueError, match="use_ema=False"), ema_weights(model):
        pass


def test_two_replicas_keep_the_average_of_one_device(two_devices):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    class Seen(Ends):
        """At the end of an epoch the raw, the averaged, and again the raw weights."""

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            with ema_weights(self.model):
                super().on_epoch_end(epoch, logs)
            super().on_epoch_end(epoch, logs)
            raw, averaged, again = self.weights[-3:]
            assert_same_bits(again, raw)
            assert np.abs(raw[0] - averaged[0]).max() > 1e-4

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
        assert_close(own, other, rtol=1e-5)
