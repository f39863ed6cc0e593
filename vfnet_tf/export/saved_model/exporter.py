"""A detector as a SavedModel that TensorFlow alone loads and runs.

The graph is that of the evaluation: it decodes, resizes, normalises and pads with the
functions of `data.transforms`, calls `detector.detect`, and contains the thresholds and
class names.

The images of a batch share the smallest canvas in multiples of 32 that holds them all
after resizing. Padding influences group norms and the convolutions at its border, so the
detections in an image change a little with the other images, like in evaluation:
docs/parity.md, S32. A file that cannot be decoded is left out, see `safe_decoding`.
"""

import functools
import json
import pathlib
import tempfile

import keras
import tensorflow as tf

from vfnet_tf import config as configs
from vfnet_tf.data import transforms
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.export.metadata import describe_detector
from vfnet_tf.export.saved_model import safe_decoding
from vfnet_tf.export.targets import check_place, replacing_folder
from vfnet_tf.foreign_text import one_line
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS
from vfnet_tf.ops.shapes import sizes_of

#: Number of the format; it grows when a signature or key changes its meaning.
FORMAT_VERSION = 2

#: Default of the most images of a call.
MAX_BATCH = 32

#: Images that are in the network at a time.
PART = 8

#: `box_format` -> description of boxes and classes.
BOX_FORMATS = {
    "xyxy": "x1, y1, x2, y2 in pixels of the image that came in; classes from 0",
    "yxyx_normalized": (
        "ymin, xmin, ymax, xmax in 0..1 of the image that came in; classes from 1; "
        "all float32, as the TensorFlow Object Detection API has it"
    ),
}


