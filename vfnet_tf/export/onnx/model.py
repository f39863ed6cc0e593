"""A detector as an ONNX file, which is compared with the detector before it is kept.

The graph takes batches and images of any size. The comparison runs it at several sizes,
some of them odd. A quantised graph is compared at the best points only, and its time
with that of float32.
"""

import json

import keras
import numpy as np

from vfnet_tf import config as configs
from vfnet_tf.data import numpy_images
from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.data.normalization import Normalization
from vfnet_tf.export import best_points
from vfnet_tf.export.metadata import describe_detector
from vfnet_tf.export.onnx import heads as onnx_heads
from vfnet_tf.export.onnx import nms as onnx_nms
from vfnet_tf.export.onnx import quantization
from vfnet_tf.export.onnx.graph import OPSET, Graph
from vfnet_tf.export.targets import check_file
from vfnet_tf.files import replacing
from vfnet_tf.inference.onnx import open_session

#: Number of the format; it grows when an input, output or key changes its meaning.
FORMAT_VERSION = 1

#: (batch, height, width) of the images of the comparison.
CHECKED_SIZES = ((1, 96, 128), (2, 64, 160), (2, 75, 107))

#: Largest difference between ONNX Runtime and Keras: of scores, and of boxes in units of
#: the longer side of the image.
TOLERANCE = 1e-4

#: Outputs without NMS.
RAW_OUTPUTS = ("boxes", "scores", "centerness")

#: Number of calibration images that a file of int8 is compared at.
NUM_COMPARED = 4


def export_onnx(
    detector,
    path,
    *,
    config=None,
    nms_in_graph=False,
    quantize="none",
    calibration=(),
    allow_slower=False,
    overwrite=False,
    **settings,
):
    """Writes a detector as an ONNX file (opset 18) and compares it with the detector.

    Inputs: `images` float32 `[B, H, W, 3]`, normalised, any B, H and W. Outputs, for all
    points and in pixels of the network input:

        boxes       float32 [B, P, 4]  (x1, y1, x2, y2), not clipped
        scores      float32 [B, P, K]  in [0, 1], times the centerness where there is one
        centerness  float32 [B, P]     if the detector has it; the score threshold is
                                       for `scores / centerness`

    With `nms_in_graph` there are also the inputs `image_size` and `scale` float32
    `[B, 2]` (see `DenseDetector.detect`), and the optional `score_threshold` and
    `nms_iou_threshold` float32 `[1]`; the outputs are those of the SavedModel:

        detection_boxes    float32 [B, D, 4]  pixels before `scale`, zeros after the last
        detection_scores   float32 [B, D]     descending, zeros after the last
        detection_classes  int32   [B, D]     0..K-1, -1 after the last
        num_detections     int32   [B]

    The file's `metadata_props` describe it, each value as JSON; see
    `inference.onnx.read_metadata`.

    Args:
        detector: a built `DenseDetector` of float32 dtype policy, on any backend.
        path: of the file, `.onnx`.
        config: a `vfnet_tf.config.Config`, or an argument of `load_config`.
        nms_in_graph: bool; ONNX has hard NMS only.
        quantize: `"none"`, `"float16"` or `"int8"`, see `export.onnx.quantization`.
            Inputs and outputs stay float32.
        calibration: for `"int8"`, paths of images like those to come; their numbers
            decide the steps of activations.
        allow_slower: bool, whether `"int8"` may take longer than float32 on this
            machine. A file of float16 always may: it is for GPUs.
        overwrite: bool, whether an existing file may be replaced.
        **settings: in place of those of the config and the detector, see
            `export_saved_model`.

    Returns:
        dict of `num_nodes` and the result of `compare`; for quantised files also
        `quantized`, the result of `compare_quantized`, and `float32_seconds` and
        `seconds` of one image without and with quantisation.

    Raises:
        ValueError: for a layer without a converter, settings that do not fit, a `path`
            that must not be replaced, numbers that differ, or a file of int8 that is
            slower; no file is written then.
    """
    import onnx

    path = check_file(path, ".onnx", overwrite)
    if quantize not in quantization.QUANTIZATIONS:
        raise ValueError(
            f"`quantize` must be one of {quantization.QUANTIZATIONS}. "
            f"Received: quantize={quantize!r}"
        )
    if (quantize == "int8") != bool(calibration):
        raise ValueError(
            "`calibration` must name images for quantize='int8', and only then. "
            f"Received: {len(calibration)} images with quantize={quantize!r}"
        )
    if detector.dtype_policy.name != "float32":
        raise ValueError(
            "An ONNX file is written from float32. Received: a detector of the dtype "
            f"policy {detector.dtype_policy.name}"
        )
    config = None if config is None else configs.load_config(config)
    metadata = _describe(detector, config, settings, nms_in_graph, quantize)
    if nms_in_graph and metadata["nms"] != "hard":
        raise ValueError(
            "ONNX has hard NMS only: leave it out of the graph, or export a detector "
            f"with nms='hard'. Received: nms={metadata['nms']!r}"
        )
    model = build_model(detector, metadata, nms_in_graph)
    # The inputs of NMS are compared: sums that differ in their last digits may make it
    # choose another of two similar boxes.
    raw = build_model(detector, metadata) if nms_in_graph else model
    report = compare(raw.SerializeToString(), detector)
    if quantize != "none":
        model, found = _quantize(
            model, detector, metadata, quantize, calibration, allow_slower
        )
        report |= found
    with replacing(path, is_shared=True) as temporary:
        onnx.save(model, temporary)
        open_session(temporary)
    return {"num_nodes": len(model.graph.node), **report}


