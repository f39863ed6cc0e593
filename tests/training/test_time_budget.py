import types

import pytest

from vfnet_tf.training import time_budget
from vfnet_tf.training.recipe import evaluation_interval
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


@pytest.mark.parametrize("interval", [evaluation_interval, lambda epochs: 1])
@pytest.mark.parametrize("seconds", [400, 1000, 3600, 10_000])
def test_the_epochs_fill_the_time_and_no_more(seconds, interval):
    timing = Timing(step=1.5, first=30.0, evaluation=8.0, save=2.0)
    settings = {"steps_per_epoch": 10, "interval": interval, "closing": 2}
    epochs = epochs_within(seconds, timing, most=1000, **settings)

    def total(epochs):
        evaluations = sum(
            epoch == epochs or epoch % interval(epochs) == 0
            for epoch in range(1, epochs + 1)
        )
        return 60 + epochs * (15 + 2) + (evaluations + 2) * 8

    assert total(epochs) <= 0.9 * seconds
    assert all(total(more) > 0.9 * seconds for more in range(epochs + 1, 1001))
    assert epochs_within(seconds, timing, most=3, **settings) == 3


def test_a_time_without_an_epoch_says_what_one_takes():
    timing = Timing(step=2.0, first=0.0, evaluation=0.0)
    with pytest.raises(ValueError, match=r"about 4 h 27 min.*1 h 0 min.*--limit"):
        epochs_within(3600, timing, 7200, most=12, interval=evaluation_interval)


# Epochs of 40 seconds of steps and 5 for saving; an evaluation takes 20.
@pytest.mark.parametrize(
    ("deadline", "due", "closing", "last"),
    [
        (125, [], 0, 1),
        (135, [], 0, 2),
        # The evaluation of this epoch, of the next one, and those behind it.
        (115, [0], 0, 0),
        (145, [0], 0, 1),
        (135, [0], 1, 0),
        (165, [0], 1, 1),
        (1000, [0, 1, 2], 2, 3),
    ],
)
def test_the_training_ends_in_time_with_what_follows_it(
    monkeypatch, capsys, deadline, due, closing, last
):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(time_budget.time, "monotonic", lambda: clock.now)
    stop = StopInTime(
        float(deadline),
        epochs=4,
        steps_per_epoch=3,
        is_due=due.__contains__,
        # Half of the steps' time, until one was measured.
        evaluation_share=0.5 if due else 0.0,
        closing=closing,
    )
    model = types.SimpleNamespace(stop_training=False)
    stop._model = model
    stop.set_params({"steps": 3})
    for epoch in range(4):
        stop.on_epoch_begin(epoch)
        clock.now += 40
        stop.on_epoch_end(epoch)
        if model.stop_training:
            break
        clock.now += 5 + 20 * (epoch in due)
    assert epoch == last
    said = capsys.readouterr().out
    assert (f"over after epoch {last + 1}" in said) == (last < 3)


def test_the_rest_of_an_epoch_says_what_a_whole_one_takes(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(time_budget.time, "monotonic", lambda: next(clock))
    stop = StopInTime(45.0, epochs=9, steps_per_epoch=4)
    stop._model = types.SimpleNamespace(stop_training=False)
    stop.set_params({"steps": 1})
    stop.on_epoch_begin(1)
    stop.on_epoch_end(1)
    assert stop._model.stop_training
