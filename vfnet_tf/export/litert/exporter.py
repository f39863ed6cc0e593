"""A detector as a LiteRT (TensorFlow Lite) file, for phones and small boards.

The file holds the network for one image of one size, from normalised pixels to the boxes
and scores of all points, in LiteRT's builtin operators. It has no decoding, resizing and
NMS; `metadata.json`, in the file and beside it, describes these, with the thresholds.

Weights are float32, float16 (half the size; computed in float32) or int8 (a quarter;
convolutions multiply int8 numbers, and activations are quantised at run time).
"""

import io
import json
import pathlib
import tempfile
import zipfile

import keras
import numpy as np
import tensorflow as tf

from vfnet_tf import config as configs
from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.export.metadata import describe_detector
from vfnet_tf.export.targets import check_file
from vfnet_tf.files import write_file
from vfnet_tf.inference.litert import METADATA_FILE
from vfnet_tf.ops.kernels import portable_kernels
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS

#: Number of the format; it grows when an output or a key changes its meaning.
FORMAT_VERSION = 1

#: Formats of the weights.
QUANTIZATIONS = ("none", "float16", "dynamic_int8")


def export_litert(
    detector,
    path,
    *,
    image_size,
    config=None,
    quantize="none",
    overwrite=False,
    **settings,
):
    """Writes a detector as a `.tflite` file and its metadata beside it.

    The file has one signature, `raw(images: float32 [1, H, W, 3])` of normalised images,
    padded with zeros on the right and below. It returns, in pixels of that input,

        boxes   float32 [1, P, 4]  (x1, y1, x2, y2), not clipped
        scores  float32 [1, P, K]  in [0, 1], centerness multiplied in

    The metadata are in the file, in a zip archive at its end like TensorFlow Lite's
    associated files (`unzip -p FILE metadata.json`), and in `FILE.json`.

    Args:
        detector: a built `DenseDetector` of float32.
        path: of the file, which must end in `.tflite`; it appears whole or not at all.
        image_size: (height, width) of the input in pixels.
        config: a `vfnet_tf.config.Config`, or an argument of `load_config`, for the
            names of classes and the preparation of images.
        quantize: `"none"`, `"float16"` or `"dynamic_int8"`.
        overwrite: bool, whether an existing file may be replaced.
        **settings: any of `DETECTION_SETTINGS`, for the metadata; by default those of
            the detector.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        ValueError: for another Keras backend than TensorFlow, a detector of another
            precision, unknown settings, or a `path` that must not be written to.
        RuntimeError: if the converter fails, or needs operators that are not builtin.
    """
    path = check_file(path, ".tflite", overwrite)
    _check(detector, image_size, quantize, settings)
    config = None if config is None else configs.load_config(config)
    content = _convert(detector, image_size, quantize)
    metadata = _make_metadata(detector, image_size, config, quantize, settings)
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    write_file(path, _with_file(content, METADATA_FILE, text))
    write_file(metadata_path(path), text)
    return path


def default_image_size(config):
    """(height, width) of the canvas of landscape images of a config's size."""
    return tuple(
        -(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in config.data.image_size
    )


def metadata_path(path):
    """Path of the metadata beside a `.tflite` file."""
    return pathlib.Path(f"{path}.json")


def _check(detector, image_size, quantize, settings):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A LiteRT file is written on the TensorFlow backend: load the weights with "
            "KERAS_BACKEND=tensorflow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    if detector.dtype_policy.name != "float32":
        raise ValueError(
            "The detector must be of float32; `quantize` says how its weights are "
            f"stored. Received: dtype={detector.dtype_policy.name}"
        )
    sides = np.asarray(image_size)
    if sides.shape != (2,) or np.any(sides != sides.astype("int64")) or min(sides) < 1:
        raise ValueError(
            "`image_size` must be (height, width), positive whole pixels. "
            f"Received: image_size={image_size}"
        )
    if quantize not in QUANTIZATIONS:
        raise ValueError(
            f"`quantize` must be one of {QUANTIZATIONS}. Received: quantize={quantize!r}"
        )
    unknown = sorted(set(settings) - set(DETECTION_SETTINGS))
    if unknown:
        raise ValueError(
            f"The settings are {sorted(DETECTION_SETTINGS)}. Received: {unknown}"
        )


def _convert(detector, image_size, quantize):
    """The model as the bytes of a flatbuffer."""
    module = tf.Module(name="vfnet_tf")
    # Only the variables, see `saved_model.exporter`.
    module.weights = [weight.value for weight in detector.weights]
    images = tf.TensorSpec((1, *map(int, image_size), 3), "float32", name="images")

    @tf.function(autograph=False, input_signature=[images])
    def raw(images):
        # LiteRT has no `crop_and_resize`.
        with portable_kernels():
            boxes, scores = detector.rank_all(images)
        return {"boxes": boxes, "scores": scores}

    with tempfile.TemporaryDirectory() as folder:
        # A SavedModel keeps the signature's names.
        tf.saved_model.save(
            module,
            folder,
            signatures={"raw": raw.get_concrete_function()},
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["raw"]
        )
        # With TensorFlow's own operators a file would need TensorFlow to run.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if quantize != "none":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:
            raise RuntimeError(
                "The detector must convert to LiteRT's builtin operators. Received: "
                f"{type(detector).__name__}: {error}"
            ) from error


def _make_metadata(detector, image_size, config, quantize, settings):
    return {
        "format": "vfnet_tf LiteRT",
        "format_version": FORMAT_VERSION,
        **describe_detector(detector, config, settings, tensorflow=tf.__version__),
        "box_format": "x1, y1, x2, y2 in pixels of the network input",
        "image_size": [int(side) for side in image_size],
        "level_sizes": [
            height * width * detector.anchors_per_cell
            for height, width in detector.level_shapes(*map(int, image_size))
        ],
        "clip_margin": float(detector.clip_margin),
        "quantize": quantize,
    }


def _with_file(content, name, text):
    """A flatbuffer with an associated file: a zip archive behind it."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        # A fixed date: the same weights give the same file.
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()
