"""The state of a stopped training: weights, optimizer, metrics and place in the run."""

import contextlib
import json
import os
import warnings
import zlib
from pathlib import Path

import h5py
import keras
from keras import ops

from vfnet_tf.files import replacing, reserve
from vfnet_tf.weights_file import HDF5_ERRORS, check_seal, seal

# The attribute of an HDF5 file that holds the place in the run, as JSON.
STATE_ATTRIBUTE = "vfnet_tf_training_state"
_CHECK = f"{STATE_ATTRIBUTE}_crc32"


@contextlib.contextmanager
def without_distribution():
    """Lets one process of JAX save alone.

    To save, Keras 3.15 makes an optimizer, whose variable would be compared over all
    processes.
    """
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def save_without_optimizer(model, path, state):
    """Writes a model's weights; the file appears whole or not at all.

    Args:
        model: built; compiled or not.
        path: of the `.weights.h5`.
        state: dict of JSON types, for `read_state`.
    """
    path = Path(path)
    whole = path.with_name(f".whole-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(whole)
        with replacing(path) as temporary:
            copy_without_optimizer(whole, temporary)
            write_state(temporary, state)
    finally:
        whole.unlink(missing_ok=True)


def write_state(path, state):
    """Writes a dict of JSON types into an HDF5 file, for `read_state`."""
    text = json.dumps(state)
    with h5py.File(path, "a") as file:
        file.attrs[STATE_ATTRIBUTE] = text
        file.attrs[_CHECK] = zlib.crc32(text.encode())


def read_state(path):
    """Reads the place in the run at which a checkpoint was saved.

    Args:
        path: of a file of `ResumableCheckpoint`.

    Returns:
        dict: `epoch` (finished epochs), `step` (finished batches of the next one),
        `iterations` (optimizer steps), `optimizer` (class name), `monitor`, `best` (its
        best value or None) and `best_epoch`.

    Raises:
        ValueError: the file cannot be read, or has no such record.
    """
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs[STATE_ATTRIBUTE]
            check = file.attrs.get(_CHECK)
        if check not in (None, zlib.crc32(text.encode())):
            raise ValueError("the state is not what was written")
        return json.loads(text)
    except HDF5_ERRORS as error:
        raise ValueError(
            "A checkpoint must be a whole HDF5 file with a training state. "
            f"Received: path={path} ({error})"
        ) from error


def read_first(paths):
    """The first state that can be read, `(path, state)`; warns of those that cannot."""
    problems = []
    for path in paths:
        try:
            state = read_state(path)
            check_seal(path)
        except ValueError as error:
            problems.append(error)
            continue
        for problem in problems:
            warnings.warn(
                f"{problem} Going on from the state before it, {path}, saved after "
                f"{state['iterations']} steps.",
                stacklevel=3,
            )
        return path, state
    if len(problems) == 1:
        raise problems[0]
    raise ValueError("No state can be read. " + " ".join(map(str, problems)))


def sync_state(model):
    """With JAX, copies the values of a running `fit` to the model's variables."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def read_metrics(model):
    """Values of the variables of a model's metrics, name -> list of floats."""
    return {
        metric.name: [float(ops.convert_to_numpy(v)) for v in metric.variables]
        for metric in model.metrics
        if all(len(variable.shape) == 0 for variable in metric.variables)
    }


def assign_metrics(model, values):
    """Restores the values of `read_metrics`."""
    for metric in model.metrics:
        found = values.get(metric.name, [])
        for variable, value in zip(metric.variables, found, strict=False):
            variable.assign(value)


def scope_of(model):
    """The scope of a model's `tf.distribute` strategy, if it has one."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def steps_of(optimizer):
    """The number of steps of an optimizer, int."""
    return int(ops.convert_to_numpy(optimizer.iterations))


def copy_without_optimizer(source, target):
    """Copies a `.weights.h5` file without the state of its optimizer."""
    reserve(target, os.path.getsize(source))
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        for name in old:
            if name != "optimizer":
                old.copy(name, new)
        for name, value in old.attrs.items():
            new.attrs[name] = value
    seal(target)
