"""The memory and the devices that a training may use."""

import dataclasses
import os
import pathlib
import subprocess

#: Instruction sets of CPUs, any of which TensorFlow needs to convolve in a half precision
#: without converting each number by itself.
HALF_FLAGS = {
    "mixed_bfloat16": frozenset({"avx512f", "avx_ne_convert", "bf16"}),
    "mixed_float16": frozenset({"avx512_fp16", "avx_ne_convert", "asimdhp"}),
}
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


def on_cpu():
    """Whether Keras sees no GPU and no other accelerator."""
    import keras

    return keras.distribution.list_devices()[0].startswith("cpu")


def precision_faults(precision, flags):
    """What is wrong with a precision on a CPU.

    Args:
        precision: str, a dtype policy of Keras.
        flags: set of str, see `vfnet_tf.processor.cpu_flags`; empty if unknown.

    Returns:
        list of str, empty for a precision that the CPU computes in, or if unknown.
    """
    needed = HALF_FLAGS.get(precision, frozenset())
    if not flags or not needed or needed & flags:
        return []
    return [
        f"this CPU does not compute in {precision}: a step takes more than ten times as "
        "long as in float32. Train with --precision float32"
    ]


def hardware_of(strategy):
    """The `Hardware` of a strategy of `make_strategy`."""
    from vfnet_tf.training.strategies import num_replicas

    replicas = num_replicas(strategy)
    if not on_cpu():
        return Hardware(True, replicas, gpu_memory())
    total, limit = host_memory()
    # Without a figure, the smallest machine that is sold for this work.
    memory = min(number for number in (total or 8 * 2**30, limit) if number)
    return Hardware(False, replicas, memory // replicas)
