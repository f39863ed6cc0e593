import os
import signal
import threading

import keras
import pytest

from tests.training.tiny_training import (
    STEPS,
    X,
    Y,
    assert_same_state,
    fit,
    make_model,
)
from vfnet_tf.training.callbacks import ResumableCheckpoint
from vfnet_tf.training.preemption import PreemptedError, SaveOnSignal
from vfnet_tf.training.run_state import read_state


class Terminate(keras.callbacks.Callback):
    """Sends a signal to this process at the end of a batch, or of an epoch."""

    def __init__(self, epoch, batch=None, number=signal.SIGTERM):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, None
        self.number = number

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            os.kill(os.getpid(), self.number)

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None and epoch == self.epoch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("place", [(1, 0), (1, None), (0, STEPS - 1)])
def test_sigterm_saves_at_the_next_step_and_nothing_is_lost(tmp_path, place):
    whole = make_model()
    fit(whole)
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    before = signal.getsignal(signal.SIGTERM)
    with SaveOnSignal(checkpoint) as save_on_signal, pytest.raises(PreemptedError):
        fit(make_model(), Terminate(*place), checkpoint, save_on_signal)
    assert signal.getsignal(signal.SIGTERM) == before

    model = make_model()
    epoch, step = checkpoint.restore(model)
    assert (epoch, step) == {(1, 0): (1, 1), (1, None): (2, 0)}.get(place, (1, 0))
    if step:
        rest = {"x": X[4 * step :], "y": Y[4 * step :]}
        fit(model, start=epoch, epochs=epoch + 1, **rest)
        epoch += 1
    fit(model, start=epoch)
    assert_same_state(model, whole)


def test_the_message_says_where_it_stopped_and_what_to_do(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    with (
        SaveOnSignal(checkpoint) as save_on_signal,
        pytest.raises(
            PreemptedError,
            match=r"SIGTERM: saved after 2 steps of epoch 2\. The same command goes on",
        ),
    ):
        fit(make_model(), Terminate(1, 1), checkpoint, save_on_signal)
    assert read_state(checkpoint.last_path)["step"] == 2


def test_a_signal_during_the_last_evaluation_is_not_lost(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    with (
        SaveOnSignal(checkpoint) as save_on_signal,
        pytest.raises(
            PreemptedError,
            match="SIGTERM: stopped. The same command goes on from .*last",
        ),
    ):
        fit(make_model(), Terminate(3), checkpoint, save_on_signal, epochs=4)
    assert read_state(checkpoint.last_path)["epoch"] == 4


def test_outside_of_the_main_thread_no_signal_is_heeded(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    entered = []

    def enter():
        with SaveOnSignal(ResumableCheckpoint(tmp_path)):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


def test_one_of_several_stops_when_all_have_heard_and_not_before(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")

    class Others(keras.callbacks.Callback):
        """Says after the fifth step, of three an epoch, what all workers say."""

        def on_train_batch_end(self, batch, logs=None):
            assert save_on_signal.stop_requested == 1.0
            self.steps += 1
            if self.steps == 5:
                save_on_signal.receive(0.5)

        steps = 0

    save_on_signal = SaveOnSignal(checkpoint, num_processes=2)
    with (
        save_on_signal,
        pytest.raises(PreemptedError, match="after 2 steps of epoch 2"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        fit(make_model(), checkpoint, save_on_signal, Others())


def test_one_that_was_not_told_stops_with_the_others(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min", writes=False)
    save_on_signal = SaveOnSignal(checkpoint, num_processes=2)
    assert save_on_signal.stop_requested == 0.0
    save_on_signal.check()
    save_on_signal.receive(0.5)
    with pytest.raises(PreemptedError, match="SIGTERM: stopped. The chief keeps"):
        fit(make_model(), checkpoint, save_on_signal)


def test_ctrl_c_saves_and_a_second_one_stops_at_once(tmp_path, capsys):
    checkpoint = ResumableCheckpoint(tmp_path, "loss", "min")
    stop = Terminate(0, 1, signal.SIGINT)
    with (
        SaveOnSignal(checkpoint) as save_on_signal,
        pytest.raises(PreemptedError, match="SIGINT: saved after 2 steps of epoch 1"),
    ):
        fit(make_model(), stop, checkpoint, save_on_signal)
    assert "Ctrl-C: the training saves its state and stops" in capsys.readouterr().err
    with SaveOnSignal(checkpoint), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
