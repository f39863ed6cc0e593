"""`vfnet demo`: a local page that shows the detections of an exported detector.

Flask answers, waitress serves, and the page loads nothing from elsewhere.
"""

import dataclasses
import functools
import ipaddress
import logging
import pathlib
import re
import socket
import threading
import time
from typing import Annotated

import tyro

#: Largest size of an uploaded image in bytes.
MAX_UPLOAD = 64 * 2**20
#: Requests at a time, and connections at a time; further ones wait.
MAX_THREADS = 4
MAX_CONNECTIONS = 32
#: Seconds after which a connection without a byte is closed, and any that gives none of
#: its requests as a whole.
IDLE_SECONDS = 30
CONNECTION_SECONDS = 120
_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:\[\]]+)(:[0-9]{1,5})?")
_PAGE = pathlib.Path(__file__).parent / "demo_page"
# No content from another host and none inline; images come from the browser's memory.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Open a local web page: drop an image, see boxes and scores, move the threshold.

    It runs the SavedModel of the run, RUN_DIR/saved_model (for the name of a published
    model runs/published/NAME/saved_model), which is written first if there is none.
    Needs the extra `demo`.
    """

    run_dir: Annotated[
        tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN_DIR")
    ]
    """run directory, name of a published model, or a SavedModel by `vfnet export`"""
    host: str = "127.0.0.1"
    """address to listen at; any other than this computer's own lets others in, as the
    page asks for no password"""
    port: int = 7860
    """port of the page; 0 takes a free one"""
    allow_host: tuple[str, ...] = ()
    """further names under which the page may be asked for, such as the name of this
    computer in its network"""


OPTIONS = DemoOptions


def run(options):
    """Serves the page until interrupted; returns the exit status."""
    import_flask()
    # A taken port is told before the detector is loaded.
    with listen(options.host, options.port) as listening:
        directory = find_model(options.run_dir)
        print(f"model      {directory}", flush=True)
        start = time.perf_counter()
        detector = ServedDetector(directory)
        seconds = time.perf_counter() - start
        print(f"loaded     in {seconds:.0f} s, first image included")
        hosts = (options.host, *options.allow_host)
        server = make_server(detector, hosts, listening)
        host = f"[{options.host}]" if ":" in options.host else options.host
        if not _is_own(options.host):
            print(
                "others     who reach this address may use the page: it has no password"
            )
        port = listening.getsockname()[1]
        print(f"open       http://{host}:{port}", flush=True)
        server.run()  # until Ctrl-C
        print("stopped")
    return 0


def import_flask():
    """Returns the module flask; an ImportError names the extra `demo`."""
    try:
        import flask
        import waitress  # noqa: F401 - told before the detector is loaded
    except ImportError as error:
        raise ImportError(
            "The page needs Flask and waitress: pip install 'vfnet_tf[demo]'"
        ) from error
    return flask


def listen(host, port):
    """A listening socket; ValueError if the address is taken or not of this computer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--host and --port must be a free address of this computer: {error}. "
            f"Received: {host}, port {port}"
        ) from error


def find_model(run_dir):
    """Exports the SavedModel of a run if there is none.

    Args:
        run_dir: run directory, a preset, or the directory of a SavedModel.

    Returns:
        Directory of the SavedModel, a `pathlib.Path`.

    Raises:
        ValueError: it is none of these.
    """
    from vfnet_tf.inference.load import load_checkpoint, output_folder

    run_dir = pathlib.Path(run_dir).expanduser()
    if (run_dir / "saved_model.pb").is_file():
        return run_dir
    directory = (output_folder(run_dir) or run_dir) / "saved_model"
    if not (directory / "saved_model.pb").is_file():
        detector, config, weights = load_checkpoint(run_dir)
        print(f"weights    {weights}")
        print(f"exporting  to {directory}, which takes a minute", flush=True)
        from vfnet_tf.export.saved_model.exporter import export_saved_model

        return export_saved_model(detector, directory, config=config)
    written = (directory / "saved_model.pb").stat().st_mtime
    newer = [
        path.name
        for path in run_dir.glob("best.weights.h5")
        if path.stat().st_mtime > written
    ]
    if newer:
        print(
            f"older      {directory} than {newer[0]}: to renew it, "
            f"vfnet export {run_dir} --overwrite"
        )
    return directory


