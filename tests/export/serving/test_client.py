import http.server
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny_run

pytest.importorskip("tensorflow_serving", reason="the extra `serving` is not installed")

from tests.export.serving_stand_in import LOADED, StandIn
from tests.loopback import free_ports
from vfnet_tf.export.serving.client import ServingClient, ServingError

BOTH = pytest.mark.parametrize("kind", ["http", "grpc"])
ROOT = pathlib.Path(__file__).parents[3]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def stand_in(exported, loaded):
    """The detector of the other tests in versions 1 and 3; 7 could not be loaded."""
    LOADED[exported] = loaded
    versions = {1: exported, 3: exported, 7: "SavedModel has no graph"}
    with StandIn({"vfnet": versions, "broken": {1: "no graph"}}) as server:
        yield server


@pytest.fixture
def server(stand_in):
    for record in (stand_in.faults, stand_in.requests, stand_in.times):
        record.clear()
    return stand_in


@pytest.fixture(scope="module")
def several_inputs(tmp_path_factory):
    """Versions of a model whose signatures have several inputs, `status`, or none.

    Version 2 counts its classes from 1; `metadata` of version 3 has no inputs.
    """
    module, names = tf.Module(), {"class_names": ["disc", "star"]}
    images = tf.TensorSpec((None,), "string", name="image_bytes")
    score = tf.TensorSpec((), "float32", name="score_threshold")
    most = tf.TensorSpec((), "int32", name="max_detections")
    each_score = tf.TensorSpec((None,), "float32", name="score_threshold")
    any_text = tf.TensorSpec((None,), "string", name="request")

    def chosen(image_bytes, score_threshold, max_detections):
        batch, scores = tf.shape(image_bytes)[0], [[score_threshold] * 2]
        return {
            "detection_boxes": tf.tile([[[1.0, 2.0, 3.0, 4.0]] * 2], [batch, 1, 1]),
            "detection_scores": tf.tile(scores, [batch, 1]),
            "detection_classes": tf.tile([[1, 5]], [batch, 1]),
            "num_detections": tf.fill([batch], max_detections),
            "status": tf.cast(tf.strings.length(image_bytes) < 3, tf.int32),
        }

    def each(image_bytes, score_threshold):
        return chosen(image_bytes, score_threshold[0], tf.constant(1))

    def tell(**more):
        text = json.dumps({**names, **more})
        return lambda request: {"metadata": tf.fill(tf.shape(request), text)}

    module.chosen = tf.function(chosen, input_signature=[images, score, most])
    module.each = tf.function(each, input_signature=[images, each_score])
    module.plain = tf.function(tell(max_detections=2), input_signature=[any_text])
    from_one = tell(box_format="yxyx_normalized")
    module.from_one = tf.function(from_one, input_signature=[any_text])
    module.without = tf.function(
        lambda: {"metadata": tf.constant("{}")}, input_signature=[]
    )
    folder = tmp_path_factory.mktemp("several")
    versions = {number: folder / str(number) for number in (1, 2, 3)}
    metadata = (module.plain, module.from_one, module.without)
    for path, own in zip(versions.values(), metadata, strict=True):
        signatures = {"chosen": module.chosen, "each": module.each, "metadata": own}
        tf.saved_model.save(module, str(path), signatures=signatures)
    with StandIn({"vfnet": versions}) as server:
        yield server


@BOTH
def test_detections_are_those_of_the_saved_model(server, kind, loaded, images):
    with ServingClient(server.url(kind)) as client:
        found = client.detect(images)
    contents = tf.constant([path.read_bytes() for path in images])
    expected = loaded.signatures["serving_default"](image_bytes=contents)
    keys = {"boxes": "boxes", "scores": "scores", "labels": "classes"}
    assert len(found) == len(images) == 5
    for row, one in enumerate(found):
        count = int(expected["num_detections"][row])
        assert count > 3
        for own, key in keys.items():
            value = expected[f"detection_{key}"].numpy()[row, :count]
            assert one[own].dtype == value.dtype
            # JSON has all digits of a float32: WriteDecimal of json_tensor.cc.
            np.testing.assert_array_equal(one[own], value)


