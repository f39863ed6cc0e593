"""Detections from an exported ONNX file, without TensorFlow and without Keras."""

import json
import os

import numpy as np

from vfnet_tf.inference import numpy_detection
from vfnet_tf.inference.runtime import RuntimePredictor
from vfnet_tf.ops.nms_settings import DETECTION_SETTINGS, check_settings

#: Settings in the metadata that `OnnxDetector.detect` also takes for one call.
SETTINGS = DETECTION_SETTINGS
_SETTINGS_OF_THE_GRAPH = ("score_threshold", "nms_iou_threshold")


def open_session(model, num_threads=None):
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: path of an ONNX file, or its bytes.
        num_threads: int; None leaves it to the runtime.

    Raises:
        ImportError: without onnxruntime; the extra is named.
        ValueError: for a file that the runtime does not take.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX files need onnxruntime: pip install 'vfnet_tf[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about its own optimisations
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    model = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no narrower class
        name = "bytes" if isinstance(model, bytes) else model
        raise ValueError(
            f"`model` must be an ONNX file that onnxruntime "
            f"{onnxruntime.__version__} runs. Received: {name}: {error}"
        ) from error


def read_metadata(session):
    """The metadata of a file by `export_onnx`, a dict.

    Args:
        session: from `open_session`.

    Raises:
        ValueError: if another program wrote the file.
    """
    stored = session.get_modelmeta().custom_metadata_map
    if stored.get("format") != '"vfnet_tf ONNX"':
        raise ValueError(
            "`model` must be a file that `vfnet export --format onnx` wrote. "
            f"Received: one with the metadata {sorted(stored)}"
        )
    return {name: json.loads(text) for name, text in stored.items()}


class OnnxDetector:
    """An exported file with the methods of a detector that a `Predictor` needs.

    Args:
        model: path of a file by `export_onnx`, with or without NMS in it.
        num_threads: int; None leaves it to the runtime.

    Attributes:
        metadata: dict, see `read_metadata`.
        num_classes: int.
        score_threshold: float.
    """

    def __init__(self, model, num_threads=None):
        self.session = open_session(model, num_threads)
        self.metadata = read_metadata(self.session)
        self.num_classes = self.metadata["num_classes"]
        self.score_threshold = self.metadata["score_threshold"]
        self._outputs = [output.name for output in self.session.get_outputs()]

    def raw(self, images):
        """Predictions of all points, from a file without NMS.

        Args:
            images: float `[B, H, W, 3]`, normalised.

        Returns:
            dict by the outputs' names, see `export_onnx`.
        """
        return self._run({"images": images})

    def _run(self, inputs):
        inputs = {
            name: np.ascontiguousarray(value, "float32")
            for name, value in inputs.items()
        }
        results = self.session.run(self._outputs, inputs)
        return dict(zip(self._outputs, results, strict=True))

    def detect(self, images, image_size=None, scale=None, **overrides):
        """Detections after NMS. See `DenseDetector.detect`.

        Args:
            images: float `[B, H, W, 3]`, normalised.
            image_size, scale: `[B, 2]` or None, see there.
            **overrides: any of `SETTINGS`, for this call only; with NMS in the graph
                `score_threshold` and `nms_iou_threshold` only.

        Returns:
            dict of numpy arrays, see there.

        Raises:
            ValueError: for an override that the file does not allow, or out of range.
        """
        batch, *size = np.shape(images)[:3]
        if image_size is None:
            image_size = np.broadcast_to(np.asarray(size, "float32"), (batch, 2))
        scale = np.ones((batch, 2), "float32") if scale is None else scale
        has_nms = self.metadata["has_nms"]
        allowed = _SETTINGS_OF_THE_GRAPH if has_nms else SETTINGS
        unknown = sorted(set(overrides) - set(allowed))
        if unknown:
            raise ValueError(
                f"This file takes the settings {sorted(allowed)}. Received: {unknown}"
            )
        check_settings(**overrides)
        if has_nms:
            given = {name: [value] for name, value in overrides.items()}
            found = self._run(
                {"images": images, "image_size": image_size, "scale": scale, **given}
            )
            return {
                "boxes": found["detection_boxes"],
                "scores": found["detection_scores"],
                "labels": found["detection_classes"],
                "num_detections": found["num_detections"],
            }
        raw = self.raw(images)
        cells = self.metadata["anchors_per_cell"]
        settings = {
            **{name: self.metadata[name] for name in (*SETTINGS, "clip_margin")},
            "level_sizes": [
                -(-size[0] // stride) * -(-size[1] // stride) * cells
                for stride in self.metadata["strides"]
            ],
            **overrides,
        }
        return numpy_detection.detect(
            raw["boxes"],
            raw["scores"],
            raw.get("centerness"),
            image_size,
            scale,
            settings,
        )


class OnnxPredictor(RuntimePredictor):
    """A `Predictor` on an exported ONNX file, run by ONNX Runtime.

    Args:
        model: path of a file by `export_onnx`, with or without NMS in it.
        batch_size: int, images that go through the network at a time.
        num_threads: int; None leaves it to the runtime.

    >>> predictor = OnnxPredictor("model.onnx")  # doctest: +SKIP
    >>> found = predictor("smear.jpg", score_threshold=0.4)  # doctest: +SKIP
    """

    def __init__(self, model, *, batch_size=1, num_threads=None):
        super().__init__(OnnxDetector(model, num_threads), batch_size=batch_size)
