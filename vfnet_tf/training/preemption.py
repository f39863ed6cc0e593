"""What a training does when its machine is about to be taken away."""

import contextlib
import signal
import sys
import threading

import keras

#: Exit status of a training that saved its state and stopped: the same command goes on.
#: `EX_TEMPFAIL` of sysexits.h.
EXIT_STATUS = 75
#: What saves the state and stops a training: a cluster manager's signal, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(Exception):
    """The training was told to stop; its state is saved."""


class SaveOnSignal(keras.callbacks.Callback):
    """Saves the state at the next step after a signal, and leaves `fit`.

        with SaveOnSignal(checkpoint) as save_on_signal:
            model.fit(batches, callbacks=[..., checkpoint, save_on_signal])

    It comes after the checkpoint, whose state at the end of an epoch is then the one.

    Of several processes any may be told, and all must stop at the same step: one that
    went on alone would wait in the next sum for those that are gone. With TensorFlow
    `loop.fit` and `CocoEvaluation` carry `is_told` along with what they send anyhow, and
    `hear` says what came of it. JAX has a service of its own for this, which heeds
    SIGTERM from `keras.distribution.initialize` on and needs some steps to agree.

    Args:
        checkpoint: `ResumableCheckpoint`.
        signals: what to heed while it is entered; SIGTERM is what cluster managers send
            some seconds before they kill, SIGINT is Ctrl-C, of which a second one stops
            at once. Outside of the main thread none is heeded.
        num_processes: int, those that train together and call it at the same steps.

    Raises:
        PreemptedError: in `fit`, of all processes.
    """

    def __init__(self, checkpoint, signals=SIGNALS, num_processes=1):
        super().__init__()
        self.checkpoint = checkpoint
        self.signals = tuple(signals)
        self.num_processes = num_processes
        self.received = None
        self._heard = 0.0
        self._num_checks = 0
        self._handlers = contextlib.ExitStack()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread() and not self._asks_jax:
            for number in self.signals:
                before = signal.signal(number, self._remember)
                self._handlers.callback(signal.signal, number, before)
        return self

    def __exit__(self, *exception):
        self._handlers.close()

    @property
    def is_told(self):
        """Whether a signal has come to this process, 1.0 or 0.0."""
        return float(self.received is not None)

    def hear(self, told):
        """Takes the mean, sum or any other positive mix of `is_told` of all processes."""
        self._heard = told

    @property
    def _asks_jax(self):
        return self.num_processes > 1 and keras.backend.backend() == "jax"

    def _remember(self, number, frame):
        if number == signal.SIGINT:
            if self.received is not None:
                raise KeyboardInterrupt
            sys.stderr.write(
                "\nCtrl-C: the state is saved before the next step; again to stop at once\n"
            )
        self.received = signal.Signals(number).name

    def _is_over(self):
        """Whether to stop now: the same on all processes, whoever was told."""
        if self.num_processes == 1:
            return self.received is not None
        if not self._asks_jax:
            is_over = float(self._heard) > 0
        else:
            from jax.experimental import multihost_utils

            self._num_checks += 1
            is_over = multihost_utils.reached_preemption_sync_point(self._num_checks)
        if is_over:
            self.received = self.signals[0].name
        return is_over

    def on_train_batch_begin(self, batch, logs=None):
        if self._is_over():
            epoch, step = self.checkpoint.save_now()
            if not self.checkpoint.writes:
                raise PreemptedError(
                    f"{self.received}: stopped. The chief keeps the state, in "
                    f"{self.checkpoint.last_path}."
                )
            raise PreemptedError(
                f"{self.received}: saved after {step} steps of epoch {epoch + 1} in "
                f"{self.checkpoint.last_path}. The same command goes on from there."
            )

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        """Leaves at once if a signal came; what was saved last is what there is."""
        if self._is_over():
            raise PreemptedError(
                f"{self.received}: stopped at the end of an epoch. The same command "
                f"goes on from {self.checkpoint.last_path}."
            )
