import types

import pytest

from vfnet_tf.training import time_budget
from vfnet_tf.training.time_budget import (
    StopInTime,
    Timing,
    epochs_within,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), (" 1h0m5s ", 3605)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-1h", "1m1h", "0s", "1.5h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="must be like 2h, 90m"):
        parse_duration(text)


@pytest.mark.parametrize("seconds", [400, 1000, 3600, 10_000])
def test_the_epochs_fill_the_time_and_no_more(seconds):
    timing = Timing(step=1.5, first=30.0, evaluation=8.0)
    epochs = epochs_within(seconds, timing, steps_per_epoch=10, most=10_000)

    def total(epochs):
        evaluations = -(-epochs // time_budget.evaluation_interval(epochs)) + 1
        return 60 + epochs * 15 + evaluations * 8

    assert total(epochs) <= 0.9 * seconds < total(epochs + 1) + 3 * 8
    assert epochs_within(seconds, timing, 10, most=3) == 3


def test_a_time_without_an_epoch_says_what_one_takes():
    timing = Timing(step=2.0, first=0.0, evaluation=0.0)
    with pytest.raises(ValueError, match=r"about 4 h 27 min.*1 h 0 min.*--limit"):
        epochs_within(3600, timing, steps_per_epoch=7200, most=12)


def test_the_training_ends_before_an_epoch_that_would_be_too_long(monkeypatch, capsys):
    clock = iter([0.0, 40.0, 40.0, 80.0])
    monkeypatch.setattr(time_budget.time, "monotonic", lambda: next(clock))
    stop = StopInTime(deadline=125.0, reserve=10.0)
    model = types.SimpleNamespace(stop_training=False)
    stop._model = model
    stop.set_params({"epochs": 9})
    stop.on_epoch_begin(0)
    stop.on_epoch_end(0)
    assert not model.stop_training
    stop.on_epoch_begin(1)
    stop.on_epoch_end(1)
    assert model.stop_training
    assert "over after epoch 2" in capsys.readouterr().out
