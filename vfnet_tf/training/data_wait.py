"""The share of time that a training waits for its data."""

import time

import keras

# The message needs a larger share of an epoch than this, and more seconds.
_LIMIT = 0.05
_LEAST_WAIT = 3.0


class DataWait(keras.callbacks.Callback):
    """Shows in the progress line which share of an epoch was spent waiting for data.

    Keras fetches a batch within the function of a step, where the wait cannot be told
    from the computation. This callback fetches it just before, in the same thread. The
    logs of a batch hold the share as `data_wait`, from 0 to 1. On a GPU, which works
    behind the host, it is an upper bound of the device's idle time.

    The first step, which traces the graph, does not count. Nothing is measured if
    `steps_per_execution` is above 1, or with PyTorch, where Keras fetches by itself.

    Args:
        prints: bool, whether to print a message after an epoch with a share above 5 %;
            False for a worker that is not the chief.

    Attributes:
        share: float, of the present epoch or the last one.
    """

    # No result of a step is read here, so Keras need not wait for it.
    async_safe = True

    def __init__(self, prints=True):
        super().__init__()
        self.prints = prints
        self.share = 0.0
        self._is_first = True
        self._begin, self._waited = 0.0, 0.0

    def on_train_begin(self, logs=None):
        self._is_first = True
        if self.model.steps_per_execution > 1 or keras.backend.backend() == "torch":
            return
        function = self.model.train_function
        if isinstance(function, _FetchingStep):  # left by a training that failed
            function = function.function
        self.model.train_function = _FetchingStep(function, self)

    def on_train_end(self, logs=None):
        if isinstance(self.model.train_function, _FetchingStep):
            self.model.train_function = self.model.train_function.function

    def on_epoch_begin(self, epoch, logs=None):
        self._begin, self._waited = time.perf_counter(), 0.0

    def on_train_batch_end(self, batch, logs=None):
        if logs is not None:
            logs["data_wait"] = self.share

    def on_epoch_end(self, epoch, logs=None):
        self._update()
        if logs is not None:
            logs["data_wait"] = self.share
        if self.prints and self.share > _LIMIT and self._waited > _LEAST_WAIT:
            print(
                f"\nwaited for data {self.share:.0%} of the epoch, {self._waited:.0f} s: "
                "decoded images kept in memory (vfnet train --cache memory), a "
                "faster disk or more CPU cores would help"
            )

    def step_begins(self, waited):
        """Adds the seconds that a step has waited for its batch."""
        self._waited += waited
        self._update()

    def step_returned(self):
        """Resets the time after the first step, which traced the graph."""
        if self._is_first:
            self._is_first = False
            self._begin, self._waited = time.perf_counter(), 0.0

    def _update(self):
        passed = time.perf_counter() - self._begin
        self.share = min(self._waited / passed, 1.0) if passed > 0 else 0.0


class _FetchingStep:
    """A `train_function` of a model that fetches the batch and then calls `function`."""

    def __init__(self, function, wait):
        self.function = function
        self._wait = wait

    def __call__(self, *arguments):
        *state, iterator = arguments  # JAX has a state
        begin = time.perf_counter()
        # Its StopIteration tells Keras that the epoch ends.
        data = next(iterator)
        self._wait.step_begins(time.perf_counter() - begin)
        outputs = self.function(*state, iter([data]))
        self._wait.step_returned()
        return outputs
