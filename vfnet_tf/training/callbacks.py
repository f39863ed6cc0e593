"""The history file and the checkpoints of a training.

The order of callbacks matters, since each reads the `logs` of those before it:

    NonFiniteAlarm, EpochOrder, StepLog, CocoEvaluation, HistoryCsv,
    ResumableCheckpoint, Keras's own
"""

import contextlib
import csv
import math
import shutil
import time
import warnings
from pathlib import Path

import keras
from keras import ops

from vfnet_tf.files import replacing
from vfnet_tf.reports.curves import read_rows
from vfnet_tf.training.run_state import (
    assign_metrics,
    copy_without_optimizer,
    read_first,
    read_metrics,
    read_state,
    save_without_optimizer,
    scope_of,
    steps_of,
    sync_state,
    without_distribution,
    write_state,
)
from vfnet_tf.training.saved_states import state_paths
from vfnet_tf.weights_file import HDF5_ERRORS, seal


class HistoryCsv(keras.callbacks.Callback):
    """Writes one line an epoch; a resumed run continues the file.

    Columns: `epoch` (finished epochs, from 1), `step` (optimizer steps so far),
    `seconds` (of the epoch, evaluation included), `learning_rate` (of its last step),
    then the `logs`. Each epoch replaces the file as a whole, so a kill leaves the old or
    the new one. An epoch that runs again loses its old line. A new column is `nan` in
    older lines.

    Args:
        path: of the CSV file; missing folders are made.
    """

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)
        self.rows = []
        self._start = None

    def on_train_begin(self, logs=None):
        self.rows = read_history(self.path) if self.path.exists() else []

    def on_epoch_begin(self, epoch, logs=None):
        self.rows = [row for row in self.rows if row["epoch"] <= epoch]
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        step = steps_of(optimizer)
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(time.perf_counter() - self._start, 3),
            "learning_rate": learning_rate_of_step(optimizer, max(step - 1, 0)),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (
            replacing(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, restval=math.nan)
            writer.writeheader()
            writer.writerows(self.rows)


def read_history(path):
    """Reads a file of `HistoryCsv`.

    Args:
        path: of the CSV file.

    Returns:
        list of dicts, one a line; `epoch` and `step` are ints, the others floats.

    Raises:
        ValueError: a column is missing or not numeric; names file and line. A last line
            that was cut short is left out with a warning.
    """
    rows, lines = [], read_rows(path)
    for number, line in enumerate(lines, start=2):
        try:
            row = {name: float(value) for name, value in line.items()}
            row.update({name: int(row[name]) for name in ("epoch", "step")})
        except (KeyError, TypeError, ValueError, OverflowError):
            is_cut = number == len(lines) + 1 and None in line.values()
            if is_cut:
                warnings.warn(
                    f"{path} ends in half a line, which is left out", stacklevel=2
                )
                continue
            raise ValueError(
                "A history must have numeric columns, `epoch` and `step` among "
                f"them. Received: path={path}, line {number}: {line}"
            ) from None
        rows.append(row)
    return rows


def learning_rate_of_step(optimizer, step):
    """The learning rate of one step.

    `optimizer.learning_rate` belongs to the next step: just before a drop it is already
    the lower one.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        step: int >= 0; without a `LearningRateSchedule` it has no effect.

    Returns:
        float.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(step)
    else:
        rate = optimizer.learning_rate
    return float(ops.convert_to_numpy(rate))


class ResumableCheckpoint(keras.callbacks.Callback):
    """Saves the last states and the best weights, and restores the last state.

    `last.weights.h5` holds weights, optimizer and place in the run at the end of an
    epoch. With `save_every_steps` it is also written within the epoch, with the means of
    the metrics so far. `last-1.weights.h5`, ... are the states before it.
    `best.weights.h5` holds the weights of the best epoch alone. Each file appears whole
    or not at all: a kill at any moment leaves the older files. Nothing is saved once the
    loss is not finite.

        checkpoint = ResumableCheckpoint(run_dir)
        epoch, step = checkpoint.restore(model)     # (0, 0) in a new run
        model.fit(batches, initial_epoch=epoch, callbacks=[..., checkpoint])

    With `save_every_steps=None` step is always 0: an epoch that was cut short starts
    again. Otherwise the caller first trains on the rest of the epoch, all batches but the
    first `step`, up to `epochs=epoch + 1`.

    Args:
        run_dir: folder of the files; made if missing.
        monitor: key of the value in `logs` that decides which epoch is best. An epoch
            without it, or with NaN, is never the best.
        mode: `"max"` or `"min"`.
        save_every_steps: int > 0 or None.
        keep: int > 0, states to keep. If one cannot be read, the one before it is taken.
        weights: context manager of the best weights, see `CocoEvaluation`; the last
            state always has the model's own.
        writes: bool; False for a worker that is not the chief, which only counts.
        keep_epochs: int >= 0, the number of last epochs whose weights are kept as
            `epoch-001.weights.h5`, ...
        facts: dict of JSON types that each state holds, such as a digest of the data.

    Attributes:
        restored_facts: the `facts` of the state that `restore` has loaded.

    Raises:
        ValueError: an unknown `mode`, a `save_every_steps` or `keep` below 1,
            a `keep_epochs` below 0.
        OSError: in `fit`, a state cannot be saved; names the folder and the state before.
    """

    def __init__(
        self,
        run_dir,
        monitor="val_AP",
        mode="max",
        save_every_steps=None,
        keep=2,
        weights=None,
        writes=True,
        keep_epochs=0,
        facts=None,
    ):
        super().__init__()
        if mode not in ("max", "min"):
            raise ValueError(f"`mode` must be 'max' or 'min'. Received: mode={mode}")
        if save_every_steps is not None and save_every_steps < 1:
            raise ValueError(
                "`save_every_steps` must be >= 1 or None. "
                f"Received: save_every_steps={save_every_steps}"
            )
        if keep < 1:
            raise ValueError(f"`keep` must be >= 1. Received: keep={keep}")
        if keep_epochs < 0:
            raise ValueError(
                f"`keep_epochs` must be >= 0. Received: keep_epochs={keep_epochs}"
            )
        self.run_dir = Path(run_dir)
        self.monitor = monitor
        self.mode = mode
        self.save_every_steps = save_every_steps
        self.keep = keep
        self.writes = writes
        self.keep_epochs = keep_epochs
        self.weights = weights or contextlib.nullcontext
        self.facts = facts or {}
        self.restored_facts = {}
        self.best = None
        self.best_epoch = None
        self._resumed = (0, 0)
        self._resumed_metrics = {}
        self._epoch = self._step = self._offset = 0

    @property
    def last_path(self):
        return self.run_dir / "last.weights.h5"

    @property
    def best_path(self):
        return self.run_dir / "best.weights.h5"

    @property
    def state_paths(self):
        """Paths of all states that may exist, the last one first."""
        return state_paths(self.run_dir, self.keep)

    def restore(self, model):
        """Loads the last readable state, if there is one. Call it before `fit`.

        Args:
            model: built and compiled as it was when the state was saved.

        Returns:
            `(epoch, step)`: the finished epochs, and the finished batches of the next
            one. `(0, 0)` without a state.

        Raises:
            ValueError: the model is not compiled or built, no file can be read, or the
                state belongs to another model or optimizer.
        """
        paths = [path for path in self.state_paths if path.exists()]
        if not paths:
            return 0, 0
        if not model.built or getattr(model, "optimizer", None) is None:
            raise ValueError(
                "`model` must be built and compiled before its state is restored. "
                f"Received: built={model.built}, "
                f"optimizer={getattr(model, 'optimizer', None)}"
            )
        path, state = read_first(paths)
        optimizer = model.optimizer
        if not optimizer.built:
            # Keras would leave out the state of an optimizer without variables.
            with scope_of(model):
                optimizer.build(model.trainable_variables)
        self._load(model, path)
        # Keras only warns when the state does not fit, and starts with a fresh one.
        found = [type(optimizer).__name__, steps_of(optimizer)]
        if found != [state["optimizer"], state["iterations"]]:
            raise ValueError(
                "The optimizer must be the one whose state was saved, with the same "
                f"trainable variables. Received: {type(optimizer).__name__}, for "
                f"{state['optimizer']} after {state['iterations']} steps in {path}"
            )
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._resumed = (state["epoch"], state["step"])
        self._resumed_metrics = state.get("metrics", {})
        self.restored_facts = state.get("facts", {})
        return self._resumed

    def begin_epoch_again(self):
        """Forgets the batches that the restored state has of an epoch."""
        self._resumed, self._resumed_metrics = (self._resumed[0], 0), {}

    def restore_best(self, model):
        """Loads the best weights; the optimizer keeps its state.

        Args:
            model: built; compiled or not.

        Returns:
            `(epoch, value)`: the epoch, from 1, and its monitored value.

        Raises:
            ValueError: there is no such file, or it does not fit the model.
        """
        state = read_state(self.best_path)
        self._load_weights(model, self.best_path)
        return state["best_epoch"], state["best"]

    def load_last(self, model):
        """Loads the weights of the last state, without an average of Keras's optimizer."""
        self._load_weights(model, self.last_path)

    def _load_weights(self, model, path):
        optimizer = getattr(model, "optimizer", None)
        self._load(model, path, [] if optimizer is None else [optimizer])

    def offer(self, model, value, epoch):
        """Makes a model's weights the best ones if their value is better.

        Args:
            model: built.
            value: float, of what `monitor` names.
            epoch: int, from 1, after which the model had these weights.
        """
        if not self._is_better(value):
            return
        self.best, self.best_epoch = value, epoch
        if self.writes:
            state = {"monitor": self.monitor, "best": value, "best_epoch": epoch}
            with without_distribution():
                save_without_optimizer(model, self.best_path, state)

    @staticmethod
    def _load(model, path, objects_to_skip=()):
        try:
            model.load_weights(path, objects_to_skip=list(objects_to_skip))
        except HDF5_ERRORS as error:
            raise ValueError(
                "The model must be the one whose state was saved. Received: "
                f"{path}, which does not fit: {error}"
            ) from error

    def on_epoch_begin(self, epoch, logs=None):
        resumed_epoch, resumed_step = self._resumed
        self._epoch = epoch
        self._step = self._offset = resumed_step if epoch == resumed_epoch else 0
        if self._offset:
            assign_metrics(self.model, self._resumed_metrics)
        self._resumed, self._resumed_metrics = (0, 0), {}

    # At the end of a batch Keras would wait for the logs of every step.
    def on_train_batch_begin(self, batch, logs=None):
        previous, self._step = self._step, self._offset + batch
        every = self.save_every_steps
        if every is not None and self._step // every > previous // every:
            self.save_now()

    def save_now(self, is_end=False):
        """Saves the state between two steps; callbacks call it in `on_train_batch_begin`.

        All workers must call it together, since each reads the metrics of all.

        Args:
            is_end: bool, whether the steps of the epoch are over, in `on_epoch_end` of a
                callback before this one.

        Returns:
            `(epoch, step)`, see `restore`; None if the loss is not finite, and nothing
            was saved.
        """
        if is_end:
            self._step = self._offset + self.params["steps"]
        sync_state(self.model)
        metrics = read_metrics(self.model)
        logs = {"loss": metrics.get("loss", [0.0])[0]}
        self._save(logs, self._epoch, self._step, metrics=metrics)
        return (self._epoch, self._step) if _is_finite_loss(logs) else None

    def on_epoch_end(self, epoch, logs=None):
        value = (logs or {}).get(self.monitor)
        if value is None:
            warnings.warn(
                f"No best weights are kept: {self.monitor} is not among the logs "
                f"{sorted(logs or {})}",
                stacklevel=2,
            )
        is_best = value is not None and self._is_better(float(value))
        if is_best and _is_finite_loss(logs):
            self.best, self.best_epoch = float(value), epoch + 1
        self._save(logs, epoch + 1, 0, is_best)

    def _is_better(self, value):
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value > self.best if self.mode == "max" else value < self.best

    def _save(self, logs, epoch, step, is_best=False, metrics=None):
        if not self.writes or not _is_finite_loss(logs):
            return
        state = {
            "epoch": epoch,
            "step": step,
            "monitor": self.monitor,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizer": type(self.model.optimizer).__name__,
            "iterations": steps_of(self.model.optimizer),
            "metrics": metrics or {},
            "facts": self.facts,
        }
        try:
            with (
                without_distribution(),
                replacing(self.last_path, self.state_paths) as temporary,
            ):
                self.model.save_weights(temporary)
                seal(temporary, again=False)
                write_state(temporary, state)
                if is_best:
                    # Before the last state: a kill between the two repeats the epoch.
                    self._save_best(temporary, state)
                if step == 0 and self.keep_epochs:
                    self._keep_epoch(temporary, epoch)
        # h5py has both for a full disk, depending on when it notices.
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(self.run_dir).free / 2**20
            earlier = "No earlier state has been saved."
            if self.last_path.exists():
                earlier = f"The state before, {self.last_path}, is whole."
            raise OSError(
                f"The state after {state['iterations']} steps could not be saved in "
                f"{self.run_dir} ({error}; {free:.0f} MiB are free there). {earlier}"
            ) from error

    def _keep_epoch(self, last, epoch):
        with replacing(self.run_dir / f"epoch-{epoch:03d}.weights.h5") as path:
            copy_without_optimizer(last, path)
        kept = sorted(self.run_dir.glob("epoch-*.weights.h5"))
        for path in kept[: -self.keep_epochs]:
            path.unlink()

    def _save_best(self, last, state):
        if self.weights is contextlib.nullcontext:
            with replacing(self.best_path) as best:
                copy_without_optimizer(last, best)
        else:
            with self.weights(self.model):
                save_without_optimizer(self.model, self.best_path, state)


def _is_finite_loss(logs):
    return math.isfinite(float((logs or {}).get("loss", 0.0)))
