"""What a user reads while a training runs: how long it takes, and no empty metrics."""

import math
import time

import keras

#: Time of an image in an evaluation beside that in a training step: the forward pass.
EVALUATION_SHARE = 1 / 3


class TimeEstimate(keras.callbacks.Callback):
    """Says after some steps how long the whole training will take.

    Args:
        epochs: int, of the whole training.
        steps_per_epoch: int.
        is_due: function from an epoch to whether an evaluation follows it.
        evaluation_share: float, time of an evaluation beside that of an epoch's steps.
        closing: int, evaluations after the last epoch's.
        advises: bool, whether to name --time.
        after: int, steps to measure; the first one, which traces the graph, is left out.
        prints: bool; False for a worker that is not the chief.
    """

    # Nothing here reads what a step has computed: Keras need not wait for it.
    async_safe = True

    def __init__(
        self,
        epochs,
        steps_per_epoch,
        is_due=None,
        evaluation_share=0.0,
        closing=0,
        advises=True,
        after=20,
        prints=True,
    ):
        super().__init__()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.is_due = is_due or (lambda epoch: False)
        self.evaluation_share, self.closing = evaluation_share, closing
        self.advises = advises
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
        if not self.prints or left <= 0:
            return
        evaluations = sum(map(self.is_due, range(self._epoch, self.epochs)))
        evaluations += self.closing
        evaluation = self.evaluation_share * self.steps_per_epoch * seconds
        text = (
            f"about {describe_duration(left * seconds + evaluations * evaluation)} are "
            f"left: {left} steps of {seconds:.2g} s"
        )
        if evaluations:
            text += f" and {evaluations} evaluations of {describe_duration(evaluation)}"
        if self.advises:
            text += " (vfnet train --time 1h fits the schedule to one hour)"
        print(f"\ntime       {text}")


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
