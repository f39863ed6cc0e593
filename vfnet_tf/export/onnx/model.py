"""A detector as an ONNX file, which is compared with the detector before it is kept.

The graph takes batches and images of any size. The comparison runs it at several sizes,
some of them odd.
"""

import json

import keras
import numpy as np

from vfnet_tf import config as configs
from vfnet_tf.data.canvases import CANVAS_MULTIPLE
from vfnet_tf.export.metadata import describe_detector
from vfnet_tf.export.onnx import heads as onnx_heads
from vfnet_tf.export.onnx import nms as onnx_nms
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


def export_onnx(
    detector,
    path,
    *,
    config=None,
    nms_in_graph=False,
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
        overwrite: bool, whether an existing file may be replaced.
        **settings: in place of those of the config and the detector, see
            `export_saved_model`.

    Returns:
        dict of `num_nodes` and the result of `compare`.

    Raises:
        ValueError: for a layer without a converter, settings that do not fit, a `path`
            that must not be replaced, or numbers that differ; no file is written then.
    """
    import onnx

    path = check_file(path, ".onnx", overwrite)
    if detector.dtype_policy.name != "float32":
        raise ValueError(
            "An ONNX file is written from float32. Received: a detector of the dtype "
            f"policy {detector.dtype_policy.name}"
        )
    config = None if config is None else configs.load_config(config)
    metadata = _describe(detector, config, settings, nms_in_graph)
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
    with replacing(path, is_shared=True) as temporary:
        onnx.save(model, temporary)
        open_session(temporary)
    return {"num_nodes": len(model.graph.node), **report}


def build_model(detector, metadata, nms_in_graph=False):
    """The detector as an `onnx.ModelProto`, see `export_onnx`.

    `metadata` is a dict of JSON types, with the thresholds if `nms_in_graph`; each key
    becomes one of `metadata_props`.
    """
    graph = Graph()
    images = graph.input("images", "float32", ("batch", "height", "width", 3))
    predictions = onnx_heads.predict(graph, detector, images)
    if nms_in_graph:
        _add_detections(graph, detector, metadata, predictions)
    else:
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
    rng = np.random.default_rng(0)
    largest, compared = {"box_difference": 0.0, "score_difference": 0.0}, []
    for batch, height, width in sizes:
        # Blocks of colour: noise alone would average out.
        blocks = rng.uniform(-2, 2, (batch, -(-height // 8), -(-width // 8), 3))
        images = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        images = (images + rng.normal(0, 0.3, images.shape)).astype("float32")
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


def _describe(detector, config, given, nms_in_graph):
    """The file's metadata, a dict of JSON types."""
    import onnx

    versions = {"backend": keras.backend.backend(), "onnx": onnx.__version__}
    return {
        **describe_detector(detector, config, given, **versions, opset=OPSET),
        "format": "vfnet_tf ONNX",
        "format_version": FORMAT_VERSION,
        "has_nms": nms_in_graph,
        "box_format": "x1, y1, x2, y2 in pixels of the network input, or before `scale`",
        "strides": list(detector.strides),
        "anchors_per_cell": detector.anchors_per_cell,
        "clip_margin": detector.clip_margin,
    }
