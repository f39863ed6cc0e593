"""Three steps of one global batch over replicas: `replica_steps.py FILE HOW [...]`.

HOW is `mirrored COUNT` (logical CPUs of one process), `worker INDEX PORT PORT` (two
processes), `jax COUNT` (devices of one process) or `process INDEX PORT PORT` (two of JAX).
The results go to the file. Worker 1 and process 1 kill themselves within a last step, to
test the other one.

Devices, cluster and backend must be chosen before the first operation of a process.
Weights and batch are numpy's, so that both backends have the same.
"""

import os
import re
import signal
import sys
import time

import numpy as np

from tests.loopback import jax_variables, process_variables, worker_variables
from tests.uneven_batch import global_batch

STEPS = 3
LARGE_ID = 2**40


def make_detector(run_eagerly=False):
    from tests.conftest import build_two_levels
    from vfnet_tf.training.optimizers import SGD

    # Without star and refinement, which test_dense_detector.py runs on two replicas.
    detector = build_two_levels(star=False, refine=False)
    rng = np.random.default_rng(4)
    for weight in detector.weights:
        if len(weight.shape) > 1:
            scale = np.prod(weight.shape[:-1]) ** -0.5
            weight.assign(rng.normal(0.0, scale, weight.shape).astype("float32"))
    # After one step the momentum is the gradient, as it was summed.
    optimizer = SGD(0.01, momentum=0.9, weight_decay=0.0)
    detector.compile(optimizer, run_eagerly=run_eagerly)
    return detector


def recorder(detector, results):
    """A callback that stores the logs, the first gradients and the last weights."""
    import keras

    def keep(epoch, logs):
        results.update({f"logs/{epoch}/{name}": logs[name] for name in logs})
        variables = detector.trainable_variables
        slots = detector.optimizer.momentums
        for variable, slot in zip(variables, slots, strict=True):
            # A second detector of a process is `vf_net_1`.
            path = re.sub(r"^vf_net[_0-9]*/", "", variable.path)
            if epoch == 0:
                results[f"gradient/{path}"] = keras.ops.convert_to_numpy(slot)
            results[f"weight/{path}"] = keras.ops.convert_to_numpy(variable)

    return keras.callbacks.LambdaCallback(on_epoch_end=keep)