def export_saved_model(
    detector,
    directory,
    *,
    config=None,
    max_pixels=safe_decoding.MAX_PIXELS,
    max_batch=MAX_BATCH,
    box_format="xyxy",
    overwrite=False,
    **settings,
):
    """Writes a detector as a SavedModel with the following signatures.

    `image_bytes(image_bytes: string [B])`, also `serving_default`: JPEG or PNG files
    of any sizes.
    `tf_example(examples: string [B])`: serialized `tf.train.Example`s with such a file
    under `image/encoded`.
    `image_tensor(images: uint8 [B, H, W, 3])`, also `serve_tensor`: upright RGB images
    of one size.
    `image_bytes_with_thresholds(image_bytes, score_threshold: float32 [B],
    nms_iou_threshold: float32 [B], max_detections: int32 [B])`: settings by image, or
    one for all. A negative setting, or one that a gRPC request to TensorFlow Serving
    leaves out, is that of the export. `max_detections` may only be lowered.

    They resize, normalise, pad, detect and return, in pixels of the given images,

        detection_boxes    float32 [B, D, 4]  (x1, y1, x2, y2), zeros after the last
        detection_scores   float32 [B, D]     descending, zeros after the last
        detection_classes  int32   [B, D]     0..K-1, -1 after the last
        num_detections     int32   [B]
        status             int32   [B]        0, or why there are none, see
                                              `safe_decoding.STATUS_CODES`

    `raw(images: float32 [B, H, W, 3])`: normalised images, for an own NMS; it returns,
    for all points and in pixels of the network input,

        boxes   float32 [B, P, 4]  not clipped
        scores  float32 [B, P, K]

    `metadata(request: string [N])`, of any strings: `metadata` string `[N]`, each the
    JSON of `assets/metadata.json`: class names, category ids, thresholds, sizes,
    normalisation, precision, versions, the SHA-256 of weights and config, and the
    config if there is one.

    All sizes and B are dynamic. Optimizer and metrics are not saved. The detector's
    dtype policy is part of the graph and is `precision` in the metadata.

    Args:
        detector: a built `DenseDetector`, e.g. from `build_detector`.
        directory: of the SavedModel, which appears whole or not at all.
        config: a `vfnet_tf.config.Config`, or an argument of `load_config`, with the
            settings that are not given; without it they come from `DataConfig`, and
            classes have no names.
        max_pixels: int, largest height x width of an encoded image, which is checked
            before it is decoded.
        max_batch: int, most images of a call; with more it is an error.
        box_format: `"xyxy"`, see above, or `"yxyx_normalized"`, the format of the
            TensorFlow Object Detection API: boxes (ymin, xmin, ymax, xmax) in 0..1,
            classes 1..K (1 after the last), `num_detections`, all float32.
        overwrite: bool, whether an existing SavedModel may be replaced.
        **settings: `image_size`, (short, long) side in pixels, or (height, width)
            without `keep_ratio`; `keep_ratio`, bool; `normalization`, a `Normalization`;
            `class_names` and `category_ids`, K each; and those of `DenseDetector`:
            `score_threshold`, `nms_iou_threshold`, `candidates_per_level`,
            `max_detections`, `nms`, `soft_nms_sigma`, `soft_nms_min_score`. None means
            not given.

    Returns:
        `directory` as a `pathlib.Path`.

    Raises:
        ValueError: for another Keras backend than TensorFlow, settings that do not fit
            the detector, or a `directory` that must not be replaced.
        OSError: the folder cannot be written to, or the disk is full.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A SavedModel is written on the TensorFlow backend: load the weights with "
            "KERAS_BACKEND=tensorflow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    directory = pathlib.Path(directory)
    check_target(directory, overwrite)
    config = None if config is None else configs.load_config(config)
    metadata = _make_metadata(
        detector, config, settings, max_pixels, max_batch, box_format
    )
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    with (
        replacing_folder(directory) as aside,
        tempfile.TemporaryDirectory() as folder,
    ):
        asset = pathlib.Path(folder) / "metadata.json"
        asset.write_text(text, encoding="utf-8")
        module, signatures = _make_module(detector, metadata, text, asset)
        # It is not trained, and gradients would double the graph.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        try:
            tf.saved_model.save(
                module, str(aside), signatures=signatures, options=options
            )
        except tf.errors.OpError as error:
            reason = one_line(error.message)
            raise OSError(
                f"The SavedModel could not be written to {directory}: {reason}"
            ) from None
    return directory


def read_metadata(directory):
    """The metadata of the SavedModel in `directory`, a dict, without loading the model.

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
        if name.startswith("__"):  # TensorFlow's own, to initialise variables
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
    """Raises a ValueError for a directory that `export_saved_model` does not write to.

    These are a file, a directory with anything else than a SavedModel, a SavedModel
    without `overwrite`, and what `targets.check_place` refuses.
    """
    directory = pathlib.Path(directory)
    check_place(directory)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"`directory` must not be a file. Received: {directory}")
    if not any(directory.iterdir()):
        return
    if not (directory / "saved_model.pb").is_file():
        # Even with `overwrite`: it may be a home directory.
        raise ValueError(
            "`directory` must be new, empty or hold a SavedModel: anything else is "
            f"never overwritten. Received: directory={directory}"
        )
    if not overwrite:
        raise ValueError(
            "`directory` holds a SavedModel; `overwrite` must be True "
            f"(--overwrite) to replace it. Received: directory={directory}"
        )


def _make_metadata(detector, config, given, max_pixels, max_batch, box_format):
    """The content of `metadata.json`, a dict of JSON types."""
    if max_pixels < 1:
        raise ValueError(
            f"`max_pixels` must be at least 1. Received: max_pixels={max_pixels}"
        )
    if max_batch < 1:
        raise ValueError(
            f"`max_batch` must be at least 1. Received: max_batch={max_batch}"
        )
    if box_format not in BOX_FORMATS:
        raise ValueError(
            f"`box_format` must be one of {tuple(BOX_FORMATS)}. "
            f"Received: box_format={box_format!r}"
        )
    return {
        "format": "vfnet_tf SavedModel",
        "format_version": FORMAT_VERSION,
        **describe_detector(detector, config, given, tensorflow=tf.__version__),
        "box_format": box_format,
        "box_format_description": BOX_FORMATS[box_format],
        "status_codes": {str(k): v for k, v in safe_decoding.STATUS_CODES.items()},
        "max_pixels": int(max_pixels),
        "max_batch": int(max_batch),
    }


