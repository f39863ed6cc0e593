"""The memory and the devices that a training may use."""

import dataclasses
import os
import pathlib
import subprocess

#: Taken for a GPU that does not tell its memory.
UNKNOWN_GPU_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    Attributes:
        is_gpu: bool, whether the replicas are on GPUs; other accelerators count as one.
        replicas: int, copies of the model, all together.
        memory: bytes for one replica.
    """

    is_gpu: bool
    replicas: int
    memory: int


def host_memory():
    """Memory of the machine, and what a container leaves of it.

    Returns:
        (bytes or None if unknown, bytes or None without a limit).
    """
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None, None
    try:
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max" is no limit
        limit = None
    return total, limit


def gpu_memory():
    """Bytes of the smallest GPU that `nvidia-smi` lists; `UNKNOWN_GPU_BYTES` if none."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return min(int(line) for line in answer.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return UNKNOWN_GPU_BYTES


def hardware_of(strategy):
    """The `Hardware` of a strategy of `make_strategy`."""
    import keras

    from vfnet_tf.training.strategies import num_replicas

    replicas = num_replicas(strategy)
    if not keras.distribution.list_devices()[0].startswith("cpu"):
        return Hardware(True, replicas, gpu_memory())
    total, limit = host_memory()
    # Without a figure, the smallest machine that is sold for this work.
    memory = min(number for number in (total or 8 * 2**30, limit) if number)
    return Hardware(False, replicas, memory // replicas)
