"""What a server does ends in one line that names the URL; the good ones go on."""

import io
import os
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import inputs
from tests.loopback import raw_server
from vfnet_tf.cli.__main__ import terminal_text
from vfnet_tf.inference import sources
from vfnet_tf.inference.download import fetch

SECONDS = 1.0
MAX_BYTES = 2**20


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), 90, "uint8")).save(stream, "JPEG")
    return stream.getvalue()


def ok(body, *headers):
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(target):
    return [f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode()]


def slowly(data):
    for byte in data:
        yield bytes([byte])
        time.sleep(0.1)


def silent():
    time.sleep(4 * SECONDS)
    yield b""


def endless(first):
    yield first
    while True:
        yield bytes(2**16)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#: name -> (answer, part of the message)
HOSTILE = {
    "slow-headers": (lambda: slowly(b"HTTP/1.1 200 OK\r\nX: " + 999 * b"x"), "seconds"),
    "slow-body": (lambda: slowly(ok(bytes(999))), "seconds"),
    "silent": (silent, "seconds"),
    "bad-chunks": (lambda: [CHUNKED + b"zz\r\nabc\r\n"], "IncompleteRead"),
    "cut-chunks": (lambda: [CHUNKED + b"ff\r\nabc"], "IncompleteRead"),
    "no-status": (lambda: [b"\x1b]0;owned\x07 what?\r\n\r\n"], "owned"),
    "long-line": (lambda: [b"HTTP/1.1 200 OK\r\nX: " + 2**17 * b"x"], "header line"),
    "many-headers": (lambda: [b"HTTP/1.1 200 OK\r\n" + 500 * b"X: y\r\n"], "headers"),
    "nothing": (lambda: [], "without response"),
    "to-ftp": (lambda: redirect("ftp://127.0.0.1/a.jpg"), "neither http nor https"),
    "to-file": (lambda: redirect("file:///etc/passwd"), "neither http nor https"),
    "to-itself": (lambda: redirect("/to-itself"), "more than 5 times"),
    "to-endless": (
        lambda: endless(b"HTTP/1.1 302 F\r\nLocation: ftp://x/\r\n\r\n"),
        "neither",
    ),
    "endless": (lambda: endless(b"HTTP/1.1 200 OK\r\n\r\n"), "more than 1048576 bytes"),
    "short": (lambda: [ok(bytes(99))[:-9]], "9 bytes too early"),
    "escapes": (lambda: [b"HTTP/1.1 404 \x1b[2J\x1b]0;x\x07 no\r\n\r\n"], r"404 \x1b"),
    "length": (lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"], ""),
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    answers = {name: answer for name, (answer, _) in HOSTILE.items()}
    answers["good"] = lambda: [ok(jpeg())]
    answers["my%20cat"] = answers["good"]
    answers["to-good"] = lambda: redirect("/good")
    with raw_server(answers) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_line_in_time(server, monkeypatch, tmp_path, name):
    monkeypatch.setattr(sources, "DOWNLOAD_SECONDS", SECONDS)
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", MAX_BYTES)
    tracemalloc.start()
    start = time.monotonic()
    try:
        sources.download(server + name, tmp_path / "image")
        text, message = "", ""  # an empty answer is refused as an image
    except ValueError as error:
        text, message = str(error), HOSTILE[name][1]
        assert server + name in text
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - start < SECONDS + 1.5
    assert peak < 8 * MAX_BYTES
    assert message in text
    assert len(text.splitlines()) <= 1 and terminal_text(text) == text
    assert bool(text) or name == "length"
    assert os.listdir(tmp_path) == ([] if text else ["image"])


@pytest.mark.parametrize("name", ["good", "my cat", "to-good"])
def test_a_good_answer_is_fetched(server, name):
    assert fetch(server + name, MAX_BYTES, 5.0) == jpeg()


@pytest.mark.fuzz
def test_hundreds_of_broken_answers_are_one_line_each(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    rng = np.random.default_rng(20)
    pieces = [b"HTTP/1.1 200 OK", b"HTTP/", b"\r\n", b"\r\n\r\n", b"\n", b"X: y", b" "]
    pieces += [b"Content-Length: 7", b"Transfer-Encoding: chunked", b"5\r\nabcde", b":"]
    pieces += [b"Location: ", b"302", b"\x00", b"\xff", b"\x1b[2J", 9000 * b"a"]

    def answer():
        return [b"".join(pieces[k] for k in rng.integers(len(pieces), size=12))]

    def answer_of_status():
        return [b"HTTP/1.1 200 OK\r\n", *answer()]

    answers = {"a": answer, "b": answer_of_status}
    refused = 0
    with raw_server(answers) as port:
        for number in range(inputs(300)):
            try:
                fetch(f"http://127.0.0.1:{port}/{'ab'[number % 2]}", MAX_BYTES, 5.0)
            except ValueError as error:
                refused += 1
                text = str(error)
                assert terminal_text(text) == text and "\n" not in text
    assert refused > 100


def test_the_good_ones_among_bad_urls_are_predicted(server, monkeypatch):
    from tests.tiny_run import PlainDetector, tiny_config
    from vfnet_tf.inference.predictor import Predictor

    monkeypatch.setattr(sources, "DOWNLOAD_SECONDS", SECONDS)
    monkeypatch.setattr(sources, "MAX_DOWNLOAD", MAX_BYTES)
    predictor = Predictor(PlainDetector(), tiny_config())
    names = ["good", "bad-chunks", "no-status", "my cat", "slow-body", "escapes"]
    skipped = []
    urls = [server + name for name in names]
    found = [one.source for one in predictor.stream(urls, skipped=skipped)]
    assert found == [server + "good", server + "my cat"]
    assert [name for name, _ in skipped] == [urls[k] for k in (1, 2, 4, 5)]
