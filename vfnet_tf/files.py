"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import uuid
from pathlib import Path


@contextlib.contextmanager
def replacing(path, places=(), *, is_shared=False):
    """Yields a path to write to; the file takes the place of `path` at the end.

    Args:
        path: of the file; missing folders are made.
        places: paths, `path` first: what was there moves on to the next one, and so on;
            the last one is deleted.
        is_shared: bool, whether other processes may write the same file at that time.
            Otherwise what a killed process left is overwritten by the next one.

    Yields:
        `Path` with the same ending, which Keras asks for in `.weights.h5`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{uuid.uuid4().hex[:8]}-" if is_shared else ""
    temporary = path.with_name(f".unfinished-{own}{path.name}")
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


def reserve(path, size):
    """Makes a file and takes its space, to find out before HDF5 whether it is there.

    HDF5 prints traces where a disk becomes full while it writes, and the process may end
    by a segmentation fault when its file is closed.

    Args:
        path: of the file, which is overwritten.
        size: int > 0, bytes.

    Raises:
        OSError: the folder cannot be written to, or has no room; names the file.
    """
    path = Path(path)
    with open(path, "wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(path.parent).free < size:  # Windows and macOS
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a drive without it
                return
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from None


def _sync_folder(folder):
    """Makes renames in a folder last through a power cut, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def filling_folder(path, is_filled=lambda: False):
    """Yields a folder to write to, which becomes `path` at the end or is removed.

    Args:
        path: `Path`, absent or an empty folder; missing parents are made.
        is_filled: function; where `path` cannot be replaced because another process has
            made the same folder, it returns True, and that one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp keeps other users out.
        try:
            if path.exists():
                path.rmdir()
            os.rename(aside, path)
        except OSError:
            if not is_filled():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def only_process(folder, when_waiting=lambda: None):
    """Keeps other processes that ask for the same folder waiting.

    Where files cannot be locked (Windows, some network drives) nobody waits.

    Args:
        folder: `Path`; it is made.
        when_waiting: function, called if another process has the folder.

    Yields:
        bool, whether the folder is locked: what others began there is then left over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as file:
        yield _lock(file, when_waiting)


def _lock(file, when_waiting):
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        when_waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def refuse_url(name, path):
    """Refuses a URL, which `Path` would take for a folder `gs:` here.

    Args:
        name: str, what the path is given as, such as `--out`.
        path: str or path.

    Raises:
        ValueError: if it is a URL.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{name} must be a local file or folder: name one, and copy it from or to the "
            "URL with its own tool, such as gcloud storage cp. "
            f"Received: {name} {path}"
        )


def cache_directory():
    """Returns the cache folder as a `Path`; it need not exist yet.

    `VFNET_TF_CACHE` names it, else it is `~/.cache/vfnet_tf`.

    Raises:
        ValueError: if it names a URL.
    """
    named = os.environ.get("VFNET_TF_CACHE")
    if named:
        refuse_url("VFNET_TF_CACHE", named)
        return pathlib.Path(named).expanduser()
    return pathlib.Path.home() / ".cache" / "vfnet_tf"


def write_file(path, content):
    """Writes text (as UTF-8) or bytes whole or not at all, see `replacing`."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path, is_shared=True) as temporary:
        temporary.write_bytes(data)
