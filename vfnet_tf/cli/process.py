"""Settings of a process that must come before the import of TensorFlow."""

import contextlib
import glob
import os
import pathlib
import subprocess
import sys

from vfnet_tf._imports import ImportWatch
from vfnet_tf.cli import start_notes

#: Files of NVIDIA's, WSL's and AMD's drivers.
DEVICE_FILES = ("/dev/nvidia*", "/dev/dxg", "/dev/kfd")


def has_device():
    """Whether this computer has the driver of a GPU."""
    return any(glob.glob(pattern) for pattern in DEVICE_FILES)


def hide_start_notes():
    """Keeps from stderr what TensorFlow says of its start where it is no news.

    A `TF_CPP_MIN_LOG_LEVEL` in the environment wins, and 0 shows all. Without a GPU the
    level is 3, since errors that are only logged are then of the search for one. Errors
    that matter are exceptions, but for those of a cluster.
    """
    quiet = "2" if has_device() or "TF_CONFIG" in os.environ else "3"
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", quiet)
    if level in ("1", "2", "3"):
        ImportWatch("tensorflow", lambda: _notes_held_back(level)).start()


@contextlib.contextmanager
def _notes_held_back(level):
    """Sends what is written to file descriptor 2 through `start_notes`."""
    script = str(pathlib.Path(start_notes.__file__))
    command = [sys.executable, "-I", "-S", script, level, str(has_device())]
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
        reader = subprocess.Popen(command, stdin=subprocess.PIPE)
    except (OSError, AttributeError, ValueError):  # no stderr, or no process to be had
        yield
        return
    try:
        os.dup2(reader.stdin.fileno(), 2)
        yield
        sys.stderr.flush()
        os.write(2, start_notes.DONE.encode())
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        reader.stdin.close()
        # A process that the import has left behind may hold the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(timeout=5)
