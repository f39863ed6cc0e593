"""Where a model trains: one device, or a mirror of it on each (`tf.distribute`)."""

import functools

import keras
import tensorflow as tf

STRATEGIES = ("one_device", "mirrored")


def make_strategy(name="mirrored", devices=None):
    """Builds a strategy; build and compile the model inside its `scope()`.

    Args:
        name: `"one_device"`, the first device; `"mirrored"`, a copy of the model on
            every device, each with its share of the batch.
        devices: TensorFlow device names such as `["GPU:0", "GPU:1"]`; the default is
            all GPUs that TensorFlow sees, or else the CPU.

    Returns:
        `tf.distribute.Strategy`; for the same devices the same mirrored one.

    Raises:
        ValueError: an unknown name, no device, a device that does not exist, or twice
            the same.
    """
    if name not in STRATEGIES:
        raise ValueError(f"`name` must be one of {STRATEGIES}. Received: name={name}")
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


@functools.lru_cache
def _mirrored_strategy(devices):
    # TF 2.21 numbers the all-reduces of every MirroredStrategy from the same start, so
    # a second one on the same devices meets the first one's ("Shape mismatch in the
    # collective instance"). One process, one strategy for each set of devices.
    return tf.distribute.MirroredStrategy([f"/device:{name}" for name in devices])


def describe(strategy, batch_size=None):
    """Says in one line what a strategy trains on.

    Args:
        strategy: `tf.distribute.Strategy`.
        batch_size: int, images per step over all replicas, or None.

    Returns:
        str such as `"MirroredStrategy on GPU:0, GPU:1: 2 replicas, batch 8 = 2 x 4"`.
    """
    devices = ", ".join(map(_short_name, strategy.extended.worker_devices))
    replicas = strategy.num_replicas_in_sync
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
    """Refuses what would fail, or train otherwise than asked, on several replicas.

    With one replica everything is accepted, `MirroredStrategy` or not, but for
    `accumulate_steps`.

    Args:
        strategy: `tf.distribute.Strategy`.
        batch_size: int, images per step over all replicas, or None.
        jit_compile: bool or `"auto"`, as in `compile`.
        steps_per_execution: int, as in `compile`.
        dtype_policy: str, a `keras.DTypePolicy`, or None for the global policy.
        optimizer: `keras.optimizers.Optimizer` or None.
        accumulate_steps: int, batches per update.

    Raises:
        ValueError: a combination that does not work; says what to do instead.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size is not None and (batch_size < 1 or batch_size % replicas):
        raise ValueError(
            f"The batch must be a positive multiple of the {replicas} replicas, that "
            f"each may have the same share. Received: batch_size={batch_size}"
        )
    # Keras 3.15 accumulates in a condition, where no strategy may join its replicas:
    # RuntimeError at the first step, with one replica too.
    if accumulate_steps > 1 and not isinstance(
        strategy, tf.distribute.OneDeviceStrategy
    ):
        raise ValueError(
            "Gradients are accumulated on one device only: choose the strategy "
            f"one_device. Received: accumulate_steps={accumulate_steps} with "
            f"{type(strategy).__name__}"
        )
    if replicas == 1:
        return
    # TF 2.21, Keras 3.15: both end in InvalidArgumentError at the first step.
    if jit_compile is True:
        raise ValueError(
            "XLA does not compile a step that spans replicas: leave `jit_compile` "
            f"False, or train on one device. Received: jit_compile={jit_compile} with "
            f"{replicas} replicas"
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
