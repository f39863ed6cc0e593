"""Strategies: training on one device, on several, and on several hosts.

A replica is a copy of the model, with its share of the batch. A worker is a process with
one or more replicas. The first worker is the chief, which writes the files.
"""

import dataclasses
import functools
import json
import os

import keras
import tensorflow as tf

STRATEGIES = ("one_device", "mirrored", "multi_worker", "data_parallel")

_TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)

# Environment variables that `keras.distribution.initialize` reads.
_PROCESSES = "KERAS_DISTRIBUTION_"
_PROCESS_VARIABLES = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")


def make_strategy(name="mirrored", devices=None):
    """Builds a strategy; build and compile the model inside its `scope()`.

    Args:
        name: `"one_device"`, the first device; `"mirrored"`, a replica on every device;
            `"multi_worker"`, replicas in all processes that the environment variable
            `TF_CONFIG` lists; `"data_parallel"`, with the JAX backend, all devices of
            this process, or of all processes if the variables of `read_processes` are
            set. The last two must be made before any computation.
        devices: TensorFlow device names such as `["GPU:0", "GPU:1"]`, for `"one_device"`
            and `"mirrored"` only; the default is all GPUs that TensorFlow sees, or else
            the CPU.

    Returns:
        `tf.distribute.Strategy`, one object for each set of mirrored devices, or
        `keras.distribution.DataParallel`.

    Raises:
        ValueError: the name is unknown or not one of the Keras backend; a device does
            not exist or comes twice, or there is none; `TF_CONFIG` is missing or, like
            the variables of `read_processes`, malformed.
    """
    if name not in STRATEGIES:
        raise ValueError(f"`name` must be one of {STRATEGIES}. Received: name={name}")
    backend = "jax" if name == "data_parallel" else "tensorflow"
    if keras.backend.backend() != backend:
        raise ValueError(
            f"This strategy needs KERAS_BACKEND={backend}; with jax there is "
            "data_parallel, with tensorflow one_device, mirrored and multi_worker. "
            f"Received: name={name}, backend={keras.backend.backend()}"
        )
    if name in ("multi_worker", "data_parallel"):
        if devices is not None:
            raise ValueError(
                f"`devices` cannot be chosen for {name}. Received: devices={devices}"
            )
        return _multi_worker_strategy() if name == "multi_worker" else _data_parallel()
    found = [device.name for device in tf.config.list_logical_devices()]
    if devices is None:
        gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
        devices = gpus or ["CPU:0"]
    devices = [_short_name(device) for device in devices]
    known = {_short_name(device) for device in found}
    if not devices or len(set(devices)) < len(devices) or set(devices) - known:
        raise ValueError(
            f"`devices` must be distinct and among {sorted(known)}. "
            f"Received: devices={devices}"
        )
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(f"/device:{devices[0]}")
    return _mirrored_strategy(tuple(devices))


def split_cpu(number):
    """Makes several logical devices of the CPU, to try out replicas without GPUs.

    Args:
        number: int > 0.

    Returns:
        Their names, for `make_strategy`.

    Raises:
        ValueError: `number` is below 1, or TensorFlow has begun to compute.
    """
    if number < 1:
        raise ValueError(f"The CPU has one device at least. Received: {number}")
    devices = [tf.config.LogicalDeviceConfiguration()] * number
    try:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], devices
        )
    except RuntimeError as error:
        raise ValueError(
            "The CPU must be divided before TensorFlow computes anything. "
            f"Received: {number} devices"
        ) from error
    return [f"CPU:{index}" for index in range(number)]


@functools.lru_cache
def _mirrored_strategy(devices):
    # TF 2.21 numbers the all-reduces of every MirroredStrategy from the same start. A
    # second strategy on the same devices would fail with "Shape mismatch in the
    # collective instance".
    return tf.distribute.MirroredStrategy([f"/device:{name}" for name in devices])


def _multi_worker_strategy():
    read_cluster()  # TensorFlow takes a malformed one for a cluster of one.
    return tf.distribute.MultiWorkerMirroredStrategy()


