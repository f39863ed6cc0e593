"""A training that is killed: `killed_run.py DATA RUN_DIR [WHEN NUMBER]`.

WHEN is `step` (kill -9 after NUMBER steps of the optimizer), `save` (kill -9 while the
state after NUMBER steps is saved), `term` (SIGTERM after NUMBER steps), `evaluation`
(SIGTERM after NUMBER batches of evaluations) or `say` (prints `SAID` after NUMBER steps,
or after the first one of a run that resumes later). Without it the training runs to its
end.
The environment tells whether it is one of several processes. Its exit status is that of
`vfnet train`.
"""

import math
import os
import signal
import sys
import time

import keras

from tests.conftest import build_two_levels
from vfnet_tf import files
from vfnet_tf.config import Config, DataConfig, TrainingConfig
from vfnet_tf.data.formats.coco import find_coco_splits, read_coco
from vfnet_tf.training import preemption, trainer
from vfnet_tf.training.run_state import steps_of
from vfnet_tf.training.strategies import make_strategy

CONFIG = Config(
    name="killed",
    data=DataConfig(image_size=(64, 96), cache_decoded=True, augment="strong"),
    training=TrainingConfig(
        epochs=3, batch_size=2, warmup_steps=2, drop_epochs=(1.5,), seed=7
    ),
)
SAID = "here"


def build(config, weights=None):
    """A raw VFNet of 32 filters, traced in seconds."""
    return build_two_levels(config.model.num_classes, star=False, refine=False)


class Kill(keras.callbacks.Callback):
    def __init__(self, number, what=signal.SIGKILL):
        super().__init__()
        self.number = number
        self.what = what
        self.steps = 0

    def on_train_begin(self, logs=None):
        self.steps = steps_of(self.model.optimizer)

    def on_train_batch_end(self, batch, logs=None):
        # With JAX the optimizer's own number lags behind.
        self.steps += 1
        if self.steps == self.number:
            os.kill(os.getpid(), self.what)


class Say(keras.callbacks.Callback):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        if steps_of(self.model.optimizer) >= self.number:
            print(SAID, flush=True)
            self.number = math.inf


def kill_while_saving(number, training):
    replace = os.replace

    def replace_or_die(old, new):
        if steps_of(training.detector.optimizer) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    files.os.replace = replace_or_die


def interrupt_evaluation(number):
    """SIGTERM after so many batches of the evaluation."""
    update = trainer.CocoEvaluator.update
    calls = []

    def update_and_interrupt(self, *arguments):
        update(self, *arguments)
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.CocoEvaluator.update = update_and_interrupt


def slowly(batch, logs):
    """Gives JAX's service, which looks for signals once a second, time for it."""
    time.sleep(0.5)


def main(data, run_dir, when=None, number=0):
    trainer.make_deterministic()
    trainer.builder.build_detector = build
    # Before anything else: its server must start before the first operation.
    if keras.backend.backend() == "jax":
        strategy = make_strategy("data_parallel")
    else:
        strategy = make_strategy(
            "multi_worker" if "TF_CONFIG" in os.environ else "one_device"
        )
    splits = find_coco_splits(data)
    training = trainer.Trainer(
        CONFIG,
        read_coco(*splits["train"]),
        read_coco(*splits["val"], training=False),
        run_dir,
        strategy,
        save_every_steps=1,
        evaluate_every=3,
    )
    callbacks = []
    if when == "save":
        kill_while_saving(int(number), training)
    elif when == "evaluation":
        interrupt_evaluation(int(number))
    elif when == "say":
        callbacks.append(Say(int(number)))
    elif when is not None:
        what = {"step": signal.SIGKILL, "term": signal.SIGTERM}[when]
        callbacks.append(Kill(int(number), what))
    if "KERAS_DISTRIBUTION_PROCESS_ID" in os.environ:
        callbacks.append(keras.callbacks.LambdaCallback(on_train_batch_end=slowly))
    try:
        training.fit(verbose=0, callbacks=callbacks)
    except preemption.PreemptedError as stop:
        print(stop)
        return preemption.EXIT_STATUS


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
