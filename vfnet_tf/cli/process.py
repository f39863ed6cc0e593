"""Settings of a command's process, which must come before TensorFlow is imported."""

import contextlib
import ctypes
import os
import platform
import sys


def share_heap():
    """Lets all threads share one heap on a machine of few cores.

    glibc gives each thread a heap of its own, whose free pieces are lost to the others:
    a training step on two cores then takes 2.3 GB in place of 2.2. With many threads
    one heap would be waited for. `MALLOC_ARENA_MAX` in the environment wins.

    Returns:
        Whether it was done; glibc alone can.
    """
    few = (os.cpu_count() or 1) <= 4
    if not few or sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library
        m_arena_max = -8
        return ctypes.CDLL(None).mallopt(m_arena_max, 1) == 1
    return False


def choose_onednn():
    """Has TensorFlow use oneDNN, for a process that will train.

    Where there is AVX512-VNNI, TensorFlow does so itself. With AVX2 on two cores, a step
    of ResNet-50 on 4 images of 256x320 takes 3.75 s so in place of 6.8: Eigen's gradients
    of convolutions are slower, and their copies of the maps cost a third of that time in
    page faults. Inference stays without: 1x800x1344 took 7.1 s in place of 4.5.
    `TF_ENABLE_ONEDNN_OPTS` in the environment wins.
    """
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    if x86 and "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