@functools.cache
def _data_parallel():
    # The pipeline is TensorFlow's; the memory of the GPUs is for JAX.
    tf.config.set_visible_devices([], "GPU")
    if configured_cluster("data_parallel") is not None:
        # Once, and before JAX looks for devices: it would see only those of this process.
        keras.distribution.initialize()
    # Each process builds its own share of a batch.
    return keras.distribution.DataParallel(auto_shard_dataset=False)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together.

    Attributes:
        addresses: tuple of `"host:port"`, the chief's first; one without a cluster.
        index: int, the place of this process among them.
    """

    addresses: tuple[str, ...] = ("localhost",)
    index: int = 0

    @property
    def is_chief(self):
        return self.index == 0

    def __str__(self):
        role = "chief" if self.is_chief else "worker"
        return f"{role}, {self.index + 1} of {len(self.addresses)}: " + ", ".join(
            self.addresses
        )


def read_cluster(text=None):
    """Reads `TF_CONFIG`.

    Args:
        text: JSON; None takes the environment variable.

    Returns:
        A `Cluster`.

    Raises:
        ValueError: it is missing or no JSON, lists other tasks than a chief and workers,
            an address twice or without a port, or does not name the task of this process.
    """
    text = os.environ.get("TF_CONFIG") if text is None else text
    rule = (
        "TF_CONFIG must list the workers and say which one this is, as in "
        f"{_TF_CONFIG_EXAMPLE}."
    )
    if not text:
        raise ValueError(f"{rule} Received: nothing")
    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        chiefs, workers = list(jobs.get("chief", [])), list(jobs.get("worker", []))
        kind, index = task["type"], int(task["index"])
        ports = [int(address.rpartition(":")[2]) for address in (*chiefs, *workers)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{rule} Received: {text} ({type(error).__name__}: {error})"
        ) from None
    addresses = (*chiefs, *workers)
    own = {"chief": chiefs, "worker": workers}.get(kind, [])
    if (
        set(jobs) - {"chief", "worker"}
        or len(chiefs) > 1
        or len(set(addresses)) < len(addresses)
        or not all(0 < port < 2**16 for port in ports)
        or not 0 <= index < len(own)
    ):
        raise ValueError(
            f"{rule} At most one chief, other tasks than workers are not used, and no "
            f"address comes twice. Received: {text}"
        )
    return Cluster(addresses, index + (len(chiefs) if kind == "worker" else 0))


def read_processes():
    """Reads the variables by which the processes of JAX find each other.

    `keras.distribution.initialize` reads them too: `KERAS_DISTRIBUTION_JOB_ADDRESSES`
    (`host:port` of process 0, or of all with commas between), `..._NUM_PROCESSES` and
    `..._PROCESS_ID` (from 0).

    Returns:
        A `Cluster`.

    Raises:
        ValueError: one is missing, no number or out of range, an address has no port, or
            there are fewer or more addresses than processes.
    """
    found = {name: os.environ.get(_PROCESSES + name) for name in _PROCESS_VARIABLES}
    try:
        addresses = tuple(found["JOB_ADDRESSES"].split(","))
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        count, index = int(found["NUM_PROCESSES"]), int(found["PROCESS_ID"])
        is_good = (
            0 <= index < count
            and len(addresses) in (1, count)
            and all(":" in address for address in addresses)
            and all(0 < port < 2**16 for port in ports)
        )
    except (AttributeError, TypeError, ValueError):
        is_good = False
    if not is_good:
        raise ValueError(
            f"{_PROCESSES}JOB_ADDRESSES must hold host:port of process 0, or of all, "
            "..._NUM_PROCESSES their number and ..._PROCESS_ID which one this is, from "
            f"0. Received: {found}"
        )
    if len(addresses) < count:
        others = (f"process {number}" for number in range(1, count))
        addresses = (addresses[0], *others)
    return Cluster(addresses, index)


def configured_cluster(name):
    """Reads the processes of a strategy that is not made yet from the environment.

    Args:
        name: see `make_strategy`.

    Returns:
        A `Cluster`, or None for a strategy of one process.

    Raises:
        ValueError: see `read_cluster` and `read_processes`.
    """
    if name == "multi_worker":
        return read_cluster()
    is_set = any(_PROCESSES + variable in os.environ for variable in _PROCESS_VARIABLES)
    return read_processes() if name == "data_parallel" and is_set else None


def cluster_of(strategy):
    """The processes of a strategy, a `Cluster`."""
    if isinstance(strategy, keras.distribution.DataParallel):
        count = strategy.num_processes
        names = tuple(f"process {number}" for number in range(count))
        return Cluster(names, strategy.data_shard_id) if count > 1 else Cluster()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return read_cluster()
    return Cluster()


def num_replicas(strategy):
    """The number of replicas in all processes."""
    if isinstance(strategy, keras.distribution.DataParallel):
        return strategy.num_model_replicas
    return strategy.num_replicas_in_sync


def shares_of(strategy):
    """A dict of `replicas`, those of this process, and `num_replicas`, all of them.

    They are arguments of `data.pipeline.build_pipeline`, which cuts the batches of several
    processes. Keras cuts the batch of one process, which counts as one replica.
    """
    cluster = cluster_of(strategy)
    if len(cluster.addresses) == 1:
        return {"replicas": range(1), "num_replicas": 1}
    if isinstance(strategy, keras.distribution.DataParallel):
        local, replicas = 1, len(cluster.addresses)
    else:
        replicas = num_replicas(strategy)
        local = replicas // len(cluster.addresses)
    first = cluster.index * local
    return {"replicas": range(first, first + local), "num_replicas": replicas}


def describe(strategy, batch_size=None):
    """Describes a strategy in one line.

    Args:
        strategy: see `make_strategy`.
        batch_size: int, images per step over all replicas, or None.

    Returns:
        str such as MirroredStrategy on GPU:0, GPU:1: 2 replicas, batch 8 = 2 x 4.
    """
    if isinstance(strategy, keras.distribution.DataParallel):
        names = strategy.device_mesh.devices.flatten()
    else:
        names = strategy.extended.worker_devices
    devices = ", ".join(map(_short_name, names))
    replicas = num_replicas(strategy)
    text = f"{type(strategy).__name__} on {devices}: {replicas} replica"
    text += "" if replicas == 1 else "s"
    if batch_size is not None:
        text += f", batch {batch_size} = {replicas} x {batch_size / replicas:g}"
    return text


def check_settings(
    strategy,
    *,
    batch_size=None,
    jit_compile=False,
    steps_per_execution=1,
    dtype_policy=None,
    optimizer=None,
    accumulate_steps=1,
):
    """Refuses settings that would fail or train otherwise than asked.

    With one replica only `accumulate_steps` can be refused.

    Args:
        strategy: see `make_strategy`.
        batch_size: int, images per step over all replicas, or None.
        jit_compile: bool or `"auto"`, as in `compile`.
        steps_per_execution: int, as in `compile`.
        dtype_policy: str, a `keras.DTypePolicy`, or None for the global policy.
        optimizer: `keras.optimizers.Optimizer` or None.
        accumulate_steps: int, batches per update.

    Raises:
        ValueError: a combination does not work; names a remedy.
    """
    replicas = num_replicas(strategy)
    if batch_size is not None and (batch_size < 1 or batch_size % replicas):
        raise ValueError(
            f"The batch must be a positive multiple of the {replicas} replicas, that "
            f"each may have the same share. Received: batch_size={batch_size}"
        )
    # Keras 3.15 accumulates in a condition, where no strategy may join its replicas.
    if accumulate_steps > 1 and not isinstance(
        strategy, tf.distribute.OneDeviceStrategy
    ):
        raise ValueError(
            "Gradients are accumulated on one device only: choose the strategy "
            f"one_device. Received: accumulate_steps={accumulate_steps} with "
            f"{type(strategy).__name__}"
        )
    if replicas == 1 or isinstance(strategy, keras.distribution.DataParallel):
        # JAX compiles one program for the whole batch.
        return
    # With TF 2.21 and Keras 3.15 the next two fail at the first step.
    if jit_compile is True:
        raise ValueError(
            "XLA does not compile a step that spans replicas: leave out --jit "
            "(`jit_compile`), or train with --strategy one_device. Received: "
            f"jit_compile={jit_compile} with {replicas} replicas"
        )
    if steps_per_execution != 1:
        raise ValueError(
            "A loop of steps cannot span replicas: leave `steps_per_execution` at 1, "
            "or train on one device. Received: "
            f"steps_per_execution={steps_per_execution} with {replicas} replicas"
        )
    policy = keras.dtype_policies.get(dtype_policy or keras.config.dtype_policy())
    if policy.compute_dtype == "float16":
        raise ValueError(
            "The loss scale that float16 needs is not safe over replicas (keras#18666, "
            "keras#21366): choose mixed_bfloat16, or train on one device. Received: "
            f"dtype_policy={policy.name} with {replicas} replicas"
        )
    for name in ("clipnorm", "global_clipnorm"):
        value = getattr(optimizer, name, None)
        if value is not None:
            raise ValueError(
                "Keras clips each replica's gradient before the sum over replicas, "
                "which is another norm than one device would see: leave the clipping, "
                f"or train on one device. Received: {name}={value} with {replicas} "
                "replicas"
            )


def _short_name(device):
    """`"GPU:0"` of `"/job:localhost/replica:0/task:0/device:GPU:0"` or `"/gpu:0"`."""
    parts = device.upper().replace("/", ":").split(":")
    return ":".join(parts[-2:])
