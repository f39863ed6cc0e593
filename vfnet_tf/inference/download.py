"""Fetches a URL from a server that may be slow, broken or hostile."""

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

from vfnet_tf.foreign_text import one_line

_SCHEMES = ("http", "https")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_BLOCK = 2**16
# What may stand in a URL as it is; the others, such as blanks, are quoted.
_PLAIN = "%/:=&?~#+!$,;'@()*[]"


def fetch(url, max_bytes, seconds):
    """The content at an http or https address, also after redirects.

    Args:
        url: str.
        max_bytes: int, the most that it may have.
        seconds: float, from the look-up of the name to the last byte.

    Returns:
        bytes.

    Raises:
        ValueError: why there is none, on one line without control characters; whatever
            the server does, it is no other exception.
    """
    sockets, found = [], {}

    def work():
        try:
            found["content"] = _follow(url, max_bytes, seconds, sockets)
        except Exception as error:  # Handed over; see below.
            found["error"] = error

    # The time-out of a socket begins again with each byte; a look-up of a name has none.
    worker = threading.Thread(target=work, daemon=True, name="vfnet_tf download")
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        for one in sockets:  # Ends the thread too.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        raise ValueError(f"gives no whole answer in {seconds:g} seconds")
    if "content" in found:
        return found["content"]
    error = found["error"]
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    raise ValueError(f"cannot be had: {one_line(str(reason).strip(), 200)}") from None


def _follow(url, max_bytes, seconds, sockets):
    opener = urllib.request.OpenerDirector()
    # No handler of files, FTP or redirects: urllib's reads what comes with one whole.
    for handler in (urllib.request.ProxyHandler, _Plain, _Secure):
        opener.add_handler(handler())
    for _ in range(_MAX_REDIRECTS + 1):
        url = urllib.parse.quote(url, safe=_PLAIN)
        scheme = urllib.parse.urlsplit(url).scheme.lower()
        if scheme not in _SCHEMES:
            raise ValueError(f"it leads to {url}, which is neither http nor https")
        request = urllib.request.Request(url, headers={"User-Agent": "vfnet_tf"})
        request.sockets = sockets
        with opener.open(request, timeout=seconds) as answer:
            target = answer.headers.get("Location")
            if answer.status in _REDIRECTS and target:
                url = urllib.parse.urljoin(url, target)
                continue
            if not 200 <= answer.status < 300:
                raise ValueError(f"the server answers {answer.status} {answer.reason}")
            return _body(answer, max_bytes)
    raise ValueError(f"it leads on more than {_MAX_REDIRECTS} times")


def _body(answer, max_bytes):
    content = bytearray()
    while block := answer.read(_BLOCK):
        content += block
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes")
    if answer.length:
        raise ValueError(f"it ends {answer.length} bytes too early")
    return bytes(content)


def _noted(kind, sockets):
    """A connection of class `kind` that adds its socket to a list."""

    class Noted(kind):
        def connect(self):
            super().connect()
            sockets.append(self.sock)

    return Noted


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(
            _noted(http.client.HTTPConnection, request.sockets), request
        )


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(
            _noted(http.client.HTTPSConnection, request.sockets), request
        )
