"""Detections from a TensorFlow Serving server, over REST or gRPC.

This file needs nothing else of the package. Over REST it needs numpy alone, so it may
be copied to where there is no TensorFlow; gRPC needs the extra `serving`.

Facts of the server that shaped it (tensorflow_serving/util/json_tensor.cc and
tensorflow_serving/batching/): in the row format every input and output has the batch as
its first dimension, so a signature with scalars is called in the columnar format; REST
refuses a signature without inputs, and so does batching.
"""

import base64
import http.client
import json
import os
import random
import socket
import threading
import time
import urllib.parse

import numpy as np

#: Seconds: tries wait a random time up to this, doubled from one to the next.
FIRST_WAIT = 0.2
LONGEST_WAIT = 5.0
_POLL_SECONDS = 0.5
# By default the server reads whole requests of any size, the client 4 MB of an answer.
_GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A channel that found nobody refuses all calls until it tries again: by default a
    # second later at first, which is longer than our own waits.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
# What the server makes of TensorFlow's codes (model_servers/http_server.cc), reversed.
_CODES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TRANSIENT_STATUS = (429, 503)


class ServingError(RuntimeError):
    """What a server answered, or that it did not.

    Attributes:
        code: str, name of the gRPC status code; the REST status is translated.
        is_transient: bool, whether the same request may succeed a moment later.
    """

    def __init__(self, message, code, is_transient=False):
        super().__init__(message)
        self.code = code
        self.is_transient = is_transient


