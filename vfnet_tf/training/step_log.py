import csv
from pathlib import Path

import keras

from vfnet_tf.files import replacing
from vfnet_tf.training.run_state import read_metrics, steps_of, sync_state


class StepLog(keras.callbacks.Callback):
    """Writes the mean of every training metric over each `every` steps to a csv file.

    Keras's own logs are means since the start of the epoch, which hide the course of a
    warm-up. The host waits for the device once in `every` steps and at the end of an
    epoch.

    Args:
        path: of the file. A resumed run appends to it; a step that runs again loses its
            old row.
        every: int > 0, batches per row. The column `step` counts the optimizer's updates,
            fewer than batches if gradients are accumulated.
        writes: bool; False for a worker that is not the chief, which still must read.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(self, path, every=20, writes=True):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be >= 1. Received: every={every}")
        self.path = Path(path)
        self.every = every
        self.writes = writes
        self._before = {}  # total and count of each metric when last read
        self._sums = {}  # the same since the last row
        self._count = 0

    def on_train_begin(self, logs=None):
        if not self.writes or not self.path.exists():
            return
        step = steps_of(self.model.optimizer)
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *rows = [*csv.reader(file)] or [[]]
        # A line that was cut short is written again.
        whole = [row for row in rows if len(row) == len(header) and row[0].isdecimal()]
        kept = [row for row in whole if int(row[0]) <= step]
        if len(kept) < len(rows):
            with (
                replacing(self.path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                csv.writer(file).writerows([header, *kept])

    # At the end of a batch Keras would wait for the logs of every step.
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            # Not empty in a resumed epoch.
            self._before = read_metrics(self.model)
            return
        self._count += 1
        if self._count == self.every:
            self._read()
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        self._count += 1
        self._read()
        if self._count == self.every:
            self._write()

    def _read(self):
        sync_state(self.model)
        now = read_metrics(self.model)
        for name, values in now.items():
            before = self._before.get(name, [0.0] * len(values))
            sums = self._sums.setdefault(name, [0.0] * len(values))
            for index, value in enumerate(values):
                sums[index] += value - before[index]
        self._before = now

    def _write(self):
        # The variables of `keras.metrics.Mean` are the sum and the weight.
        row = {
            name: sums[0] / sums[1]
            for name, sums in self._sums.items()
            if len(sums) == 2 and sums[1]
        }
        row = {"step": steps_of(self.model.optimizer), **row}
        self._sums, self._count = {}, 0
        if not self.writes:
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()})
