"""The server of `vfnet demo` under slow, broken and foreign requests."""

import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip("flask", reason="the extra `demo` is not installed")
pytest.importorskip("waitress", reason="the extra `demo` is not installed")

from tests.fuzzing import inputs
from vfnet_tf.cli import demo


class Describer:
    """A detector that finds nothing."""

    def describe(self):
        return {"detector": "VFNet"}

    def detect(self, contents):
        if not contents:
            raise ValueError("it has no byte")
        return {"detections": [], "seconds": 0.1}


@pytest.fixture
def start(monkeypatch):
    """Serves at an address, closes what is older than a second; gives the socket's name."""
    monkeypatch.setattr(demo, "IDLE_SECONDS", 1)
    monkeypatch.setattr(demo, "CONNECTION_SECONDS", 2)
    running = []

    def serve(host):
        listening = demo.listen(host, 0)
        place = listening.getsockname()[:2]
        server = demo.make_server(Describer(), [host], listening)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return place

    yield serve
    for server, thread in running:

        def interrupt(now):
            raise KeyboardInterrupt

        server.maintenance, server.next_channel_cleanup = interrupt, 0
        server.pull_trigger()
        thread.join(5)
        assert not thread.is_alive()


def ask(place, host, data=None):
    """The status of a request for `/model`, or of raw bytes; None without an answer."""
    if data is None:
        data = (
            f"GET /model HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
    with socket.create_connection(place, timeout=10) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(65536)
        except TimeoutError:
            raise
        except OSError:  # closed before it has read all
            return None
    return int(answer.split(b" ")[1]) if answer else None


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", "127.0.0.1 localhost"),
        ("::1", "[::1]"),
        ("127.0.0.2", "127.0.0.2"),
    ],
)
def test_it_answers_under_its_own_names_only(start, host, names):
    place = start(host)
    for name in names.split():
        assert ask(place, name) == ask(place, f"{name}:{place[1]}") == 200
    for name in (
        "evil.example",
        f"evil.example:{place[1]}",
        "",
        "[::2]",
        "127.0.0.1.a.b",
    ):
        assert ask(place, name) == 400
    no_host = b"GET /model HTTP/1.0\r\n\r\n"
    assert ask(place, None, no_host) == 400


def test_slow_clients_are_closed_and_hold_nobody_up(start):
    place = start("127.0.0.1")
    head = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n"
    count = demo.MAX_CONNECTIONS - 8
    clients = [socket.create_connection(place, timeout=10) for _ in range(count)]
    began = time.monotonic()
    for number, client in enumerate(clients):
        # Some send no byte, some half a head, some half a body.
        client.sendall((b"", head, head + b"\r\nabc")[number % 3])
    assert ask(place, "localhost") == 200
    assert time.monotonic() - began < 1
    open_ones = list(clients)
    while open_ones and time.monotonic() - began < 10:
        time.sleep(0.2)
        for client in list(open_ones):
            try:
                client.sendall(b"X")  # never idle for long
            except OSError:
                open_ones.remove(client)
    for client in clients:
        client.close()
    assert not open_ones
    assert ask(place, "localhost") == 200


def test_a_body_that_is_too_large_is_refused_unread(start):
    place = start("127.0.0.1")
    head = "POST /detect HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/octet-stream\r\n"
    length = f"Content-Length: {10 * demo.MAX_UPLOAD}\r\n\r\n"
    assert ask(place, None, (head + length).encode()) == 413
    assert ask(place, None, (head + "Content-Length: 1\r\n\r\na").encode()) == 200


@pytest.mark.fuzz
def test_broken_requests_leave_the_server_as_it_was(start):
    place = start("127.0.0.1")
    rng = np.random.default_rng(26)
    texts = "GET POST / /detect /../../etc/passwd %2e%2e/ HTTP/1.1 Host:localhost : "
    texts += (
        "Content-Length:-1 Content-Length:9e9 Transfer-Encoding:chunked zz Expect:100"
    )
    pieces = [b" ", b"\r\n", b"\r\n\r\n", b"\0", b"\xff\xfe", b"\x1b[2J", 9000 * b"a"]
    pieces += texts.encode().split()
    statuses = []
    for _ in range(inputs(200)):
        data = b"".join(pieces[k] for k in rng.integers(len(pieces), size=10))
        statuses.append(ask(place, None, data))
    assert 500 not in statuses and 400 in statuses
    good = b"GET /model HTTP/1.1\r\nHost: localhost\r\n"
    for traversal in (
        b"/../../../etc/passwd",
        b"/%2e%2e/%2e%2e/setup.py",
        b"//etc/passwd",
    ):
        assert ask(place, None, good.replace(b"/model", traversal) + b"\r\n") in (
            400,
            404,
        )
    assert ask(place, "localhost") == 200
