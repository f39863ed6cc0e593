import http.server
import importlib.util
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny_run

pytest.importorskip("tensorflow_serving", reason="the extra `serving` is not installed")

from tests.export.serving_stand_in import LOADED, StandIn
from vfnet_tf.export.serving import client as client_module
from vfnet_tf.export.serving.client import ServingClient, ServingError

BOTH = pytest.mark.parametrize("kind", ["http", "grpc"])
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(exported, loaded):
    """The detector of the other tests in versions 1 and 3; 7 could not be loaded."""
    LOADED[exported] = loaded
    versions = {1: exported, 3: exported, 7: "SavedModel has no graph"}
    with StandIn({"vfnet": versions, "broken": {1: "no graph"}}) as stand_in:
        yield stand_in


@pytest.fixture(autouse=True)
def without_faults(request):
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        server.faults.clear()
        server.requests.clear()


def replace_waits(monkeypatch, sleep, uniform):
    """Puts functions in the client's place of `time.sleep` and `random.uniform`.

    Nobody else's: threads of gRPC and of the stand-in wait too.
    """
    clock = types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(client_module, "time", clock)
    monkeypatch.setattr(client_module, "random", types.SimpleNamespace(uniform=uniform))


@pytest.fixture
def waits(monkeypatch):
    """Records the waits between tries in place of waiting."""
    recorded = []
    replace_waits(monkeypatch, recorded.append, lambda low, high: high)
    return recorded


@pytest.fixture(scope="module")
def several_inputs(tmp_path_factory):
    """A model of two signatures as later exports have them: several inputs, `status`."""
    module = tf.Module()
    text = json.dumps({"class_names": ["disc", "star"], "max_detections": 2})
    from_one = {"class_names": ["disc", "star"], "box_format": "yxyx_normalized"}

    def detections(image_bytes, scores):
        batch = tf.shape(image_bytes)[0]
        return {
            "detection_boxes": tf.tile([[[1.0, 2.0, 3.0, 4.0]] * 2], [batch, 1, 1]),
            "detection_scores": tf.tile(scores[None], [batch, 1]),
            "detection_classes": tf.tile([[1, 5]], [batch, 1]),
            "num_detections": tf.fill([batch], tf.size(scores)),
            "status": tf.cast(tf.strings.length(image_bytes) < 3, tf.int32),
        }

    images = tf.TensorSpec((None,), "string", name="image_bytes")
    score = tf.TensorSpec((), "float32", name="score_threshold")
    most = tf.TensorSpec((), "int32", name="max_detections")
    module.chosen = tf.function(
        lambda image_bytes, score_threshold, max_detections: detections(
            image_bytes, tf.fill([max_detections], score_threshold)
        ),
        input_signature=[images, score, most],
    )
    each = tf.TensorSpec((None,), "float32", name="score_threshold")
    module.each = tf.function(
        lambda image_bytes, score_threshold: detections(
            image_bytes, score_threshold[:1]
        ),
        input_signature=[images, each],
    )
    request = tf.TensorSpec((None,), "string", name="request")
    module.metadata = tf.function(
        lambda request: {"metadata": tf.fill(tf.shape(request), text)},
        input_signature=[request],
    )
    module.from_one = tf.function(
        lambda request: {"metadata": tf.fill(tf.shape(request), json.dumps(from_one))},
        input_signature=[request],
    )
    module.without_inputs = tf.function(
        lambda: {"metadata": tf.constant(text)}, input_signature=[]
    )
    directory = tmp_path_factory.mktemp("several") / "1"
    tf.saved_model.save(
        module,
        str(directory),
        signatures={
            "image_bytes_with_thresholds": module.chosen,
            "with_scores": module.each,
            "metadata": module.metadata,
        },
    )
    tf.saved_model.save(
        module,
        str(directory.parent / "2"),
        signatures={"image_bytes": module.each, "metadata": module.from_one},
    )
    tf.saved_model.save(
        module,
        str(directory.parent / "3"),
        signatures={"image_bytes": module.each, "metadata": module.without_inputs},
    )
    return directory


def test_names_of_classes_that_count_from_one_are_the_right_ones(several_inputs):
    with StandIn({"vfnet": {1: several_inputs.parent / "2"}}) as server:
        client = ServingClient(server.http_url, signature="image_bytes")
        (found,) = client.detect(b"good", score_threshold=0.5)
    assert (found["labels"].tolist(), found["names"]) == ([1], ["disc"])