@BOTH
def test_images_are_paths_or_bytes_alone_or_many(server, kind, images):
    client = ServingClient(server.url(kind), batch_size=2, class_names=NAMES)
    (one,) = client.detect(str(images[0]))
    (same,) = client.detect(images[0].read_bytes())
    np.testing.assert_array_equal(one["scores"], same["scores"])
    assert one["names"] == [NAMES[label] for label in one["labels"]]
    server.requests.clear()
    assert len(client.detect(images)) == 5
    assert len(server.requests) == 3
    if kind == "http":
        sent = server.requests[0][1]["inputs"]["image_bytes"]
        assert [set(one) for one in sent] == [{"b64"}, {"b64"}]
    with pytest.raises(ValueError, match="at least one"):
        client.detect([])
    with pytest.raises(FileNotFoundError):
        client.detect("absent.jpg")


@BOTH
def test_it_gives_the_metadata_and_names_the_classes(server, kind, exported, images):
    client = ServingClient(server.url(kind))
    recorded = json.loads((exported / "assets" / "metadata.json").read_text())
    assert client.metadata() == recorded
    server.requests.clear()
    for _ in range(2):
        (found,) = client.detect(images[0])
    assert found["names"] == [tiny_run.CLASS_NAMES[k] for k in found["labels"]]
    # The names are requested once.
    asked = [signature for signature, _ in server.requests]
    assert asked == ["serving_default", "metadata", "serving_default"]


def test_rest_refuses_a_signature_without_inputs_and_detects_without_names(
    several_inputs,
):
    settings = {"signature": "each", "version": 3}
    client = ServingClient(several_inputs.http_url, **settings)
    with pytest.raises(ServingError, match="'metadata', which has no inputs.*grpc://"):
        client.metadata()
    (found,) = client.detect(b"good", score_threshold=0.5)
    assert "names" not in found
    assert ServingClient(several_inputs.grpc_url, **settings).metadata() == {}


@BOTH
def test_names_of_classes_that_count_from_one_are_the_right_ones(several_inputs, kind):
    client = ServingClient(several_inputs.url(kind), signature="each", version=2)
    (found,) = client.detect(b"good", score_threshold=0.5)
    assert (found["labels"].tolist(), found["names"]) == ([1], ["disc"])


@BOTH
def test_several_inputs_go_by_name_and_the_rest_comes_from_the_metadata(
    several_inputs, kind
):
    url = several_inputs.url(kind)
    client = ServingClient(url, signature="chosen", version=1)
    found = client.detect([b"good", b"x"], score_threshold=0.25)
    assert [one["status"] for one in found] == [0, 1]
    np.testing.assert_array_equal(found[1]["scores"], [0.25, 0.25])
    np.testing.assert_array_equal(found[0]["boxes"], [[1, 2, 3, 4]] * 2)
    # The model has more classes than recorded names.
    assert found[0]["names"] == ["star", "class 5"]
    (one,) = client.detect([b"good"], score_threshold=np.float32(0.5), max_detections=1)
    assert one["scores"].tolist() == [0.5]
    with pytest.raises(ValueError, match=r"Received: \['iou'\]"):
        client.detect([b"good"], iou=0.5)
    with pytest.raises(ValueError, match="score_threshold.*are needed"):
        client.detect([b"good"])
    client = ServingClient(url, signature="each", version=1)
    found = client.detect([b"good", b"fine"], score_threshold=0.75)
    assert [one["scores"].tolist() for one in found] == [[0.75], [0.75]]
    if kind == "grpc":
        assert several_inputs.requests[-1][1].model_spec.version.value == 1


@BOTH
def test_batching_takes_no_scalars_and_the_refusal_is_passed_on(several_inputs, kind):
    with StandIn(several_inputs.models, batching=True) as server:
        client = ServingClient(server.url(kind), signature="chosen", version=1)
        with pytest.raises(ServingError, match="0th-dimension") as caught:
            client.detect([b"good"], score_threshold=0.25)
        assert caught.value.code == "INVALID_ARGUMENT"
        client = ServingClient(server.url(kind), signature="each", version=1)
        assert len(client.detect([b"good", b"fine"], score_threshold=0.75)) == 2


@pytest.mark.parametrize(
    "kind, faults",
    [
        ("http", [429, 429]),
        ("http", [503, 503]),
        ("http", ["drop", "drop"]),
        ("http", ["cut"]),
        # Without 429, whose gRPC code also stands for messages that are too large.
        ("grpc", [503, 503]),
    ],
)
def test_a_request_is_sent_again_after_growing_waits(server, kind, faults, images):
    server.faults.extend(faults)
    client = ServingClient(server.url(kind), class_names=NAMES)
    assert len(client.detect(images[0])) == 1
    waits = np.diff(server.times)
    assert len(waits) == len(faults)
    assert (np.diff(waits) > 0.05).all() and waits.sum() < 1.5