def build_model(detector, metadata, nms_in_graph=False, with_raw=None):
    """The detector as an `onnx.ModelProto`, see `export_onnx`.

    Args:
        detector: a built `DenseDetector`.
        metadata: dict of JSON types, with the thresholds if `nms_in_graph`; each key
            becomes one of `metadata_props`.
        nms_in_graph: bool.
        with_raw: bool, whether boxes and scores of all points are outputs; by default
            they are without NMS.
    """
    graph = Graph()
    images = graph.input("images", "float32", ("batch", "height", "width", 3))
    predictions = onnx_heads.predict(graph, detector, images)
    if nms_in_graph:
        _add_detections(graph, detector, metadata, predictions)
    if not nms_in_graph if with_raw is None else with_raw:
        boxes, scores, factors, _ = predictions
        points, classes = ("batch", "points"), detector.num_classes
        if factors is not None:
            each = graph.node("Unsqueeze", factors, np.array([2]))
            scores = graph.node("Mul", scores, each)
        graph.output(boxes, "boxes", "float32", (*points, 4))
        graph.output(scores, "scores", "float32", (*points, classes))
        if factors is not None:
            graph.output(factors, "centerness", "float32", points)
    properties = {k: json.dumps(v, ensure_ascii=False) for k, v in metadata.items()}
    return graph.model(type(detector).__name__, properties)


def _add_detections(graph, detector, metadata, predictions):
    image_size, scale = (
        graph.input(name, "float32", ("batch", 2)) for name in ("image_size", "scale")
    )
    thresholds = [
        graph.input(name, "float32", (1,), [metadata[name]])
        for name in ("score_threshold", "nms_iou_threshold")
    ]
    found = onnx_nms.detect(
        graph, detector, metadata, predictions, image_size, scale, thresholds
    )
    limit = metadata["max_detections"]
    shapes = {
        "detection_boxes": ("float32", ("batch", limit, 4)),
        "detection_scores": ("float32", ("batch", limit)),
        "detection_classes": ("int32", ("batch", limit)),
        "num_detections": ("int32", ("batch",)),
    }
    for name, (dtype, shape) in shapes.items():
        graph.output(found[name], name, dtype, shape)


