"""A detector as a SavedModel that TensorFlow alone loads and runs.

The graph that serves is the graph that was evaluated: it decodes, resizes, normalises
and pads with the functions of `data.transforms`, calls `detector.detect`, and carries
the thresholds and the class names that belong to the weights.

Images of one batch share a canvas, the smallest one in multiples of 32 that holds them
all once they are resized. Padding takes part in group normalisation and in the
convolutions at its border (fact S32), so the detections of an image change a little
with its neighbours in the batch, as they do in evaluation. An image alone is padded to
its own multiples of 32, as the pipeline pads it. A file that cannot be used is no
neighbour: see `safe_decoding`.
"""

import json
import os
import pathlib
import shutil
import tempfile
import uuid

import keras
import tensorflow as tf

from vfnet_tf import config as configs
from vfnet_tf.data import transforms
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.export.metadata import describe_detector
from vfnet_tf.export.saved_model import safe_decoding
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS
from vfnet_tf.ops.shapes import sizes_of

#: Raised when a signature or a key of the metadata changes its meaning.
FORMAT_VERSION = 2

#: What boxes and classes may look like, by `box_format`.
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
    max_pixels=safe_decoding.MAX_PIXELS,
    box_format="xyxy",
    overwrite=False,
):
    """Writes a detector as a SavedModel with these signatures.

    `image_bytes(image_bytes: string [B])`, also `serving_default`: JPEG or PNG files,
    of any sizes.
    `tf_example(examples: string [B])`: serialized `tf.train.Example`s with such a file
    under `image/encoded`.
    `image_tensor(images: uint8 [B, H, W, 3])`, also `serve_tensor`: RGB images of one
    size, upright.
    `image_bytes_with_thresholds(image_bytes, score_threshold: float32 [B],
    nms_iou_threshold: float32 [B], max_detections: int32 [B])`: the settings of each
    image, or one of all; negative ones, and those that a client of TensorFlow Serving's
    gRPC leaves out, are those of the export. `max_detections` may only lower it.

    They resize, normalise, pad, detect and give, in pixels of the images that came in,

        detection_boxes    float32 [B, D, 4]  (x1, y1, x2, y2), zeros after the last
        detection_scores   float32 [B, D]     descending, zeros after the last
        detection_classes  int32   [B, D]     0..K-1, -1 after the last
        num_detections     int32   [B]
        status             int32   [B]        0 or why there are none, see
                                              `safe_decoding.STATUS_CODES`

    A file that cannot be used changes nothing for the others of its batch.

    `raw(images: float32 [B, H, W, 3])`: normalised images, for those who run their own
    NMS; it gives, for all points and in pixels of the network input,

        boxes   float32 [B, P, 4]  not clipped
        scores  float32 [B, P, K]

    `metadata(request: string [N])`, of any strings: `metadata` string `[N]`, each the JSON
    that lies in `assets/metadata.json` too:
    class names, category ids, thresholds, sizes, normalisation, precision, versions,
    the SHA-256 of weights and config, and the config where one was given.

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
        box_format: `"xyxy"`, as above, or `"yxyx_normalized"`, the convention of the
            TensorFlow Object Detection API: boxes (ymin, xmin, ymax, xmax) in 0..1,
            classes 1..K (1 after the last), `num_detections`, all float32.
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
        },
        max_pixels,
        box_format,
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


def _make_metadata(detector, config, given, max_pixels, box_format):
    """All that a client or the graph must know, as a dict of JSON types."""
    if max_pixels < 1:
        raise ValueError(
            f"`max_pixels` must be at least 1. Received: max_pixels={max_pixels}"
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
        "status_codes": {
            str(code): text for code, text in safe_decoding.STATUS_CODES.items()
        },
        "max_pixels": int(max_pixels),
    }


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
        prepare = _make_prepare(metadata)
        detect, detect_with_thresholds, raw = _make_detect(detector, metadata)

        def answer(found, status, *thresholds):
            inputs = [found[name] for name in ("images", "image_size", "scale")]
            if thresholds:
                thresholds = [tf.gather(own, found["index"]) for own in thresholds]
                detections = detect_with_thresholds(*inputs, *thresholds)
            else:
                detections = detect(*inputs)
            detections = _spread(detections, found["index"], status)
            size = tf.scatter_nd(
                found["index"][:, None],
                found["original_size"],
                tf.stack([tf.size(status), 2]),
            )
            return {
                **to_box_format(detections, size, metadata["box_format"]),
                "status": status,
            }

        def serve_files(contents, *thresholds):
            with tf.control_dependencies([check_batch(contents)]):
                contents = tf.identity(contents)
            status, found = safe_decoding.prepare_files(
                contents, prepare, metadata["max_pixels"]
            )
            return answer(found, status, *thresholds)

        # What is one function is saved once, under however many names.
        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec((None,), "string", name="image_bytes")],
        )
        def image_bytes(image_bytes):
            return serve_files(image_bytes)

        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec((None,), "string", name="examples")],
        )
        def tf_example(examples):
            with tf.control_dependencies([check_batch(examples)]):
                examples = tf.identity(examples)
            return image_bytes(safe_decoding.read_examples(examples))

        # As defaults of the arguments they become those of the signature.
        exported = [
            tf.constant([metadata["score_threshold"]], "float32"),
            tf.constant([metadata["nms_iou_threshold"]], "float32"),
            tf.constant([metadata["max_detections"]], "int32"),
        ]

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None,), "string", name="image_bytes"),
                tf.TensorSpec((None,), "float32", name="score_threshold"),
                tf.TensorSpec((None,), "float32", name="nms_iou_threshold"),
                tf.TensorSpec((None,), "int32", name="max_detections"),
            ],
        )
        def image_bytes_with_thresholds(
            image_bytes,
            score_threshold=exported[0],
            nms_iou_threshold=exported[1],
            max_detections=exported[2],
        ):
            given = (score_threshold, nms_iou_threshold, max_detections)
            # Neither is NaN >= 0.
            chosen = [
                tf.where(own >= 0, own, default)
                for own, default in zip(given, exported, strict=True)
            ]
            total = tf.shape(image_bytes)
            return serve_files(
                image_bytes, *(tf.broadcast_to(own, total) for own in chosen)
            )

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec((None, None, None, 3), "uint8", name="images")
            ],
        )
        def image_tensor(images):
            count = check_batch(images)
            with tf.control_dependencies([count]):
                found = safe_decoding.prepare_pixels(tf.identity(images), prepare)
            status = tf.fill([count], safe_decoding.OK)
            return answer({**found, "index": tf.range(count)}, status)

        # TensorFlow Serving calls no signature without inputs (REST), and joins requests
        # along the first axis.
        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec((None,), "string", name="request")],
        )
        def read_metadata(request):
            return {"metadata": tf.fill(tf.shape(request), text)}

        # Not attributes: TensorFlow would save each once more as a function.
        self._signatures = lambda: {
            "serving_default": image_bytes,
            "image_bytes": image_bytes,
            "image_bytes_with_thresholds": image_bytes_with_thresholds,
            "image_tensor": image_tensor,
            "serve_tensor": image_tensor,
            "tf_example": tf_example,
            "raw": raw,
            "metadata": read_metadata,
        }

    def signatures(self):
        """Name -> function with its input signature."""
        return self._signatures()


def _make_prepare(metadata):
    """Makes the function from an image uint8 `[h, w, 3]` to what the network takes.

    Returns:
        The function; it gives a dict of `safe_decoding.PREPARED`.
    """
    make_input = transforms.network_input(
        metadata["image_size"],
        metadata["keep_ratio"],
        Normalization.from_dict(metadata["normalization"]),
    )

    def prepare(image):
        example = make_input(image)
        # Multiples of 32 have a multiple of 32 as their largest: the common canvas.
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
        Three functions. The first two take images float32 `[B, H, W, 3]`, `image_size`
        and `scale` as `detector.detect` and give what it gives; the second one takes
        for each image score and IoU threshold, float32 `[B]`, and the number of
        detections at most, int32 `[B]`, too. The third takes images and gives `boxes`
        and `scores` of all points.
    """
    settings = {name: metadata[name] for name in DETECTION_SETTINGS}
    images_spec = tf.TensorSpec((None, None, None, 3), "float32", name="images")
    inputs = [images_spec, *[tf.TensorSpec((None, 2), "float32")] * 2]
    vector = tf.TensorSpec((None,), "float32")

    # Its conditions are `tf.cond` already: AutoGraph would only slow tracing.
    @tf.function(autograph=False, input_signature=[images_spec])
    def predict(images):
        ranking = detector.ranking(detector(images, training=False))
        return [tensor for tensor in ranking if tensor is not None]

    def candidates(images, image_size, scale, **changes):
        boxes, scores, *factors = predict(images)
        boxes, scores = detector.candidates(
            boxes,
            scores,
            factors[0] if factors else None,
            sizes_of(images)[1:3],
            image_size,
            scale,
            **{**settings, **changes},
        )
        return boxes, scores, bool(factors)

    @tf.function(autograph=False, input_signature=inputs)
    def detect(images, image_size, scale):
        boxes, scores, _ = candidates(images, image_size, scale)
        return detector.suppress_candidates(boxes, scores, **settings)

    @tf.function(
        autograph=False,
        input_signature=[*inputs, vector, vector, tf.TensorSpec((None,), "int32")],
    )
    def detect_with_thresholds(images, image_size, scale, threshold, iou, limit):
        threshold = threshold[:, None, None]
        boxes, scores, has_factors = candidates(
            images, image_size, scale, score_threshold=threshold
        )
        if not has_factors:  # else `candidates` has applied it
            scores = tf.where(scores > threshold, scores, 0.0)

        def suppress(image):
            boxes, scores, iou = image
            # The kernel of hard NMS takes one threshold for its batch, up to 1.
            found = detector.suppress_candidates(
                boxes[None],
                scores[None],
                **{
                    **settings,
                    "score_threshold": 0.0,
                    "nms_iou_threshold": tf.minimum(iou, 1.0),
                },
            )
            return {name: value[0] for name, value in found.items()}

        most = settings["max_detections"]
        found = tf.map_fn(
            suppress,
            (boxes, scores, iou),
            fn_output_signature={
                "boxes": tf.TensorSpec((most, 4), "float32"),
                "scores": tf.TensorSpec((most,), "float32"),
                "labels": tf.TensorSpec((most,), "int32"),
                "num_detections": tf.TensorSpec((), "int32"),
            },
        )
        return _keep_first(found, tf.minimum(found["num_detections"], limit))

    @tf.function(autograph=False, input_signature=[images_spec])
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
    """Detections of some images of a batch as those of all.

    Args:
        detections: dict as from `detector.detect`, of G images.
        index: int32 `[G]`, their places in the batch.
        status: int32 `[B]`; an image whose status is not `OK` has no detections.

    Returns:
        The dict for B images.
    """
    total = tf.size(status)
    rows = tf.tensor_scatter_nd_update(
        tf.zeros([total], "int32"), index[:, None], tf.range(tf.size(index))
    )
    found = {name: tf.gather(value, rows) for name, value in detections.items()}
    is_good = status == safe_decoding.OK
    return _keep_first(found, tf.where(is_good, found["num_detections"], 0))


def to_box_format(detections, original_size, box_format):
    """Detections by the names of the SavedModel, in one of `BOX_FORMATS`.

    Args:
        detections: dict as from `detector.detect`, boxes in pixels of the images that
            came in.
        original_size: float32 `[B, 2]`, (height, width) of those, of any value where
            there are no detections.
        box_format: key of `BOX_FORMATS`.

    Returns:
        dict of tensors.
    """
    boxes, labels = detections["boxes"], detections["labels"]
    count = detections["num_detections"]
    if box_format == "yxyx_normalized":
        height, width = tf.unstack(tf.maximum(original_size, 1.0)[:, None], axis=-1)
        x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
        sides = [y1 / height, x1 / width, y2 / height, x2 / width]
        # The resized size is rounded, so a clipped box may end a little beyond.
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


def check_batch(inputs):
    """The number of images in a batch; it must not be 0.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for an empty batch.
    """
    count = tf.shape(inputs)[0]
    rule = "A batch must have at least one image. Received: batch of"
    with tf.control_dependencies([tf.debugging.Assert(count > 0, [rule, count])]):
        return tf.identity(count)
