"""A stand-in for the TensorFlow Serving binary, which is in no package registry.

Over gRPC it is the real `PredictionService` and `ModelService` protos of the package
tensorflow-serving-api, answered by Python in place of C++. Over REST it follows
https://www.tensorflow.org/tfx/serving/api_rest, and for what that leaves open the
server's source: util/json_tensor.cc (formats), model_servers/http_server.cc (codes),
batching/batching_util.h (what batching refuses). What it does not have: batching
itself, version policies, limits of time.
"""

import base64
import collections
import concurrent.futures
import contextlib
import http.server
import json
import re
import socket
import threading
import time

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

STATUS = {
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.INVALID_ARGUMENT: 400,  # what an injected 400 is over gRPC
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}
#: Directory -> SavedModel; loading takes seconds.
LOADED = {}
URL = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata|:predict)?")


class Refusal(Exception):
    """An error that the server answers with; `code` is a name of `grpc.StatusCode`."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = grpc.StatusCode[code]


class StandIn:
    """Serves SavedModels on two free ports of the loopback interface.

    Args:
        models: dict name -> {version: directory, or a str that says why the version
            could not be loaded}.
        batching: bool, refuses what a server with --enable_batching refuses.
        grpc_port: int, 0 takes a free one.

    Attributes:
        faults: deque that each prediction takes one from: an HTTP status (429, 503; the
            same code over gRPC), ("wait", seconds), "drop", or "cut".
        requests: list of (signature, body or proto) of the predictions.
        times: list of float seconds, when they came.
    """

    def __init__(self, models, *, batching=False, grpc_port=0):
        self.models, self.batching = models, batching
        self.faults, self.requests, self.times = collections.deque(), [], []
        self._lock = threading.Lock()
        pool = concurrent.futures.ThreadPoolExecutor(4)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self._grpc = grpc.server(pool, options=options)
        service = _Predictions(self)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            service, self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _Models(self), self._grpc
        )
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._rest = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": self})
        )
        self._rest.daemon_threads = True
        self.http_url = f"http://127.0.0.1:{self._rest.server_port}"
        self.grpc_url = f"grpc://127.0.0.1:{self.grpc_port}"

    def __enter__(self):
        self._grpc.start()
        threading.Thread(
            target=self._rest.serve_forever, args=(0.01,), daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self._grpc.stop(0).wait()
        self._rest.shutdown()
        self._rest.server_close()

    def take_fault(self, signature, request):
        """Records a prediction; returns what shall go wrong with it, or None."""
        self.requests.append((signature, request))
        self.times.append(time.monotonic())
        return self.faults.popleft() if self.faults else None

    def url(self, kind):
        return {"http": self.http_url, "grpc": self.grpc_url}[kind]

    def states(self, name):
        """`GetModelStatusResponse` of a model."""
        known = self.models.get(name, {})
        if not known:
            raise Refusal("NOT_FOUND", f"Could not find any versions of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, directory in known.items():
            one = response.model_version_status.add(version=number)
            is_loaded = not isinstance(directory, str)
            one.state = one.AVAILABLE if is_loaded else one.END
            if not is_loaded:
                one.status.error_code = 3
                one.status.error_message = directory
        return response

    def model(self, name, version=None):
        """(version, directory, loaded SavedModel)."""
        known = {
            number: directory
            for number, directory in self.models.get(name, {}).items()
            if not isinstance(directory, str)
        }
        number = max(known, default=None) if version is None else version
        if number not in known:
            which = f"Latest({name})" if version is None else f"{name}, {version}"
            raise Refusal("NOT_FOUND", f"Servable not found for request: {which}")
        with self._lock:
            directory = known[number]
            if directory not in LOADED:
                LOADED[directory] = tf.saved_model.load(str(directory))
        return number, directory, LOADED[directory]

    def signature_map(self, directory):
        """`SignatureDefMap` as in the SavedModel's file."""
        file = saved_model_pb2.SavedModel()
        file.ParseFromString((directory / "saved_model.pb").read_bytes())
        known = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in file.meta_graphs[0].signature_def.items():
            known.signature_def[name].CopyFrom(signature)
        return known

    def run(self, name, version, signature, inputs):
        """(version, outputs as arrays by name); `inputs` are arrays by name."""
        number, _, model = self.model(name, version)
        if signature not in model.signatures:
            message = f'Serving signature key "{signature}" not found.'
            raise Refusal("FAILED_PRECONDITION", message)
        function = model.signatures[signature]
        declared = function.structured_input_signature[1]
        if set(declared) != set(inputs):
            message = f"input size does not match: {len(inputs)}!={len(declared)}"
            raise Refusal("INVALID_ARGUMENT", message)
        if self.batching:
            sizes = {np.shape(value)[:1] for value in inputs.values()}
            if len(sizes) != 1 or () in sizes:
                message = "Batching Run() inputs must have equal 0th-dimension size"
                raise Refusal("INVALID_ARGUMENT", message)
        inputs = {k: tf.constant(v, declared[k].dtype) for k, v in inputs.items()}
        try:
            outputs = function(**inputs)
        except tf.errors.InvalidArgumentError as error:
            raise Refusal("INVALID_ARGUMENT", error.message) from error
        return number, {key: value.numpy() for key, value in outputs.items()}


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, stand_in):
        self.stand_in = stand_in

    def Predict(self, request, context):
        spec = request.model_spec
        fault = self.stand_in.take_fault(spec.signature_name, request)
        if isinstance(fault, tuple):
            time.sleep(fault[1])
        elif fault is not None:
            codes = {number: code for code, number in STATUS.items()}
            context.abort(codes.get(fault, grpc.StatusCode.UNAVAILABLE), "injected")
        with _aborting(context):
            number, outputs = self.stand_in.run(
                spec.name,
                _version(spec),
                spec.signature_name or "serving_default",
                {key: tf.make_ndarray(value) for key, value in request.inputs.items()},
            )
        return predict_pb2.PredictResponse(
            model_spec={"name": spec.name, "version": {"value": number}},
            outputs={key: tf.make_tensor_proto(x) for key, x in outputs.items()},
        )

    def GetModelMetadata(self, request, context):
        with _aborting(context):
            spec = request.model_spec
            _, directory, _ = self.stand_in.model(spec.name, _version(spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(self.stand_in.signature_map(directory))
        return response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, stand_in):
        self.stand_in = stand_in

    def GetModelStatus(self, request, context):
        with _aborting(context):
            spec = request.model_spec
            return self.stand_in.states(spec.name)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = URL.fullmatch(self.path)
        if not found or found[3] == ":predict":
            return self._answer(404, {"error": f"Malformed request: GET {self.path}"})
        name, version = found[1], found[2] and int(found[2])
        try:
            if found[3] is None:
                message = self.stand_in.states(name)
                return self._answer(
                    200,
                    json_format.MessageToDict(
                        message,
                        preserving_proto_field_name=True,
                        always_print_fields_with_no_presence=True,
                    ),
                )
            number, directory, _ = self.stand_in.model(name, version)
        except Refusal as refusal:
            return self._answer(STATUS[refusal.code], {"error": str(refusal)})
        known = json_format.MessageToDict(
            self.stand_in.signature_map(directory), preserving_proto_field_name=True
        )
        spec = {"name": name, "signature_name": "", "version": str(number)}
        return self._answer(
            200, {"model_spec": spec, "metadata": {"signature_def": known}}
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = URL.fullmatch(self.path)
        if not found or found[3] != ":predict":
            return self._answer(404, {"error": f"Malformed request: POST {self.path}"})
        signature = body.get("signature_name", "serving_default")
        fault = self.stand_in.take_fault(signature, body)
        if fault == "drop":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if isinstance(fault, tuple):
            time.sleep(fault[1])
        elif isinstance(fault, int):
            return self._answer(fault, {"error": "injected"})
        try:
            inputs = self._inputs(found[1], found[2], signature, body)
            _, outputs = self.stand_in.run(
                found[1], found[2] and int(found[2]), signature, inputs
            )
        except Refusal as refusal:
            return self._answer(STATUS[refusal.code], {"error": str(refusal)})
        plain = {key: _plain(np.asarray(value)) for key, value in outputs.items()}
        # A single output has no name.
        (alone,) = plain.values() if len(plain) == 1 else (plain,)
        return self._answer(200, {"outputs": alone}, is_cut=fault == "cut")

    def _inputs(self, name, version, signature, body):
        """Arrays by input from the columnar format, as json_tensor.cc reads it."""
        refuse = "INVALID_ARGUMENT"
        _, _, model = self.stand_in.model(name, version and int(version))
        if signature not in model.signatures:
            raise Refusal(refuse, f'Serving signature name: "{signature}" not found')
        declared = model.signatures[signature].structured_input_signature[1]
        if not declared:
            raise Refusal(refuse, f"Failed to get input map for signature: {signature}")
        if "inputs" not in body:
            raise Refusal(refuse, "Missing 'inputs' or 'instances' key")
        missing = sorted(set(declared) - set(body["inputs"]))
        if missing:
            raise Refusal(refuse, f"Missing named input: {missing[0]} in 'inputs'")
        return {key: _from_json(body["inputs"][key]) for key in declared}

    def _answer(self, status, answer, is_cut=False):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


def _version(spec):
    return spec.version.value if spec.HasField("version") else None


def _from_json(value):
    """Arrays of what JSON holds; `{"b64": ...}` are bytes."""

    def decode(one):
        if isinstance(one, dict):
            return base64.b64decode(one["b64"], validate=True)
        if isinstance(one, list):
            return [decode(element) for element in one]
        return one.encode() if isinstance(one, str) else one

    decoded = decode(value)
    first = decoded
    while isinstance(first, list) and first:
        first = first[0]
    # Objects, since numpy's strings lose zeros at the end.
    return np.array(decoded, dtype=object if isinstance(first, bytes) else None)


def _plain(array):
    """Numbers and strings in nested lists."""

    def decode(one):
        if isinstance(one, list):
            return [decode(element) for element in one]
        return one.decode() if isinstance(one, bytes) else one

    return decode(array.tolist())


@contextlib.contextmanager
def _aborting(context):
    try:
        yield
    except Refusal as refusal:
        context.abort(refusal.code, str(refusal))