def _function(*inputs):
    """Decorates a function as a graph of inputs (dtype, shape, name)."""
    specs = [tf.TensorSpec(shape, dtype, name) for dtype, shape, name in inputs]
    # Conditions are written as `tf.cond`, and AutoGraph would slow tracing.
    return functools.partial(tf.function, input_signature=specs, autograph=False)


def _make_module(detector, metadata, text, asset):
    """Makes the module to save and the functions of its signatures, a dict by name.

    Args:
        metadata: dict, see `_make_metadata`.
        text: the same as JSON.
        asset: path of a file with `text`.
    """
    module = tf.Module(name="vfnet_tf")
    # Only the variables: a tracked Keras model would also save its layers' classes,
    # metrics and optimizer.
    module.weights = [weight.value for weight in detector.weights]
    module.metadata_file = tf.saved_model.Asset(str(asset))
    prepare = _make_prepare(metadata)
    check_batch = functools.partial(check_batch_size, most=metadata["max_batch"])
    detect, detect_with_thresholds, raw = _make_detect(detector, metadata)

    def answer(found, status, *thresholds):
        inputs = [found[name] for name in ("images", "image_size", "scale")]
        if thresholds:
            thresholds = [tf.gather(own, found["index"]) for own in thresholds]
            detections = _in_parts(detect_with_thresholds, *inputs, *thresholds)
        else:
            detections = _in_parts(detect, *inputs)
        detections = _spread(detections, found["index"], status)
        shape = tf.stack([tf.size(status), 2])
        places = found["index"][:, None]
        size = tf.scatter_nd(places, found["original_size"], shape)
        outputs = to_box_format(detections, size, metadata["box_format"])
        return {**outputs, "status": status}

    def serve_files(contents, *thresholds):
        with tf.control_dependencies([check_batch(contents)]):
            contents = tf.identity(contents)
        limit = metadata["max_pixels"]
        status, found = safe_decoding.prepare_files(contents, prepare, limit)
        return answer(found, status, *thresholds)

    # A function is saved once, even under several names.
    @_function(("string", (None,), "image_bytes"))
    def image_bytes(image_bytes):
        return serve_files(image_bytes)

    @_function(("string", (None,), "examples"))
    def tf_example(examples):
        with tf.control_dependencies([check_batch(examples)]):
            examples = tf.identity(examples)
        return image_bytes(safe_decoding.read_examples(examples))

    # Defaults of the arguments become those of the signature.
    exported = [
        tf.constant([metadata["score_threshold"]], "float32"),
        tf.constant([metadata["nms_iou_threshold"]], "float32"),
        tf.constant([metadata["max_detections"]], "int32"),
    ]

    @_function(
        ("string", (None,), "image_bytes"),
        ("float32", (None,), "score_threshold"),
        ("float32", (None,), "nms_iou_threshold"),
        ("int32", (None,), "max_detections"),
    )
    def image_bytes_with_thresholds(
        image_bytes,
        score_threshold=exported[0],
        nms_iou_threshold=exported[1],
        max_detections=exported[2],
    ):
        given = (score_threshold, nms_iou_threshold, max_detections)
        # Not `own < 0`: NaN must become the default, too.
        chosen = [
            tf.where(own >= 0, own, default)
            for own, default in zip(given, exported, strict=True)
        ]
        total = tf.shape(image_bytes)
        return serve_files(image_bytes, *(tf.broadcast_to(x, total) for x in chosen))

    @_function(("uint8", (None, None, None, 3), "images"))
    def image_tensor(images):
        count = check_batch(images)
        with tf.control_dependencies([count]):
            found = safe_decoding.prepare_pixels(tf.identity(images), prepare)
        status = tf.fill([count], safe_decoding.OK)
        return answer({**found, "index": tf.range(count)}, status)

    # With an input, since TensorFlow Serving needs one over REST, and joins requests along
    # the first axis.
    @_function(("string", (None,), "request"))
    def read_metadata(request):
        return {"metadata": tf.fill([check_batch(request)], text)}

    return module, {
        "serving_default": image_bytes,
        "image_bytes": image_bytes,
        "image_bytes_with_thresholds": image_bytes_with_thresholds,
        "image_tensor": image_tensor,
        "serve_tensor": image_tensor,
        "tf_example": tf_example,
        "raw": raw,
        "metadata": read_metadata,
    }