class ServingClient:
    """Calls a detector that `vfnet export --serving` wrote, behind TensorFlow Serving.

    A request that finds no server, a dropped connection, or is refused because the
    server is busy (UNAVAILABLE, 429, 503) is sent again after a random, growing time.
    Everything else would fail again and does not. Threads may share a client.

    Args:
        url: str: `http://host:8501` or `https://...` for REST, with a path before
            `/v1` if a proxy wants one; `grpc://host:8500` or `grpcs://...` for gRPC.
        model: str, the model's name on the server.
        version: int, or None for the one that the server thinks best, its largest.
        signature: str, one that takes encoded images and gives detections.
        timeout: float seconds for all of a call, its tries and waits included.
        retries: int, how often a request is sent again at most.
        batch_size: int, images in a request at most; no more than the server's largest
            batch, see `batching_parameters.txt`.
        class_names: list of str by label. None asks the server, once; what cannot be
            asked (see `metadata`) leaves the names out.

    Raises:
        ValueError: for a URL of another kind, or numbers out of range.
        ImportError: for gRPC without the extra `serving`.

    >>> client = ServingClient("http://localhost:8501", class_names=["car", "bus"])
    >>> client.wait_until_ready()  # doctest: +SKIP
    >>> for found in client.detect(["street.jpg", "yard.png"]):  # doctest: +SKIP
    ...     print(found["labels"], found["scores"], found["boxes"])
    """

    def __init__(
        self,
        url,
        *,
        model="vfnet",
        version=None,
        signature="serving_default",
        timeout=30.0,
        retries=4,
        batch_size=8,
        class_names=None,
    ):
        parts = urllib.parse.urlsplit(url)
        transports = {"http": _Rest, "https": _Rest, "grpc": _Grpc, "grpcs": _Grpc}
        if parts.scheme not in transports or not parts.hostname:
            raise ValueError(
                "`url` must be http://HOST:PORT or grpc://HOST:PORT, or with TLS "
                f"https:// or grpcs://. Received: url={url}"
            )
        if timeout <= 0 or retries < 0 or batch_size < 1:
            raise ValueError(
                "`timeout` must be > 0, `retries` >= 0 and `batch_size` >= 1. "
                f"Received: timeout={timeout}, retries={retries}, "
                f"batch_size={batch_size}"
            )
        if not model or set(model) & set("/:?#"):
            raise ValueError(
                f"`model` must be a model's name. Received: model={model!r}"
            )
        self.url, self.model, self.version = url, model, version
        self.signature, self.timeout, self.retries = signature, timeout, retries
        self.batch_size, self.class_names = batch_size, class_names
        self._transport = transports[parts.scheme](parts, model, version)
        self._inputs = {}
        self._asked_for_names = False
        self._lock = threading.Lock()

    def detect(self, images, **inputs):
        """Detects objects in one image or in many.

        The server pads the images of a request to a common size, which moves their
        detections a little: what must come out the same each time goes alone
        (`batch_size=1`), to a server without batching.

        Args:
            images: path of a JPEG or PNG file, its bytes, or a list of these.
            **inputs: further inputs of the signature, such as `score_threshold=0.3`
                where it has one, the same for all images. What the signature has and
                is not given takes the value that `metadata()` has under its name.

        Returns:
            list of one dict per image, best detection first::

                boxes   float32 [N, 4]  as the export says; by default (x1, y1, x2, y2)
                                        in pixels of the image, upright
                scores  float32 [N]     in [0, 1]
                labels  int32   [N]     0..K-1
                names   list of N str   where class names are known
                status  int             where the model gives it; 0 says that the image
                                        was fine, anything else why nothing was found:
                                        `status_codes` of `metadata()`

        Raises:
            ServingError: if no good answer came in time.
            ValueError: if there is no image, or an input that the signature lacks.
            OSError: if a file cannot be read.
        """
        if isinstance(images, (str, os.PathLike, bytes)):
            images = [images]
        contents = [_read(image) for image in images]
        if not contents:
            raise ValueError("`images` must be at least one. Received: images=[]")
        deadline = time.monotonic() + self.timeout
        found = []
        for start in range(0, len(contents), self.batch_size):
            batch = contents[start : start + self.batch_size]
            outputs = self._predict(self.signature, batch, inputs, deadline)
            found += _unpad(outputs, len(batch), self.signature)
        names = self._names(deadline)
        if names is not None:
            for one in found:
                # The server may have moved to a version with more classes.
                one["names"] = [
                    str(names[label]) if label < len(names) else f"class {label}"
                    for label in one["labels"].tolist()
                ]
        return found

    def metadata(self):
        """What the export recorded: class names, thresholds, sizes, versions.

        It is asked for each time, as the server may have moved to another version.

        Returns:
            dict, that of `assets/metadata.json`.

        Raises:
            ServingError: if the model has no signature `metadata`, or one without
                inputs and the server is asked by REST, or joins requests to batches:
                it refuses that then.
        """
        return self._metadata(time.monotonic() + self.timeout)

    def wait_until_ready(self, timeout=60.0):
        """Returns when the server can be asked for detections.

        Args:
            timeout: float seconds.

        Raises:
            ServingError: if that does not come in time, and says what was the matter;
                at once if the server could not load the version.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self._is_available(deadline):
                    return
                wanted = "any" if self.version is None else self.version
                problem = ServingError(
                    f"{self.url} has not loaded {self.model!r}, version: {wanted}",
                    "UNAVAILABLE",
                )
            except ServingError as error:
                if error.code == "FAILED_PRECONDITION":
                    raise
                problem = error
            if time.monotonic() + _POLL_SECONDS >= deadline:
                raise ServingError(
                    f"{problem} (waited {timeout:g} s)", problem.code
                ) from problem
            time.sleep(_POLL_SECONDS)

    def close(self):
        """Closes the channel of gRPC; REST keeps no connection."""
        self._transport.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _is_available(self, deadline):
        """Whether the version asked for, or any, is loaded."""
        try:
            states = self._transport.states(_remaining(deadline))
        except ServingError as error:
            if error.code == "NOT_FOUND":
                raise self._explain(error, deadline) from error
            raise
        if self.version is not None:
            states = {n: s for n, s in states.items() if n == self.version}
        if any(state == "AVAILABLE" for state, _ in states.values()):
            return True
        failed = {n: text for n, (state, text) in states.items() if state == "END"}
        if failed and len(failed) == len(states) and all(failed.values()):
            number, text = max(failed.items())
            raise ServingError(
                f"The server could not load version {number} of {self.model!r}: {text}",
                "FAILED_PRECONDITION",
            )
        return False

    def _predict(self, signature, contents, extra, deadline):
        """Outputs of a signature by name: arrays with the batch first."""
        if signature == "serving_default" and not extra:
            # Its one input is a promise of the export; nothing need be asked.
            inputs = {"image_bytes": ("DT_STRING", 1)}
        else:
            inputs = self._signature_inputs(signature, deadline)
        values = self._values(signature, inputs, contents, extra, deadline)
        return self._send(
            lambda remaining: self._transport.predict(
                signature, inputs, values, remaining
            ),
            deadline,
        )

    def _values(self, signature, inputs, contents, extra, deadline):
        """Value of each input by name, with the images in the one for strings."""
        unknown = sorted(set(extra) - set(inputs))
        images = [n for n, kind in inputs.items() if kind == ("DT_STRING", 1)]
        if unknown or len(images) != 1 or images[0] in extra:
            raise ValueError(
                "`inputs` must be inputs of the signature beside its images. "
                f"Received: {sorted(extra)} for {signature}, which has "
                f"{sorted(inputs)}"
            )
        values = {images[0]: contents}
        missing = set(inputs) - set(images) - set(extra)
        recorded = self._metadata(deadline) if missing else {}
        for name, (_, rank) in inputs.items():
            if name in images:
                continue
            if name in missing and name not in recorded:
                raise ValueError(
                    f"{signature} needs the input {name!r}, and the metadata have no "
                    f"value for it. Received: {sorted(extra)}"
                )
            value = extra[name] if name in extra else recorded[name]
            # An input with a batch dimension has one value per image.
            values[name] = [value] * len(contents) if rank == 1 else value
        return values

    def _signature_inputs(self, signature, deadline):
        """Name -> (dtype, rank) of the inputs of a signature; asked for once."""
        if signature not in self._inputs:
            known = self._send(self._transport.signatures, deadline)
            if signature not in known:
                raise ServingError(
                    f"{self.model!r} has no signature {signature!r}, but "
                    f"{sorted(known)}",
                    "INVALID_ARGUMENT",
                )
            self._inputs[signature] = known[signature]
        return self._inputs[signature]

    def _metadata(self, deadline):
        inputs = self._signature_inputs("metadata", deadline)
        # One empty string for each, should the signature have inputs at all.
        values = {name: [b""] if rank else b"" for name, (_, rank) in inputs.items()}
        if not inputs and isinstance(self._transport, _Rest):
            raise ServingError(
                "TensorFlow Serving's REST API refuses a signature without inputs, "
                f"which `metadata` of {self.model!r} is: ask over gRPC, or give "
                "`class_names`",
                "UNIMPLEMENTED",
            )
        outputs = self._send(
            lambda remaining: self._transport.predict(
                "metadata", inputs, values, remaining
            ),
            deadline,
        )
        (text,) = outputs.values()
        return json.loads(np.asarray(text).reshape(-1)[0])

    def _names(self, deadline):
        """Class names, asked for once; None where they cannot be had."""
        with self._lock:
            if self.class_names is None and not self._asked_for_names:
                try:
                    recorded = self._metadata(deadline)
                except ServingError as error:
                    # Detections without names are better than none.
                    is_late = error.code == "DEADLINE_EXCEEDED"
                    self._asked_for_names = not (error.is_transient or is_late)
                    return None
                names = recorded.get("class_names")
                if names and recorded.get("box_format") == "yxyx_normalized":
                    names = ["", *names]  # its classes count from 1
                self._asked_for_names = True
                if names:
                    self.class_names = names
            return self.class_names

    def _send(self, request, deadline):
        """Calls `request(seconds left)` until it succeeds, fails for good or is late."""
        start, problem = time.monotonic(), None
        for number in range(self.retries + 1):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            try:
                return request(remaining)
            except ServingError as error:
                if error.code == "NOT_FOUND":
                    raise self._explain(error, deadline) from error
                if not error.is_transient:
                    raise
                problem = error
            if number == self.retries:
                break
            # All clients of a server that comes back must not come at once.
            wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**number))
            if time.monotonic() + wait >= deadline:
                break
            time.sleep(wait)
        if problem is None:
            raise ServingError(
                f"No time was left to ask {self.url}: timeout={self.timeout:g} s",
                "DEADLINE_EXCEEDED",
            )
        spent = time.monotonic() - start
        raise ServingError(
            f"{problem} (tries: {number + 1} in {spent:.1f} s)", problem.code, True
        ) from problem

    def _explain(self, error, deadline):
        """Says what a NOT_FOUND means by what the server has."""
        try:
            states = self._transport.states(_remaining(deadline))
        except ServingError as second:
            if second.code != "NOT_FOUND":
                return error
            return ServingError(
                f"The server at {self.url} has no model {self.model!r}. It said: "
                f"{second}",
                "NOT_FOUND",
            )
        loaded = sorted(n for n, (state, _) in states.items() if state == "AVAILABLE")
        if self.version is not None and self.version not in loaded:
            return ServingError(
                f"Version {self.version} of {self.model!r} is not loaded at "
                f"{self.url}; loaded: {loaded or 'none'}",
                "NOT_FOUND",
            )
        if not loaded:
            found = {n: state for n, (state, _) in states.items()}
            return ServingError(
                f"No version of {self.model!r} is loaded at {self.url}: {found}",
                "NOT_FOUND",
            )
        return error


def _remaining(deadline):
    """Seconds for a short question, some even when there are none left."""
    return max(deadline - time.monotonic(), 0.1)


def _read(image):
    """Bytes of a path, or the bytes that it is."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    with open(image, "rb") as file:
        return file.read()


