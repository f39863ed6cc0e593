import base64
import io
import json
import os
import pathlib
import shutil
import socket
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import tiny_run
from tests.browser import Page
from vfnet_tf.cli.__main__ import main

pytest.importorskip("flask", reason="the extra `demo` is not installed")
pytest.importorskip("waitress", reason="the extra `demo` is not installed")

from vfnet_tf.cli import demo

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

DROP = """
const [content, name, type] = arguments;
const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type }));
for (const kind of ["dragover", "drop"]) {
  const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
  document.getElementById("stage").dispatchEvent(new DragEvent(kind, options));
}
"""


class FoundDetector:
    """Gives the same six detections for every image, or refuses."""

    scores = (0.97, 0.92, 0.81, 0.55, 0.34, 0.12)

    def __init__(self):
        self.contents = []

    def describe(self):
        colors = {"disc": "#e4322d", "<b>star": "#2378e1", "square": "#32af46"}
        return {
            "detector": "VFNet",
            "classes": [
                {"name": name, "color": color} for name, color in colors.items()
            ],
            "image_size": [128, 160],
            "keep_ratio": True,
            "score_threshold": 0.05,
            "max_detections": 100,
            "max_upload": demo.MAX_UPLOAD,
        }

    def detect(self, contents):
        self.contents.append(contents)
        if contents[:2] not in (b"\xff\xd8", b"\x89P"):
            raise ValueError("The model takes whole JPEG and PNG images only.")
        detections = [
            {
                "box": [20 + 90 * k, 30 + 50 * k, 150 + 90 * k, 140 + 50 * k],
                "score": score,
                "label": k % 3,
            }
            for k, score in enumerate(self.scores)
        ]
        return {"detections": detections, "seconds": 0.123}


@pytest.fixture
def found():
    return FoundDetector()


@pytest.fixture
def serve():
    """Serves a detector's page on a free port; gives its address."""
    servers = []

    def start(detector):
        listening = demo.listen("127.0.0.1", 0)
        server = demo.make_server(detector, ["127.0.0.1"], listening)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in servers:
        stop(server)
        thread.join()


def stop(server):
    """Ends the loop of `server.run` as Ctrl-C does, from any thread."""

    def interrupt(now):
        raise KeyboardInterrupt

    server.maintenance, server.next_channel_cleanup = interrupt, 0
    server.pull_trigger()


@pytest.fixture
def web(found):
    return demo.make_app(found, ["127.0.0.1"]).test_client()


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def post(web, data, **options):
    options = {"content_type": "application/octet-stream", **options}
    return web.post("/detect", data=data, **options)


def test_the_page_and_all_it_names_are_served_from_here(web):
    page = web.get("/")
    assert page.status_code == 200 and page.mimetype == "text/html"
    text = page.get_data(as_text=True)
    for name in ("page.css", "page.js"):
        assert name in text
        assert web.get(f"/{name}").status_code == 200
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    # No address of another host anywhere.
    for file in demo._PAGE.iterdir():
        assert "http:" not in file.read_text() and "https:" not in file.read_text()


def test_the_page_is_part_of_the_installed_package():
    setup = (pathlib.Path(__file__).parents[2] / "setup.py").read_text()
    assert 'package_data={"vfnet_tf.cli": ["demo_page/*"]}' in setup
    names = sorted(path.name for path in demo._PAGE.iterdir())
    assert names == ["index.html", "page.css", "page.js"]


def test_an_image_is_posted_and_its_detections_come_back(web, found):
    contents = jpeg(np.zeros((8, 8, 3), "uint8"))
    answer = post(web, contents)
    assert answer.status_code == 200
    assert answer.json == found.detect(contents)
    assert found.contents[0] == contents
    assert web.get("/model").json == found.describe()


def test_what_is_refused_is_said(web, found, monkeypatch):
    answer = post(web, b"GIF89a")
    assert answer.status_code == 400
    assert "JPEG and PNG" in answer.json["error"]
    monkeypatch.setitem(web.application.config, "MAX_CONTENT_LENGTH", 10)
    answer = post(web, bytes(11))
    assert answer.status_code == 413 and "64 MB at most" in answer.json["error"]
    assert len(found.contents) == 1