@BOTH
def test_a_large_request_is_sent_again_too(several_inputs, kind):
    several_inputs.faults.append(503)
    client = ServingClient(several_inputs.url(kind), signature="each", version=1)
    assert len(client.detect(b"x" * 5_000_000, score_threshold=0.5)) == 1
    assert not several_inputs.faults


@BOTH
@pytest.mark.parametrize(
    "fault, retries, code, sent",
    [
        (503, 2, "UNAVAILABLE", 3),
        (503, 0, "UNAVAILABLE", 1),
        (400, 4, "INVALID_ARGUMENT", 1),
    ],
)
def test_retries_are_limited_and_not_for_mistakes(
    server, kind, fault, retries, code, sent, images
):
    server.faults.extend([fault] * 9)
    client = ServingClient(server.url(kind), retries=retries, class_names=NAMES)
    with pytest.raises(ServingError, match="injected") as caught:
        client.detect(images[0])
    assert caught.value.code == code
    assert caught.value.is_transient == (code == "UNAVAILABLE")
    assert len(server.requests) == sent


@BOTH
def test_the_deadline_is_for_all_tries_and_nothing_is_sent_after_it(
    server, kind, images
):
    server.faults.extend([503, ("wait", 3.0)])
    client = ServingClient(server.url(kind), timeout=1.0, class_names=NAMES)
    client.wait_until_ready()
    start = time.monotonic()
    with pytest.raises(ServingError, match="No answer from.*`timeout`") as caught:
        client.detect(images[0])
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert 0.9 < time.monotonic() - start < 1.5
    time.sleep(1.5)
    assert len(server.requests) == 2


@pytest.mark.parametrize("pauses", [[0.1] * 60, [0.9, 6.0]])
def test_a_body_that_trickles_does_not_outlast_the_deadline(pauses):
    def trickle(listening):
        connection, _ = listening.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        try:
            for pause in pauses:
                time.sleep(pause)
                connection.sendall(b" ")
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=trickle, args=(listening,), daemon=True).start()
        port = listening.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ServingError, match="No answer") as caught:
            ServingClient(f"http://127.0.0.1:{port}", timeout=1.0).detect(b"x")
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - start < 1.7


@BOTH
def test_a_message_tells_where_nobody_listens(kind):
    (port,) = free_ports(1)
    client = ServingClient(f"{kind}://127.0.0.1:{port}", retries=2, timeout=5)
    with pytest.raises(ServingError, match=f"127.0.0.1.*{port}.*refused") as caught:
        client.detect(b"x")
    assert caught.value.code == "UNAVAILABLE" and caught.value.is_transient
    # The deadline cuts the second question short.
    with pytest.raises(ServingError, match="refused.*waited 1.25 s"):
        client.wait_until_ready(1.25)


def test_a_grpc_client_finds_a_server_that_comes_back(exported, server, images):
    (port,) = free_ports(1)
    client = ServingClient(f"grpc://127.0.0.1:{port}", timeout=20)
    started = []

    def start():
        started.append(StandIn({"vfnet": {1: exported}}, grpc_port=port).__enter__())

    timer = threading.Timer(0.5, start)
    timer.start()
    try:
        client.wait_until_ready(15)
        assert len(client.detect(images[0])) == 1
    finally:
        timer.join()
        started[0].__exit__()


@BOTH
@pytest.mark.parametrize(
    "settings, code, message",
    [
        ({"model": "vfnot"}, "NOT_FOUND", "'vfnot'.*no such model"),
        ({"version": 2}, "NOT_FOUND", "'vfnet', version: 2.*1: 'AVAILABLE', 3: 'AVA"),
        ({"version": 7}, "FAILED_PRECONDITION", "'vfnet', version: 7.*has no graph"),
        ({"model": "broken"}, "FAILED_PRECONDITION", "'broken'.*no graph"),
        ({"signature": "no"}, "INVALID_ARGUMENT", "no signature 'no', but .*'raw'"),
        ({"signature": "metadata"}, "INTERNAL", r"detections of 1.*\['metadata'\]"),
    ],
)
def test_a_missing_model_version_or_signature_is_named(
    server, kind, settings, code, message
):
    client = ServingClient(server.url(kind), **settings)
    with pytest.raises(ServingError, match=message) as caught:
        client.detect(b"x")
    assert caught.value.code == code
    if "signature" in settings:
        return client.wait_until_ready(5)
    start = time.monotonic()
    waited = "waited 0.4 s" if code == "NOT_FOUND" else ""
    with pytest.raises(ServingError, match=f"{message}.*{waited}"):
        client.wait_until_ready(0.4 if waited else 30)
    assert time.monotonic() - start < 5


