"""A folder of models for TensorFlow Serving: versions, warm-up, configuration.

A server polls a folder of numbered versions and loads the largest number. Therefore a
version is written elsewhere, with its warm-up, and then renamed: a server sees all of it
or nothing.
"""

import os
import pathlib
import re
import shlex
import shutil

import tensorflow as tf

from vfnet_tf.export.saved_model import exporter as saved_models
from vfnet_tf.export.targets import check_place, unfinished
from vfnet_tf.files import write_file

MODEL_CONFIG = "models.config"
BATCHING_PARAMETERS = "batching_parameters.txt"
#: Requests in a SavedModel that the server runs when it loads the version.
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
DEFAULT_MAX_BATCH_SIZE = 8

# Characters that the server's REST URLs allow and a shell does not need to quote.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MAX_BATCH_SIZE = re.compile(r"^\s*max_batch_size\s*:?\s*{\s*value\s*:\s*(\d+)", re.M)
_WARMUP_LONG_SIDE = 256

_USAGE = """\
TensorFlow Serving {version} or newer, gRPC on port 8500 and REST on 8501:
    docker run --rm -p 8500:8500 -p 8501:8501 \\
        -v {directory}:/models:ro tensorflow/serving \\
        --model_config_file=/models/models.config
On a GPU, add batching:
        --enable_batching --batching_parameters_file=/models/batching_parameters.txt
From a shell; the server decodes base64 itself:
    (printf '{{"instances": [{{"b64": "'; base64 -w0 street.jpg; printf '"}}]}}') |
        curl -d @- http://localhost:8501/v1/models/{model}:predict
From Python:
    from vfnet_tf.export.serving.client import ServingClient
    client = ServingClient("http://localhost:8501", model="{model}")
    client.wait_until_ready()
    print(client.detect(["street.jpg"]))"""

_BATCHING = """\
# For --batching_parameters_file with --enable_batching. A start, not measured: what is
# best depends on the device and on how requests come.
max_batch_size {{ value: {size} }}
# Batches are filled up with copies to one of these sizes; the last must be
# max_batch_size.
{allowed}
# How long a request may wait for others.
batch_timeout_micros {{ value: 5000 }}
# Batches that run at a time, each with its own memory.
num_batch_threads {{ value: 2 }}
# Requests beyond it are refused as UNAVAILABLE; clients send them again.
max_enqueued_batches {{ value: 16 }}
"""


