"""Detections from a TensorFlow Serving server, over REST or gRPC.

This file and `connections.py` may be copied into a folder on a machine without this
package: over REST they only need numpy and requests.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
import time
import urllib.parse

import numpy as np

# Relative, so that the two files work in any folder.
from .connections import ServingError, connect_grpc, connect_rest

_PORTS = {"http": 8501, "https": 443, "grpc": 8500, "grpcs": 8500}
_FIELDS = {
    "boxes": ("detection_boxes", "float32", (4,)),
    "scores": ("detection_scores", "float32", ()),
    "labels": ("detection_classes", "int32", ()),
}


@dataclasses.dataclass(eq=False)
class ServingClient(contextlib.AbstractContextManager):
    """Calls a detector that `vfnet export --serving` wrote; threads may share it.

    A request is sent again, after growing waits, if the server cannot be reached, drops
    the connection or is busy (UNAVAILABLE, 429, 503).

    Args:
        url: `http[s]://host:8501` for REST, with a path before `/v1` if a proxy needs
            one; `grpc[s]://host:8500` for gRPC.
        model: name on the server.
        version: int; for None the server takes the largest.
        signature: name of one that takes encoded images and returns detections.
        timeout: seconds for a whole call, with its tries and waits.
        retries: how often a request is sent again; gRPC allows 4 at most.
        batch_size: images in a request, at most the server's largest batch.
        class_names: by label; None asks the server, once.

    Raises:
        ValueError: for a URL of another kind or a number out of range.
        ImportError: if a package for REST or gRPC is not installed.

    >>> client = ServingClient("http://localhost:8501", class_names=["car", "bus"])
    """

    url: str
    _: dataclasses.KW_ONLY
    model: str = "vfnet"
    version: int | None = None
    signature: str = "serving_default"
    timeout: float = 30.0
    retries: int = 4
    batch_size: int = 8
    class_names: list | None = None

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        is_grpc = parts.scheme in ("grpc", "grpcs")
        is_url = parts.scheme in _PORTS and parts.hostname
        is_name = self.model and not set(self.model) & set("/:?#")
        is_number = self.timeout > 0 and self.batch_size >= 1 and self.retries >= 0
        if not (is_url and is_name and is_number) or (is_grpc and self.retries > 4):
            raise ValueError(
                "`url` must be http[s]://HOST:PORT or grpc[s]://HOST:PORT, `model` a "
                "name without any of /:?#, `timeout` > 0, `batch_size` >= 1 and "
                f"`retries` >= 0 (over gRPC <= 4). Received: {self}"
            )
        place = parts.netloc if parts.port else f"{parts.netloc}:{_PORTS[parts.scheme]}"
        model = (self.model, self.version, self.retries)
        try:
            if is_grpc:
                connected = connect_grpc(place, *model, parts.scheme == "grpcs")
            else:
                url = f"{parts.scheme}://{place}{parts.path}"
                connected = connect_rest(url, *model)
        except ImportError as error:
            raise ImportError(f"{error}: pip install 'vfnet_tf[serving]'") from error
        self._predict, self._look_up, self._close = connected
        self._signatures, self._lock = {}, threading.Lock()

    def close(self):
        """Closes the channel of gRPC; REST keeps no connection."""
        self._close()

    def __exit__(self, *_):
        self.close()

    def detect(self, images, **inputs):
        """Detects objects in one image or many.

        The server pads the images of a request to a common size, which changes their
        detections a little; `batch_size=1` on a server without batching avoids that.

        Args:
            images: path of a JPEG or PNG file, its bytes, or a list of these.
            **inputs: other inputs of the signature (`score_threshold=0.3`), the same
                for all images; by default those of `metadata()`.

        Returns:
            list of dict, one per image, best detection first: boxes float32 `[N, 4]` in
            the export's format, by default (x1, y1, x2, y2) in pixels of the upright
            image; scores
            float32 `[N]` in [0, 1]; labels int32 `[N]`; names, N str, if known; status
            int, if the model has it (0 is good, see `status_codes` of `metadata()`).

        Raises:
            ServingError: if no good answer came in time.
            ValueError: for no image, or inputs that the signature lacks.
            OSError: if a file cannot be read.
        """
        images = [images] if isinstance(images, (str, os.PathLike, bytes)) else images
        contents = [_read(image) for image in images]
        if not contents:
            raise ValueError("`images` must be at least one. Received: images=[]")
        deadline, found = time.monotonic() + self.timeout, []
        for start in range(0, len(contents), self.batch_size):
            batch = contents[start : start + self.batch_size]
            found += _split(self._run(self.signature, batch, inputs, deadline), batch)
        names = dict(enumerate(self._find_names(deadline)))
        for one in found if names else ():
            # A newer version on the server may have more classes.
            labels = one["labels"].tolist()
            one["names"] = [str(names.get(k, f"class {k}")) for k in labels]
        return found

    def metadata(self):
        """Returns the dict of the export's `assets/metadata.json`.

        Raises:
            ServingError: if the model has no signature `metadata`, or one without
                inputs, which works only over gRPC and without batching.
        """
        return self._read_metadata(time.monotonic() + self.timeout)

    def wait_until_ready(self, timeout=60.0):
        """Returns when the server has loaded the model; `timeout` is in seconds.

        Raises:
            ServingError: with the reason, if the time is over; at once if the server
                could not load the version.
        """
        deadline, problem = time.monotonic() + timeout, None
        while not problem or time.monotonic() < deadline:
            try:
                return self._ask(self._look_up, "/metadata", deadline) and None
            except ServingError as error:
                if error.code == "FAILED_PRECONDITION":
                    raise
                # An earlier problem says more than the end of the time.
                is_cut = problem and error.code == "DEADLINE_EXCEEDED"
                problem = problem if is_cut else error
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
        raise ServingError(f"{problem} (waited {timeout:g} s)", problem.code)

    def _ask(self, question, *arguments):
        """Asks the server; the last argument is the deadline."""
        left = max(arguments[-1] - time.monotonic(), 1e-3)
        try:
            return question(*arguments[:-1], left)
        except ServingError as error:
            if error.code != "NOT_FOUND":
                raise
            reason, states = error, {}
        with contextlib.suppress(ServingError):
            for one in self._look_up("", left)["model_version_status"]:
                text = one.get("status", {}).get("error_message")
                states[int(one["version"])] = (
                    f"failed: {text}" if text else one["state"]
                )
        mine = [text for n, text in states.items() if self.version in (None, n)]
        has_failed = mine and all(text.startswith("failed") for text in mine)
        raise ServingError(
            f"{self.url} has not loaded {self.model!r}, version: {self.version}. It has "
            f"{states or 'no such model'} and said: {reason}",
            "FAILED_PRECONDITION" if has_failed else "NOT_FOUND",
        ) from reason

    def _run(self, signature, contents, extra, deadline):
        """Outputs of a signature by name; its input of strings takes `contents`."""
        if signature not in self._signatures:
            answer = self._ask(self._look_up, "/metadata", deadline)
            self._signatures = answer["metadata"]["signature_def"]["signature_def"]
        if signature not in self._signatures:
            message = f"{self.model!r} has no signature {signature!r}, but "
            raise ServingError(message + str([*self._signatures]), "INVALID_ARGUMENT")
        inputs = self._signatures[signature].get("inputs", {})
        others = {name for name, info in inputs.items() if info["dtype"] != "DT_STRING"}
        chosen = (self._read_metadata(deadline) if others - set(extra) else {}) | extra
        if set(extra) - others or others - set(chosen):
            raise ValueError(
                f"Inputs must be among {sorted(others)}; those that `metadata()` has no "
                f"value of are needed. Received: {sorted(extra)} for {signature!r}"
            )
        values = {n: chosen[n] if n in others else contents for n in inputs}
        for name in others:
            if inputs[name].get("tensor_shape", {}).get("dim"):  # one value per image
                values[name] = [chosen[name]] * len(contents)
        dtypes = {name: info["dtype"] for name, info in inputs.items()}
        return self._ask(self._predict, signature, values, dtypes, deadline)

    def _read_metadata(self, deadline):
        (text,) = self._run("metadata", [b""], {}, deadline).values()
        return json.loads(np.reshape(text, -1)[0])

    def _find_names(self, deadline):
        with self._lock:
            if self.class_names is None:
                try:
                    recorded = self._read_metadata(deadline)
                except ServingError as error:  # detections do not need names
                    if error.is_transient or error.code == "DEADLINE_EXCEEDED":
                        return []
                    recorded = {}
                # The classes of this box format count from 1.
                first = [""] * (recorded.get("box_format") == "yxyx_normalized")
                self.class_names = first + (recorded.get("class_names") or [])
            return self.class_names


def _read(image):
    if isinstance(image, (str, os.PathLike)):
        return pathlib.Path(image).read_bytes()
    return bytes(memoryview(image))


def _split(outputs, images):
    """One dict per image of a padded batch, see `detect`."""
    try:
        numbers = np.reshape(outputs["num_detections"], len(images)).astype(int)
        found = [
            {
                key: np.array(outputs[name][row][:n], dtype).reshape(n, *shape)
                for key, (name, dtype, shape) in _FIELDS.items()
            }
            for row, n in enumerate(numbers)
        ]
        for one, status in zip(found, outputs.get("status", ()), strict=False):
            one["status"] = int(status)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        message = f"Outputs must be detections of {len(images)} images. Received: "
        raise ServingError(f"{message}{[*outputs]}: {error!r}", "INTERNAL") from error
    return found