NOT_SERVING = "No TensorFlow Serving.*/prefix/v1/models/vfnet"


@pytest.mark.parametrize(
    "status, content, code, message",
    [
        (404, "<html>", "UNIMPLEMENTED", f"{NOT_SERVING}.*: 404"),
        (503, "<html>", "UNAVAILABLE", f"{NOT_SERVING}.*: 503"),
        (302, "", "UNKNOWN", f"{NOT_SERVING}.*: 302"),
        (200, "[" * 100_000, "UNKNOWN", f"{NOT_SERVING}.*: 200"),
        (200, "[1]", "UNKNOWN", f"{NOT_SERVING}.*: 200"),
        (200, '{"outputs": [1]}', "INTERNAL", "detections of 1 images"),
        (200, {"num_detections": [1, 1]}, "INTERNAL", "detections of 1 images"),
        (200, {"num_detections": [2]}, "INTERNAL", "detections of 1 images"),
        (200, {"detection_boxes": [[[1, 2, 3]]]}, "INTERNAL", "detections of 1 images"),
        (200, {"detection_scores": [["x"]]}, "INTERNAL", "detections of 1 images"),
        (200, {"detection_classes": [[]]}, "INTERNAL", "detections of 1 images"),
    ],
)
def test_an_answer_without_detections_is_a_serving_error(
    status, content, code, message
):
    good = {
        "detection_boxes": [[[1, 2, 3, 4]]],
        "detection_scores": [[0.5]],
        "detection_classes": [[0]],
        "num_detections": [1],
    }
    if isinstance(content, dict):
        content = json.dumps({"outputs": {**good, **content}})
    inputs = {"image_bytes": {"dtype": "DT_STRING"}}
    known = {"signature_def": {"serving_default": {"inputs": inputs}}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, json.dumps({"metadata": {"signature_def": known}}))

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(status, content)

        def answer(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/prefix/"
        with pytest.raises(ServingError, match=message) as caught:
            ServingClient(url, retries=0, class_names=NAMES).detect(b"x")
        assert caught.value.code == code
        web.shutdown()


def test_the_port_of_grpc_is_recognised(server):
    url = f"http://127.0.0.1:{server.grpc_port}"
    with pytest.raises(ServingError, match=f"{url}.*port of REST"):
        ServingClient(url, retries=0, timeout=5).detect(b"x")


@pytest.mark.parametrize(
    "settings, received",
    [
        ({"url": "127.0.0.1:8501"}, "url='127"),
        ({"url": "ftp://host"}, "url='ftp"),
        ({"timeout": 0}, "timeout=0"),
        ({"retries": -1}, "retries=-1"),
        ({"url": "grpc://host", "retries": 5}, "retries=5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"model": "a/b"}, "model='a/b'"),
        ({"model": ""}, "model=''"),
    ],
)
def test_settings_out_of_range_are_refused(settings, received):
    with pytest.raises(ValueError, match=f"must be .*Received: .*{received}"):
        ServingClient(**{"url": "http://localhost:8501", **settings})


def test_two_copied_files_work_without_tensorflow_and_this_package(
    server, images, tmp_path
):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tensorflow', 'grpc', 'vfnet_tf'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from copied.client import ServingClient\n"
        "print(len(ServingClient(sys.argv[1]).detect(sys.argv[2])))\n"
        "try:\n"
        "    ServingClient('grpc://localhost')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    (tmp_path / "copied").mkdir()
    for name in ("client.py", "connections.py"):
        file = ROOT / "vfnet_tf" / "export" / "serving" / name
        shutil.copy(file, tmp_path / "copied")
    answer = subprocess.run(
        [sys.executable, "-c", code, server.http_url, str(images[0])],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("1\n")
    assert "pip install 'vfnet_tf[serving]'" in answer.stdout


def test_the_example_of_the_docs_runs(server, images, capsys):
    text = (ROOT / "docs" / "deployment" / "serving.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (code,) = [block for block in blocks if "ServingClient" in block]
    for written, here in (
        ("http://localhost:8501", server.http_url),
        ("grpc://localhost:8500", server.grpc_url),
        ("street.jpg", str(images[0])),
        ("yard.png", str(images[2])),
    ):
        code = code.replace(written, here)
    exec(compile(code, "serving.md", "exec"), {})
    assert "disc" in capsys.readouterr().out