def expect(loaded, paths):
    """What the SavedModel gives for one batch, without padding."""
    contents = tf.constant([path.read_bytes() for path in paths])
    found = loaded.signatures["serving_default"](image_bytes=contents)
    counts = found["num_detections"].numpy()
    keys = {
        "boxes": "detection_boxes",
        "scores": "detection_scores",
        "labels": "detection_classes",
    }
    return [
        {own: found[key].numpy()[row, :count] for own, key in keys.items()}
        for row, count in enumerate(counts)
    ]


@BOTH
def test_detections_are_those_of_the_saved_model(server, kind, loaded, images):
    with ServingClient(server.url(kind)) as client:
        found = client.detect(images)
    expected = expect(loaded, images)
    assert len(found) == len(images) == 5
    for one, wanted in zip(found, expected, strict=True):
        assert len(wanted["scores"]) > 3
        for key, value in wanted.items():
            assert one[key].dtype == value.dtype
            # JSON carries a float32 in full, see WriteDecimal of json_tensor.cc.
            np.testing.assert_array_equal(one[key], value)


def test_rest_sends_the_row_format_with_base64(server, images):
    ServingClient(server.http_url, class_names=["a", "b", "c"]).detect(images[:2])
    ((signature, body),) = server.requests
    assert signature == "serving_default"
    assert set(body) == {"signature_name", "instances"}
    assert [set(one) for one in body["instances"]] == [{"b64"}, {"b64"}]


@BOTH
def test_images_are_paths_or_bytes_alone_or_many(server, kind, images):
    client = ServingClient(server.url(kind), class_names=["a", "b", "c"])
    (one,) = client.detect(str(images[0]))
    (same,) = client.detect(images[0].read_bytes())
    np.testing.assert_array_equal(one["scores"], same["scores"])
    assert one["names"] == [["a", "b", "c"][label] for label in one["labels"]]
    with pytest.raises(ValueError, match="must be at least one"):
        client.detect([])
    with pytest.raises(FileNotFoundError):
        client.detect("absent.jpg")


@BOTH
def test_more_images_than_a_batch_go_in_several_requests(server, kind, images):
    client = ServingClient(server.url(kind), batch_size=2, class_names=["a", "b", "c"])
    assert len(client.detect(images)) == 5
    assert len(server.requests) == 3


@BOTH
def test_it_gives_the_metadata_and_names_the_classes(server, kind, exported, images):
    client = ServingClient(server.url(kind))
    recorded = json.loads((exported / "assets" / "metadata.json").read_text())
    assert client.metadata() == recorded
    server.requests.clear()
    for _ in range(2):
        (found,) = client.detect(images[0])
    assert found["names"] == [tiny_run.CLASS_NAMES[k] for k in found["labels"]]
    # The names are asked for once.
    asked = [signature for signature, _ in server.requests]
    assert asked == ["serving_default", "metadata", "serving_default"]


def test_rest_refuses_a_signature_without_inputs_which_is_said(several_inputs, images):
    with StandIn({"vfnet": {1: several_inputs.parent / "3"}}) as server:
        client = ServingClient(server.http_url, signature="image_bytes")
        with pytest.raises(ServingError, match="refuses a signature without inputs"):
            client.metadata()
        # The stand-in refuses it as the server does.
        with pytest.raises(ServingError, match="Failed to get input map"):
            client._transport.predict("metadata", {"x": 0}, {"x": b""}, 5.0)


@BOTH
def test_several_inputs_go_by_name_and_the_rest_comes_from_the_metadata(
    several_inputs, kind
):
    with StandIn({"vfnet": {1: several_inputs}}) as server:
        client = ServingClient(
            server.url(kind), signature="image_bytes_with_thresholds"
        )
        found = client.detect([b"good", b"x"], score_threshold=0.25)
        assert client.metadata()["max_detections"] == 2
        if kind == "http":
            sent = [body for name, body in server.requests if "thresholds" in name]
            (inputs,) = [body["inputs"] for body in sent]
            assert inputs["score_threshold"] == 0.25
            assert inputs["max_detections"] == 2
        assert [one["status"] for one in found] == [0, 1]
        np.testing.assert_array_equal(found[1]["scores"], [0.25, 0.25])
        np.testing.assert_array_equal(found[0]["boxes"], [[1, 2, 3, 4]] * 2)
        # The model has learnt a sixth class since the names were recorded.
        assert found[0]["names"] == ["star", "class 5"]
        (one,) = client.detect([b"good"], score_threshold=0.5, max_detections=1)
        assert one["scores"].tolist() == [0.5]
        with pytest.raises(ValueError, match="Received: \\['iou'\\]"):
            client.detect([b"good"], iou=0.5)
        with pytest.raises(ValueError, match="needs the input 'score_threshold'"):
            client.detect([b"good"])


