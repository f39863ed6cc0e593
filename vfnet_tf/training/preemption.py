"""Saving the state of a training that a signal stops."""

import contextlib
import signal
import sys
import threading

import keras

from vfnet_tf.training.saved_states import how_to_go_on

#: Exit status of a training that saved its state and stopped: the same command goes on.
#: `EX_TEMPFAIL` of sysexits.h.
EXIT_STATUS = 75
#: What saves the state and stops a training: a cluster manager's signal, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(Exception):
    """The training was told to stop; the message says how to go on."""


class SaveOnSignal(keras.callbacks.Callback):
    """Saves the state at the next step after a signal, and leaves `fit`.

    During an evaluation the state is that after the steps of the epoch.

        with SaveOnSignal(checkpoint) as save_on_signal:
            model.fit(batches, callbacks=[..., checkpoint, save_on_signal])

    It must come after the checkpoint.

    A signal may reach any of several processes, and all must stop at the same step, since
    one that went on would wait for the others. With TensorFlow `loop.fit` and
    `CocoEvaluation` send `stop_requested` to all processes and pass the result to
    `receive`. JAX has a service for this, which listens from
    `keras.distribution.initialize` on and needs some steps to agree.

    Args:
        checkpoint: `ResumableCheckpoint`.
        signals: what to heed while it is entered; SIGTERM is what cluster managers send
            some seconds before they kill, SIGINT is Ctrl-C, of which a second one stops
            at once. Outside of the main thread none is heeded.
        num_processes: int, processes that train together.

    Raises:
        PreemptedError: in `fit`, of all processes.
    """

    def __init__(self, checkpoint, signals=SIGNALS, num_processes=1):
        super().__init__()
        self.checkpoint = checkpoint
        self.signals = tuple(signals)
        self.num_processes = num_processes
        self.received = None
        self._requests = 0.0
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
    def stop_requested(self):
        """Whether a signal has come to this process, 1.0 or 0.0."""
        return float(self.received is not None)

    def receive(self, requests):
        """Takes the mean or sum of `stop_requested` of all processes."""
        self._requests = requests

    @property
    def _asks_jax(self):
        return self.num_processes > 1 and keras.backend.backend() == "jax"

    def _remember(self, number, frame):
        if number == signal.SIGINT:
            if self.received is not None:
                raise KeyboardInterrupt
            sys.stderr.write(
                "\nCtrl-C: the training saves its state and stops; again to stop at once\n"
            )
        self.received = signal.Signals(number).name

    def _is_over(self):
        """Whether to stop now; the same in all processes."""
        if self.num_processes == 1:
            return self.received is not None
        if not self._asks_jax:
            is_over = float(self._requests) > 0
        else:
            from jax.experimental import multihost_utils

            self._num_checks += 1
            is_over = multihost_utils.reached_preemption_sync_point(self._num_checks)
        if is_over:
            self.received = self.signals[0].name
        return is_over

    def on_train_batch_begin(self, batch, logs=None):
        with self.saving(is_end=False):
            self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        """Stops at once if a signal came, without saving."""
        if self._is_over():
            raise self._stop("stopped")

    @contextlib.contextmanager
    def saving(self, is_end=True):
        """Saves the state if `check` stops the training inside.

        Args:
            is_end: see `ResumableCheckpoint.save_now`.
        """
        try:
            yield
        except PreemptedError:
            place = self.checkpoint.save_now(is_end)
            what = "stopped"
            if place is not None and self.checkpoint.writes:
                what = f"saved after {place[1]} steps of epoch {place[0] + 1}"
            raise self._stop(what) from None

    def _stop(self, what):
        checkpoint = self.checkpoint
        if checkpoint.writes:
            how = how_to_go_on(checkpoint.run_dir)
        else:
            how = f"The chief keeps the state, in {checkpoint.last_path}."
        return PreemptedError(f"{self.received}: {what}. {how}")
