"""A training that ends at a given time: `vfnet train --time`."""

import dataclasses
import re
import statistics
import time

import keras

from vfnet_tf.training.progress_line import describe_duration
from vfnet_tf.training.recipe import evaluation_interval

#: Share of the time that is planned with; a machine is not always as fast.
PLANNED_SHARE = 0.9
#: Most epochs beside those that the recipe takes without a time.
MOST_REPEATED = 4
_UNITS = {"h": 3600, "m": 60, "s": 1}


def parse_duration(text):
    """Seconds of a duration such as `"2h"`, `"90m"`, `"1h30m"` or `"45s"`.

    Raises:
        ValueError: the text is no such duration, or zero.

    >>> parse_duration("1h30m")
    5400
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    numbers = parts.groups() if parts else ()
    seconds = sum(
        int(number or 0) * unit
        for number, unit in zip(numbers, _UNITS.values(), strict=False)
    )
    if not seconds:
        raise ValueError(
            f"A duration must be like 2h, 90m, 1h30m or 45s. Received: {text}"
        )
    return seconds


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured seconds of a training.

    Attributes:
        step: of a step.
        first: of the first steps beyond that, which trace the graphs.
        evaluation: of an evaluation of the validation set; 0 without one.
    """

    step: float
    first: float
    evaluation: float


def measure(trainer, steps=8):
    """Measures steps and evaluation of a `Trainer`, whose weights it changes.

    Args:
        trainer: `Trainer` that has not begun.
        steps: int > 1, training steps to make.

    Returns:
        `Timing`.
    """
    watch = _Watch()
    trainer.run_steps(steps, [watch])
    durations = watch.durations()
    step = statistics.median(durations[1:] or durations)
    first = sum(duration - step for duration in durations if duration > 2 * step)
    detection = _Watch()
    batches = trainer.detect_batches(4, detection)
    durations = detection.durations()
    evaluation = statistics.median(durations[1:] or durations or [0.0]) * batches
    return Timing(step, first + sum(durations[:1]), evaluation)


def epochs_within(seconds, timing, steps_per_epoch, most):
    """The most epochs that end within a time.

    Args:
        seconds: float, for training, evaluations and what follows them.
        timing: `Timing`.
        steps_per_epoch: int.
        most: int, epochs not to exceed.

    Returns:
        int.

    Raises:
        ValueError: not even one epoch does.
    """
    # Graphs are traced again, and the export at the end takes about as long.
    left = seconds * PLANNED_SHARE - 2 * timing.first
    epochs = 0
    while epochs < most and _cost(epochs + 1, timing, steps_per_epoch) <= left:
        epochs += 1
    if not epochs:
        least = _cost(1, timing, steps_per_epoch) + 2 * timing.first
        raise ValueError(
            f"One epoch of {steps_per_epoch} steps takes about "
            f"{describe_duration(least / PLANNED_SHARE)} with the start and the end. "
            f"Received: {describe_duration(max(seconds, 0))} that are left of --time. "
            "Give more time, fewer images (--limit) or smaller ones (--image-size)"
        )
    return epochs


def _cost(epochs, timing, steps_per_epoch):
    evaluations = -(-epochs // evaluation_interval(epochs)) + 1
    return epochs * steps_per_epoch * timing.step + evaluations * timing.evaluation


class StopInTime(keras.callbacks.Callback):
    """Ends the training after an epoch that leaves no time for another one.

    Args:
        deadline: float, of `time.monotonic()`.
        reserve: float, seconds for what follows the training.
        prints: bool; False for a worker that is not the chief.
    """

    def __init__(self, deadline, reserve, prints=True):
        super().__init__()
        self.deadline, self.reserve = deadline, reserve
        self.prints = prints

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        now = time.monotonic()
        is_last = epoch + 1 >= (self.params or {}).get("epochs", 0)
        if is_last or 2 * now - self._begin <= self.deadline - self.reserve:
            return
        self.model.stop_training = True
        if self.prints:
            print(
                f"\ntime       over after epoch {epoch + 1}, before the learning rate came "
                "down: the machine is slower than it was at the start. The same command "
                "goes on"
            )


class _Watch(keras.callbacks.Callback):
    """Times of steps, or of an evaluator's updates."""

    def __init__(self):
        super().__init__()
        self.times = []

    def durations(self):
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    def on_train_begin(self, logs=None):
        self.reset()

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def reset(self):
        self.times = [time.perf_counter()]

    def update(self, image_ids, detections):
        self.times.append(time.perf_counter())

    def evaluate(self):
        return {}
