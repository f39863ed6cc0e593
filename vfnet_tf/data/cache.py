"""Where the package keeps what it can make again: image checks, the synthetic set."""

import os
import pathlib


def cache_directory():
    """Returns the cache folder as a `Path`; it need not exist yet.

    `VFNET_TF_CACHE` names it, else it is `~/.cache/vfnet_tf`.
    """
    named = os.environ.get("VFNET_TF_CACHE")
    if named:
        return pathlib.Path(named).expanduser()
    return pathlib.Path.home() / ".cache" / "vfnet_tf"