@BOTH
def test_an_input_with_a_batch_dimension_is_sent_for_each_image(several_inputs, kind):
    with StandIn({"vfnet": {1: several_inputs}}, batching=True) as server:
        client = ServingClient(server.url(kind), signature="with_scores")
        found = client.detect([b"good", b"fine"], score_threshold=0.75)
        assert [one["scores"].tolist() for one in found] == [[0.75], [0.75]]
        # Batching takes no scalars: the server's refusal is passed on.
        client = ServingClient(
            server.url(kind), signature="image_bytes_with_thresholds"
        )
        with pytest.raises(ServingError, match="0th-dimension") as caught:
            client.detect([b"good"], score_threshold=0.25)
        assert caught.value.code == "INVALID_ARGUMENT"


@BOTH
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_growing_waits(
    server, kind, status, waits, images
):
    if (kind, status) == ("grpc", 429):
        pytest.skip("gRPC has the code for messages that are too large, too")
    server.faults.extend([status, status])
    client = ServingClient(server.url(kind), class_names=["a", "b", "c"])
    assert len(client.detect(images[0])) == 1
    assert len(server.requests) == 3
    assert waits == [0.2, 0.4]


@BOTH
def test_retries_are_limited(server, kind, waits, images):
    server.faults.extend([503] * 9)
    client = ServingClient(server.url(kind), retries=2)
    with pytest.raises(ServingError, match="tries: 3") as caught:
        client.detect(images[0])
    assert caught.value.code == "UNAVAILABLE" and caught.value.is_transient
    assert len(server.requests) == 3


def test_waits_never_pass_the_longest_and_are_drawn_at_random(monkeypatch, server):
    drawn, waited = [], []
    replace_waits(
        monkeypatch, waited.append, lambda *limits: drawn.append(limits) or 0.0
    )
    server.faults.extend([503] * 9)
    with pytest.raises(ServingError):
        ServingClient(server.http_url, retries=7).detect(b"x")
    assert drawn == [(0, min(5.0, 0.2 * 2**n)) for n in range(7)]
    assert waited == [0.0] * 7


@BOTH
def test_what_the_server_calls_a_mistake_is_not_sent_again(server, kind, waits, images):
    server.faults.append(400)
    with pytest.raises(ServingError, match="injected") as caught:
        ServingClient(server.url(kind)).detect(images[0])
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(server.requests) == 1 and not waits


@BOTH
def test_the_deadline_is_for_all_tries_together(server, kind, images, monkeypatch):
    replace_waits(monkeypatch, time.sleep, lambda low, high: high)
    server.faults.extend([503, 503, ("wait", 5.0)])
    client = ServingClient(server.url(kind), timeout=1.5)
    start = time.monotonic()
    with pytest.raises(ServingError, match="No answer from") as caught:
        client.detect(images[0])
    assert caught.value.code == "DEADLINE_EXCEEDED"
    # 0.2 and 0.4 s of waiting count.
    assert 1.4 < time.monotonic() - start < 2.0


def test_no_wait_goes_past_the_deadline(server, monkeypatch, images):
    replace_waits(monkeypatch, time.sleep, lambda low, high: 60.0)
    server.faults.extend([503] * 3)
    start = time.monotonic()
    with pytest.raises(ServingError, match="tries: 1"):
        ServingClient(server.http_url, timeout=2.0).detect(images[0])
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_a_dropped_connection_is_opened_again(server, fault, waits, images):
    server.faults.append(fault)
    client = ServingClient(server.http_url, class_names=["a", "b", "c"])
    assert len(client.detect(images[0])) == 1
    assert len(server.requests) == 2 and waits == [0.2]


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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_nobody_there_is_said_after_the_tries(waits):
    client = ServingClient(f"http://127.0.0.1:{free_port()}", retries=1)
    with pytest.raises(ServingError, match="Nothing listens at http://127.0.0.1"):
        client.detect(b"x")
    assert waits == [0.2]
    client = ServingClient(f"grpc://127.0.0.1:{free_port()}", retries=1, timeout=5)
    with pytest.raises(ServingError, match="cannot be reached or is busy") as caught:
        client.detect(b"x")
    assert caught.value.code == "UNAVAILABLE"


