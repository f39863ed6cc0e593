"""Where exports are written: checked before minutes of work, swept after a kill."""

import contextlib
import os
import pathlib
import shutil
import time
import uuid

#: Seconds without a change after which an unfinished export belongs to no process.
ABANDONED = 3600.0


def check_place(path):
    """Raises a ValueError for a path at which nothing can be written.

    These are a link whose target is gone, a place below a file, and a folder that may
    not be written to.
    """
    path = pathlib.Path(path)
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{path} is a link to {os.readlink(path)}, which does not exist: delete the "
            f"link, or make its target. Received: {path}"
        )
    parent = path.absolute().parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"{parent} must be a folder. Received: {path}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{parent} cannot be written to. Received: {path}")


def check_file(path, suffix, overwrite=False):
    """Checks where a file is to be written.

    Args:
        path: of the file.
        suffix: str, the ending that it must have, such as `".onnx"`.
        overwrite: bool, whether a file that is there may be replaced.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: the path is not such a file, is there already, or cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != suffix or path.is_dir():
        raise ValueError(f"`path` must be a file *{suffix}. Received: path={path}")
    if path.exists() and not overwrite:
        raise ValueError(
            "`path` is there already; `overwrite` must be True "
            f"(--overwrite) to replace it. Received: path={path}"
        )
    check_place(path)
    return path


@contextlib.contextmanager
def replacing_folder(directory):
    """Yields a folder to make and fill, which takes the place of another at the end.

    Args:
        directory: of the result. If it is a link, what it points to is replaced.

    Yields:
        `pathlib.Path` of a folder that is not there yet.
    """
    directory = pathlib.Path(directory).resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = unfinished(directory.parent, directory.name)
    try:
        yield aside
        _put_in_place(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def unfinished(folder, name):
    """A path in a folder for what will be called `name`; sweeps what kills have left."""
    for path in pathlib.Path(folder).glob(f".{name}.????????.*"):
        if path.suffix in (".tmp", ".old") and _age_of(path) > ABANDONED:
            if path.is_symlink():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
    return pathlib.Path(folder) / f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def _age_of(path):
    """Seconds since anything below a folder has changed."""
    newest = 0.0
    for place in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, place.lstat().st_mtime)
    return time.time() - newest


def _put_in_place(aside, directory):
    """Renames `aside` to `directory`, and then deletes the old one."""
    if not directory.exists():
        return os.rename(aside, directory)
    old = aside.with_suffix(".old")
    os.rename(directory, old)
    try:
        os.rename(aside, directory)
    except OSError:
        os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
