"""A training that ends at a given time: `vfnet train --time`."""

import dataclasses
import re
import statistics
import time

import keras

from vfnet_tf.training.progress_line import describe_duration

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
        save: of saving the state after an epoch.
    """

    step: float
    first: float
    evaluation: float
    save: float = 0.0

    @property
    def export(self):
        """Seconds of the export at the end, which traces graphs too."""
        return self.first


def measure(trainer, steps=8):
    """Measures steps, evaluation and saving of a `Trainer`, whose weights it changes.

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
    begin = time.perf_counter()
    trainer.save_and_forget()
    save = time.perf_counter() - begin
    return Timing(step, first + sum(durations[:1]), evaluation, save)


def epochs_within(seconds, timing, steps_per_epoch, most, interval, closing=1):
    """The most epochs that end within a time.

    Args:
        seconds: float, for training, evaluations and what follows them.
        timing: `Timing`.
        steps_per_epoch: int.
        most: int, epochs not to exceed.
        interval: function from the number of epochs to those between two evaluations.
        closing: int, evaluations after the last epoch's.

    Returns:
        int.

    Raises:
        ValueError: not even one epoch does.
    """

    def cost(epochs):
        evaluations = -(-epochs // interval(epochs)) + closing
        # Graphs are traced again.
        once = timing.first + timing.export + evaluations * timing.evaluation
        return once + epochs * (steps_per_epoch * timing.step + timing.save)

    planned = seconds * PLANNED_SHARE
    # More epochs may have fewer evaluations.
    fitting = (epochs for epochs in range(most, 0, -1) if cost(epochs) <= planned)
    epochs = next(fitting, 0)
    if not epochs:
        least = cost(1)
        raise ValueError(
            f"One epoch of {steps_per_epoch} steps takes about "
            f"{describe_duration(least / PLANNED_SHARE)} with the start and the end. "
            f"Received: {describe_duration(max(seconds, 0))} that are left of --time. "
            "Give more time, fewer images (--limit) or smaller ones (--image-size)"
        )
    return epochs


class StopInTime(keras.callbacks.Callback):
    """Ends the training after an epoch that leaves no time for another one.

    It comes before the evaluation, which follows the last epoch in any case.

    Args:
        deadline: float, of `time.monotonic()`, for the last evaluation.
        epochs, steps_per_epoch: ints, of the whole training.
        is_due: function from an epoch to whether an evaluation follows it.
        evaluation_share: float, seconds of an evaluation beside those of an epoch's
            steps, until one was measured.
        closing: int, evaluations after the last epoch's.
        prints: bool; False for a worker that is not the chief.
    """

    def __init__(
        self,
        deadline,
        epochs,
        steps_per_epoch,
        is_due=None,
        evaluation_share=0.0,
        closing=0,
        prints=True,
    ):
        super().__init__()
        self.deadline = deadline
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.is_due = is_due or (lambda epoch: False)
        self.evaluation_share, self.closing = evaluation_share, closing
        self.prints = prints
        self._end = None
        # Seconds from the last step of an epoch to the next one, by `is_due`.
        self._tails = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.monotonic()
        if self._end is not None:
            self._tails[self.is_due(epoch - 1)] = self._begin - self._end

    def on_epoch_end(self, epoch, logs=None):
        self._end = now = time.monotonic()
        # An epoch that was resumed has fewer.
        made = max((self.params or {}).get("steps") or 0, 1)
        steps = (now - self._begin) * self.steps_per_epoch / made
        save = self._tails.get(False, 0.0)
        evaluation = self._tails.get(True, save + self.evaluation_share * steps)
        # This epoch's end, and another epoch, which may be the last.
        tails = (evaluation if self.is_due(epoch) else save) + evaluation
        left = self.deadline - now - tails - self.closing * evaluation
        if epoch + 1 >= self.epochs or steps <= left:
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
