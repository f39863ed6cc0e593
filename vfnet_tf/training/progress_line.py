"""What a user reads while a training runs: how long it takes, and no empty metrics."""

import math
import time

import keras


class TimeEstimate(keras.callbacks.Callback):
    """Says after some steps how long the whole training will take.

    Args:
        epochs: int, of the whole training.
        steps_per_epoch: int.
        after: int, steps to measure; the first one, which traces the graph, is left out.
        prints: bool; False for a worker that is not the chief.
    """

    # Nothing here reads what a step has computed: Keras need not wait for it.
    async_safe = True

    def __init__(self, epochs, steps_per_epoch, after=20, prints=True):
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.after = after
        self.prints = prints
        self._steps, self._begin = 0, None
        self._is_done = False

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps == 1:
            self._begin = time.perf_counter()
        if self._steps <= self.after or self._is_done:
            return
        self._is_done = True
        seconds = (time.perf_counter() - self._begin) / (self._steps - 1)
        left = (self.epochs - self._epoch) * self.steps_per_epoch - batch - 1
        if self.prints and left > 0:
            print(
                f"\ntime       {describe_duration(left * seconds)} for the {left} steps "
                f"that are left, {seconds:.2g} s each, and the evaluations "
                "(vfnet train --time 1h fits the schedule to one hour)"
            )


class HideMissing(keras.callbacks.Callback):
    """Keeps metrics of epochs that were not evaluated out of the progress line.

    It comes last, behind all that writes the logs down.
    """

    def on_epoch_end(self, epoch, logs=None):
        for name in [name for name in logs or {} if name.startswith("val_")]:
            if math.isnan(logs[name]):
                del logs[name]


def describe_duration(seconds):
    """Seconds in the words of a user, such as `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(round(seconds), 1)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
