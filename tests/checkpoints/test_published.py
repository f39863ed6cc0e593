"""Downloads of published checkpoints, from a server on this machine."""

import hashlib
import http.server
import re
import threading

import pytest
import requests

from vfnet_tf import presets
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
        monkeypatch.setattr(published, "_unreachable", {})
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


BY_HAND = "etch .* with another program.* put the file into .*" + NAME


def full_disk(monkeypatch):
    def write(*_, **__):
        raise OSError(published.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(published, "open", write, raising=False)


def read_only(monkeypatch):
    def write(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(published, "replacing", write)


def variable(name, value):
    return lambda monkeypatch: monkeypatch.setenv(name, value)


def proxy(monkeypatch):
    monkeypatch.setenv("VFNET_WEIGHTS_URL", "http://weights.example/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")


def certificate(monkeypatch):
    class Session:
        def get(self, url, **_):
            raise requests.exceptions.SSLError("self-signed certificate")

    monkeypatch.setattr(published, "_session", Session)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"content": CONTENT + b"x"},
            f"its name says {DIGITS}.*Nothing was kept. Try again. Or f{BY_HAND}",
        ),
        ({"cut": 70_000}, f"broke off. Try again. Or f{BY_HAND}"),
        (
            {"answers": [404]},
            "answers 404 Not Found.*VFNET_WEIGHTS_URL names a mirror. Or download the "
            f"file by hand from .*convert FILE --config {NAME}",
        ),
        ({"answers": [503] * 4}, "answers 503 .*VFNET_WEIGHTS_URL names a mirror"),
        (
            variable("VFNET_WEIGHTS_URL", "http://127.0.0.1:9/"),
            f"127.0.0.1:9 cannot be reached .offline.*Or f{BY_HAND}",
        ),
        *(
            (
                variable("VFNET_WEIGHTS_URL", url),
                f"must be an http or https address, .*WEIGHTS_URL={re.escape(url)}$",
            )
            for url in ("mirror", "ftp://a/b", "http:///b", "http://a:b/", "http://[a")
        ),
        (variable("VFNET_OFFLINE", "1"), f"VFNET_OFFLINE forbids .*F{BY_HAND}"),
        (proxy, f"look at HTTPS_PROXY and NO_PROXY. Or f{BY_HAND}"),
        (certificate, f"REQUESTS_CA_BUNDLE names .*Or f{BY_HAND}"),
        (full_disk, "there is no room in .*VFNET_HOME names another folder"),
        (read_only, "Permission denied. VFNET_HOME names another folder"),
    ],
    ids=[
        "wrong hash",
        "broken off",
        "not found",
        "busy",
        "no network",
        "no scheme",
        "ftp",
        "no host",
        "no port",
        "half an address",
        "offline",
        "proxy",
        "certificate",
        "full disk",
        "read-only",
    ],
)
def test_what_goes_wrong_leaves_nothing_and_says_what_to_do(
    server, tmp_path, monkeypatch, change, message
):
    said = []
    for _ in range(2):
        if callable(change):
            change(monkeypatch)
        else:
            for name, value in change.items():
                setattr(server, name, value)
        with pytest.raises(WeightsUnavailableError, match=message) as raised:
            published.fetch_published(NAME)
        assert files(tmp_path) == []
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_what_broke_off_is_had_by_the_next_try(server):
    server.cut = 70_000
    with pytest.raises(WeightsUnavailableError, match="Try again"):
        published.fetch_published(NAME)
    server.cut = None
    assert published.fetch_published(NAME).read_bytes() == CONTENT


def test_a_server_that_is_not_there_is_asked_once_a_minute(server, monkeypatch):
    asked = []

    class Session:
        def get(self, url, **_):
            asked.append(url)
            raise requests.exceptions.ConnectTimeout("no answer")

    monkeypatch.setattr(published, "_session", Session)
    for pause, times in ((60, 1), (0, 2)):
        monkeypatch.setattr(published, "PAUSE", pause)
        for _ in range(times):
            with pytest.raises(WeightsUnavailableError, match="cannot be reached"):
                published.fetch_published(NAME)
    assert len(asked) == 3


def test_a_file_that_was_put_into_the_cache_by_hand_is_checked(server, tmp_path):
    path = tmp_path / "home" / "coco" / NAME / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[1:])
    with pytest.raises(WeightsUnavailableError, match="is damaged .*Delete it"):
        published.fetch_published(NAME)
    path.write_bytes(CONTENT)
    assert published.fetch_published(NAME) == path
    assert server.asked == []


def test_a_model_without_an_address_names_the_table_and_the_command(server):
    name = published.WITHOUT_ADDRESS[0]
    with pytest.raises(WeightsUnavailableError, match=f"Results.*--config {name}"):
        published.fetch_published(name)
    with pytest.raises(
        WeightsUnavailableError, match="published for other .`vfnet configs"
    ):
        published.fetch_published("other")


@pytest.fixture
def converted(server, monkeypatch):
    """Converting takes no time: a function that writes files of a preset."""

    def write(detector, folder, config):
        for name in ("config.json", "model.weights.h5"):
            (folder / name).write_text("x")

    monkeypatch.setattr(presets, "load_official", lambda path, name: (None, None))
    monkeypatch.setattr(presets, "save_to_preset", write)


def test_two_at_once_download_once_and_one_says_that_it_waits(
    server, converted, tmp_path, monkeypatch
):
    begun, waiting = threading.Event(), threading.Event()
    fetch = presets.fetch_published

    def slow(name):
        begun.set()
        assert waiting.wait(timeout=10)
        return fetch(name)

    def say(*words, **_):
        said.append(words[0])
        waiting.set()

    said, folders = [], []
    monkeypatch.setattr(presets, "fetch_published", slow)
    monkeypatch.setattr(presets, "print", say, raising=False)
    threads = [
        threading.Thread(target=lambda: folders.append(presets.preset_directory(NAME)))
        for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(timeout=10)
    threads[1].start()
    for thread in threads:
        thread.join()
    folder = tmp_path / "home" / "coco" / NAME
    assert folders == [folder, folder] and len(server.asked) == 1
    assert said == [f"waiting    for another process that has {folder}"]


def test_what_a_killed_process_left_is_removed(server, converted, tmp_path):
    folder = tmp_path / "home" / "coco" / NAME
    (folder / ".unfinished-abc").mkdir(parents=True)
    (folder / ".unfinished-abc" / "config.json").touch()
    (folder / ".unfinished-x.pth").touch()
    presets.preset_directory(NAME)
    kept = {".lock", FILE, "config.json", "model.weights.h5", "source.json"}
    assert {path.name for path in folder.iterdir()} == kept


def test_a_disk_that_is_full_while_converting_is_said_and_nothing_stays(
    server, converted, tmp_path, monkeypatch
):
    def full(*_):
        # As h5py says it, without an errno.
        raise OSError("Can't write data (errno = 28, 'No space left on device')")

    monkeypatch.setattr(presets, "save_to_preset", full)
    with pytest.raises(WeightsUnavailableError, match="no room in .*VFNET_HOME names"):
        presets.preset_directory(NAME)
    assert files(tmp_path) == [".lock", FILE]
