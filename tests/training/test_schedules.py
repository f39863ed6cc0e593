import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from tests.contracts import to_numpy
from vfnet_tf.training.optimizers import SGD
from vfnet_tf.training.schedules import (
    CosineCycles,
    WarmupStepSchedule,
    scale_learning_rate,
)

pytestmark = pytest.mark.backend

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "lr_curves.npz"


@pytest.mark.parametrize("steps_per_epoch", [700, 60])
def test_equals_the_official_curve_at_every_iteration(steps_per_epoch):
    with np.load(GOLDEN) as curves:
        expected = curves[f"step_1x_iters{steps_per_epoch}"]
    boundaries = [8 * steps_per_epoch, 11 * steps_per_epoch]
    schedule = WarmupStepSchedule(0.01, boundaries=boundaries)
    found = to_numpy(schedule(np.arange(len(expected))))
    np.testing.assert_allclose(found, expected[:, 0], rtol=5e-7)
    # The second column is the bias group: the optimizer's multiplier.
    ratio = SGD(schedule).bias_lr_multiplier
    np.testing.assert_allclose(ratio * found, expected[:, 1], rtol=5e-7)


def test_values_by_hand():
    schedule = WarmupStepSchedule(1.0, 10, 0.5, boundaries=[4, 20], factor=0.1)
    steps = [0, 2, 4, 10, 19, 20]
    found = [float(to_numpy(schedule(step))) for step in steps]
    np.testing.assert_allclose(found, [0.5, 0.6, 0.07, 0.1, 0.1, 0.01], rtol=1e-6)


def test_two_drops_at_one_step_count_twice():
    # Epochs of one step: both drops of a short schedule fall on the same one.
    schedule = WarmupStepSchedule(1.0, 0, boundaries=[5, 5], factor=0.1)
    np.testing.assert_allclose([schedule(4), schedule(5)], [1.0, 0.01], rtol=1e-6)


def test_without_warmup_or_boundaries_it_is_constant():
    schedule = WarmupStepSchedule(0.25, warmup_steps=0)
    np.testing.assert_array_equal(to_numpy(schedule(np.arange(3))), 0.25)


def test_the_optimizer_uses_step_zero_first():
    kernel = keras.Variable(np.zeros(1, "float32"), name="kernel")
    schedule = WarmupStepSchedule(1.0, warmup_steps=2, warmup_ratio=0.5)
    optimizer = SGD(schedule, momentum=0.0, weight_decay=0.0)
    positions = []
    for _ in range(4):
        optimizer.apply([ops.ones(1)], [kernel])
        positions.append(float(to_numpy(kernel)[0]))
    np.testing.assert_allclose(positions, [-0.5, -1.25, -2.25, -3.25], rtol=1e-6)


@pytest.mark.parametrize("curve", ["iters50_epochs12", "iters37_epochs18"])
def test_cycles_equal_the_official_curve_at_every_iteration(curve):
    with np.load(GOLDEN) as curves:
        expected = curves[f"swa_cyclic_{curve}"]
    schedule = CosineCycles(0.01, cycle_steps=int(curve[5:7]))
    found = to_numpy(schedule(np.arange(len(expected))))
    # The cosine falls to 1 % of the rate: relative to the rate, not to its own end.
    np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=0.01 * 2e-7)
    np.testing.assert_allclose(2 * found, expected[:, 1], rtol=0, atol=0.02 * 2e-7)


def test_values_of_cycles_by_hand():
    schedule = CosineCycles(1.0, cycle_steps=4, final_ratio=0.2)
    # cos 0, 45, 90, 135 degrees, and again from the start.
    expected = [1.0, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.6 - 0.4 * 0.5**0.5, 1.0]
    found = to_numpy(schedule(np.arange(5)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # An epoch of 2.5 updates: the second begins at update 2.5, so first with 3.
    found = to_numpy(CosineCycles(1.0, 2.5, 0.0)(np.array([2, 3, 5])))
    expected = [0.5 * (1 + np.cos(0.8 * np.pi)), 0.5 * (1 + np.cos(0.2 * np.pi)), 1.0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


WARMUP = {
    "base_lr": 0.5,
    "warmup_steps": 7,
    "warmup_ratio": 0.25,
    "boundaries": [3, 9],
    "factor": 0.5,
    "name": "other",
}
CYCLES = {"base_lr": 0.5, "cycle_steps": 7, "final_ratio": 0.25, "name": "other"}


@pytest.mark.parametrize(
    ("kind", "config"), [(WarmupStepSchedule, WARMUP), (CosineCycles, CYCLES)]
)
def test_config_round_trip_keeps_every_argument(kind, config):
    saved = keras.saving.serialize_keras_object(SGD(kind(**config)))
    schedule = keras.saving.deserialize_keras_object(saved)._learning_rate
    assert isinstance(schedule, kind)
    assert schedule.get_config() == config
    for name, value in config.items():
        assert getattr(schedule, name) == value


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (WarmupStepSchedule, "base_lr", 0.0),
        (WarmupStepSchedule, "warmup_steps", -1),
        (WarmupStepSchedule, "warmup_ratio", 0.0),
        (WarmupStepSchedule, "warmup_ratio", 1.5),
        (WarmupStepSchedule, "boundaries", [5, 3]),
        (WarmupStepSchedule, "boundaries", [-1, 5]),
        (WarmupStepSchedule, "factor", 0.0),
        (CosineCycles, "base_lr", 0.0),
        (CosineCycles, "cycle_steps", 0),
        (CosineCycles, "final_ratio", 1.5),
        (CosineCycles, "final_ratio", -0.1),
    ],
)
def test_arguments_out_of_range_are_refused(kind, argument, value):
    config = WARMUP if kind is WarmupStepSchedule else CYCLES
    with pytest.raises(ValueError, match=f"Received: {argument}="):
        kind(**{**config, argument: value})


def test_the_rate_is_proportional_to_the_batch():
    assert scale_learning_rate(batch=16) == 0.01
    assert scale_learning_rate(0.01, 16, batch=4) == 0.0025
    with pytest.raises(ValueError, match="batch=0"):
        scale_learning_rate(batch=0)
