"""Connections to a TensorFlow Serving server by REST and gRPC, with one interface.

A connection is three functions. `predict(signature, values, dtypes, timeout)` sends
values by input name and returns arrays or nested lists by output name. `look_up(what,
timeout)` returns the dict of the REST URL with the ending `what`: "" (states of the
versions) or "/metadata" (signatures). `close()` ends it. The first two raise
`ServingError`; `timeout` is in seconds, for all tries and waits.
"""

import base64
import concurrent.futures
import contextlib
import json
import threading

# HTTP status -> gRPC code, the reverse of the server's model_servers/http_server.cc.
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
_BUSY = (429, 503)


class ServingError(RuntimeError):
    """The server refused a request or did not answer.

    Attributes:
        code: str, name of a gRPC status code, also over REST.
        is_transient: bool, whether the same request may succeed a moment later.
    """

    def __init__(self, message, code, is_transient=False):
        super().__init__(message)
        self.code, self.is_transient = code, is_transient


def connect_rest(url, model, version, retries):
    """Returns a connection to `url`, http[s]://host:port with any path before `/v1`."""
    import requests
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util import Retry

    class RetryInTime(Retry):
        """Does not repeat a read that timed out, since the caller's time is over."""

        def increment(self, *arguments, error=None, **more):
            if isinstance(error, ReadTimeoutError):
                raise error
            return super().increment(*arguments, error=error, **more)

    retry = RetryInTime(
        retries,
        allowed_methods=None,
        status_forcelist=_BUSY,
        backoff_factor=0.2,
        backoff_jitter=0.2,
        backoff_max=5.0,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    states = f"{url.rstrip('/')}/v1/models/{model}"
    versioned = states if version is None else f"{states}/versions/{version}"

    def send(session, what, body, timeout):
        method, place = "POST" if body else "GET", (versioned if what else states)
        settings = {"data": body, "timeout": timeout, "allow_redirects": False}
        try:
            return session.request(method, place + what, **settings)
        except requests.exceptions.ChunkedEncodingError:
            # The body broke off; `Retry` repeats only until the headers.
            if not retries:
                raise
            return session.request(method, place + what, **settings)

    def look_up(what, timeout, body=None):
        with requests.Session() as session:
            adapter = requests.adapters.HTTPAdapter(max_retries=retry)
            session.mount(f"{url.split(':')[0]}://", adapter)
            # `requests` limits the time of each read, this the time of all.
            answer = _start(send, session, what, body, timeout + 0.1)
            try:
                response = answer.result(timeout)
            except TimeoutError as error:
                raise _late_error(url, timeout) from error
            except requests.RequestException as error:
                # The reason of urllib3 does not have the address of an object.
                reason = getattr((error.args or [error])[0], "reason", error)
                message = f"{url} gave no answer over REST: {reason}. Is the server "
                message += "there, and is this its port of REST?"
                is_transient = not isinstance(error, requests.exceptions.SSLError)
                raise ServingError(message, "UNAVAILABLE", is_transient) from error
        return _parse(response)

    def predict(signature, values, dtypes, timeout):
        if not values:
            message = f"REST refuses the signature {signature!r}, which has no inputs: "
            message += "use grpc://, or give `class_names`"
            raise ServingError(message, "UNIMPLEMENTED")
        body = {"signature_name": signature, "inputs": values}
        answer = look_up(":predict", timeout, json.dumps(body, default=_to_json))
        outputs = answer.get("outputs")
        # A single output has no name.
        return outputs if isinstance(outputs, dict) else {signature: outputs}

    return predict, look_up, lambda: None


def connect_grpc(target, model, version, retries, is_secure=False):
    """Returns a connection to `target`, host:port, with gRPC's own retries (0..4)."""
    import grpc
    import tensorflow as tf
    from google.protobuf import json_format
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    policy = {
        "maxAttempts": retries + 1,
        "initialBackoff": "0.2s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    method = {"name": [{}], **({"retryPolicy": policy} if retries else {})}
    options = [
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
        # The defaults: answers of 4 MB at most, retries of 256 kB at most.
        ("grpc.max_receive_message_length", -1),
        ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
        # By default a channel without a server refuses all calls for a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if is_secure:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
    else:
        channel = grpc.insecure_channel(target, options)
    predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    named = {"name": model}
    spec = named if version is None else {**named, "version": {"value": version}}

    def call(method, request, timeout):
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            code, message = error.code().name, error.details()
            if code == "DEADLINE_EXCEEDED":
                raise _late_error(target, timeout) from error
            is_transient = code == "UNAVAILABLE"
            if is_transient:
                message = f"{target} is busy or cannot be reached over gRPC: {message}"
            raise ServingError(message, code, is_transient) from error

    def predict(signature, values, dtypes, timeout):
        request = predict_pb2.PredictRequest(
            model_spec={**spec, "signature_name": signature},
            inputs={
                name: tf.make_tensor_proto(
                    value, types_pb2.DataType.Value(dtypes[name])
                )
                for name, value in values.items()
            },
        )
        outputs = call(predictions.Predict, request, timeout).outputs
        return {name: tf.make_ndarray(tensor) for name, tensor in outputs.items()}

    def look_up(what, timeout):
        if what == "/metadata":
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=["signature_def"]
            )
            answer = call(predictions.GetModelMetadata, request, timeout)
        else:
            request = get_model_status_pb2.GetModelStatusRequest(model_spec=named)
            answer = call(models.GetModelStatus, request, timeout)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    return predict, look_up, channel.close


def _start(function, *arguments):
    """Future of a call in a daemon thread, which does not delay the process's end."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _late_error(place, timeout):
    message = f"No answer from {place} within {timeout:.1f} s, see `timeout`"
    return ServingError(message, "DEADLINE_EXCEEDED")


def _parse(response):
    """The JSON of a good answer; a ServingError for another one."""
    status, answer = response.status_code, None
    with contextlib.suppress(ValueError, RecursionError):
        answer = response.json()
    if isinstance(answer, dict) and status == 200:
        return answer
    code = _CODES.get(status, "UNKNOWN")
    if isinstance(answer, dict) and "error" in answer:
        message = str(answer["error"])
    else:
        code = "UNIMPLEMENTED" if status == 404 else code
        message = f"No TensorFlow Serving answers at {response.url}: {status}: "
        message += response.text[:100]
    raise ServingError(message, code, status in _BUSY)


def _to_json(value):
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return value.tolist()
