import csv

import keras
import numpy as np
import pytest

from vfnet_tf.training.step_log import StepLog


def fit(path, epochs, every, step=0):
    """Trains by steps of the losses 1, 4, 9, 16 an epoch; returns the rows of the log."""
    weight = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)
    model = keras.Sequential([keras.Input((1,)), weight])
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    model.optimizer.iterations.assign(step)
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    callbacks = [StepLog(path, every=every)]
    model.fit(x, 0 * x, 1, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_are_means_over_their_own_steps(tmp_path):
    rows = fit(tmp_path / "steps.csv", epochs=1, every=2)
    assert [int(row["step"]) for row in rows] == [2, 4]
    losses = [float(row["loss"]) for row in rows]
    np.testing.assert_allclose(losses, [2.5, 12.5], rtol=1e-5)


def test_a_row_can_span_two_epochs(tmp_path):
    rows = fit(tmp_path / "steps.csv", epochs=2, every=3)
    losses = [float(row["loss"]) for row in rows]
    # (1 + 4 + 9) / 3, then (16 + 1 + 4) / 3; the last two steps fill no row.
    np.testing.assert_allclose(losses, [14 / 3, 7.0], rtol=1e-5)


def test_a_resumed_run_goes_on_below_and_drops_what_is_run_again(tmp_path):
    fit(tmp_path / "steps.csv", epochs=2, every=2)
    rows = fit(tmp_path / "steps.csv", epochs=1, every=2, step=4)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]


def test_it_refuses_no_steps(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        StepLog(tmp_path / "steps.csv", every=0)