def _quantize(model, detector, metadata, quantize, calibration, allow_slower):
    """The float32 `model` quantised, and the further entries of `export_onnx`'s dict."""
    has_nms = metadata["has_nms"]
    full = build_model(detector, metadata, has_nms, with_raw=True) if has_nms else model
    names = [value.name for value in full.graph.input]
    if quantize == "int8":
        feeds = (_feed(metadata, path, names) for path in calibration)
        changed = quantization.to_int8(full, feeds)
        feeds = [_feed(metadata, path, names) for path in calibration[:NUM_COMPARED]]
    else:
        changed = quantization.to_float16(full)
        feeds = [_inputs(images, names) for images in _check_images(CHECKED_SIZES[:2])]
    session = open_session(changed.SerializeToString())
    report = {"quantized": compare_quantized(session, detector, feeds, quantize)}
    if has_nms:
        for items in (changed.graph.output, changed.graph.node):
            for item in [x for x in items if x.name in RAW_OUTPUTS]:
                items.remove(item)
    canvas = [
        -(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in metadata["image_size"]
    ]
    noise = np.random.default_rng(0).normal(size=(1, *canvas, 3)).astype("float32")
    models = [each.SerializeToString() for each in (model, changed)]
    before, after = quantization.seconds_of(models, _inputs(noise, names))
    if quantize == "int8" and after > before and not allow_slower:
        raise ValueError(
            "A file of int8 must be faster than float32 on this machine; with "
            "`allow_slower` (--allow-slower) it is written all the same, for another "
            f"machine. Received: {1000 * after:.0f} ms for an image of {canvas[0]} x "
            f"{canvas[1]}, and {1000 * before:.0f} ms with float32. (int8 pays on CPUs "
            "with instructions for it: VNNI, AMX or ARM's dot product.)"
        )
    return changed, {**report, "float32_seconds": before, "seconds": after}


def _feed(metadata, path, names):
    """An image file as a batch of one, a dict of those inputs that are in `names`."""
    try:
        pixels = numpy_images.load_image(path)
    except Exception as error:  # PIL's decoders raise errors of many classes
        raise ValueError(
            f"A calibration image must be readable. Received: {path} {error}"
        ) from error
    normalization = Normalization.from_dict(metadata["normalization"])
    size, keep_ratio = metadata["image_size"], metadata["keep_ratio"]
    inputs = numpy_images.prepare(pixels, size, keep_ratio, normalization)
    return {name: value[None] for name, value in inputs.items() if name in names}


def _inputs(images, names):
    """Inputs of a graph for images without padding, see `_feed`."""
    batch, *size = images.shape[:3]
    sizes = np.broadcast_to(np.asarray(size, "float32"), (batch, 2))
    inputs = {"images": images, "image_size": sizes, "scale": np.ones_like(sizes)}
    return {name: value for name, value in inputs.items() if name in names}


def _check_images(sizes):
    """float32 images of (batch, height, width), always the same."""
    rng = np.random.default_rng(0)
    for batch, height, width in sizes:
        # Blocks of colour: noise alone would average out.
        blocks = rng.uniform(-2, 2, (batch, -(-height // 8), -(-width // 8), 3))
        images = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        yield (images + rng.normal(0, 0.3, images.shape)).astype("float32")


def compare_quantized(session, detector, feeds, quantize):
    """Compares a quantised file with Keras at the points with the best scores.

    Args:
        session: from `open_session`, of a file with the outputs `boxes` and `scores`.
        detector: the exported detector.
        feeds: list of dicts, one batch of inputs each.
        quantize: `"float16"` or `"int8"`.

    Returns:
        dict of `num_images`, and the largest differences `box_difference` and
        `score_difference`, see `best_points.TOLERANCES`.

    Raises:
        ValueError: if they are above the tolerances, or not finite.
    """
    differences = []
    for feed in feeds:
        images = feed["images"]
        found = session.run(["boxes", "scores"], feed)
        for each in zip(*_predict(detector, images), *found, strict=True):
            longer_side = max(images.shape[1:3])
            differences.append(best_points.differences(*each, longer_side))
    return best_points.check("An ONNX file", quantize, differences)


def compare(model, detector, sizes=CHECKED_SIZES):
    """Runs raw predictions in ONNX Runtime and in Keras and compares all numbers.

    Args:
        model: path of an ONNX file without NMS, or its bytes.
        detector: the exported detector.
        sizes: sequence of (batch, height, width) of random images. A size that is no
            multiple of 32 is left out if Keras cannot run it.

    Returns:
        dict of the largest differences `box_difference` in pixels and
        `score_difference`, and the `sizes` that were compared.

    Raises:
        ValueError: for another number of points, or a difference above 1e-4: of scores,
            and of boxes relative to the image's longer side, or to the coordinate if
            that is larger.
    """
    session = open_session(model)
    largest, compared = {"box_difference": 0.0, "score_difference": 0.0}, []
    for images in _check_images(sizes):
        batch, height, width = images.shape[:3]
        at = f"images of {batch} x {height} x {width}"
        try:
            expected = _predict(detector, images)
        except Exception:  # its class differs by backend
            if height % CANVAS_MULTIPLE or width % CANVAS_MULTIPLE:
                # Backbones that drop an odd last row fit no pyramid at such a size.
                continue
            raise
        try:
            boxes, scores = session.run(["boxes", "scores"], {"images": images})
        except Exception as error:  # onnxruntime's classes are not public
            raise ValueError(
                f"ONNX Runtime must run the model. Received: for {at} {error}"
            ) from error
        if (boxes.shape, scores.shape) != (expected[0].shape, expected[1].shape):
            raise ValueError(
                "ONNX Runtime must give as many points as Keras. Received: "
                f"{boxes.shape[1]} in place of {expected[0].shape[1]} for {at}"
            )
        off = np.abs(boxes - expected[0])
        unit = np.maximum(np.abs(expected[0]), max(height, width))
        found = {
            "box_difference": float(off.max()),
            "score_difference": float(np.abs(scores - expected[1]).max()),
        }
        # In this order, so that NaN is refused.
        if not (
            np.all(off <= TOLERANCE * unit) and found["score_difference"] <= TOLERANCE
        ):
            raise ValueError(
                "ONNX Runtime must give the boxes and scores of Keras. Received: boxes "
                f"up to {found['box_difference']:.3g} pixels off and scores up to "
                f"{found['score_difference']:.3g} for {at}"
            )
        largest = {name: max(largest[name], found[name]) for name in largest}
        compared.append((batch, height, width))
    return {**largest, "sizes": compared}


def _predict(detector, images):
    """The detector's own `boxes` and `scores`."""
    images = keras.ops.convert_to_tensor(images)
    ranked = detector.in_graph(detector.rank_all, images)
    return [keras.ops.convert_to_numpy(value) for value in ranked]


def _describe(detector, config, given, nms_in_graph, quantize):
    """The file's metadata, a dict of JSON types."""
    import onnx

    versions = {"backend": keras.backend.backend(), "onnx": onnx.__version__}
    return {
        **describe_detector(detector, config, given, **versions, opset=OPSET),
        "format": "vfnet_tf ONNX",
        "format_version": FORMAT_VERSION,
        "has_nms": nms_in_graph,
        "quantize": quantize,
        "box_format": "x1, y1, x2, y2 in pixels of the network input, or before `scale`",
        "strides": list(detector.strides),
        "anchors_per_cell": detector.anchors_per_cell,
        "clip_margin": detector.clip_margin,
    }