class ServedDetector:
    """An exported detector that detects in one image at a time and describes itself.

    Args:
        directory: of the SavedModel, which is loaded and run once.

    Raises:
        ValueError: its boxes are not in pixels.
    """

    def __init__(self, directory):
        import tensorflow as tf

        from vfnet_tf.export.saved_model.exporter import read_metadata
        from vfnet_tf.export.serving.model_repository import warmup_image

        self.metadata = read_metadata(directory)
        if self.metadata["box_format"] == "yxyx_normalized":
            raise ValueError(
                "The page draws boxes in pixels: export with box_format xyxy. "
                f"Received: {directory} with {self.metadata['box_format']}"
            )
        self._tf = tf
        # Hides the warning that the model has no gradients.
        absl = logging.getLogger("absl")
        level = absl.level
        absl.setLevel(logging.ERROR)
        try:
            self._model = tf.saved_model.load(str(directory))
        finally:
            absl.setLevel(level)
        self._detect = self._model.signatures["serving_default"]
        # One image at a time: two would need twice the memory.
        self._lock = threading.Lock()
        self.detect(warmup_image(self.metadata["image_size"]))

    def describe(self):
        """The classes with their colours, thresholds and sizes, as JSON types."""
        from vfnet_tf.drawing import class_color

        metadata = self.metadata
        number = metadata["num_classes"]
        names = metadata["class_names"] or [f"class {k}" for k in range(number)]
        return {
            "detector": metadata["detector"],
            "classes": [
                {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*class_color(k))}
                for k, name in enumerate(names)
            ],
            "image_size": metadata["image_size"],
            "keep_ratio": metadata["keep_ratio"],
            "score_threshold": metadata["score_threshold"],
            "max_detections": metadata["max_detections"],
            "max_upload": MAX_UPLOAD,
        }

    def detect(self, contents):
        """Detections in one image.

        Args:
            contents: bytes of a JPEG or PNG file.

        Returns:
            dict of JSON types: `detections`, a list of `{"box": [x1, y1, x2, y2],
            "score", "label"}` in pixels of the upright image, best first, and
            `seconds`.

        Raises:
            ValueError: the model refuses the image.
        """
        image_bytes = self._tf.constant([contents])
        with self._lock:
            start = time.perf_counter()
            try:
                found = self._detect(image_bytes=image_bytes)
            except self._tf.errors.InvalidArgumentError as error:
                raise ValueError(_refusal(error.message)) from error
            found = {name: value.numpy()[0] for name, value in found.items()}
            seconds = time.perf_counter() - start
        # Newer exports give a status in place of an error.
        status = int(found.get("status", 0))
        if status != 0:
            codes = self.metadata.get("status_codes", {})
            raise ValueError(_refusal(codes.get(str(status), f"status {status}")))
        count = int(found["num_detections"])
        return {
            "detections": [
                {
                    "box": [round(float(x), 2) for x in box],
                    "score": round(float(score), 4),
                    "label": int(label),
                }
                for box, score, label in zip(
                    found["detection_boxes"][:count],
                    found["detection_scores"][:count],
                    found["detection_classes"][:count],
                    strict=True,
                )
            ],
            "seconds": round(seconds, 4),
        }


def _refusal(message):
    """An error message of the graph for the user."""
    detail = message.strip().splitlines()[0][:200]
    return f"The model takes whole JPEG and PNG images only. It said: {detail}"


def is_named(header, hosts):
    """Whether the `Host` of a request names this server.

    Args:
        header: str, the field of the request, with or without a port.
        hosts: names and addresses of the server; those of this computer's loopback are
            always right. Where it listens at all addresses (`0.0.0.0`, `::`), every
            address is right: only names can be made to point here by others.
    """
    match = _HOST_HEADER.fullmatch(header.lower())
    if match is None:
        return False
    name = match[1].strip("[]")
    if _is_own(name) or name in [host.lower() for host in hosts]:
        return True
    address, listening = _address(name), [_address(host) for host in hosts]
    return address is not None and (
        address in listening or any(one and one.is_unspecified for one in listening)
    )


def _is_own(name):
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def _address(name):
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def make_app(detector, hosts):
    """The Flask application over a `ServedDetector`.

    Args:
        detector: has `describe()` and `detect(contents)`.
        hosts: str, see `is_named`. Requests under another name are refused: a foreign
            page whose name was made to point here could read the answers.
    """
    flask = import_flask()
    app = flask.Flask("vfnet_demo", static_folder=_PAGE, static_url_path="")
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD

    @app.before_request
    def check_host():
        if not is_named(flask.request.headers.get("Host", ""), hosts):
            names = "this server's own address; --allow-host NAME adds another"
            return {"error": f"The Host of a request must be {names}"}, 400
        return None

    @app.get("/")
    def page():
        return app.send_static_file("index.html")

    @app.get("/model")
    def model():
        return detector.describe()

    @app.post("/detect")
    def detect():
        # Browsers let a foreign page send this type only after a preflight request.
        if flask.request.mimetype != "application/octet-stream":
            return {"error": "The body must be application/octet-stream"}, 415
        try:
            return detector.detect(flask.request.get_data())
        except ValueError as error:
            return {"error": str(error)}, 400

    @app.errorhandler(413)
    def too_large(error):
        return {"error": f"Images may have {MAX_UPLOAD // 2**20} MB at most"}, 413

    @app.after_request
    def protect(response):
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def make_server(detector, hosts, listening):
    """A waitress server of `make_app` on a listening socket; `run` serves until Ctrl-C.

    A thread gets a request when all of it is there, so that slow clients hold none.
    """
    from waitress import create_server

    logging.getLogger("waitress").setLevel(logging.CRITICAL)
    server = create_server(
        make_app(detector, hosts),
        sockets=[listening],
        threads=MAX_THREADS,
        connection_limit=MAX_CONNECTIONS,
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=min(5, IDLE_SECONDS),
        # Above Flask's limit, whose message the page can show.
        max_request_body_size=MAX_UPLOAD + 2**20,
        max_request_header_size=2**15,
        ident=None,
    )
    server.maintenance = functools.partial(_close_old, server, server.maintenance)
    return server


def _close_old(server, close_idle, now):
    """Closes idle connections, and those that take too long for one request."""
    close_idle(now)
    for channel in server.active_channels.values():
        if not channel.requests and channel.creation_time < now - CONNECTION_SECONDS:
            channel.will_close = True