def _unpad(outputs, count, signature):
    """Splits a batch of padded detections: list of dicts, see `detect`."""
    keys = ("detection_boxes", "detection_scores", "detection_classes")
    missing = [key for key in (*keys, "num_detections") if key not in outputs]
    if missing:
        raise ServingError(
            f"The signature {signature!r} must give detections. Received: "
            f"{sorted(outputs)}, without {missing}",
            "INVALID_ARGUMENT",
        )
    numbers = np.asarray(outputs["num_detections"], "int64")
    if numbers.shape != (count,):
        raise ServingError(
            f"The answer must be for {count} images. Received: num_detections of shape "
            f"{numbers.shape}",
            "INTERNAL",
        )
    boxes, scores, labels = (outputs[key] for key in keys)
    found = []
    for row, number in enumerate(numbers):
        one = {
            "boxes": np.array(boxes[row][:number], "float32").reshape(-1, 4),
            "scores": np.array(scores[row][:number], "float32"),
            "labels": np.array(labels[row][:number], "int32"),
        }
        if "status" in outputs:
            one["status"] = int(outputs["status"][row])
        found.append(one)
    return found


class _Rest:
    """TensorFlow Serving's REST API; a connection for each request."""

    def __init__(self, parts, model, version):
        self._is_secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._is_secure else 8501)
        name = urllib.parse.quote(model)
        self._model = f"{parts.path.rstrip('/')}/v1/models/{name}"
        self._path = self._model
        if version is not None:
            self._path += f"/versions/{int(version)}"
        self._place = f"{parts.scheme}://{self._host}:{self._port}"

    def predict(self, signature, inputs, values, timeout):
        request = {"signature_name": signature}
        plain = {name: _to_json(value) for name, value in values.items()}
        if len(inputs) == 1:
            (request["instances"],) = plain.values()
        else:
            request["inputs"] = plain
        answer = self._ask("POST", f"{self._path}:predict", timeout, request)
        if "outputs" in answer:
            outputs = answer["outputs"]
            # An output that is alone comes without its name.
            return outputs if isinstance(outputs, dict) else {signature: outputs}
        rows = answer.get("predictions")
        if not rows:
            raise ServingError(
                "The answer must have `predictions` or `outputs`. Received: "
                f"{sorted(answer)}",
                "INTERNAL",
            )
        if not isinstance(rows[0], dict):
            return {signature: rows}
        return {name: [row[name] for row in rows] for name in rows[0]}

    def signatures(self, timeout):
        answer = self._ask("GET", f"{self._path}/metadata", timeout)
        known = answer["metadata"]["signature_def"]["signature_def"]
        return {
            name: {
                key: (info["dtype"], len(info.get("tensor_shape", {}).get("dim", ())))
                for key, info in signature.get("inputs", {}).items()
            }
            for name, signature in known.items()
        }

    def states(self, timeout):
        answer = self._ask("GET", self._model, timeout)
        return {
            int(one["version"]): (
                one["state"],
                one.get("status", {}).get("error_message", ""),
            )
            for one in answer.get("model_version_status", ())
        }

    def close(self):
        pass

    def _ask(self, method, path, timeout, request=None):
        """The JSON of an answer; `timeout` seconds for all of it."""
        deadline = time.monotonic() + timeout
        body = None if request is None else json.dumps(request).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connect = http.client.HTTPConnection
        if self._is_secure:
            connect = http.client.HTTPSConnection
        connection = connect(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            connected = connection.sock  # which `getresponse` may forget
            response = connection.getresponse()
            content = _read_body(response, connected, deadline)
        except TimeoutError as error:
            raise ServingError(
                f"No answer from {self._place} within {timeout:.1f} s",
                "DEADLINE_EXCEEDED",
            ) from error
        except ConnectionRefusedError as error:
            raise ServingError(
                f"Nothing listens at {self._place}", "UNAVAILABLE", True
            ) from error
        except (ConnectionError, http.client.IncompleteRead) as error:
            raise ServingError(
                f"{self._place} dropped the connection: {error}", "UNAVAILABLE", True
            ) from error
        except http.client.HTTPException as error:
            raise ServingError(
                f"{self._place} does not speak HTTP; gRPC has a port of its own: "
                f"{type(error).__name__}",
                "INTERNAL",
            ) from error
        except socket.gaierror as error:
            raise ServingError(
                f"There is no host {self._host!r}: {error.strerror}", "UNAVAILABLE"
            ) from error
        except OSError as error:
            raise ServingError(
                f"{self._place} cannot be reached: {error}", "UNAVAILABLE"
            ) from error
        finally:
            connection.close()
        return self._parse(response, path, content)

    def _parse(self, response, path, content):
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if response.status == 200 and isinstance(answer, dict):
            return answer
        is_served = isinstance(answer, dict) and "error" in answer
        if is_served:
            message = str(answer["error"])
        else:
            begin = content[:100].decode("utf-8", "replace")
            message = (
                f"no answer of TensorFlow Serving's REST API at {self._place}{path}: "
                f"{response.status} {response.reason}: {begin}"
            )
        code = _CODES.get(response.status, "UNKNOWN")
        if code == "NOT_FOUND" and not is_served:
            code = "UNIMPLEMENTED"
        raise ServingError(message, code, response.status in _TRANSIENT_STATUS)


def _read_body(response, connected, deadline):
    """All of a response; the time limit of a socket is for each piece only."""
    pieces = []
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connected.settimeout(remaining)
        piece = response.read1(65536)
        if not piece:
            break
        pieces.append(piece)
    content = b"".join(pieces)
    length = response.headers.get("Content-Length")
    if length is not None and len(content) < int(length):
        raise http.client.IncompleteRead(content, int(length) - len(content))
    return content


def _to_json(value):
    """Bytes as TensorFlow Serving wants them, lists element by element."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, (list, tuple)):
        return [_to_json(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


class _Grpc:
    """TensorFlow Serving's `PredictionService` and `ModelService`."""

    def __init__(self, parts, model, version):
        try:
            import grpc
            import tensorflow as tf
            from tensorflow.core.framework import types_pb2
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                get_model_status_pb2,
                model_service_pb2_grpc,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise ImportError(
                "gRPC needs the packages grpcio and tensorflow-serving-api: "
                "pip install 'vfnet_tf[serving]'"
            ) from error
        self._grpc, self._tf, self._types_pb2 = grpc, tf, types_pb2
        self._predict_pb2 = predict_pb2
        self._metadata_pb2 = get_model_metadata_pb2
        self._status_pb2 = get_model_status_pb2
        self._name, self._version = model, version
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._target = f"{host}:{parts.port or 8500}"
        if parts.scheme == "grpcs":
            self._channel = grpc.secure_channel(
                self._target, grpc.ssl_channel_credentials(), _GRPC_OPTIONS
            )
        else:
            self._channel = grpc.insecure_channel(self._target, _GRPC_OPTIONS)
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, signature, inputs, values, timeout):
        request = self._predict_pb2.PredictRequest()
        self._specify(request)
        request.model_spec.signature_name = signature
        for name, (dtype, _) in inputs.items():
            number = self._types_pb2.DataType.Value(dtype)
            tensor = self._tf.make_tensor_proto(values[name], number)
            request.inputs[name].CopyFrom(tensor)
        answer = self._ask(self._service.Predict, request, timeout)
        return {
            name: self._tf.make_ndarray(tensor)
            for name, tensor in answer.outputs.items()
        }

    def signatures(self, timeout):
        request = self._metadata_pb2.GetModelMetadataRequest()
        self._specify(request)
        request.metadata_field.append("signature_def")
        answer = self._ask(self._service.GetModelMetadata, request, timeout)
        known = self._metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(known)
        return {
            name: {
                key: (
                    self._types_pb2.DataType.Name(info.dtype),
                    len(info.tensor_shape.dim),
                )
                for key, info in signature.inputs.items()
            }
            for name, signature in known.signature_def.items()
        }

    def states(self, timeout):
        request = self._status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._name
        answer = self._ask(self._models.GetModelStatus, request, timeout)
        state = self._status_pb2.ModelVersionStatus.State
        return {
            one.version: (state.Name(one.state), one.status.error_message)
            for one in answer.model_version_status
        }

    def close(self):
        self._channel.close()

    def _specify(self, request):
        request.model_spec.name = self._name
        if self._version is not None:
            request.model_spec.version.value = int(self._version)

    def _ask(self, method, request, timeout):
        try:
            return method(request, timeout=timeout)
        except self._grpc.RpcError as error:
            code = error.code().name
            message = {
                "UNAVAILABLE": f"grpc://{self._target} cannot be reached or is busy: "
                f"{error.details()}",
                "DEADLINE_EXCEEDED": f"No answer from grpc://{self._target} within "
                f"{timeout:.1f} s",
            }.get(code, error.details())
            raise ServingError(message, code, code == "UNAVAILABLE") from error