def untuned(batches):
    """Without autotuning, as in `build_pipeline`: closing could wait a minute."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def mirrored(count):
    import tensorflow as tf

    from vfnet_tf.training.strategies import make_strategy

    devices = [f"CPU:{number}" for number in range(count)]
    with make_strategy("mirrored", devices).scope():
        # A graph takes seconds for each replica to trace, so only two replicas have one.
        detector = make_detector(run_eagerly=count != 2)
    results = {}
    detector.fit(
        untuned(tf.data.Dataset.from_tensors(global_batch())),
        epochs=STEPS,
        verbose=0,
        callbacks=[recorder(detector, results)],
    )
    return results


def worker(index, ports):
    os.environ.update(worker_variables(index, *ports))
    from vfnet_tf.training import loop, strategies

    strategy = strategies.make_strategy("multi_worker")
    import keras
    import tensorflow as tf

    with strategy.scope():
        detector = make_detector()
    share = {k: v[2 * index : 2 * index + 2] for k, v in global_batch().items()}
    batches = untuned(tf.data.Dataset.from_tensors(share))
    results = {"description": strategies.describe(strategy, 4)}
    history = loop.fit(
        detector, batches, STEPS, callbacks=[recorder(detector, results)], verbose=2
    )
    results["history"] = len(history.history["loss"])
    results["evaluated"], results["stopped_after"] = evaluate(strategy)
    results["refused"] = refusal(strategy, index)
    yield results
    start = time.monotonic()
    dying = keras.callbacks.LambdaCallback(on_train_batch_end=suicide(index))
    try:
        loop.fit(detector, batches.repeat(2), 1, callbacks=[dying], verbose=0)
    except loop.WorkerLostError as error:
        results["lost"] = str(error)
    results["seconds"] = time.monotonic() - start
    yield results


def refusal(strategy, index):
    from vfnet_tf.training import loop

    try:
        loop.check_same_everywhere(strategy, finished_epochs=index)
    except ValueError as error:
        return str(error)


def suicide(index):
    def end(step, logs):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return end


def evaluate(strategy):
    """The ids and values that the evaluator gets, and the epoch of an early stop.

    The AP of an epoch is the value of one image, which not every process has itself.
    """
    import contextlib

    import keras
    import tensorflow as tf

    from vfnet_tf.training import strategies
    from vfnet_tf.training.callbacks import ResumableCheckpoint
    from vfnet_tf.training.coco_evaluation import CocoEvaluation
    from vfnet_tf.training.early_stopping import StopWithoutImprovement

    class Finder(keras.Model):
        def detect(self, images, image_size, scale):
            return {"boxes": keras.ops.mean(images, axis=(1, 2, 3))[:, None]}

    class Recorder:
        epoch = 0

        def reset(self):
            self.found = []

        def update(self, image_ids, detections):
            self.found += zip(image_ids, detections["boxes"][:, 0], strict=True)

        def evaluate(self):
            self.epoch += 1
            return {"AP": float(dict(self.found)[(2, 6, 5, 5, 6)[self.epoch - 1]])}

    with strategy.scope():
        finder = Finder()
    # Seven images in two batches of four, one row of padding; image n is full of n.
    # An id is larger than JAX's integers.
    ids = np.array([0, 1, 2, 3, 4, 5, 6, -1])
    shares = strategies.shares_of(strategy)
    rows = ids.reshape(2, shares["num_replicas"], -1)[:, shares["replicas"][0]]
    images = np.broadcast_to(rows[..., None, None, None], (*rows.shape, 4, 4, 3))
    ones = np.ones((*rows.shape, 2), "float32")
    values = {"images": images.astype("float32"), "image_size": ones, "scale": ones}
    values["image_id"] = np.where(rows == 4, LARGE_ID, rows)
    batches = untuned(tf.data.Dataset.from_tensor_slices(values))
    evaluation = CocoEvaluation(batches, Recorder())
    checkpoint = ResumableCheckpoint("unwritten", writes=False)
    stopper = StopWithoutImprovement(checkpoint, patience=2)
    is_jax = keras.backend.backend() == "jax"
    with strategy.scope() if is_jax else contextlib.nullcontext():
        for callback in (evaluation, checkpoint, stopper):
            callback.set_model(finder)
        for epoch in range(5):
            logs = {"loss": 0.0}
            for callback in (evaluation, checkpoint, stopper):
                callback.on_epoch_end(epoch, logs)
            if getattr(finder, "stop_training", False):
                break
    return np.array(evaluation.evaluator.found), epoch + 1


def on_jax(index=None):
    """Three steps with all devices; `index`: which of two processes this is."""
    import keras
    import tensorflow as tf

    from vfnet_tf.training import loop
    from vfnet_tf.training.strategies import describe, make_strategy

    strategy = make_strategy("data_parallel")
    batch = global_batch()
    if index is not None:
        batch = {name: v[2 * index : 2 * index + 2] for name, v in batch.items()}
    with strategy.scope():
        detector = make_detector()
        results = {"description": describe(strategy, 4)}
        batches = untuned(tf.data.Dataset.from_tensors(batch))
        detector.fit(
            batches, epochs=STEPS, verbose=0, callbacks=[recorder(detector, results)]
        )
    devices = detector.trainable_variables[0].value.sharding.device_set
    results["devices"] = len(devices)
    results["evaluated"], results["stopped_after"] = evaluate(strategy)
    results.update(detect_both_ways(strategy, detector))
    if index is None:
        yield results
        return
    results["refused"] = refusal(strategy, index)
    yield results
    start = time.monotonic()
    dying = keras.callbacks.LambdaCallback(on_train_batch_end=suicide(index))
    try:
        with strategy.scope(), loop.explaining_lost_workers():
            detector.fit(batches.repeat(2), verbose=0, callbacks=[dying])
            # The error comes when a result is read.
            detector.get_weights()
    except loop.WorkerLostError as error:
        results["lost"] = str(error)
    results["seconds"] = time.monotonic() - start
    yield results
    # JAX would wait for the other one, up to 100 s, and then abort.
    os._exit(0)


def detect_both_ways(strategy, detector):
    """Detections of all images by all devices and, in one process, by one of them."""
    import keras

    from vfnet_tf.training import loop
    from vfnet_tf.training.strategies import shares_of

    detector.max_detections = 5  # each is a piece of the program to compile
    detector.score_threshold = 0.01
    batch = {
        "images": global_batch()["images"],
        "image_size": np.array([[64, 96], [60, 90], [32, 96], [64, 64]], "float32"),
        "scale": np.array([[1.0, 1.0], [0.5, 0.5], [1.0, 2.0], [1.0, 1.0]], "float32"),
    }
    results = {}
    shares = shares_of(strategy)
    first = shares["replicas"][0] * (4 // shares["num_replicas"])
    own = {n: v[first:][: 4 // shares["num_replicas"]] for n, v in batch.items()}
    spread = detector.detect(**loop.spread(strategy, own))
    if shares["num_replicas"] == 1:
        whole = detector.detect(**batch)
        results = {f"whole/{n}": keras.ops.convert_to_numpy(whole[n]) for n in whole}
        results["whole_on"] = len(whole["boxes"].sharding.device_set)
    results["spread_on"] = len(spread["boxes"].sharding.device_set)
    joined = loop.gather(strategy, spread)
    return {**results, **{f"spread/{name}": v for name, v in joined.items()}}


def set_devices(count):
    import tensorflow as tf

    import tests.conftest  # noqa: F401  (it asks for two)

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * count,
    )


def main(path, how, *arguments):
    numbers = [int(argument) for argument in arguments]
    if how in ("jax", "process"):
        variables = jax_variables if how == "jax" else process_variables
        os.environ.update(variables(*numbers))
        for results in on_jax(None if how == "jax" else numbers[0]):
            np.savez(f"{path}.npz", **results)
    elif how == "worker":
        set_devices(1)
        for results in worker(numbers[0], numbers[1:]):
            np.savez(f"{path}.npz", **results)
    else:
        set_devices(max(numbers))
        for number in numbers:
            results = mirrored(number)
            np.savez(f"{path}{number}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
