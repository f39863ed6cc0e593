import contextlib
import ctypes
import os
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
    if sys.platform != "linux" or num_cores > 4 or "MALLOC_ARENA_MAX" in os.environ:
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library
        m_arena_max = -8
        return ctypes.CDLL(None).mallopt(m_arena_max, 1) == 1
    return False


share_heap(os.cpu_count() or 1)