def test_a_grpc_client_finds_a_server_that_comes_back(exported, server, images):
    port = free_port()
    client = ServingClient(f"grpc://127.0.0.1:{port}", retries=20, timeout=20)
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
def test_a_wrong_name_or_version_is_told_apart(server, kind, images, waits):
    with pytest.raises(ServingError, match="has no model 'vfnot'") as caught:
        ServingClient(server.url(kind), model="vfnot").detect(images[0])
    assert caught.value.code == "NOT_FOUND"
    with pytest.raises(ServingError, match=r"Version 2 .* loaded: \[1, 3\]"):
        ServingClient(server.url(kind), version=2).detect(images[0])
    with pytest.raises(ServingError, match="No version of 'broken' is loaded"):
        ServingClient(server.url(kind), model="broken").detect(images[0])
    assert not waits
    with pytest.raises(ServingError, match="has no signature 'boxes', but .*'raw'"):
        ServingClient(server.url(kind), signature="boxes").detect(images[0])


def test_a_version_is_asked_for_by_number(server, images):
    for kind in ("http", "grpc"):
        found = ServingClient(server.url(kind), version=1).detect(images[0])
        assert len(found) == 1
    assert server.requests[-1][1].model_spec.version.value == 1


@BOTH
def test_the_answer_of_another_signature_is_no_detection(several_inputs, kind):
    with StandIn({"vfnet": {1: several_inputs}}) as server:
        client = ServingClient(server.url(kind), signature="metadata")
        with pytest.raises(
            ServingError, match="must give detections.*\\['metadata'\\]"
        ):
            client.detect(b"x")


@BOTH
def test_readiness_is_waited_for_and_a_failed_load_is_not(server, kind, waits):
    ServingClient(server.url(kind)).wait_until_ready(5)
    ServingClient(server.url(kind), version=3).wait_until_ready(5)
    with pytest.raises(ServingError, match="could not load version 7.*has no graph"):
        ServingClient(server.url(kind), version=7).wait_until_ready(30)
    with pytest.raises(ServingError, match="could not load version 1 of 'broken'"):
        ServingClient(server.url(kind), model="broken").wait_until_ready(30)
    with pytest.raises(ServingError, match="version: 2.*waited 0.4 s"):
        ServingClient(server.url(kind), version=2).wait_until_ready(0.4)
    with pytest.raises(ServingError, match="has no model 'vfnot'.*waited 0.4 s"):
        ServingClient(server.url(kind), model="vfnot").wait_until_ready(0.4)


def test_the_wrong_port_is_recognised(server, waits):
    port = server.grpc_port
    with pytest.raises(ServingError, match="gRPC|dropped") as caught:
        ServingClient(f"http://127.0.0.1:{port}", retries=0, timeout=5).detect(b"x")
    assert "127.0.0.1" in str(caught.value)


def test_a_web_server_without_models_is_recognised(waits):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.handle_request, daemon=True).start()
        client = ServingClient(f"http://127.0.0.1:{web.server_port}/prefix/")
        with pytest.raises(
            ServingError, match="no answer of TensorFlow Serving"
        ) as got:
            client.detect(b"x")
    assert "/prefix/v1/models/vfnet:predict: 404" in str(got.value)
    assert got.value.code == "UNIMPLEMENTED" and not waits


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"url": "127.0.0.1:8501"}, "`url` must be"),
        ({"url": "ftp://host"}, "`url` must be"),
        ({"timeout": 0}, "`timeout` must be"),
        ({"retries": -1}, "`retries` >= 0"),
        ({"batch_size": 0}, "`batch_size` >= 1"),
        ({"model": "a/b"}, "`model` must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, rule):
    with pytest.raises(ValueError, match=rule):
        ServingClient(**{"url": "http://localhost:8501", **settings})


def test_rest_needs_no_tensorflow_and_none_of_this_package(server, images):
    code = (
        "import importlib.util, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tensorflow', 'grpc', 'vfnet_tf'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "spec = importlib.util.spec_from_file_location('client', sys.argv[1])\n"
        "client = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(client)\n"
        "print(len(client.ServingClient(sys.argv[2]).detect(sys.argv[3])))\n"
        "try:\n"
        "    client.ServingClient('grpc://localhost')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    file = importlib.util.find_spec("vfnet_tf.export.serving.client").origin
    answer = subprocess.run(
        [sys.executable, "-c", code, file, server.http_url, str(images[0])],
        capture_output=True,
        text=True,
        timeout=60,
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
