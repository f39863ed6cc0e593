"""What a training does when its machine is about to be taken away."""

import contextlib
import signal
import threading

import keras

#: Exit status of a training that saved its state and stopped: the same command goes on.
#: `EX_TEMPFAIL` of sysexits.h.
EXIT_STATUS = 75


class PreemptedError(Exception):
    """The training was told to stop; its state is saved."""


class SaveOnSignal(keras.callbacks.Callback):
    """Saves the state at the next step after a signal, and leaves `fit`.

        with SaveOnSignal(checkpoint) as save_on_signal:
            model.fit(batches, callbacks=[..., checkpoint, save_on_signal])

    It comes after the checkpoint, whose state at the end of an epoch is then the one.

    Args:
        checkpoint: `ResumableCheckpoint`.
        signals: what to heed while it is entered; SIGTERM is what cluster managers send
            some seconds before they kill. Outside of the main thread none is heeded.
        is_alone: bool; False for one of several workers, which may be the only one that
            is told to stop: the state then lacks the means of the metrics so far.

    Raises:
        PreemptedError: in `fit`.
    """

    def __init__(self, checkpoint, signals=(signal.SIGTERM,), is_alone=True):
        super().__init__()
        self.checkpoint = checkpoint
        self.signals = tuple(signals)
        self.is_alone = is_alone
        self.received = None
        self._handlers = contextlib.ExitStack()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                before = signal.signal(number, self._remember)
                self._handlers.callback(signal.signal, number, before)
        return self

    def __exit__(self, *exception):
        self._handlers.close()

    def _remember(self, number, frame):
        self.received = signal.Signals(number).name

    def on_train_batch_begin(self, batch, logs=None):
        if self.received:
            epoch, step = self.checkpoint.save_now(reads_metrics=self.is_alone)
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
        if self.received:
            raise PreemptedError(
                f"{self.received}: stopped at the end of an epoch. The same command "
                f"goes on from {self.checkpoint.last_path}."
            )
