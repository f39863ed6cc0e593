import time

import keras
import numpy as np
import pytest

from tests.contracts import on_tensorflow
from vfnet_tf.training.data_wait import DataWait

pytestmark = pytest.mark.backend


class Shares(keras.callbacks.Callback):
    """Keeps `data_wait` of each batch's logs, which the progress line shows."""

    async_safe = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(logs["data_wait"])


class SlowBatches(keras.utils.PyDataset):
    """Ten batches, each of which takes a while to come."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __len__(self):
        return 10

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return np.full((2, 1), index, "float32"), np.zeros((2, 1), "float32")


class Linear(keras.Model):
    """One weight; records the batches and takes a while for each step."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
        self.seconds = seconds
        self.batches = []

    def call(self, inputs):
        time.sleep(self.seconds)
        self.batches.append(float(np.asarray(keras.ops.convert_to_numpy(inputs))[0, 0]))
        return self.dense(inputs)


def fit(data_seconds, step_seconds, epochs=1, prints=True):
    model = Linear(step_seconds)
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss="mse", run_eagerly=True)
    model(np.ones((2, 1), "float32"))
    model.batches.clear()
    wait, shares = DataWait(prints), Shares()
    batches = SlowBatches(data_seconds)
    model.fit(
        batches, epochs=epochs, shuffle=False, callbacks=[wait, shares], verbose=0
    )
    return model, wait, shares.seen


@on_tensorflow
def test_slow_data_and_slow_steps_are_told_apart():
    _, waiting, seen = fit(data_seconds=0.3, step_seconds=0.0)
    assert len(seen) == 10
    assert 0.7 < waiting.share <= 1.0
    assert seen[-1] > 0.7
    _, working, _ = fit(data_seconds=0.0, step_seconds=0.3)
    assert working.share < 0.2


@on_tensorflow
def test_every_batch_is_trained_on_once_and_in_order():
    model, _, _ = fit(data_seconds=0.0, step_seconds=0.0, epochs=2)
    # Keras builds the model on the first batch before the first step.
    batches = model.batches[-20:]
    assert batches == [*map(float, range(10))] * 2


def graph_weights(callbacks):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x = np.linspace(0, 1, 8, dtype="float32")[:, None]
    history = model.fit(
        x, 3 * x, batch_size=2, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
    )
    return model, history.history


def test_the_training_is_the_same_with_and_without_it():
    plain, history = graph_weights([])
    shares = Shares()
    timed, timed_history = graph_weights([DataWait(), shares])
    np.testing.assert_array_equal(timed.get_weights()[0], plain.get_weights()[0])
    assert timed_history["loss"] == history["loss"]
    assert len(shares.seen) == 8
    assert all(0 <= share <= 1 for share in shares.seen)
    # The next training has the model's own function back.
    assert type(timed.train_function) is type(plain.train_function)
    # A second training on the same model begins anew.
    timed.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[DataWait()])
    timed.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0)


@on_tensorflow
def test_a_long_wait_is_said_and_what_would_help(capsys, monkeypatch):
    monkeypatch.setattr("vfnet_tf.training.data_wait._LEAST_WAIT", 0.1)
    fit(data_seconds=0.2, step_seconds=0.0)
    assert "waited for data" in capsys.readouterr().out
    fit(data_seconds=0.2, step_seconds=0.0, prints=False)
    assert "waited" not in capsys.readouterr().out


@on_tensorflow
def test_several_steps_per_call_are_left_alone():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse", steps_per_execution=2)
    wait = DataWait()
    x = np.ones((8, 1), "float32")
    model.fit(x, x, batch_size=2, verbose=0, callbacks=[wait])
    assert wait.share == 0.0
