"""Files that appear whole or not at all."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path, places=()):
    """Yields a path to write to; the file takes the place of `path` at the end.

    What was there moves on to the next of `places`, and so on; the last one goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same ending: Keras insists on `.weights.h5`.
    temporary = path.with_name(f".unfinished-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            # Before the rename, or a power cut could leave an empty file.
            os.fsync(file.fileno())
        for new, old in zip(places[:0:-1], places[-2::-1], strict=True):
            if old.exists():
                os.replace(old, new)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    """Makes renames in a folder last through a power cut, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
