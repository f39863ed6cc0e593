import contextlib
import ctypes
import os
import platform
import sys

# Before anything imports TensorFlow, whose start-up notes would bury a command's own
# lines. Its errors still show, and a value set outside wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def share_heap(num_cores):
    """Lets all threads share one heap on a machine of few cores.

    glibc gives each thread a heap of its own, whose free pieces are lost to the others:
    a training step on two cores then takes 2.3 GB in place of 2.2. With many threads
    one heap would be waited for. `MALLOC_ARENA_MAX` in the environment wins.

    Returns:
        Whether it was done; glibc alone can.
    """
    if num_cores > 4 or "MALLOC_ARENA_MAX" in os.environ:
        return False
    m_arena_max = -8
    return _mallopt(m_arena_max, 1)


def keep_heap(num_cores):
    """Keeps freed memory for the next allocation, on a machine of few cores.

    glibc gets each large tensor from the kernel and gives it back at once, and the
    kernel fills it with zeros, page by page: a training step of ResNet-50 on 4 images
    of 256x320 took 7 s on two cores, a third of it in the kernel, and takes 4 s so, with
    2.4 GB in place of 2.2. A `MALLOC_MMAP_MAX_` or `MALLOC_TRIM_THRESHOLD_` in the
    environment wins.

    Returns:
        Whether it was done; glibc alone can.
    """
    chosen = {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if num_cores > 4 or chosen:
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    never = -1
    return _mallopt(m_trim_threshold, never) and _mallopt(m_mmap_max, 0)


def prepare_training(num_cores):
    """Chooses, for a process that will train, what is faster on the CPU.

    Before TensorFlow is imported it turns on oneDNN, whose gradients of convolutions are
    faster: a training step of ResNet-50 on 8 images of 160x192 took 1.9 s in place of
    2.5 on two cores with AVX2. Where there is AVX512-VNNI, TensorFlow does so itself.
    Inference stays without: one image of 800x1344 took 7.1 s in place of 4.5. A
    `TF_ENABLE_ONEDNN_OPTS` in the environment wins.

    It also calls `keep_heap`.
    """
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if x86 and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    keep_heap(num_cores)


def _mallopt(option, value):
    """Sets an option of glibc's `malloc`; returns whether there is one and it took it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            return ctypes.CDLL(None).mallopt(option, value) == 1
    return False


share_heap(os.cpu_count() or 1)
