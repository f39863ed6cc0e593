"""Finds losses that are not finite, and stops the training or leaves out the step."""

import json
import math
import pathlib
import warnings

import keras

from vfnet_tf.detectors.dense_detector import sum_over_replicas
from vfnet_tf.files import write_file
from vfnet_tf.training.callbacks import learning_rate_of_step
from vfnet_tf.training.run_state import scope_of, steps_of, sync_state

ACTIONS = ("stop", "skip")


class NonFiniteAlarm(keras.callbacks.Callback):
    """Stops at a loss that is not finite, or leaves out its step, and records it.

    The graph of a step checks the loss of all replicas. The host reads the result once
    in `every` steps and at the end of an epoch, so that it does not wait at each step.
    Steps that are left out change no weight, but count in the schedule.

    The json file is a list of dicts with `epoch` and `step` (from 1), `image_ids` of the
    global batch, the loss `parts` as text and the `learning_rate`.

    Steps are checked with a `DenseDetector` on TensorFlow, elsewhere only the mean loss
    of an epoch. Put it first.

    Args:
        path: of the json file.
        action: `"stop"` or `"skip"`.
        image_ids: function from epoch and step, both from 0, to the ids of the images.
        every: int > 0.
        writes: bool; False for a worker that is not the chief.

    Raises:
        ValueError: an unknown `action`, `every` below 1; in `fit`, `"skip"` with an
            optimizer that cannot leave out a step.
        FloatingPointError: in `fit`, with epoch, step, images and loss parts.
    """

    def __init__(self, path, action="stop", image_ids=None, every=20, writes=True):
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(
                f"`action` must be one of {ACTIONS}. Received: action={action}"
            )
        if every < 1:
            raise ValueError(f"`every` must be >= 1. Received: every={every}")
        self.path = pathlib.Path(path)
        self.action = action
        self.image_ids = image_ids
        self.every = every
        self.writes = writes
        self._epoch = 0
        self._offset = 0
        self._is_watching = False

    def set_model(self, model):
        super().set_model(model)
        can_watch = hasattr(model, "loss_watch")
        if (
            self._is_watching
            or not can_watch
            or keras.backend.backend() != "tensorflow"
        ):
            return
        import tensorflow as tf

        self._is_watching = True
        self._names = tuple(model.loss_names)
        settings = {
            "trainable": False,
            # The same on all replicas, since the sum over them is checked.
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        with scope_of(model):
            self._is_good = tf.Variable(True, **settings)
            self._step = tf.Variable(0, dtype="int64", **settings)
            # The first step without a finite loss, and the number of them.
            self._bad_step = tf.Variable(-1, dtype="int64", **settings)
            self._num_bad = tf.Variable(0, dtype="int64", **settings)
            self._parts = tf.Variable([0.0] * len(self._names), **settings)
        model.loss_watch = self._watch
        if self.action == "skip":
            optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            if not hasattr(optimizer, "update_when"):
                raise ValueError(
                    "To leave out steps the optimizer must be one of "
                    "vfnet_tf.training.optimizers. "
                    f"Received: {type(optimizer).__name__}"
                )
            optimizer.update_when = self._is_good

    def _watch(self, losses):
        """Returns, in the graph of a step, whether the loss of all replicas is finite."""
        import tensorflow as tf

        parts = tf.stack([losses[name] for name in self._names])
        parts = sum_over_replicas(parts)
        is_good = tf.math.is_finite(tf.reduce_sum(parts))
        is_first = ~is_good & (self._num_bad == 0)
        self._bad_step.assign(tf.where(is_first, self._step, self._bad_step))
        self._parts.assign(tf.where(is_first, parts, self._parts))
        self._num_bad.assign_add(tf.where(is_good, tf.constant(0, "int64"), 1))
        self._step.assign_add(1)
        self._is_good.assign(is_good)
        return is_good

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._is_watching:
            self._step.assign(0)
            self._num_bad.assign(0)

    def begin_at(self, step):
        """Tells that the next epoch leaves out its first `step` batches."""
        self._offset = step

    def on_train_batch_begin(self, batch, logs=None):
        if self._is_watching and batch and batch % self.every == 0:
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        if self._is_watching:
            self._check()
            self._offset = 0
            # Keras read the logs before `_mend_mean_loss`.
            if logs and not math.isfinite(logs["loss"]):
                logs["loss"] = sum(float(logs[name]) for name in self._names)
        elif not keras.ops.isfinite((logs or {}).get("loss", 0.0)):
            raise FloatingPointError(
                f"The mean loss of epoch {epoch + 1} is not finite: {logs}. Lower the "
                "learning rate or lengthen the warm-up."
            )

    def _check(self):
        number = int(self._num_bad.numpy())
        if not number:
            return
        sync_state(self.model)
        bad_step = int(self._bad_step.numpy())
        step = self._offset + bad_step
        optimizer = self.model.optimizer
        made = steps_of(optimizer) - int(self._step.numpy()) + bad_step
        image_ids = [] if self.image_ids is None else self.image_ids(self._epoch, step)
        values = dict(zip(self._names, self._parts.numpy().tolist(), strict=True))
        entry = {
            "epoch": self._epoch + 1,
            "step": step + 1,
            "steps_not_finite": number,
            "image_ids": image_ids,
            "parts": {name: f"{value:g}" for name, value in values.items()},
            "learning_rate": learning_rate_of_step(optimizer, made),
        }
        self._num_bad.assign(0)
        self._write(entry)
        parts = ", ".join(f"{name} {value}" for name, value in entry["parts"].items())
        what = (
            f"The loss is not finite at step {entry['step']} of epoch {entry['epoch']} "
            f"(learning rate {entry['learning_rate']:g}): {parts}; images "
            f"{entry['image_ids']}; see {self.path}."
        )
        if self.action == "skip":
            more = (
                f" {number} steps were left out." if number > 1 else " It was left out."
            )
            if self.writes:
                print(f"\n{what}{more}", flush=True)
            self._mend_mean_loss()
            return
        raise FloatingPointError(
            f"{what} Lower the learning rate or lengthen the warm-up; if it happens at the "
            "first steps, look at the images and boxes of the data; --on-nonfinite skip "
            "leaves such steps out. The states saved earlier are whole."
        )

    def _write(self, entry):
        if not self.writes:
            return
        entries = []
        if self.path.exists():
            try:
                entries = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError as error:
                warnings.warn(
                    f"{self.path} is damaged ({error}) and begins again", stacklevel=2
                )
        write_file(self.path, json.dumps([*entries, entry], indent=2) + "\n")

    def _mend_mean_loss(self):
        """Sets Keras's mean loss to that of the steps with a finite loss."""
        metrics = {metric.name: metric for metric in self.model.metrics}
        mean = sum(float(metrics[name].result()) for name in self._names)
        total, count = metrics["loss"].variables
        total.assign(mean * float(keras.ops.convert_to_numpy(count)))
