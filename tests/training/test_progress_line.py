import math

import numpy as np
import pytest

from vfnet_tf.data.normalization import CAFFE_BGR
from vfnet_tf.training import progress_line
from vfnet_tf.training.preview import draw_batch
from vfnet_tf.training.progress_line import (
    HideMissing,
    TimeEstimate,
    describe_duration,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_line, "time", clock)
    return clock


def run_steps(estimate, clock, count, epoch=0, seconds=2.0):
    estimate.on_epoch_begin(epoch)
    for step in range(count):
        # The first step traces the graph.
        clock.now += 100.0 if step == 0 else seconds
        estimate.on_train_batch_end(step)


def test_the_time_of_the_whole_training_is_told_once(clock, capsys):
    estimate = TimeEstimate(epochs=10, steps_per_epoch=50)
    run_steps(estimate, clock, 20)
    assert capsys.readouterr().out == ""
    estimate.on_train_batch_end(20)
    estimate.on_train_batch_end(21)
    # 21 of 500 steps are over; 38 s for the 20 behind the first.
    said = capsys.readouterr().out
    assert said == (
        "\ntime       about 15 min are left: 479 steps of 1.9 s (vfnet train --time 1h "
        "fits the schedule to one hour)\n"
    )


def test_the_evaluations_that_follow_are_counted(clock, capsys):
    estimate = TimeEstimate(
        epochs=10,
        steps_per_epoch=50,
        is_due=[1, 4, 7, 9].__contains__,
        evaluation_share=1.2,
        closing=2,
        advises=False,
    )
    run_steps(estimate, clock, 22, epoch=2)
    # 8 epochs but 21 steps, of which each takes 2 s; 3 evaluations of 120 s, and 2.
    assert capsys.readouterr().out == (
        "\ntime       about 23 min are left: 379 steps of 2 s and 5 evaluations of 2 min\n"
    )


def test_a_training_that_is_over_or_of_another_worker_says_nothing(clock, capsys):
    run_steps(TimeEstimate(1, 21), clock, 21)
    run_steps(TimeEstimate(9, 50, prints=False), clock, 50)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (29, "29 s"),
        (90, "2 min"),
        (3600, "1 h 0 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert describe_duration(seconds) == text


def test_metrics_of_an_epoch_without_evaluation_are_not_shown():
    logs = {"loss": math.nan, "val_AP": math.nan, "val_AP50": 0.5}
    HideMissing().on_epoch_end(0, logs)
    assert sorted(logs) == ["loss", "val_AP50"]


def test_a_batch_is_drawn_in_its_own_colours():
    pixels = np.full((40, 60, 3), (200, 100, 50), "uint8")
    batch = {
        "images": CAFFE_BGR(np.stack([pixels, pixels])),
        "boxes": np.float32([[[5, 5, 30, 30], [0, 0, 0, 0]]] * 2),
        "labels": np.int32([[0, -1]] * 2),
    }
    drawn = draw_batch(batch, CAFFE_BGR, ("cell",), most=1)
    assert drawn[-1, -1].tolist() == [200, 100, 50]
    assert np.any(drawn[5, 5:30] != pixels[0, 0])
