"""`fit` over several processes, and their collective operations.

Keras 3.15's `fit` fails under `MultiWorkerMirroredStrategy`: it averages the logs of a
step, which are scalars, over an axis. With JAX it works.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf.training import strategies
from vfnet_tf.training.preemption import SaveOnSignal

# The logs of a step carry `SaveOnSignal.stop_requested` of all workers under this key.
_REQUESTED = "_stop_requested"

# Errors of TensorFlow's collectives after a process has ended.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

# Names in the errors of JAX's collectives: on CPUs, on GPUs, and on both.
_JAX_COLLECTIVES = ("Gloo", "NCCL", "coordination service")


class WorkerLostError(ConnectionError):
    """Another process of the training has ended, so this one cannot go on."""


def fit(model, batches, epochs=1, initial_epoch=0, callbacks=None, verbose="auto"):
    """`keras.Model.fit` for a model of a `MultiWorkerMirroredStrategy`.

    Every worker calls it with its own batches and otherwise the same arguments. `logs`
    are those of the whole batch on every worker, so that callbacks decide the same
    everywhere.

    Args:
        model: `keras.Model`, built and compiled in the strategy's scope; its metrics
            must be means.
        batches: `tf.data.Dataset` of known cardinality: for each step one batch for
            each replica of this worker, see `strategies.shares_of`.
        epochs, initial_epoch: as in `keras.Model.fit`.
        callbacks: list of Keras callbacks. A `SaveOnSignal` among them learns before each
            step whether any worker was told to stop before the last one.
        verbose: as in `keras.Model.fit`; workers but the chief are silent.

    Returns:
        `keras.callbacks.History`.

    Raises:
        WorkerLostError: another worker is gone.
        ValueError: the batches are not a multiple of the replicas of this worker.
    """
    strategy = model.distribute_strategy
    local = len(strategy.extended.worker_devices)
    steps, rest = divmod(int(batches.cardinality()), local)
    if rest or steps < 1:
        raise ValueError(
            "`batches` must hold one batch for each replica of this worker in each step. "
            f"Received: {int(batches.cardinality())} batches for {local} replicas"
        )
    if not strategies.cluster_of(strategy).is_chief:
        verbose = 0
    shares = strategy.distribute_datasets_from_function(lambda _: batches)
    with strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    stops = [each for each in callbacks or () if isinstance(each, SaveOnSignal)]
    callbacks = keras.callbacks.CallbackList(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=epochs,
        steps=steps,
        model=model,
    )
    train_step = _train_step_of_all(model)

    def train_function(iterator):
        stop_requested = tf.constant(
            max([0.0, *(stop.stop_requested for stop in stops)])
        )
        logs = train_step(next(iterator), stop_requested)
        requested = logs.pop(_REQUESTED)
        for stop in stops:
            stop.receive(requested)
        return logs

    # Callbacks look for it there, see `DataWait`.
    model.train_function = train_function
    model.stop_training = False
    logs = {}
    with explaining_lost_workers():
        callbacks.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            callbacks.on_epoch_begin(epoch)
            iterator = iter(shares)
            for step in range(steps):
                callbacks.on_train_batch_begin(step)
                logs = model.train_function(iterator)
                callbacks.on_train_batch_end(step, logs)
                if model.stop_training:
                    break
            # Callbacks such as CocoEvaluation add to it.
            logs = {name: float(value) for name, value in logs.items()}
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        model.optimizer.finalize_variable_values(model.trainable_weights)
        callbacks.on_train_end(logs)
    model.train_function = None  # `fit` of Keras would take it for its own
    return model.history


def _train_step_of_all(model):
    """A function of shares of a batch and `stop_requested`; returns means over all."""
    strategy = model.distribute_strategy

    def train_share(batch, stop_requested):
        # One tensor for all replicas would not be summed.
        return {**model.train_step(batch), _REQUESTED: tf.identity(stop_requested)}

    def train_step(batch, stop_requested):
        logs = strategy.run(train_share, args=(batch, stop_requested))
        return {
            name: strategy.reduce("MEAN", value, axis=None)
            for name, value in logs.items()
        }

    if model.run_eagerly:
        return train_step
    return tf.function(train_step, autograph=False)


def spread(strategy, batch):
    """Spreads the rows of a batch over the devices of JAX.

    Args:
        strategy: `keras.distribution.DataParallel`.
        batch: dict of arrays `[b, ...]`, the share of this process; b is a multiple of
            its devices.

    Returns:
        The dict of `jax.Array` `[b * processes, ...]`.
    """
    import jax

    return {
        name: jax.make_array_from_process_local_data(
            strategy.get_data_layout(value.shape).backend_layout, value
        )
        for name, value in batch.items()
    }


def gather(strategy, values):
    """Joins the shares of all replicas of all processes, in order of the replicas.

    Args:
        strategy: see `strategies.make_strategy`.
        values: nested per-replica values `[b, ...]`, of the same shape on all replicas;
            with JAX arrays computed from those of `spread`, or numpy arrays of each
            process.

    Returns:
        The same structure of tensors (numpy arrays with JAX) `[b * replicas, ...]`, the
        same on every process.
    """
    if not isinstance(strategy, keras.distribution.DataParallel):
        return tf.nest.map_structure(
            lambda value: strategy.gather(value, axis=0), values
        )
    from jax.experimental import multihost_utils

    def join(value):
        if value.dtype != "int64":
            return multihost_utils.process_allgather(value, tiled=True)
        # JAX would cast it to int32, and image ids can be larger.
        halves = np.ascontiguousarray(value)[..., None].view("int32")
        joined = multihost_utils.process_allgather(halves, tiled=True)
        return np.ascontiguousarray(joined).view("int64")[..., 0]

    return tf.nest.map_structure(join, values)


def check_same_everywhere(strategy, **numbers):
    """Waits for all processes and compares their numbers.

    Args:
        strategy: see `strategies.make_strategy`.
        **numbers: ints; the message names them by keyword.

    Raises:
        ValueError: the numbers differ; lists them by worker.
        WorkerLostError: another worker is gone.
    """
    if len(strategies.cluster_of(strategy).addresses) == 1:
        return
    for name, number in numbers.items():
        with explaining_lost_workers():
            found = _gather_number(strategy, number)
        if len(set(found)) > 1:
            raise ValueError(
                f"All workers must have the same {name}: do they share the run "
                f"directory and the data? Received: {name}={found}, by worker"
            )


def _gather_number(strategy, number):
    """The ints of all processes as a list, in their order."""
    own = np.array([number], "int64")
    if isinstance(strategy, keras.distribution.DataParallel):
        return gather(strategy, own).tolist()
    values = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant(own)
    )
    local = len(strategy.extended.worker_devices)
    return gather(strategy, values).numpy()[::local].tolist()


@contextlib.contextmanager
def explaining_lost_workers():
    """Turns the errors of a broken cluster into a `WorkerLostError`."""
    try:
        yield
    except _LOST as error:
        raise _lost(f"TensorFlow says: {error.message}") from error
    # JAX has no class of its own for them.
    except (RuntimeError, ValueError) as error:
        if not any(name in str(error) for name in _JAX_COLLECTIVES):
            raise
        raise _lost(f"JAX says: {error}") from error


def _lost(reason):
    return WorkerLostError(
        "Another worker is gone, so this one stops too. Look at the log of the one that "
        "ended first, then start all of them again with the same command: they go on "
        f"from the last saved epoch. {reason}"
    )
