import csv
from pathlib import Path

import keras


class StepLog(keras.callbacks.Callback):
    """Writes the mean of every training metric over each `every` steps to a csv file.

    Keras's own logs are means since the start of the epoch, which hide the course of a
    warm-up; these are not.

    Args:
        path: of the file; rows of a resumed run follow the old ones.
        every: int > 0, steps per row.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(self, path, every=20):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be >= 1. Received: every={every}")
        self.path = Path(path)
        self.every = every
        self._sums = {}
        self._count = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._before = {}

    def on_train_batch_end(self, batch, logs=None):
        for name, mean in (logs or {}).items():
            # The mean of n steps times n, less the same of n - 1, is the n-th value.
            total = float(mean) * (batch + 1)
            value = total - self._before.get(name, 0.0)
            self._before[name] = total
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if self._count == self.every:
            self._write()

    def _write(self):
        row = {name: value / self._count for name, value in self._sums.items()}
        # On JAX the state of an epoch is not with the model until it is asked for.
        getattr(self.model, "jax_state_sync", lambda: None)()
        row = {"step": int(self.model.optimizer.iterations.numpy()), **row}
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()})
        self._sums, self._count = {}, 0
