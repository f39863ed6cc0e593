"""A detector as a SavedModel that TensorFlow alone loads and runs.

The graph that serves is the graph that was evaluated: it decodes, resizes, normalises
and pads with the functions of `data.transforms`, calls `detector.detect`, and carries
the thresholds and the class names that belong to the weights.

Images of one batch share a canvas, the smallest one in multiples of 32 that holds them
all once they are resized. Padding takes part in group normalisation and in the
convolutions at its border (fact S32), so the detections of an image change a little
with its neighbours in the batch, as they do in evaluation. An image alone is padded to
its own multiples of 32, as the pipeline pads it.
"""

import json
import os
import pathlib
import shutil
import tempfile
import uuid

import keras
import numpy as np
import tensorflow as tf

import vfnet_tf
from vfnet_tf import config as configs
from vfnet_tf.data import transforms
from vfnet_tf.data.coco import MAX_PIXELS
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.data.pipeline import CANVAS_MULTIPLE
from vfnet_tf.detectors.dense_detector import DETECTION_SETTINGS
from vfnet_tf.ops.nms import check_nms

#: Raised when a signature or a key of the metadata changes its meaning.
FORMAT_VERSION = 1

_JPEG_START = b"\xff\xd8\xff"
# Signature, then the length and the name of the first chunk, which holds the size.
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def export_saved_model(
    detector,
    directory,
    *,
    config=None,
    image_size=None,
    keep_ratio=None,
    normalization=None,
    class_names=None,
    category_ids=None,
    score_threshold=None,
    nms_iou_threshold=None,
    candidates_per_level=None,
    max_detections=None,
    nms=None,
    soft_nms_sigma=None,
    soft_nms_min_score=None,
    max_pixels=MAX_PIXELS,
    overwrite=False,
):
    """Writes a detector as a SavedModel with four signatures.

    `serving_default(image_bytes: string [B])`: JPEG or PNG files, of any sizes.
    `serve_tensor(images: uint8 [B, H, W, 3])`: RGB images of one size, upright. Both
    resize, normalise, pad, detect and give, in pixels of the images that came in,

        detection_boxes    float32 [B, D, 4]  (x1, y1, x2, y2), zeros after the last
        detection_scores   float32 [B, D]     descending, zeros after the last
        detection_classes  int32   [B, D]     0..K-1, -1 after the last
        num_detections     int32   [B]

    `raw(images: float32 [B, H, W, 3])`: normalised images, for those who run their own
    NMS; it gives, for all points and in pixels of the network input,

        boxes   float32 [B, P, 4]  not clipped
        scores  float32 [B, P, K]

    `metadata()`: the string `metadata`, JSON, which lies in `assets/metadata.json` too:
    class names, category ids, thresholds, sizes, normalisation, precision, versions,
    and the config where one was given.

    All sizes and B are dynamic. The weights are saved once, without optimizer and
    metrics. The detector's dtype policy is part of the graph: one built under
    `mixed_bfloat16` serves in bfloat16, and the metadata say so under `precision`.

    Args:
        detector: a built `DenseDetector`, e.g. from `build_detector`.
        directory: of the SavedModel, which is written beside it and then renamed.
        config: a `vfnet_tf.config.Config`, or what `load_config` takes. What is None
            below comes from it; without a config the defaults of `DataConfig` hold and
            the classes stay without names.
        image_size: (short, long) side in pixels, or (height, width) if not
            `keep_ratio`.
        keep_ratio: bool, resize within `image_size` instead of to it.
        normalization: `Normalization` of the weights.
        class_names: K names.
        category_ids: K ids of the classes in the annotation file.
        score_threshold, nms_iou_threshold, candidates_per_level, max_detections, nms,
            soft_nms_sigma, soft_nms_min_score: as in `DenseDetector`, whose values are
            the defaults.
        max_pixels: height x width of an encoded image at most; its header is read
            before it is decoded.
        overwrite: bool, replace a SavedModel that is there already.

    Returns:
        `directory` as a `pathlib.Path`.

    Raises:
        ValueError: for another Keras backend than TensorFlow, settings that do not fit
            the detector, or a `directory` that must not be replaced.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A SavedModel is written on the TensorFlow backend: load the weights with "
            "KERAS_BACKEND=tensorflow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    directory = pathlib.Path(directory)
    check_target(directory, overwrite)
    metadata = _make_metadata(
        detector,
        None if config is None else configs.load_config(config),
        {
            "image_size": image_size,
            "keep_ratio": keep_ratio,
            "normalization": normalization,
            "class_names": class_names,
            "category_ids": category_ids,
            "score_threshold": score_threshold,
            "nms_iou_threshold": nms_iou_threshold,
            "candidates_per_level": candidates_per_level,
            "max_detections": max_detections,
            "nms": nms,
            "soft_nms_sigma": soft_nms_sigma,
            "soft_nms_min_score": soft_nms_min_score,
            "max_pixels": max_pixels,
        },
    )
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with tempfile.TemporaryDirectory() as folder:
            asset = pathlib.Path(folder) / "metadata.json"
            asset.write_text(text, encoding="utf-8")
            module = _ServingModule(detector, metadata, text, asset)
            tf.saved_model.save(
                module,
                str(aside),
                signatures=module.signatures(),
                # Nothing is trained from here; gradients would double the graph.
                options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
        _put_in_place(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def read_metadata(directory):
    """The metadata of an exported detector as a dict, without loading the model.

    Args:
        directory: of the SavedModel.

    Raises:
        ValueError: if there is no such export.
    """
    path = pathlib.Path(directory) / "assets" / "metadata.json"
    if not path.is_file():
        raise ValueError(
            "`directory` must be a SavedModel by `export_saved_model`. "
            f"Received: {directory}, which has no assets/metadata.json"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def describe_signatures(directory):
    """The signatures of a SavedModel as text, read from its file without loading it."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = saved_model_pb2.SavedModel()
    file.ParseFromString((pathlib.Path(directory) / "saved_model.pb").read_bytes())
    lines = []
    for name, signature in sorted(file.meta_graphs[0].signature_def.items()):
        if name.startswith("__"):  # TensorFlow's own, it initialises variables
            continue
        inputs = ", ".join(
            f"{key}: {_describe_tensor(info)}"
            for key, info in sorted(signature.inputs.items())
        )
        lines.append(f"{name}({inputs})")
        lines += [
            f"    {key:<17}  {_describe_tensor(info)}"
            for key, info in sorted(signature.outputs.items())
        ]
    return "\n".join(lines)


