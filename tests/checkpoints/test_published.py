"""Downloads of published checkpoints, from a server on this machine."""

import hashlib
import http.server
import threading

import pytest

from vfnet_tf.checkpoints import published
from vfnet_tf.checkpoints.imagenet import WeightsUnavailableError

NAME = "vfnet_r50_fpn_1x_coco"
CONTENT = bytes(range(256)) * 9000
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
FILE = f"vfnet_r50_{DIGITS}.pth".replace(f"_{DIGITS}", f"-{DIGITS}")


class Server(http.server.ThreadingHTTPServer):
    """Answers with `content`; `answers` are statuses to give before that."""

    content, answers, cut = CONTENT, (), None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        status = 200
        if server.answers:
            status, *server.answers = server.answers
        self.send_response(status)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        if status == 200:
            self.wfile.write(server.content[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(published, "PATHS", {NAME: f"vfnet/{FILE}"})
        monkeypatch.setattr(published, "_unreachable", set())
        url = f"http://127.0.0.1:{running.server_port}/mirror/"
        monkeypatch.setenv("VFNET_WEIGHTS_URL", url)
        monkeypatch.setenv("VFNET_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("VFNET_OFFLINE", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        running.shutdown()
        thread.join()


def files(tmp_path):
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file())


def test_a_file_is_downloaded_once_and_checked(server, tmp_path):
    path = published.fetch_published(NAME)
    assert path == tmp_path / "home" / "coco" / NAME / FILE
    assert path.read_bytes() == CONTENT
    assert published.fetch_published(NAME) == path
    assert server.asked == [f"/mirror/vfnet/{FILE}"]


def test_a_busy_server_is_asked_again(server):
    server.answers = [503, 500]
    assert published.fetch_published(NAME).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_every_real_name_has_the_digits_of_its_hash():
    assert len(published.PATHS) == 8 and len(published.WITHOUT_ADDRESS) == 6
    for name, path in published.PATHS.items():
        assert path.count(name) == 2
        assert published.re.search(r"-[0-9a-f]{8}\.pth$", path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": CONTENT + b"x"}, "its name says " + DIGITS + ".*Nothing was kept"),
        ({"cut": 70_000}, "broke off. Try again"),
        ({"answers": [404]}, "answers 404 Not Found.*VFNET_WEIGHTS_URL names a mirror"),
    ],
)
def test_what_goes_wrong_leaves_nothing_and_says_what_to_do(
    server, tmp_path, changes, message
):
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(WeightsUnavailableError, match=message):
        published.fetch_published(NAME)
    assert files(tmp_path) == []


def test_a_server_that_is_not_there_is_asked_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VFNET_WEIGHTS_URL", "http://127.0.0.1:9/")
    for _ in range(2):
        with pytest.raises(WeightsUnavailableError, match="cannot be reached"):
            published.fetch_published(NAME)
    assert published._unreachable == {"127.0.0.1:9"} and files(tmp_path) == []


def test_a_proxy_that_refuses_is_named(server, monkeypatch):
    monkeypatch.setenv("VFNET_WEIGHTS_URL", "http://weights.example/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailableError, match="look at HTTPS_PROXY"):
        published.fetch_published(NAME)


def test_a_full_disk_names_the_variable(server, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(published.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(published, "replacing", full)
    with pytest.raises(WeightsUnavailableError, match="no room.*VFNET_HOME names"):
        published.fetch_published(NAME)


def test_offline_is_said_before_the_network_is_touched(server, monkeypatch):
    monkeypatch.setenv("VFNET_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError, match="VFNET_OFFLINE forbids"):
        published.fetch_published(NAME)
    assert server.asked == []


def test_a_model_without_an_address_names_the_table_and_the_command(server):
    name = published.WITHOUT_ADDRESS[0]
    with pytest.raises(WeightsUnavailableError, match=f"Results.*--config {name}"):
        published.fetch_published(name)
    with pytest.raises(WeightsUnavailableError, match="published for other, only"):
        published.fetch_published("other")