def make_network_input(metadata):
    """`transforms.network_input` with the settings of the metadata."""
    normalization = Normalization.from_dict(metadata["normalization"])
    return transforms.network_input(
        metadata["image_size"], metadata["keep_ratio"], normalization
    )


def _make_prepare(metadata):
    """Makes the argument `prepare` of `safe_decoding.prepare_files`."""
    make_input = make_network_input(metadata)

    def prepare(image):
        example = make_input(image)
        # The largest multiple of 32 of a batch is then its common canvas.
        canvas = transforms.padded_size(tf.shape(example["image"])[:2])
        example = transforms.pad_to(canvas[0], canvas[1])(example)
        return {
            "images": tf.ensure_shape(example["image"], (None, None, 3)),
            "image_size": example["image_size"],
            "scale": example["scale"],
            "original_size": tf.cast(tf.shape(image)[:2], "float32"),
        }

    return prepare


def _make_detect(detector, metadata):
    """Makes the functions from normalised images to detections over one network.

    Returns:
        `detect(images, image_size, scale)`, see `DenseDetector.detect`;
        `detect_with_thresholds`, which also takes the score threshold, the IoU
        threshold, float32 `[B]`, and the largest number of detections, int32 `[B]`; and
        `raw(images)` with `boxes` and `scores` of all points.
    """
    settings = {name: metadata[name] for name in DETECTION_SETTINGS}
    images_input = ("float32", (None, None, None, 3), "images")
    inputs = [images_input, *[("float32", (None, 2), None)] * 2]
    vector = ("float32", (None,), None)

    @_function(images_input)
    def predict(images):
        ranking = detector.ranking(detector(images, training=False))
        return [tensor for tensor in ranking if tensor is not None]

    def candidates(images, image_size, scale, **changes):
        boxes, scores, *factors = predict(images)
        ranking = (boxes, scores, factors[0] if factors else None)
        sizes = (sizes_of(images)[1:3], image_size, scale)
        found = detector.candidates(*ranking, *sizes, **{**settings, **changes})
        return *found, bool(factors)

    @_function(*inputs)
    def detect(images, image_size, scale):
        boxes, scores, _ = candidates(images, image_size, scale)
        return detector.suppress_candidates(boxes, scores, **settings)

    @_function(*inputs, vector, vector, ("int32", (None,), None))
    def detect_with_thresholds(images, image_size, scale, threshold, iou, limit):
        threshold = threshold[:, None, None]
        boxes, scores, has_factors = candidates(
            images, image_size, scale, score_threshold=threshold
        )
        if not has_factors:  # otherwise `candidates` has applied it
            scores = tf.where(scores > threshold, scores, 0.0)

        def suppress(image):
            boxes, scores, iou = image
            # The kernel of hard NMS takes one threshold for a batch, at most 1.
            changes = {
                "score_threshold": 0.0,
                "nms_iou_threshold": tf.minimum(iou, 1.0),
            }
            found = detector.suppress_candidates(
                boxes[None], scores[None], **{**settings, **changes}
            )
            return {name: value[0] for name, value in found.items()}

        most = settings["max_detections"]
        outputs = {
            "boxes": tf.TensorSpec((most, 4), "float32"),
            "scores": tf.TensorSpec((most,), "float32"),
            "labels": tf.TensorSpec((most,), "int32"),
            "num_detections": tf.TensorSpec((), "int32"),
        }
        images = (boxes, scores, iou)
        found = tf.map_fn(suppress, images, fn_output_signature=outputs)
        return _keep_first(found, tf.minimum(found["num_detections"], limit))

    @_function(images_input)
    def raw(images):
        boxes, scores, *factors = predict(images)
        if factors:
            scores = scores * factors[0][..., None]
        return {"boxes": boxes, "scores": scores}

    return detect, detect_with_thresholds, raw