def _describe_tensor(info):
    """Dtype and shape of a `TensorInfo`, as in `float32 [?, 100, 4]`."""
    sides = [
        str(side.size) if side.size >= 0 else "?" for side in info.tensor_shape.dim
    ]
    return f"{tf.dtypes.as_dtype(info.dtype).name} [{', '.join(sides)}]"


def check_target(directory, overwrite=False):
    """Refuses a directory that `export_saved_model` would not write to.

    Raises:
        ValueError: for a file, a directory that holds something else than a SavedModel,
            or a SavedModel unless `overwrite`.
    """
    directory = pathlib.Path(directory)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"`directory` must not be a file. Received: {directory}")
    if not any(directory.iterdir()):
        return
    if not (directory / "saved_model.pb").is_file():
        # However much it is asked for: it may be somebody's home.
        raise ValueError(
            "`directory` must be new, empty or hold a SavedModel: anything else is "
            f"never overwritten. Received: directory={directory}"
        )
    if not overwrite:
        raise ValueError(
            "`directory` holds a SavedModel; `overwrite` must be True to replace it. "
            f"Received: directory={directory}"
        )


def _put_in_place(aside, directory):
    """Renames `aside` to `directory`; what was there is gone only after that."""
    old = None
    if directory.exists():
        old = aside.with_suffix(".old")
        os.rename(directory, old)
    try:
        os.rename(aside, directory)
    except OSError:
        if old is not None:
            os.rename(old, directory)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _make_metadata(detector, config, given):
    """All that a client or the graph must know, as a dict of JSON types."""
    from_config = {}
    if config is not None:
        from_config = {
            "class_names": config.class_names,
            "category_ids": config.category_ids,
        }
    data = configs.DataConfig() if config is None else config.data
    defaults = {
        "class_names": (),
        "category_ids": (),
        **from_config,
        **{name: getattr(detector, name) for name in DETECTION_SETTINGS},
        "image_size": data.image_size,
        "keep_ratio": data.keep_ratio,
        "normalization": data.normalization,
    }
    chosen = {**defaults, **{k: v for k, v in given.items() if v is not None}}
    _check_settings(chosen, detector.num_classes)
    return {
        "format": "vfnet_tf SavedModel",
        "format_version": FORMAT_VERSION,
        "detector": type(detector).__name__,
        "num_classes": detector.num_classes,
        "class_names": [str(name) for name in chosen["class_names"]],
        "category_ids": [int(number) for number in chosen["category_ids"]],
        "box_format": "x1, y1, x2, y2 in pixels of the image that came in",
        "image_size": [int(side) for side in chosen["image_size"]],
        "keep_ratio": bool(chosen["keep_ratio"]),
        "canvas_multiple": CANVAS_MULTIPLE,
        "normalization": chosen["normalization"].to_dict(),
        "max_pixels": int(chosen["max_pixels"]),
        "score_threshold": float(chosen["score_threshold"]),
        "nms_iou_threshold": float(chosen["nms_iou_threshold"]),
        "candidates_per_level": int(chosen["candidates_per_level"]),
        "max_detections": int(chosen["max_detections"]),
        "nms": check_nms(chosen["nms"]),
        "soft_nms_sigma": float(chosen["soft_nms_sigma"]),
        "soft_nms_min_score": float(chosen["soft_nms_min_score"]),
        "precision": detector.dtype_policy.name,
        "versions": {
            "vfnet_tf": vfnet_tf.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        "config": None if config is None else configs.to_dict(config),
    }


def _check_settings(settings, num_classes):
    sides = np.asarray(settings["image_size"])
    is_pair = sides.shape == (2,) and np.all(sides == sides.astype("int64"))
    if (
        not is_pair
        or min(sides) < 1
        or (settings["keep_ratio"] and sides[0] > sides[1])
    ):
        raise ValueError(
            "`image_size` must be two positive whole numbers, short <= long if "
            f"`keep_ratio`. Received: image_size={settings['image_size']}, "
            f"keep_ratio={settings['keep_ratio']}"
        )
    for name in ("class_names", "category_ids"):
        if len(settings[name]) not in (0, num_classes):
            raise ValueError(
                f"`{name}` must have one entry per class, {num_classes}. "
                f"Received: {name} with {len(settings[name])} entries"
            )
    for name in ("score_threshold", "nms_iou_threshold"):
        if not 0 <= settings[name] <= 1:
            raise ValueError(
                f"`{name}` must be in [0, 1]. Received: {name}={settings[name]}"
            )
    for name in ("candidates_per_level", "max_detections", "max_pixels"):
        if settings[name] < 1:
            raise ValueError(
                f"`{name}` must be at least 1. Received: {name}={settings[name]}"
            )
    if not isinstance(settings["normalization"], Normalization):
        raise ValueError(
            "`normalization` must be a Normalization. "
            f"Received: normalization={settings['normalization']!r}"
        )


class _ServingModule(tf.Module):
    """What is saved: the weights, the metadata file, and the functions over them.

    Args:
        detector: a built `DenseDetector`.
        metadata: dict, see `_make_metadata`.
        text: the same as JSON.
        asset: path of a file with `text`.
    """

    def __init__(self, detector, metadata, text, asset):
        super().__init__(name="vfnet_tf")
        # The variables alone: a tracked Keras model would bring its layers' classes,
        # metrics and optimizer along.
        self.weights = [weight.value for weight in detector.weights]
        self.metadata_file = tf.saved_model.Asset(str(asset))
        settings = {name: metadata[name] for name in DETECTION_SETTINGS}
        normalization = Normalization.from_dict(metadata["normalization"])
        first, second = metadata["image_size"]
        resize = (
            transforms.resize_keep_ratio(first, second)
            if metadata["keep_ratio"]
            else transforms.resize_exact(first, second)
        )

        def network_size(size):
            if metadata["keep_ratio"]:
                return transforms.keep_ratio_size(size, first, second)
            return tf.constant([first, second])

        def prepare(image, canvas):
            example = {"image": image, "boxes": tf.zeros((0, 4))}
            for transform in (
                resize,
                transforms.normalize(normalization),
                transforms.pad_to(canvas[0], canvas[1]),
            ):
                example = transform(example, None)
            image = tf.ensure_shape(example["image"], (None, None, 3))
            return image, example["image_size"], example["scale"]

        prepared = (
            tf.TensorSpec((None, None, 3), "float32"),
            tf.TensorSpec((2,), "float32"),
            tf.TensorSpec((2,), "float32"),
        )

        # One function, so that both signatures share one copy of the graph. Its
        # conditions are `tf.cond` already: AutoGraph would only slow tracing.
        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "float32"),
                tf.TensorSpec((None, 2), "float32"),
                tf.TensorSpec((None, 2), "float32"),
            ],
        )
        def detect(images, image_size, scale):
            found = detector.detect(images, image_size, scale, **settings)
            return {
                "detection_boxes": found["boxes"],
                "detection_scores": found["scores"],
                "detection_classes": found["labels"],
                "num_detections": found["num_detections"],
            }

        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec((None,), "string", name="image_bytes")],
        )
        def serving_default(image_bytes):
            index = tf.range(check_batch(image_bytes))
            sizes = tf.map_fn(
                lambda i: read_size(image_bytes[i], i, metadata["max_pixels"]),
                index,
                fn_output_signature=tf.TensorSpec((2,), "int32"),
            )
            resized = tf.map_fn(network_size, sizes)
            canvas = common_canvas(resized)
            # Decoding needs the bytes only: without the dependency it may begin before
            # the headers are read, and a file that claims to be huge be decoded.
            with tf.control_dependencies([sizes]):
                checked = tf.identity(image_bytes)
            images, image_size, scale = tf.map_fn(
                lambda contents: prepare(transforms.decode_image(contents), canvas),
                checked,
                fn_output_signature=prepared,
            )
            return detect(images, image_size, scale)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "uint8", name="images")
            ],
        )
        def serve_tensor(images):
            with tf.control_dependencies([check_batch(images)]):
                resized = network_size(tf.shape(images)[1:3])
            canvas = common_canvas(resized[None])
            images, image_size, scale = tf.map_fn(
                lambda image: prepare(image, canvas),
                images,
                fn_output_signature=prepared,
            )
            return detect(images, image_size, scale)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "float32", name="images")
            ],
        )
        def raw(images):
            boxes, scores, factors = detector.ranking(detector(images, training=False))
            if factors is not None:
                scores = scores * factors[..., None]
            return {"boxes": boxes, "scores": scores}

        @tf.function(autograph=False, input_signature=[])
        def read_metadata():
            return {"metadata": tf.constant(text)}

        # Not attributes: TensorFlow would save each once more as a function.
        self._signatures = lambda: {
            "serving_default": serving_default,
            "serve_tensor": serve_tensor,
            "raw": raw,
            "metadata": read_metadata,
        }

    def signatures(self):
        """Name -> traced function."""
        return {
            name: function.get_concrete_function()
            for name, function in self._signatures().items()
        }