def export_for_serving(
    detector,
    directory,
    *,
    model_name="vfnet",
    version=None,
    max_batch_size=None,
    check=None,
    **settings,
):
    """Writes the next version of a model for TensorFlow Serving.

        models.config                  the models of `directory`, for the server
        batching_parameters.txt        for a server that joins requests to batches
        <model_name>/<version>/        by `export_saved_model`, and in it
            assets.extra/tf_serving_warmup_requests

    The first two are kept if they exist, but a model that `models.config` does not list
    is added. A version is never replaced.

    Args:
        detector: a built `DenseDetector`.
        directory: of the models; made if it does not exist.
        model_name: str, of letters, digits, `_`, `.`, `-`.
        version: int >= 1; None takes the largest so far, plus 1.
        max_batch_size: int, most images in a batch; the warm-up has batches of this
            size and of 1. None takes that of `batching_parameters.txt`, or 8.
        check: function of the SavedModel's path, which is called before the version can
            be served; if it raises, the version is not written.
        **settings: further arguments of `export_saved_model`.

    Returns:
        The version's directory, a `pathlib.Path`.

    Raises:
        ImportError: if the extra `serving` is not installed.
        ValueError: for a name or number that no server takes, a version that exists,
            or a configuration file that cannot be read.
    """
    directory = pathlib.Path(directory)
    max_batch_size = check_layout(directory, model_name, version, max_batch_size)
    settings.setdefault("max_batch", max(saved_models.MAX_BATCH, max_batch_size))
    staging = unfinished(directory, model_name)
    try:
        saved_models.export_saved_model(detector, staging, **settings)
        write_warmup(staging, model_name, (1, max_batch_size))
        if check is not None:
            check(staging)
        path = _publish(staging, directory / model_name, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _write_batching_parameters(directory / BATCHING_PARAMETERS, max_batch_size)
    _write_model_config(directory / MODEL_CONFIG, model_name)
    return path


def check_layout(directory, model_name, version=None, max_batch_size=None):
    """Checks the arguments of `export_for_serving` and raises its errors.

    Returns:
        int, the most images in a batch.
    """
    _protos()
    directory = pathlib.Path(directory)
    if not _MODEL_NAME.fullmatch(model_name):
        raise ValueError(
            "`model_name` must be letters, digits, '_', '.' and '-', and begin with "
            f"one of the first three. Received: model_name={model_name!r}"
        )
    if version is not None and version < 1:
        raise ValueError(f"`version` must be >= 1. Received: version={version}")
    if version is not None and version in versions(directory / model_name):
        raise ValueError(
            "`version` must be new: a server may have loaded the one that is there. "
            f"Received: version={version} of {directory / model_name}"
        )
    if (directory / "saved_model.pb").exists():
        raise ValueError(
            "`directory` must be the folder above the models, not a SavedModel. "
            f"Received: directory={directory}"
        )
    check_place(directory / model_name)
    _read_model_config(directory / MODEL_CONFIG)
    written = _read_max_batch_size(directory / BATCHING_PARAMETERS)
    if max_batch_size is None:
        return written or DEFAULT_MAX_BATCH_SIZE
    if max_batch_size < 1:
        raise ValueError(
            f"`max_batch_size` must be >= 1. Received: max_batch_size={max_batch_size}"
        )
    if written not in (None, max_batch_size):
        raise ValueError(
            f"`max_batch_size` must be that of {directory / BATCHING_PARAMETERS}, "
            f"{written}, which all models of a server share. "
            f"Received: max_batch_size={max_batch_size}"
        )
    return max_batch_size


def versions(model_directory):
    """The versions in a model's folder: list of int, ascending."""
    model_directory = pathlib.Path(model_directory)
    if not model_directory.is_dir():
        return []
    return sorted(
        int(path.name) for path in model_directory.iterdir() if path.name.isdecimal()
    )


def write_warmup(saved_model, model_name, batch_sizes):
    """Writes requests that a server runs before it answers the first client.

    There is one for each of `batch_sizes`, with that many copies of a generated JPEG for
    `serving_default`. Returns the file's path, in the SavedModel's directory.
    """
    predict_pb2, prediction_log_pb2 = _protos()[:2]
    image = warmup_image(saved_models.read_metadata(saved_model)["image_size"])
    path = pathlib.Path(saved_model) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sorted(set(batch_sizes)):
            tensor = tf.make_tensor_proto([image] * size, tf.string, (size,))
            request = predict_pb2.PredictRequest(
                model_spec={"name": model_name, "signature_name": "serving_default"},
                inputs={"image_bytes": tensor},
            )
            log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
            writer.write(log.SerializeToString())
    return path


def warmup_image(image_size):
    """A small generated JPEG of the same aspect ratio as `image_size`, bytes.

    Resizing gives it the same network input as a photograph.
    """
    height, width = image_size
    factor = min(1.0, _WARMUP_LONG_SIDE / max(height, width))
    height, width = (max(1, round(side * factor)) for side in (height, width))
    y, x = tf.meshgrid(
        tf.linspace(0.0, 255.0, height), tf.linspace(0.0, 255.0, width), indexing="ij"
    )
    pixels = tf.cast(tf.stack([x, y, 255.0 - x], axis=-1), tf.uint8)
    return tf.io.encode_jpeg(pixels).numpy()


def usage(directory, model_name):
    """Instructions to serve and call a model of a directory, as text."""
    directory = shlex.quote(str(pathlib.Path(directory).resolve()))
    return _USAGE.format(directory=directory, model=model_name, version=tf.__version__)


def _protos():
    """(predict_pb2, prediction_log_pb2, model_server_config_pb2) of the API package."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise ImportError(
            "The formats of TensorFlow Serving are in the package "
            "tensorflow-serving-api: pip install 'vfnet_tf[serving]'"
        ) from error
    return predict_pb2, prediction_log_pb2, model_server_config_pb2


def _publish(staging, model_directory, version):
    """Renames `staging` to its number; returns the new path."""
    model_directory.mkdir(parents=True, exist_ok=True)
    while True:
        number = version or max(versions(model_directory), default=0) + 1
        path = model_directory / str(number)
        try:
            os.rename(staging, path)
        except OSError:
            # Another export has taken the number in the meantime.
            if version is None and path.exists():
                continue
            raise
        return path


def _read_max_batch_size(path):
    """`max_batch_size` of a file of batching parameters; None if there is no file."""
    if not path.exists():
        return None
    # No Python package has the protobuf message of this file.
    found = _MAX_BATCH_SIZE.search(path.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(
            "The batching parameters must set `max_batch_size { value: N }`. "
            f"Received: {path}"
        )
    return int(found[1])


def _write_batching_parameters(path, max_batch_size):
    if path.exists():
        return
    sizes = {2**n for n in range(max_batch_size.bit_length())} | {max_batch_size}
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in sorted(sizes))
    write_file(path, _BATCHING.format(size=max_batch_size, allowed=allowed))


def _read_model_config(path):
    """A `ModelServerConfig`, empty where there is no file."""
    from google.protobuf import text_format

    config = _protos()[2].ModelServerConfig()
    if path.exists():
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), config)
        except text_format.ParseError as error:
            raise ValueError(
                "`models.config` must be a ModelServerConfig in text format. "
                f"Received: {path}: {error}"
            ) from error
        if config.HasField("custom_model_config"):
            raise ValueError(
                "`models.config` must have a model_config_list to be added to. "
                f"Received: {path} with a custom_model_config"
            )
    return config


def _write_model_config(path, model_name):
    from google.protobuf import text_format

    config = _read_model_config(path)
    models = config.model_config_list.config
    if model_name in [model.name for model in models]:
        return
    # The path inside the container, where `directory` is mounted.
    models.add(
        name=model_name, base_path=f"/models/{model_name}", model_platform="tensorflow"
    )
    # Whole or not at all, since a server may poll the file.
    write_file(path, text_format.MessageToString(config))
