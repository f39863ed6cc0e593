"""Exported files pick the same boxes as `detect` if all scores are equal."""

import keras
import numpy as np
import pytest

from tests import contracts
from tests.conftest import build_two_levels
from vfnet_tf.export.litert import exporter as litert
from vfnet_tf.export.onnx import model as onnx_model
from vfnet_tf.inference.litert import LiteRTModel
from vfnet_tf.inference.onnx import OnnxDetector

pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra onnx)")
pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert (extra litert)")

SIZES = np.array([[64, 96], [60, 90]], "float32")


@pytest.fixture
def detector():
    """Every class of every point has the score 0.5; few of them become candidates."""
    keras.utils.set_random_seed(3)
    detector = build_two_levels()
    detector.score_threshold, detector.max_detections = 0.0, 5
    detector.candidates_per_level = 11
    conv = detector.head.class_predictor.conv
    conv.kernel.assign(np.zeros(conv.kernel.shape))
    conv.bias.assign(np.zeros(conv.bias.shape))
    return detector


def saved_model(detector, directory):
    import tensorflow as tf

    shapes = (None, None, None, 3), (None, 2), (None, 2)
    module = tf.Module()
    module.detector = detector
    module.detect = tf.function(
        lambda *inputs: detector.detect(*inputs),
        [tf.TensorSpec(shape) for shape in shapes],
        autograph=False,
    )
    tf.saved_model.save(module, str(directory / "saved"))
    loaded = tf.saved_model.load(str(directory / "saved"))
    return lambda *inputs: loaded.detect(*inputs)


def onnx(detector, directory, **settings):
    path = directory / "model.onnx"
    onnx_model.export_onnx(detector, path, overwrite=True, **settings)
    return OnnxDetector(path).detect


def lite(detector, directory):
    path = directory / "model.tflite"
    litert.export_litert(detector, path, image_size=(64, 96))
    return LiteRTModel(path).detect


def test_equal_scores_give_the_same_boxes_everywhere(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "compare", lambda *_: {})
    images = np.random.default_rng(1).normal(size=(2, 64, 96, 3)).astype("float32")
    scale = np.ones((2, 2), "float32")
    expected = contracts.to_numpy(detector.detect(images, SIZES, scale))
    # The limit cuts among equal scores: all classes of a box, two of the next.
    np.testing.assert_array_equal(expected["labels"], [[0, 1, 2, 0, 1]] * 2)
    files = {
        "SavedModel": saved_model(detector, tmp_path),
        "ONNX": onnx(detector, tmp_path),
        "ONNX with NMS": onnx(detector, tmp_path, nms_in_graph=True),
        "LiteRT": lite(detector, tmp_path),
    }
    for name, detect in files.items():
        found = {key: np.asarray(x) for key, x in detect(images, SIZES, scale).items()}
        for key in ("labels", "scores", "num_detections"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=name)
        np.testing.assert_allclose(
            found["boxes"], expected["boxes"], atol=1e-4, err_msg=name
        )