def check_batch(inputs):
    """The number of images in a batch; it must not be 0.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for an empty batch.
    """
    count = tf.shape(inputs)[0]
    rule = "A batch must have at least one image. Received: batch of"
    with tf.control_dependencies([tf.debugging.Assert(count > 0, [rule, count])]):
        return tf.identity(count)


def common_canvas(sizes):
    """The smallest canvas in multiples of 32 that holds images of these sizes.

    Args:
        sizes: int `[B, 2]`, (height, width) of the resized images.

    Returns:
        int32 `[2]` tensor, (height, width).
    """
    largest = tf.reduce_max(sizes, axis=0)
    return -(-largest // CANVAS_MULTIPLE) * CANVAS_MULTIPLE


def read_size(contents, index, max_pixels):
    """The size of an encoded image, upright, from its header; nothing is decoded.

    Args:
        contents: string `[]`, a JPEG or PNG file.
        index: int `[]`, its place in the batch, for the error.
        max_pixels: int, height x width at most.

    Returns:
        int32 `[2]` tensor, (height, width).

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for another format, a damaged
            header or too many pixels; a file of some hundred bytes may claim to be
            gigabytes large.
    """
    is_jpeg = tf.strings.substr(contents, 0, len(_JPEG_START)) == _JPEG_START
    is_png = tf.strings.substr(contents, 0, len(_PNG_START)) == _PNG_START
    is_png = is_png & (tf.strings.length(contents) >= len(_PNG_START) + 8)
    known = tf.debugging.Assert(
        is_jpeg | is_png,
        [
            "`image_bytes` must be JPEG or PNG files. Received: image",
            index,
            "of",
            tf.strings.length(contents),
            "bytes",
        ],
    )

    def read_jpeg():
        size = tf.io.extract_jpeg_shape(contents)[:2]
        is_turned = transforms.exif_orientation(contents) >= 5
        return tf.where(is_turned, size[::-1], size)

    def read_png():
        header = tf.strings.substr(contents, len(_PNG_START), 8)
        # Big-endian and unsigned; a negative number is a size beyond every cap.
        return tf.io.decode_raw(header, "int32", little_endian=False)[::-1]

    with tf.control_dependencies([known]):
        size = tf.cond(is_jpeg, read_jpeg, read_png)
    size = tf.ensure_shape(size, (2,))
    area = tf.reduce_prod(tf.cast(size, "int64"))
    is_right = tf.reduce_all(size > 0) & (area <= max_pixels)
    small_enough = tf.debugging.Assert(
        is_right,
        [
            f"Images must have 1 to {max_pixels} pixels. Received: image",
            index,
            "of (height, width)",
            size,
        ],
    )
    with tf.control_dependencies([small_enough]):
        return tf.identity(size)