def _keep_first(detections, count):
    """The first `count`, int32 `[B]`, detections of each image, padded as before."""
    is_kept = tf.range(detections["scores"].shape[1]) < count[:, None]
    return {
        "boxes": tf.where(is_kept[..., None], detections["boxes"], 0.0),
        "scores": tf.where(is_kept, detections["scores"], 0.0),
        "labels": tf.where(is_kept, detections["labels"], -1),
        "num_detections": count,
    }


def _spread(detections, index, status):
    """Detections of the images at places `index` `[G]` as those of all B images.

    An image whose `status`, int32 `[B]`, is not `OK` has no detections.
    """
    total = tf.size(status)
    rows = tf.tensor_scatter_nd_update(
        tf.zeros([total], "int32"), index[:, None], tf.range(tf.size(index))
    )
    found = {name: tf.gather(value, rows) for name, value in detections.items()}
    is_good = status == safe_decoding.OK
    return _keep_first(found, tf.where(is_good, found["num_detections"], 0))


def to_box_format(detections, original_size, box_format):
    """Detections by the names of the SavedModel's outputs.

    Args:
        detections: dict, see `DenseDetector.detect`, in pixels of the given images.
        original_size: float32 `[B, 2]`, (height, width) of those images.
        box_format: key of `BOX_FORMATS`.
    """
    boxes, labels = detections["boxes"], detections["labels"]
    count = detections["num_detections"]
    if box_format == "yxyx_normalized":
        height, width = tf.unstack(tf.maximum(original_size, 1.0)[:, None], axis=-1)
        x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
        sides = [y1 / height, x1 / width, y2 / height, x2 / width]
        # A clipped box may end a little beyond, because the resized size is rounded.
        boxes = tf.clip_by_value(tf.stack(sides, axis=-1), 0.0, 1.0)
        # Padding is 0 there before 1 is added to all.
        labels = tf.cast(tf.maximum(labels, 0) + 1, "float32")
        count = tf.cast(count, "float32")
    return {
        "detection_boxes": boxes,
        "detection_scores": detections["scores"],
        "detection_classes": labels,
        "num_detections": count,
    }


def _in_parts(detect, images, *others):
    """`detect` for a batch, `PART` images at a time, so that memory is bounded.

    Args:
        detect: a function of `_make_detect`.
        images: float32 `[B, H, W, 3]`, B > 0.
        *others: tensors `[B, ...]`.

    Returns:
        dict, see `DenseDetector.detect`.
    """
    inputs = (images, *others)
    total = tf.shape(images)[0]

    def part(start):
        found = detect(*(tensor[start : start + PART] for tensor in inputs))
        # The last part may be smaller, and a loop has rows of one size.
        rest = PART - tf.shape(found["num_detections"])[0]
        return {
            name: tf.pad(value, [[0, rest]] + [[0, 0]] * (value.shape.rank - 1))
            for name, value in found.items()
        }

    outputs = detect.get_concrete_function().structured_outputs
    rows = tf.map_fn(
        part,
        tf.range(0, total, PART),
        fn_output_signature={
            name: tf.TensorSpec((PART, *value.shape[1:]), value.dtype)
            for name, value in outputs.items()
        },
        parallel_iterations=1,
    )
    return {
        name: tf.reshape(value, (-1, *outputs[name].shape[1:]))[:total]
        for name, value in rows.items()
    }


def check_batch_size(inputs, most):
    """The number of rows of a batch; the graph raises InvalidArgumentError for others.

    Args:
        inputs: tensor `[B, ...]`.
        most: int, rows at most; 1 at least.
    """
    count = tf.shape(inputs)[0]
    rule = f"A batch must have 1 to {most} images. Received: batch of"
    is_good = (count > 0) & (count <= most)
    with tf.control_dependencies([tf.debugging.Assert(is_good, [rule, count])]):
        return tf.identity(count)
