import types

import numpy as np
import pytest

from tests import nms_cases

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from vfnet_tf.export.onnx import nms as onnx_nms
from vfnet_tf.export.onnx.graph import Graph
from vfnet_tf.inference.onnx import open_session


@pytest.mark.parametrize("name", nms_cases.CASES)
def test_edges_of_nms_by_hand(name):
    boxes, scores, iou_threshold, limit, expected = nms_cases.case(name)
    graph, count = Graph(), boxes.shape[1]
    given = {"boxes": boxes, "scores": scores}
    tensors = [graph.input(name, "float32", x.shape) for name, x in given.items()]
    found = onnx_nms.detect(
        graph,
        types.SimpleNamespace(clip_margin=0.0),
        {"candidates_per_level": count, "max_detections": limit},
        (*tensors, None, [np.array([count - 1]), np.array([1])]),
        np.full((1, 2), np.inf, "float32"),
        np.ones((1, 2), "float32"),
        [np.float32([value]) for value in (nms_cases.SCORE_THRESHOLD, iou_threshold)],
    )
    dtypes = {"detection_classes": "int32", "num_detections": "int32"}
    shapes = {"detection_boxes": (1, limit, 4), "num_detections": (1,)}
    for output, tensor in found.items():
        dtype = dtypes.get(output, "float32")
        graph.output(tensor, output, dtype, shapes.get(output, (1, limit)))
    model = graph.model("nms", {})
    found = open_session(model.SerializeToString()).run(list(found), given)
    names = ("boxes", "scores", "labels", "num_detections")
    nms_cases.check(dict(zip(names, found, strict=True)), expected)
