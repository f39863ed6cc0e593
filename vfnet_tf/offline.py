"""Whether weights may be downloaded: `VFNET_OFFLINE=1` forbids it."""

import contextlib
import os
import urllib.error
import urllib.request


def is_offline():
    """Whether the user forbids to download weights, whatever the place."""
    return os.environ.get("VFNET_OFFLINE", "0") not in ("", "0")


@contextlib.contextmanager
def urllib_obeys():
    """Lets urllib, by which Keras downloads, open nothing if downloads are forbidden."""
    if not is_offline():
        yield
        return
    earlier = urllib.request._opener
    refusing = urllib.request.OpenerDirector()
    refusing.add_handler(_Refusing())
    urllib.request.install_opener(refusing)
    try:
        yield
    finally:
        urllib.request.install_opener(earlier)


class _Refusing(urllib.request.BaseHandler):
    def default_open(self, request):
        raise urllib.error.URLError("VFNET_OFFLINE forbids to download it")
