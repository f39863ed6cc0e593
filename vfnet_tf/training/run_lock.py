"""One process at a time on a run directory, on network drives too."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid

NAME = ".running"
#: Seconds between two signs of life of the process that has the directory.
BEAT = 15.0
#: Seconds without a sign of life after which a process on another host is gone.
PATIENCE = 60.0


@contextlib.contextmanager
def only_this_process(run_dir):
    """Keeps other processes from the same run directory.

    A file names host and process. It is made by a hard link, which is atomic on network
    drives too, and is touched every `BEAT` seconds. A process that was killed is
    recognised on the same host by its number, from another host by its silence.

    Args:
        run_dir: folder; it is made.

    Raises:
        ValueError: another process trains there.
    """
    path = pathlib.Path(run_dir) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _take(path):
        _remove_stale(path)
    is_over = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, is_over), daemon=True)
    beating.start()
    try:
        yield
    finally:
        is_over.set()
        beating.join()
        path.unlink(missing_ok=True)


def _take(path):
    """Makes the file, unless it is there; returns whether it was made."""
    own = path.with_name(f"{NAME}-{uuid.uuid4().hex[:8]}")
    about = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _start_of(os.getpid()),
    }
    own.write_text(json.dumps(about), encoding="utf-8")
    try:
        os.link(own, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        # A drive without hard links, such as FAT: exclusive creation is what it has.
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(about, file)
            return True
        except FileExistsError:
            return False
    finally:
        own.unlink(missing_ok=True)


def _remove_stale(path):
    """Removes the file of a process that is gone; raises if it is alive."""
    try:
        text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except OSError:  # it has ended meanwhile
        return
    try:
        about = json.loads(text)
        host, process = str(about["host"]), int(about["process"])
        started = about.get("started")
    except (ValueError, TypeError, KeyError, AttributeError):
        host, process, started = "an unknown host", 0, None
    if host == socket.gethostname() and os.name == "posix":
        is_alive = started == _start_of(process) and _exists(process)
    else:
        is_alive = _gives_sign(path, touched, f"process {process} on {host}")
    if is_alive:
        raise ValueError(
            f"Process {process} on {host} trains in this run directory. Stop it, or give "
            f"another directory (--out). Received: run_dir={path.parent}"
        )
    # Renamed first: of two processes that find it stale, one removes it.
    gone = path.with_name(f"{NAME}-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        if gone.read_text(encoding="utf-8") != text:
            os.rename(gone, path)  # a new one, made in between
            return
        gone.unlink()


def _gives_sign(path, touched, who):
    """Whether the file is touched within `PATIENCE` seconds."""
    print(
        f"waiting    for a sign of life of {who}, which used {path.parent}", flush=True
    )
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(min(1.0, PATIENCE / 10))
        try:
            if path.stat().st_mtime != touched:
                return True
        except OSError:  # it has ended
            return False
    return False


def _exists(process):
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process > 0


def _start_of(process):
    """When a process started, in ticks; None where /proc does not tell.

    Numbers of processes are given again, after a restart of a container at once.
    """
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _beat(path, is_over):
    while not is_over.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