def test_pages_of_other_hosts_cannot_use_it(web, found):
    # Types that a form or a script elsewhere could send without being asked.
    for kind in ("text/plain", "multipart/form-data", None):
        assert post(web, b"\xff\xd8", content_type=kind).status_code == 415
    # A name elsewhere that was made to point here.
    assert web.get("/", base_url="http://evil.example:7860").status_code == 400
    assert web.get("/", base_url="http://localhost:7860").status_code == 200
    assert not found.contents


@pytest.mark.parametrize(
    ("hosts", "right", "wrong"),
    [
        (
            ["127.0.0.1"],
            "127.0.0.1 127.0.0.1:7860 127.8.9.1:80 [::1] [::1]:7860 localhost LOCALHOST:1",
            "evil.example 192.0.2.7 127.0.0.1.evil.example [::1]evil :7860 a:b localhost.",
        ),
        (["::1"], "[::1] [::1]:7860 localhost 127.0.0.1", "[::2] evil.example [::1]:x"),
        (
            ["192.0.2.7"],
            "192.0.2.7 192.0.2.7:7860 127.0.0.1 [::1]",
            "192.0.2.8 evil.example:7860 [2001:db8::1]",
        ),
        (
            ["2001:DB8::1"],
            "[2001:db8::1] [2001:db8:0::1]:7860",
            "[2001:db8::2] 2001:db8::1",
        ),
        # Only names can be made to point here.
        (["0.0.0.0"], "192.0.2.7:7860 [2001:db8::1]", "box.example evil.example"),
        (["0.0.0.0", "Box.example"], "box.example:7860 192.0.2.7", "evil.example"),
    ],
)
def test_the_host_of_a_request_names_the_server(hosts, right, wrong):
    for header in right.split():
        assert demo.is_named(header, hosts), header
    for header in (*wrong.split(), "", " ", "localhost localhost"):
        assert not demo.is_named(header, hosts), header


@pytest.fixture(scope="module")
def exported(run_dir, traced):
    """A run directory with its SavedModel, written as `vfnet demo` writes it."""
    directory = demo.find_model(run_dir)
    yield directory
    shutil.rmtree(directory)


def test_a_run_without_an_export_gets_one(run_dir, exported):
    assert exported == run_dir / "saved_model"
    assert (exported / "saved_model.pb").is_file()
    # Both the run and the SavedModel itself can be named, and nothing is written.
    written = (exported / "saved_model.pb").stat().st_mtime_ns
    assert demo.find_model(run_dir) == demo.find_model(exported) == exported
    assert (exported / "saved_model.pb").stat().st_mtime_ns == written


def test_an_export_older_than_the_weights_is_said(tmp_path, capsys):
    (tmp_path / "saved_model").mkdir()
    for name in ("saved_model/saved_model.pb", "best.weights.h5"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "saved_model" / "saved_model.pb", (1, 1))
    demo.find_model(tmp_path)
    assert "--overwrite" in capsys.readouterr().out
    os.utime(tmp_path / "best.weights.h5", (0, 0))
    demo.find_model(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def served(exported):
    return demo.ServedDetector(exported)


def test_the_exported_model_detects_and_describes_itself(served, tmp_path):
    described = served.describe()
    assert [one["name"] for one in described["classes"]] == list(tiny_run.CLASS_NAMES)
    assert described["classes"][0]["color"] == "#e4322d"
    assert described["score_threshold"] == 0.05
    assert (described["image_size"], described["keep_ratio"]) == ([128, 160], True)
    contents = jpeg(tiny_run.picture(8, 128, 160))
    answer = json.loads(json.dumps(served.detect(contents)))
    assert answer["seconds"] > 0
    scores = [one["score"] for one in answer["detections"]]
    assert len(scores) > 3 and scores == sorted(scores, reverse=True)
    for one in answer["detections"]:
        x1, y1, x2, y2 = one["box"]
        assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 128
        assert one["label"] in (0, 1, 2)
    with pytest.raises(ValueError, match="whole JPEG and PNG images only"):
        served.detect(b"GIF89a" + bytes(40))


def test_a_status_of_the_model_is_told_in_its_words(served, monkeypatch):
    answer = {"status": tf.constant([99]), "num_detections": tf.constant([0])}
    monkeypatch.setattr(served, "_detect", lambda image_bytes: answer)
    with pytest.raises(ValueError, match="said: status 99$"):
        served.detect(b"")
    monkeypatch.setitem(served.metadata, "status_codes", {"99": "cut short"})
    with pytest.raises(ValueError, match="said: cut short$"):
        served.detect(b"")


def test_boxes_that_are_no_pixels_are_refused(tmp_path, exported):
    (tmp_path / "assets").mkdir()
    metadata = json.loads((exported / "assets" / "metadata.json").read_text())
    text = json.dumps({**metadata, "box_format": "yxyx_normalized"})
    (tmp_path / "assets" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match="boxes in pixels"):
        demo.ServedDetector(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent"], "absent"),
        (["{run}", "--port", "{taken}"], "must be a free address"),
        (["{run}", "--port", "-1"], "must be a free address"),
        (["{run}", "--host", "192.0.2.1"], "must be a free address"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, mistake, arguments, message):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        places = {"run": tmp_path, "taken": listening.getsockname()[1]}
        filled = [argument.format(**places) for argument in arguments]
        if "--port" not in filled:
            filled += ["--port", "0"]
        assert message in mistake("demo", *filled)


def test_without_the_extra_it_is_named(tmp_path, mistake, monkeypatch):
    for library in ("flask", "waitress"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            assert "pip install 'vfnet_tf[demo]'" in mistake("demo", tmp_path)


def test_the_command_serves_until_interrupted(tmp_path, capsys, monkeypatch, found):
    import urllib.request

    monkeypatch.setattr(demo, "find_model", lambda run_dir: run_dir / "saved_model")
    monkeypatch.setattr(demo, "ServedDetector", lambda directory: found)
    make = demo.make_server

    def make_and_ask(detector, hosts, listening):
        server = make(detector, hosts, listening)
        port = listening.getsockname()[1]

        def ask():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                asked.append(answer.status)
            stop(server)

        threading.Thread(target=ask).start()
        return server

    asked = []
    monkeypatch.setattr(demo, "make_server", make_and_ask)
    assert main(["demo", str(tmp_path), "--port", "0"]) == 0
    printed = capsys.readouterr().out
    assert asked == [200]
    assert f"model      {tmp_path / 'saved_model'}" in printed
    assert "open       http://127.0.0.1:" in printed and "stopped" in printed
    assert "no password" not in printed


@pytest.fixture
def page(browser, tmp_path):
    return DemoPage(browser, tmp_path)


class DemoPage(Page):
    """The page of the demo."""

    def open(self, url, **size):
        super().open(url, **size)
        self.wait("return document.body.dataset.ready === '0'")

    def drop(self, contents, name="smear.jpg", kind="image/jpeg"):
        content = base64.b64encode(contents).decode()
        self.browser.execute_script(DROP, content, name, kind)

    def boxes(self):
        """list of (left, top, right, bottom) on the screen, and captions."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll('.box')].map((one) => {"
            " const r = one.getBoundingClientRect();"
            " return [r.left, r.top, r.right, r.bottom, one.textContent]; })"
        )

    def text(self, name):
        return self.browser.execute_script(
            "return document.getElementById(arguments[0]).innerText", name
        )

    def move_slider(self, value):
        self.browser.execute_script(
            "const slider = document.getElementById('threshold');"
            "slider.value = arguments[0];"
            "slider.dispatchEvent(new Event('input', { bubbles: true }))",
            value,
        )


def test_a_dropped_image_shows_boxes_that_the_slider_filters(page, serve, served):
    url = serve(served)
    page.open(url)
    picture = tiny_run.picture(8, 480, 640)
    page.drop(jpeg(picture))
    page.wait("return document.body.dataset.ready === '1'")
    page.move_slider(0.05)
    everything = page.boxes()
    expected = served.detect(jpeg(picture))["detections"]
    assert len(everything) == len(expected) > 10
    # Drawn where the image is: the best box is the last.
    left, top, right, bottom = page.browser.execute_script(
        "const r = document.getElementById('image').getBoundingClientRect();"
        "return [r.left, r.top, r.right, r.bottom]"
    )
    scale = np.array([right - left, bottom - top] * 2) / [640, 480, 640, 480]
    for drawn, one in zip(reversed(everything), expected, strict=True):
        on_screen = np.array(one["box"]) * scale + [left, top, left, top]
        np.testing.assert_allclose(drawn[:4], on_screen, atol=1.5)
        assert drawn[4] == f"{tiny_run.CLASS_NAMES[one['label']]} {one['score']:.2f}"
    page.save("boxes")
    middle = float(np.median([one["score"] for one in expected]))
    page.move_slider(round(middle, 2))
    fewer = page.boxes()
    assert 0 < len(fewer) < len(everything)
    assert len(fewer) == sum(one["score"] >= round(middle, 2) for one in expected)
    assert f"{len(fewer)} of {len(everything)} detections" in page.text("summary")
    assert "640 × 480" in page.text("summary") and " ms" in page.text("summary")
    assert len(page.text("rows").splitlines()) == len(fewer)
    page.move_slider(1)
    assert page.boxes() == []
    screenshot = Image.open(page.save("filtered"))
    assert min(screenshot.size) > 600
    page.check_clean()


def test_filtering_asks_nothing_and_names_are_text(page, serve, found):
    page.open(serve(found))
    page.drop(jpeg(tiny_run.picture(8, 480, 640)))
    page.wait("return document.body.dataset.ready === '1'")
    assert page.text("about") == "VFNet · 3 classes · images resized within 128 × 160"
    assert len(page.boxes()) == 5  # the slider starts at 0.3
    page.move_slider(0.6)
    assert len(page.boxes()) == 3
    # Without the first class two of three are left; with it again all.
    for count in (2, 3):
        page.browser.execute_script("document.querySelector('#classes button').click()")
        assert len(page.boxes()) == count
    assert len(found.contents) == 1
    assert "<b>star" in page.text("rows")
    page.check_clean()


def test_a_format_that_the_model_cannot_read_is_converted(page, serve, found):
    page.open(serve(found))
    stream = io.BytesIO()
    Image.fromarray(tiny_run.picture(3, 60, 90)).save(stream, "BMP")
    page.drop(stream.getvalue(), "old.bmp", "image/bmp")
    page.wait("return document.body.dataset.ready === '1'")
    sent = Image.open(io.BytesIO(found.contents[0]))
    assert (sent.format, sent.size) == ("PNG", (90, 60))


def test_what_is_no_image_is_said_and_the_page_goes_on(page, serve, found):
    page.open(serve(found))
    page.drop(b"\xff\xd8 but no image", "broken.jpg")
    page.wait("return !document.getElementById('message').hidden")
    assert "no image" in page.text("message") and not found.contents
    page.drop(jpeg(tiny_run.picture(8, 48, 64)))
    page.wait("return document.body.dataset.ready === '2'")
    assert len(page.boxes()) == 5
    assert page.text("message") == ""


def test_a_narrow_screen_shows_all_in_one_column(page, serve, found):
    page.open(serve(found), width=390, height=844)
    page.save("narrow_empty")
    page.drop(jpeg(tiny_run.picture(8, 480, 640)))
    page.wait("return document.body.dataset.ready === '1'")
    image, panel = (
        page.browser.execute_script(
            "const r = document.getElementById(arguments[0]).getBoundingClientRect();"
            "return [r.left, r.top, r.right, r.bottom]",
            name,
        )
        for name in ("image", "panel")
    )
    assert panel[1] >= image[3]
    assert image[0] >= 0 and image[2] <= 390 and image[2] - image[0] > 340
    page.save("narrow")
    page.check_clean()
